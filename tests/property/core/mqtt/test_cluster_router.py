"""Routers of three brokers, whose session partitions move with and without what was not committed, and whose connections break: what was published
to durable sessions is there once, in the order of its publisher."""

from collections import deque
from dataclasses import dataclass, field
from functools import partial

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.core.mqtt.cluster_router import DECLINED, REFUSED, ClusterRouter
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.origins import Origin
from headrace.core.mqtt.outward import WAIT_MS, Part
from headrace.core.mqtt.shard import Shard
from headrace.model.errors import HeadraceError
from tests.property.effort import effort
from tests.unit.core.mqtt.routers import BOUNDS, Client, sub

PARTITIONS = 3
BROKERS = 3
WALL_MS = 1_000_000
TOPICS = ("x", "x/y", "kept/a", "kept/b")
FILTERS = ("x", "#", "x/+", "$share/g/x", "$share/g/#")


@dataclass
class Came:
    """What became of the messages of one batch, to be said once it is committed."""

    durable: list[tuple[int, int]] = field(default_factory=list)
    declined: list[tuple[int, int]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


class Cluster:
    """``journals``: what is committed of each partition. A link is a queue; ``None`` in it: the conversation was begun anew."""

    def __init__(self) -> None:
        self.routers = [ClusterRouter(BOUNDS, PARTITIONS, shard_of) for _ in range(BROKERS)]
        self.journals: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.owners = [-1] * PARTITIONS
        self.epochs = [0] * PARTITIONS
        self.links: dict[tuple[int, int], deque[object]] = {(a, b): deque() for a in range(BROKERS) for b in range(BROKERS) if a != b}
        self.waiting: list[list[tuple[int, Came]]] = [[] for _ in range(BROKERS)]
        self.outcomes: dict[bytes, HeadraceError | None] = {}
        self.published: list[tuple[bytes, str]] = []
        self.fresh: set[int] = set()
        """Brokers that have published since they last committed."""
        self.holders: list[dict[int, tuple[int, int]]] = [{} for _ in range(BROKERS)]
        """Epoch and owner of each partition as other brokers have told each broker."""
        for number in range(PARTITIONS):
            self.move(number, number)

    # one broker's driver, as the gateway's is

    def flush(self, me: int) -> None:
        router = self.routers[me]
        for number, changes in router.own.take_news().items():
            self.tell(me, ("wants", number, self.epochs[number], False, changes))
        router.outward.release()
        for owner, parts in router.outward.flush(partial(self.serving, me)).items():
            if int(owner) == me:
                self.arrive(me, me, parts)
            else:
                self.links[me, int(owner)].append(("parts", parts))

    def serving(self, me: int, number: int) -> str:
        """Who serves a partition, as ``me`` knows it: the owner on record, if it has said so, though it may have done so in an older epoch."""
        owner = self.owners[number]
        return str(owner) if number in self.routers[me].led or self.holders[me].get(number, (0, -1))[1] == owner else ""

    def tell(self, me: int, what: object) -> None:
        for other in range(BROKERS):
            if other != me:
                self.links[me, other].append(what)

    def arrive(self, me: int, sender: int, parts: list[Part]) -> None:
        came = Came()
        for part in parts:
            target = (part.number, part.sequence, part.kind, part.group, part.after)
            (became,) = self.routers[me].arrived(f"life of {sender}", part.message, [target])
            if not part.sequence:
                continue
            if became == REFUSED:
                came.refused.append(part.number)
            elif became == DECLINED:
                came.declined.append((part.number, part.sequence))
            else:
                came.durable.append((part.number, part.sequence))
        self.waiting[me].append((sender, came))

    def commit(self, me: int) -> None:
        router = self.routers[me]
        for number in sorted(router.led):
            self.journals[number] += router.shards[number].take_journal()
        router.changed.clear()
        self.fresh.discard(me)
        waiting, self.waiting[me] = self.waiting[me], []
        for sender, came in waiting:
            if sender == me:
                self.back(me, me, came)
            else:
                self.links[me, sender].append(came)

    def back(self, me: int, owner: int, came: Came) -> None:
        router = self.routers[me]
        for number, sequence in came.declined:
            router.declined(str(owner), number, sequence)
        for number in came.refused:
            router.outward.refused(str(owner), number)
        for number, sequence in came.durable:
            router.outward.acked(str(owner), number, sequence)

    def take(self, sender: int, me: int) -> None:
        """The next that is on its way."""
        link = self.links[sender, me]
        if not link:
            return
        what = link.popleft()
        router = self.routers[me]
        if isinstance(what, Came):
            self.back(me, sender, what)
        elif what is None:
            router.outward.lost(str(sender))
            self.holders[me] = {number: held for number, held in self.holders[me].items() if held[1] != sender}
            for number in sorted(router.led):
                self.links[me, sender].append(("wants", number, self.epochs[number], True, dict(router.own.wants[number])))
        else:
            assert isinstance(what, tuple)
            if what[0] == "parts":
                self.arrive(me, sender, what[1])
            else:
                _, number, epoch, whole, _ = what
                if whole and epoch >= self.holders[me].get(number, (0, -1))[0]:
                    self.holders[me][number] = epoch, sender
                router.told(*what[1:])

    # what happens

    def move(self, number: int, to: int) -> None:
        """To another broker, or the same in a new epoch: what was not committed is gone."""
        self.give(number, to)
        self.lead(number)

    def give(self, number: int, to: int) -> None:
        """It is another broker's on record, which does not serve it yet."""
        old = self.owners[number]
        if old >= 0 and number in self.routers[old].led:
            if old in self.fresh:  # its own clients were not told that it has what they published: that is not the routers' affair
                self.commit(old)
            router = self.routers[old]
            router.drop(number)
            for _, came in self.waiting[old]:  # whether it is durable nobody knows
                if any(n == number for n, _ in came.durable):
                    came.durable = [(n, s) for n, s in came.durable if n != number]
                    came.refused.append(number)
        self.owners[number], self.epochs[number] = to, self.epochs[number] + 1

    def lead(self, number: int) -> None:
        """Its owner on record serves it from now on."""
        owner = self.owners[number]
        if number in self.routers[owner].led:
            return
        shard = Shard(number)
        for payload in self.journals[number]:
            shard.replay(payload)
        shard.check()
        self.routers[owner].lead(shard, WALL_MS, self.epochs[number])
        self.tell(owner, ("wants", number, self.epochs[number], True, dict(self.routers[owner].own.wants[number])))
        self.flush(owner)

    def step(self, what: str, a: int, b: int) -> None:
        """One of ``steps``, but for what is published."""
        if what == "take" and a != b:
            self.take(a, b)
        elif what == "flush":
            self.flush(a)
        elif what == "commit":
            self.commit(a)
        elif what == "move":
            self.move(a, b)
        elif what == "give":
            self.give(a, b)
        elif what == "lead":
            self.lead(a)
        elif what == "cut":
            self.cut(a, b)

    def cut(self, a: int, b: int) -> None:
        """Two brokers lose all that is on its way between them, and begin anew."""
        if a == b:
            return
        for me, other in ((a, b), (b, a)):
            self.links[me, other].clear()
            self.links[me, other].append(None)
            self.waiting[me] = [(sender, came) for sender, came in self.waiting[me] if sender != other]
            self.routers[me].outward.lost(str(other))

    def settle(self) -> None:
        """Everything is served; what is under way arrives, is committed and is acknowledged."""
        for number in range(PARTITIONS):
            self.lead(number)
        for _ in range(60):
            for me in range(BROKERS):
                self.flush(me)
                self.commit(me)
            for link in self.links:
                while self.links[link]:
                    self.take(*link)
        assert not any(router.outward.dirty or router.outward.nbytes for router in self.routers)

    def publish(self, me: int, topic: str, *, retain: bool) -> None:
        payload = b"%d" % len(self.published)
        self.published.append((payload, f"client of {me}"))
        message = Message(topic, payload, 1, retain, None, 0, f"client of {me}")
        router = self.routers[me]
        self.fresh.add(me)
        if retain:
            router.retain(message)
        router.publish(message, WALL_MS, lambda why: self.outcomes.setdefault(payload, why))

    def committed(self, number: int) -> Shard:
        shard = Shard(number)
        for payload in self.journals[number]:
            shard.replay(payload)
        return shard


def shard_of(key: str) -> int:
    return sum(key.encode()) % PARTITIONS


brokers = st.integers(0, BROKERS - 1)
steps = st.one_of(
    st.tuples(st.just("publish"), brokers, st.integers(0, len(TOPICS) - 1)),
    st.tuples(st.just("take"), brokers, brokers),
    st.tuples(st.just("flush"), brokers, brokers),
    st.tuples(st.just("commit"), brokers, brokers),
    st.tuples(st.just("move"), st.integers(0, PARTITIONS - 1), brokers),
    st.tuples(st.just("give"), st.integers(0, PARTITIONS - 1), brokers),
    st.tuples(st.just("lead"), st.integers(0, PARTITIONS - 1), brokers),
    st.tuples(st.just("cut"), brokers, brokers),
)


NEWER_FIRST: list[tuple[str, int, int]] = [
    ("publish", 0, 0), ("flush", 0, 0), ("move", 1, 2), ("take", 0, 1), ("move", 1, 1), ("publish", 0, 0), ("flush", 0, 0), ("take", 0, 1),
]  # fmt: skip
"""A partition is away when a message comes for it, and back when the next one does; that the first was refused is on its way."""
TOO_EARLY: list[tuple[str, int, int]] = [
    ("move", 1, 0), ("take", 0, 1), ("take", 0, 1), ("give", 1, 1), ("publish", 0, 0), ("flush", 0, 0), ("take", 0, 1), ("lead", 1, 0),
    ("publish", 0, 0), ("flush", 0, 0), ("take", 0, 1),
]  # fmt: skip
"""A partition is given back to a broker that has served it before, and is sent messages before it serves it again."""


@effort(150)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, len(FILTERS) - 1)), max_size=6, unique_by=lambda t: t[0]), st.lists(steps, max_size=60))
@example([(0, 1)], NEWER_FIRST)
@example([(0, 4)], NEWER_FIRST)
@example([(0, 4)], TOO_EARLY)
def test_what_is_published_is_there_once_and_in_order(subscribers: list[tuple[int, int]], script: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    wanted: dict[str, str] = {}
    for n, chosen in subscribers:
        name = f"s{n}"
        wanted[name] = FILTERS[chosen]
        router = cluster.routers[cluster.owners[shard_of(name)]]
        session, _ = router.connect(name, Client(), clean=False, expiry_s=100, will=None, receive_maximum=100, wall_ms=WALL_MS)
        router.subscribe(session, sub(FILTERS[chosen]))
        router.disconnected(session, with_will=False, wall_ms=WALL_MS)
    cluster.settle()
    topics: dict[bytes, str] = {}
    for what, a, b in script:
        if what == "publish":
            topics[b"%d" % len(cluster.published)] = TOPICS[b]
            cluster.publish(a, TOPICS[b], retain=TOPICS[b].startswith("kept"))
        else:
            cluster.step(what, a, b)
    cluster.settle()
    for router in cluster.routers:
        router.check()
    assert cluster.outcomes == {payload: None for payload, _ in cluster.published}
    shared: list[bytes] = []
    for name, filter in wanted.items():
        got = [d.message.payload for d in cluster.committed(shard_of(name)).sessions[name].inbox]
        if filter.startswith("$share"):
            shared += got if filter == "$share/g/#" else []
        elif filter == "#":
            assert sorted(got) == sorted(topics), "each once"
        for publisher in {by for _, by in cluster.published}:
            mine = [payload for payload, by in cluster.published if by == publisher]
            numbers = [int(payload) for payload in got if payload in mine]
            assert filter.startswith("$share") or numbers == sorted(numbers), "in order"
    if "$share/g/#" in wanted.values():
        assert sorted(shared) == sorted(topics), "each to one of the group"
    for topic in TOPICS:
        kept = cluster.committed(shard_of(topic)).retained
        sent = [payload for payload, t in topics.items() if t == topic]
        assert (topic in kept) is (topic.startswith("kept") and bool(sent))
        if topic in kept:
            assert kept[topic].payload in sent


class Sender:
    """A client of a broker that sends everything again that it was not told of, once something was given up; what has an odd number as QoS 2."""

    def __init__(self, cluster: Cluster, me: int) -> None:
        self.cluster = cluster
        self.me = me
        self.name = f"client of {me}"
        self.undone: dict[int, str] = {}
        self._attempt = 0
        self._failed = False

    def publish(self, number: int, topic: str) -> None:
        self.undone[number] = topic
        self._give(number)

    def late(self, now_ms: int) -> None:
        """What its broker waits for is given up if it is old."""
        self.cluster.routers[self.me].outward.expire(now_ms)
        if self._failed:
            self._failed = False
            for number in list(self.undone):
                self._give(number)

    def _give(self, number: int) -> None:
        message = Message(self.undone[number], b"%d" % number, 1 + number % 2, False, None, 0, self.name)
        if number % 2:
            message.origin = Origin(self.name, number, min(n for n in self.undone if n % 2))
        self.cluster.fresh.add(self.me)
        self.cluster.routers[self.me].publish(message, WALL_MS, partial(self._told, number, self._attempt))

    def _told(self, number: int, attempt: int, why: HeadraceError | None) -> None:
        if attempt == self._attempt and why is None:
            del self.undone[number]
        elif attempt == self._attempt:
            self._failed = True
            self._attempt += 1


talk = st.tuples(st.just("publish"), brokers, st.just(0))
waits = st.tuples(st.just("wait"), st.just(0), st.integers(1, 2))


@effort(150)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=6, unique_by=lambda t: t[0]),
    st.lists(st.one_of(talk, talk, waits, waits, steps), max_size=60),
)
@example([(1, 1)], [("publish", 0, 0), ("wait", 0, 1), ("publish", 0, 0), ("wait", 0, 1)])
def test_what_is_given_up_and_sent_again_is_there_in_order(subscribers: list[tuple[int, int]], script: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    wanted: dict[str, str] = {}
    for n, chosen in subscribers:
        name = f"s{n}"
        wanted[name] = FILTERS[chosen]
        router = cluster.routers[cluster.owners[shard_of(name)]]
        session, _ = router.connect(name, Client(), clean=False, expiry_s=100, will=None, receive_maximum=100, wall_ms=WALL_MS)
        router.subscribe(session, sub(FILTERS[chosen], 2))
        router.disconnected(session, with_will=False, wall_ms=WALL_MS)
    cluster.settle()
    senders = [Sender(cluster, me) for me in range(BROKERS)]
    clock = [0]
    for router in cluster.routers:
        router.now_ms = lambda: clock[0]
    by: dict[int, int] = {}
    for what, a, b in script:
        if what == "publish":
            number = len(by) + 1
            by[number] = a
            senders[a].publish(number, TOPICS[b % 2])
        elif what == "wait":
            clock[0] += b * WAIT_MS // 2
            for sender in senders:
                sender.late(clock[0])
        else:
            cluster.step(what, a, b)
    cluster.settle()
    assert not any(sender.undone for sender in senders)
    for name, filter in wanted.items():
        got = [int(d.message.payload) for d in cluster.committed(shard_of(name)).sessions[name].inbox]
        if filter == "#":
            assert set(got) == set(by), "each"
        assert len({n for n in got if n % 2}) == sum(n % 2 for n in got), "of QoS 2 once"
        for me in range(BROKERS):
            first = list(dict.fromkeys(n for n in got if by[n] == me))
            assert first == sorted(first), "in order"


class Mover:
    """A client at the owner of its session, which sends everything again to the next one that it was not told of."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.count = 0
        self.undone: dict[int, None] = {}
        self._attempt = 0

    def publish(self) -> None:
        self.count += 1
        self.undone[self.count] = None
        self._give(self.count)

    def moved(self) -> None:
        """What its last owner still says does not reach it."""
        self._attempt += 1
        for number in list(self.undone):
            self._give(number)

    def _give(self, number: int) -> None:
        message = Message("kept/a", b"%d" % number, 1, True, None, 0, "c")
        owner = self.cluster.owners[shard_of("c")]
        router = self.cluster.routers[owner]
        self.cluster.fresh.add(owner)
        assert router.retain(message) is None
        router.publish(message, WALL_MS, partial(self._told, number, self._attempt))

    def _told(self, number: int, attempt: int, why: HeadraceError | None) -> None:
        if attempt == self._attempt:
            assert why is None
            del self.undone[number]


assert shard_of("c") == 0 != shard_of("kept/a") == 1
OLD_LAST = [("publish", 0, 0), ("move", 0, 1), ("publish", 0, 0), ("flush", 1, 0), ("commit", 1, 0), ("flush", 0, 0), ("take", 0, 1)]
"""A publish waits at its first owner; the next one is given it again, and another one."""


@effort(150)
@given(st.lists(st.one_of(talk, talk, steps), max_size=60))
@example(OLD_LAST)
def test_what_is_retained_in_the_end_is_the_last_of_a_client_whose_session_moves(script: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    mover = Mover(cluster)
    for what, a, b in script:
        if what == "publish":
            mover.publish()
        elif what == "take" and a != b:
            cluster.take(a, b)
        elif what == "flush":
            cluster.flush(a)
        elif what == "commit":
            cluster.commit(a)
        elif what == "move":
            if cluster.owners[a] in cluster.fresh:
                cluster.commit(cluster.owners[a])
            cluster.move(a, b)
            if a == shard_of("c"):
                mover.moved()
        elif what == "cut":
            cluster.cut(a, b)
    cluster.settle()
    assert not mover.undone
    kept = cluster.committed(shard_of("kept/a")).retained
    assert [message.payload for message in kept.values()] == [b"%d" % mover.count] * (mover.count > 0)

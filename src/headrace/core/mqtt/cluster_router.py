"""A router of a broker in a cluster: some session partitions are its own, and come and go; the others are other brokers'.

Owns which shards are served here, what the others want, and what goes to them. Everything about its own is ``router``'s.

Invariants: L1 nothing is changed of a shard that is not served here: its place is held by an empty one. L2 a message of a shared subscription is with
one partition at a time, if need be once it is known who has members. L3 a retained message is kept by the owner of its topic's partition, which
orders them, but for what an earlier owner of its publisher's session still gives. L4 a will is not done before all other brokers that want it have
it. L5 who is told that it is connected is served by the owner of its session: something was journalled for it, also where there is nothing to keep.
L6 a message with an origin is taken once by each partition, for each of its shared subscriptions and as a retained one, whoever gives it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from headrace.core.mqtt.bounds import Bounds
from headrace.core.mqtt.capture import is_native
from headrace.core.mqtt.held import Moved
from headrace.core.mqtt.interests import AWAY, EVERYTHING, GONE, WANTED, Others, Own
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.ops import StoredWill
from headrace.core.mqtt.origins import RETAINED, Origin
from headrace.core.mqtt.outward import PLAIN, RETAIN, WAIT_MS, Outward, Pledge
from headrace.core.mqtt.router import Router, Stored
from headrace.core.mqtt.routes import Outlet, Remote, Route, Routes
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.shard import Shard
from headrace.core.mqtt.shared import Group
from headrace.core.mqtt.subscription import Subscription
from headrace.core.mqtt.topics import split_shared
from headrace.model.errors import HeadraceError, Unavailable, UnknownOutcome

SYS: Final = "$SYS/"
BACK_MS: Final = 10_000
"""So long the clients of a session partition that has moved, or of a broker that drains, have to come back before their wills are published."""
WILL_AGAIN_MS: Final = 1_000
"""When a session is looked at again that ends with its will."""
TAKEN: Final = 0
DECLINED: Final = 1
REFUSED: Final = 2
Target = tuple[int, int, int, str, int]
"""A partition, the message's number there (0 = none), its kind (``outward``), its group, and the number that it comes after."""


class ClusterGroup(Group):
    """With members elsewhere: they are known by their partition."""

    __slots__ = ("remotes",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.remotes: dict[int, int] = {}
        """State of each partition that has members, in the order in which their turn comes."""

    @property
    def empty(self) -> bool:
        return not self.members and not self.remotes

    @property
    def connected(self) -> bool:
        """Whether a member here has a connection."""
        return any(session.outlet is not None for session, _ in self.members.values())

    def elsewhere(self) -> int:
        """Partition that gets the next message, -1 = a member here does: those with a connection first, here before elsewhere if they have room."""
        room = any(s.outlet is not None and not s.inbox and len(s.in_flight) < s.receive_maximum for s, _ in self.members.values())
        if room or not self.remotes:
            return -1
        ready = next((number for number, state in self.remotes.items() if state == WANTED), -1)
        if ready < 0 and not self.members:
            ready = next(iter(self.remotes))
        if ready >= 0:
            self.remotes[ready] = self.remotes.pop(ready)
        return ready


class _Undecided:
    """A publish of which it is not known yet whether partitions that have told nothing have members of shared subscriptions that it matches."""

    __slots__ = ("given", "left", "message", "pledge", "since_ms")

    def __init__(self, message: Message, pledge: Pledge, given: set[str], left: set[int], now_ms: int) -> None:
        self.message = message
        self.pledge = pledge
        """Open until those partitions have the message, so that more places may be added."""
        self.given = given
        """Shared subscriptions that have it."""
        self.left = left
        self.since_ms = now_ms


class ClusterRouter(Router):
    """See the module's head."""

    def __init__(self, bounds: Bounds, count: int, shard_of: Callable[[str], int]) -> None:
        super().__init__(bounds, [Shard(number) for number in range(count)], shard_of)
        self.led: set[int] = set()
        """Numbers of the shards that are served here."""
        self.own = Own()
        self.others = Others()
        self.outward = Outward()
        self.now_ms: Callable[[], int] = lambda: 0
        """The monotonic clock of this turn; its owner's."""
        self.fetch: Callable[[Session, Subscription], None] = _nobody
        """Has the retained messages of other partitions brought to a new subscription; its owner's."""
        self.retained_now: list[set[str]] = []
        """For each subscription whose retained messages are being brought: topics of which newer ones were delivered meanwhile."""
        self._targets: list[tuple[int, int, str]] | None = None
        self._lasting = False
        """What is being published is a will: nobody can be told that it failed."""
        self.durable: Callable[[Callable[[], None], Callable[[], None]], None] = _at_once
        """Calls the first once all that has changed here is durable, the second if that will not be known of some of it; its owner's."""
        self._wills: dict[str, StoredWill] = {}
        """By client id: wills that are published and not done, as not everybody has them yet."""
        self._untold = set(range(count))
        """Partitions of which nothing was told yet."""
        self._undecided: deque[_Undecided] = deque()
        for number in range(count):
            self._heard(number, self.others.told(number, 0, True, EVERYTHING))

    def number_of(self, key: str) -> int:
        """Of the session partition that has a client id or a topic."""
        return self._shard_of(key)

    def serves(self, client_id: str) -> bool:
        return self._shard_of(client_id) in self.led

    # ------------------------------------------------------------ partitions come and go

    def lead(self, shard: Shard, wall_ms: int, epoch: int = 0) -> None:
        """A shard, as its journal has it, is served here from now on, in ``epoch``. The caller flushes ``outward`` before anything else is published:
        what waits for the shard comes before."""
        number = shard.number
        self._heard(number, [(filter, GONE) for filter in self.others.forget(number)])
        self.shards[number] = shard
        shard.epoch = epoch
        self.led.add(number)
        self.own.begin(number)
        self.outward.turn(number)
        for client_id, session in shard.sessions.items():
            if client_id in shard.unclosed or session.away_ms > wall_ms - BACK_MS:  # a broker that served it shortly may have closed it
                session.back_ms = wall_ms + BACK_MS
        self.recovered(wall_ms, [shard], back_ms=BACK_MS)
        self._learnt(number)

    def drop(self, number: int) -> None:
        """A shard is not served here any more: its connections go on elsewhere, and nothing is known of it but what it wanted."""
        shard = self.shards[number]
        self.changed.pop(number, None)
        wanted = dict(self.own.wants[number])
        for session in shard.sessions.values():
            for subscription in session.subscriptions.values():
                self._leave(session, subscription)
        self.own.end(number)
        self.shards[number] = Shard(number)
        self.led.discard(number)
        for topic in shard.retained:
            before = self.retained.remove(topic)
            assert before is not None
            self.retained_bytes -= before.nbytes
        self._heard(number, self.others.told(number, shard.epoch, True, wanted))
        for session in list(shard.sessions.values()):
            outlet, session.outlet = session.outlet, None
            if outlet is not None:
                outlet.moved()

    def told(self, number: int, epoch: int, whole: bool, changes: dict[str, int]) -> None:
        """What a partition wants that another broker serves."""
        if number not in self.led:
            if whole:
                self.outward.turn(number)
            self._heard(number, self.others.told(number, epoch, whole, changes))
            if whole:
                self._learnt(number)

    def _heard(self, number: int, changes: Iterable[tuple[str, int]]) -> None:
        for filter, state in changes:
            name, path = split_shared(filter)
            if not name:
                if state == GONE:
                    self.tree.remove(path, f"\2{number}")
                else:
                    self.tree.put(path, f"\2{number}", Remote(number))
                continue
            group = self.groups.get(filter)
            if group is None:
                if state == GONE:
                    continue
                group = self._found(filter, path)
            assert isinstance(group, ClusterGroup)
            if state != GONE:
                group.remotes[number] = state
            elif group.remotes.pop(number, None) is not None and group.empty:
                self._dissolve(filter, path)

    def _learnt(self, number: int) -> None:
        """It is known what a partition wants. Shared subscriptions that have members nowhere else get what was published before."""
        self._untold.discard(number)
        now_ms = self.now_ms()
        undecided = [one for one in self._undecided if one.pledge.lasting or now_ms - one.since_ms < WAIT_MS]
        for one in undecided:
            if number in one.left and one.pledge.open:
                one.left.discard(number)
                for group in self._routes_of(one.message.topic).groups:
                    assert isinstance(group, ClusterGroup)
                    if group.name not in one.given and (number in group.remotes or self._has(group.name, number)):
                        one.given.add(group.name)
                        self.again(group.name, one.message, one.pledge.more(), lasting=one.pledge.lasting)
        self._undecided = deque(one for one in undecided if one.left)

    # ------------------------------------------------------------ what is wanted here

    def make_group(self, name: str) -> Group:
        return ClusterGroup(name)

    def _enter(self, session: Session, subscription: Subscription) -> None:
        super()._enter(session, subscription)
        self._count(session, subscription, 1)

    def _leave(self, session: Session, subscription: Subscription) -> None:
        super()._leave(session, subscription)
        self._count(session, subscription, -1)

    def _count(self, session: Session, subscription: Subscription, change: int) -> None:
        if is_native(subscription.path):
            return
        number = session.number
        if subscription.group:
            self._regard(number, subscription.filter)
        else:
            self.own.count(number, subscription.path, change)

    def _regard(self, number: int, name: str) -> None:
        """Whether a partition has members of a shared subscription, and any with a connection."""
        group = self.groups.get(name)
        members = [] if group is None else [s for id, (s, _) in group.members.items() if self._shard_of(id) == number]
        state = WANTED if any(s.outlet is not None for s in members) else AWAY if members else GONE
        self.own.set(number, name, state)

    def connect(
        self, client_id: str, outlet: Outlet, *, clean: bool, expiry_s: int, will: StoredWill | None, receive_maximum: int, wall_ms: int
    ) -> tuple[Session, bool]:
        if will is not None:
            will = replace(will, number=self.shard(client_id).origin_number())
        found = super().connect(
            client_id, outlet, clean=clean, expiry_s=expiry_s, will=will, receive_maximum=receive_maximum, wall_ms=wall_ms
        )
        self._regard_all(found[0])
        shard = self.shard(client_id)
        shard.fence()
        self._touched(shard)
        return found

    def disconnected(self, session: Session, *, with_will: bool, wall_ms: int, expiry_s: int | None = None, back_ms: int = 0) -> None:
        super().disconnected(session, with_will=with_will, wall_ms=wall_ms, expiry_s=expiry_s, back_ms=back_ms)
        self._regard_all(session)

    def rebind(self, moved: Moved, outlet: Outlet, *, receive_maximum: int, wall_ms: int) -> Session | None:
        client_id = moved.client_id
        shard = self.shard(client_id)
        session = shard.sessions.get(client_id)
        if session is None or session.epoch != moved.epoch or session.outlet is not None or session.back_ms < wall_ms:
            return None
        if session.next_sequence < moved.sent:
            return None  # a forced election has lost what the client has
        session.back_ms = 0
        shard.open(client_id, session.expiry_s, anew=False, will=shard.wills.get(client_id), again=True)
        session.outlet = outlet
        session.receive_maximum = receive_maximum
        self._touched(shard)
        self._regard_all(session)
        return session

    def let_go(self, session: Session, wall_ms: int) -> None:
        self.disconnected(session, with_will=True, wall_ms=wall_ms, back_ms=BACK_MS)
        session.back_ms = wall_ms + BACK_MS

    def _regard_all(self, session: Session) -> None:
        for subscription in session.subscriptions.values():
            if subscription.group:
                self._regard(session.number, subscription.filter)

    # ------------------------------------------------------------ publishing

    def awaits(self, topic: str, retain: bool) -> bool:
        return super().awaits(topic, retain) or self.spreads(topic, retain)

    def spreads(self, topic: str, retain: bool) -> bool:
        routes = self._routes_of(topic)
        if routes.remotes or (retain and self._shard_of(topic) not in self.led and not is_native(topic)):
            return True
        return any(group.remotes for group in routes.groups if isinstance(group, ClusterGroup))

    def publish(self, message: Message, wall_ms: int, stored: Stored | None = None) -> int:
        topic = message.topic
        if topic.startswith(SYS):
            return self._here(message, wall_ms, None)  # of this broker, to its own clients
        routes = self._routes_of(topic)
        targets = [(number, PLAIN, "") for number in routes.remotes]
        if message.retain and not is_native(topic):
            if self._shard_of(topic) not in self.led:
                targets.append((self._shard_of(topic), RETAIN, ""))
            for seen in self.retained_now:
                seen.add(topic)
        pledge = Pledge(stored, lasting=self._lasting) if stored is not None else None
        self._targets = targets
        count = self._here(message, wall_ms, pledge.more() if pledge is not None and routes.captures else None)
        self._targets = None
        untold = self._untold.intersection(routes.remotes) if self._untold else None
        if untold and pledge is not None:
            self._undecided.append(_Undecided(message, pledge, {group.name for group in routes.groups}, untold, self.now_ms()))
        if targets:
            count += len(routes.remotes)
            self.outward.give(message, targets, pledge, self.now_ms())
        if pledge is not None:
            pledge.done()
        return count

    def _here(self, message: Message, wall_ms: int, stored: Stored | None) -> int:
        return super().publish(message, wall_ms, stored)

    def _untaken(self, routes: Routes, origin: Origin) -> Routes:
        numbers = dict.fromkeys(self._shard_of(route.session.client_id) for route in routes.routes)
        repeated = {number for number in numbers if self._repeated(number, origin, "")}
        fresh = [route for route in routes.routes if self._shard_of(route.session.client_id) not in repeated]
        return Routes(fresh, routes.groups, routes.captures, routes.remotes)

    def _repeated(self, number: int, origin: Origin, tag: str) -> bool:
        """Whether a partition has taken a message of that origin before; it has from now on."""
        shard = self.shards[number]
        known = shard.knows(origin, tag)
        if known:
            self.changed[number] = None  # what it caused the first time must be durable, too
        else:
            shard.meet(origin, tag)
        return known

    def _repeated_here(self, message: Message, group: str) -> bool:
        """Whether a member of any partition here has it already."""
        origin = message.origin
        if origin is None:
            return False
        return any(self.shards[number].knows(origin, group) and self._repeated(number, origin, group) for number in self.led)

    def _queue(self, session: Session, message: Message, qos: int, retain: bool, ids: tuple[int, ...], group: str) -> None:
        if message.origin is not None and group:
            self.shard(session.client_id).meet(message.origin, group)
        super()._queue(session, message, qos, retain, ids, group)

    def intends(self, session: Session) -> bool:
        return session.durable

    def _to_group(self, group: Group, message: Message) -> bool:
        assert isinstance(group, ClusterGroup)
        if self._repeated_here(message, group.name):
            return True
        number = group.elsewhere()
        if number < 0:
            return super()._to_group(group, message)
        if self._targets is not None:
            self._targets.append((number, PLAIN, group.name))
        else:
            self.outward.give(message, [(number, PLAIN, group.name)], None, self.now_ms())
        return True

    def again(self, name: str, message: Message, stored: Stored | None, *, lasting: bool = False) -> None:
        """A message of a shared subscription whose member elsewhere was gone, or that was not known: somebody else gets it, unless a member here has
        it from an earlier owner of its publisher's session. ``lasting`` as of its pledge."""
        group = self.groups.get(name)
        if group is not None and not self._repeated_here(message, name):
            assert isinstance(group, ClusterGroup)
            number = group.elsewhere()
            if number >= 0:
                pledge = Pledge(stored, lasting=lasting) if stored is not None else None
                self.outward.give(message, [(number, PLAIN, name)], pledge, self.now_ms())
                if pledge is not None:
                    pledge.done()
                return
            super()._to_group(group, message)
        if stored is not None:
            self.durable(lambda: stored(None), lambda: stored(UnknownOutcome("the session partition of a member has just moved")))

    def declined(self, owner: str, number: int, sequence: int) -> None:
        """Another broker has not taken a message: there is no member any more, or the session of who published it to be retained is served by a
        later owner than this one."""
        part = self.outward.declined(owner, number, sequence)
        if part is None:
            return
        if part.group:
            self.again(part.group, part.message, part.stored, lasting=part.lasting)
        elif part.stored is not None:
            part.stored(UnknownOutcome("the session of its publisher has moved"))

    def arrived(self, incarnation: str, message: Message, targets: Sequence[Target]) -> list[int]:
        """Takes a message that another broker has sent; what became of it for each target. Shards that must be durable before that is acknowledged
        are in ``changed``."""
        found: list[int] = []
        plain: dict[int, None] = {}
        for seen in self.retained_now if message.retain else ():
            seen.add(message.topic)
        for number, sequence, kind, group, after in targets:
            shard = self.shards[number]
            if number not in self.led:
                found.append(REFUSED)
                continue
            if group and not self._has(group, number):
                found.append(DECLINED)
                continue
            if kind == RETAIN and self._outdated(number, message):
                found.append(DECLINED)
                continue
            if sequence and not shard.has(incarnation, after):
                found.append(REFUSED)  # the one before was refused or declined, and would count as taken after this one
                continue
            found.append(TAKEN)
            if sequence and not shard.take(incarnation, sequence):
                self.changed[number] = None  # what it caused the first time must be durable, too
                continue
            if message.origin is not None and self._arrived_before(number, kind, group, message.origin):
                continue
            shard.source = (incarnation, sequence) if sequence else None
            if kind == RETAIN:
                self._retain(number, message)
                shard.source = None
            elif group:
                self._to_member(group, number, message)
                shard.source = None
            else:
                plain[number] = None
        if plain:
            self._to_sessions(message, plain)
        return found

    def _arrived_before(self, number: int, kind: int, group: str, origin: Origin) -> bool:
        """Another partition here may have given it to a member: it has not told its sender so, and may be somebody else's before that is durable."""
        return kind != RETAIN and self._repeated(number, origin, group)

    def _to_sessions(self, message: Message, numbers: dict[int, None]) -> None:
        for route in self._routes_of(message.topic).routes:
            session = route.session
            if session.number not in numbers:
                continue
            if not route.local and session.client_id == message.publisher:
                others = [s for s in route.subscriptions if not s.no_local]
                if not others:
                    continue
                route = Route(session, others)
            self._send(session, message, route.qos, message.retain and route.retain, route.ids, "")
        for number in numbers:
            self.shards[number].source = None

    def _has(self, name: str, number: int) -> bool:
        group = self.groups.get(name)
        return group is not None and any(self._shard_of(id) == number and (s.outlet is not None or s.durable) for id, (s, _) in group.members.items())

    def _to_member(self, name: str, number: int, message: Message) -> None:
        part = Group(name)
        group = self.groups[name]
        part.members = {id: member for id, member in group.members.items() if self._shard_of(id) == number}
        chosen = part.choose()
        assert chosen is not None
        session, subscription = chosen
        group.members[session.client_id] = group.members.pop(session.client_id)
        ids = (subscription.identifier,) if subscription.identifier else ()
        self._send(session, message, subscription.qos, message.retain and subscription.retain_as_published, ids, name)

    def _send(self, session: Session, message: Message, qos: int, retain: bool, ids: tuple[int, ...], group: str) -> None:
        if message.qos and qos:
            self._queue(session, message, min(message.qos, qos), retain, ids, group)
        elif session.outlet is not None:
            session.outlet.send(message, retain, ids)

    # ------------------------------------------------------------ wills

    def _publish_will(self, shard: Shard, client_id: str, wall_ms: int) -> None:
        """It is done once everybody has it: if this broker dies before, the next owner publishes it again; if a partition that has it here moves
        before that is durable, this one does."""
        will = shard.wills[client_id]
        if self._wills.get(client_id) is will:
            return
        self._wills[client_id] = will

        def everywhere() -> None:
            if self._wills.get(client_id) is will:
                del self._wills[client_id]
            if self.shards[shard.number] is not shard or shard.wills.get(client_id) is not will:
                return  # it is another owner's, or the client is back
            shard.will_done(client_id)
            self._touched(shard)
            session = shard.sessions[client_id]
            if session.outlet is None and not session.durable:
                self._end(shard, session, wall_ms)

        left = 2

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                everywhere()

        def again() -> None:
            if self._wills.get(client_id) is will:
                del self._wills[client_id]
                self._wake_at(shard.wills_due.get(client_id, 0), client_id)  # long since

        self._lasting = True
        self._give_will(will, wall_ms, lambda _: self.durable(one, again))
        self._lasting = False
        self.durable(one, again)  # what is queued here

    def _end(self, shard: Shard, session: Session, wall_ms: int) -> None:
        super()._end(shard, session, wall_ms)
        shard.will_done(session.client_id)  # if it was not yet: who ends it does not wait

    def _over(self, shard: Shard, session: Session, wall_ms: int) -> None:
        client_id = session.client_id
        if client_id in shard.wills_due:
            self._publish_will(shard, client_id, wall_ms)
        if client_id in shard.wills:
            self._wake_at(wall_ms + WILL_AGAIN_MS, client_id)  # it ends with its will
        elif shard.sessions.get(client_id) is session:
            self._end(shard, session, wall_ms)

    # ------------------------------------------------------------ retained messages

    def retain(self, message: Message) -> HeadraceError | None:
        """As ``Router.retain``; not either where a later owner of its publisher's session was heard of."""
        number = self._shard_of(message.topic)
        if message.publisher:
            message.epoch = self.shard(message.publisher).epoch
        if number in self.led:
            if self._outdated(number, message):
                return Unavailable("another broker has the session of the publisher by now; publish it again there")
            return self._retain(number, message)
        return None  # ``publish`` has its owner do it

    def _outdated(self, number: int, message: Message) -> bool:
        """Whether a later owner of its publisher's session has given something to be retained: what waited at an earlier one, or at one that does not
        know yet that it has lost the session, would replace what the client has published since."""
        shard = self.shards[number]
        outdated = shard.outdated(self._shard_of(message.publisher), message.epoch)
        self._touched(shard)
        return outdated

    def _retain(self, number: int, message: Message) -> HeadraceError | None:
        repeated = message.origin is not None and self._repeated(number, message.origin, RETAINED)
        return None if repeated else super().retain(message)

    def send_retained(self, session: Session, subscription: Subscription, wall_ms: int) -> None:
        super().send_retained(session, subscription, wall_ms)
        if not subscription.group:
            self.fetch(session, subscription)

    def check(self) -> None:
        super().check()
        self.outward.check()
        for number, shard in enumerate(self.shards):
            assert number in self.led or not shard.sessions, "L1"


def _at_once(then: Callable[[], None], unsure: Callable[[], None]) -> None:
    then()


def _nobody(session: Session, subscription: Subscription) -> None:
    pass

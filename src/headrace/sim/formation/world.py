"""The small world: brokers with one formation each, their disks, the network between them, the consensus store, time.

Owns the order of everything, from one seed. Decides nothing for the machines.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from headrace.core.formation import effects, recovering
from headrace.core.formation.books import Found
from headrace.core.formation.effects import AnyEffect, StartConsensus, State
from headrace.core.formation.machine import Formation
from headrace.core.formation.records import Charter, Directory, Record, Records, decode, encode
from headrace.model.formation import Declared
from headrace.sim.chance import Chance
from headrace.sim.formation.checks import Checks
from headrace.sim.formation.store import Entry, Member, Store
from headrace.sim.formation.violation import Violation

EVENTS_MAX = 400_000


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How bad the network and the disks are."""

    loss: float = 0.0
    doubled: float = 0.0
    delay_ms_max: int = 5
    late: float = 0.0
    """Probability that a message takes up to 20 seconds."""
    sync_ms_max: int = 5
    answer_lost: float = 0.0
    """Of the coordinator, the request being carried out all the same."""


class Broker:
    """A directory and, while it runs, a formation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records = Records()
        self.member: Member | None = None
        self.data = ""
        """The cluster whose data lie here."""
        self.aside: list[str] = []
        self.life = 0
        self.formation: Formation | None = None
        self.followed: effects.Follow | None = None
        self.configured: Declared | None = None
        self.mistakes: tuple[str, ...] = ()
        self.coordinated = True
        self.wake_ms = -1
        self.exited = ""
        self.alarms: dict[str, str] = {}
        self.polled = False

    @property
    def up(self) -> bool:
        return self.formation is not None

    @property
    def state(self) -> State:
        assert self.formation is not None
        return self.formation.standing.state

    @property
    def code(self) -> str:
        assert self.formation is not None
        return self.formation.standing.code


class World:
    """See the module's head."""

    def __init__(self, seed: int, names: Sequence[str], weather: Weather | None = None) -> None:
        chance = Chance(seed, "formation")
        self._net, self._disk, self._ids = chance.fork("net"), chance.fork("disk"), chance.fork("ids")
        self.chance = chance.fork("world")
        self.weather = weather or Weather()
        self.now_ms = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = self.events = 0
        self.brokers = {name: Broker(name) for name in names}
        self.cuts: set[tuple[str, str]] = set()
        self.store = Store(lambda: [b.member for b in self.brokers.values() if b.member is not None], self.linked)
        self.checks = Checks(self.store)
        self.trace: list[str] | None = None
        self._lives: dict[str, int] = {}
        """Number of each life by the name that it goes by in greetings."""
        self.on_effect: Callable[[Broker, AnyEffect], bool] | None = None
        """May end the broker before an effect: True = it did."""

    # ------------------------------------------------------------ time

    def at(self, delay_ms: int, call: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._sequence, call, args))

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now_ms:7} {text}")

    def run(self, for_ms: int) -> None:
        end_ms = self.now_ms + for_ms
        heap = self._heap
        while heap and heap[0][0] <= end_ms:
            self.now_ms, _, call, args = heapq.heappop(heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise Violation("bounded", f"{self.events} events in {self.now_ms} ms")
            call(*args)
        self.now_ms = end_ms
        self.checks.ledger()

    def until(self, condition: Callable[[], bool], for_ms: int = 60_000, step_ms: int = 500) -> bool:
        end_ms = self.now_ms + for_ms
        while not condition():
            if self.now_ms >= end_ms:
                return False
            self.run(step_ms)
        return True

    # ------------------------------------------------------------ network

    def linked(self, one: str, other: str) -> bool:
        return (one, other) not in self.cuts and (other, one) not in self.cuts

    def cut(self, one: Sequence[str], other: Sequence[str]) -> None:
        self.cuts.update((a, b) for a in one for b in other)
        self.say(f"cut {one} from {other}")

    def heal(self) -> None:
        self.cuts.clear()

    def _send(self, broker: Broker, effect: effects.Send) -> None:
        self.checks.says(broker.name, effect.message, broker.records)
        to = self.brokers.get(effect.to)
        weather = self.weather
        if to is None or not self.linked(broker.name, effect.to) or self._net.happens(weather.loss):
            return
        for _ in range(2 if self._net.happens(weather.doubled) else 1):
            delay_ms = self._net.randrange(1, weather.delay_ms_max + 1)
            if self._net.happens(weather.late):
                delay_ms = self._net.randrange(100, 20_000)
            self.at(delay_ms, self._arrive, broker.name, to, effect.message)

    def _arrive(self, sender: str, to: Broker, message: Any) -> None:
        if to.formation is not None and self.linked(sender, to.name):
            to.formation.heard(sender, message, self.now_ms)
            hello = to.formation._books.peers.known(sender)
            if hello is not None:
                self.checks.believes(to.name, to.life, sender, self._lives[hello.boot])
            self.pump(to)

    # ------------------------------------------------------------ brokers

    def start(self, name: str) -> None:
        broker = self.brokers[name]
        if broker.up:
            return
        broker.life += 1
        broker.followed = None
        broker.wake_ms = -1
        broker.exited = ""
        broker.alarms = {}
        self.say(f"{name} starts, life {broker.life}")
        found = Found(
            name=name,
            address=f"{name}:7582",
            records=broker.records,
            has_data=bool(broker.data) or broker.records.identity is not None,
            consensus_seat=broker.member.seat if broker.member is not None else 0,
            coordinated=broker.coordinated,
            configured=broker.configured,
            mistakes=broker.mistakes,
            entropy=self._ids.randbytes(16),
        )
        broker.formation = Formation(found, self.now_ms)
        self._lives[broker.formation._books.peers.boot] = broker.life
        self.at(self._net.randrange(1, 200), self._poll, broker, broker.life)
        self.pump(broker)

    def stop(self, name: str) -> None:
        """kill -9: what is not durable is lost, or not."""
        broker = self.brokers[name]
        if not broker.up:
            return
        formation = broker.formation
        assert formation is not None
        pending = formation._books.storing
        broker.formation = None
        broker.life += 1
        if broker.member is not None:
            broker.member.running = False
        if pending is not None and self._disk.happens(0.5):
            self._durable(broker, pending)
        self.say(f"{name} is killed")

    def wipe(self, name: str, *, keep_outside: bool = False) -> None:
        """A stopped broker's machine loses its directory."""
        broker = self.brokers[name]
        assert not broker.up
        identity = broker.records.identity
        if identity is not None:
            self.checks.wiped.add(identity.incarnation)
            self.checks.lost.add(identity.incarnation)
        broker.records = broker.records.without_data() if keep_outside else Records()
        broker.member = None
        broker.data = ""
        self.say(f"{name} is wiped")

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def feed(self, name: str, config: Declared) -> effects.Answer:
        broker = self.brokers[name]
        assert broker.formation is not None
        self.checks.fed.append(config)
        answer = broker.formation.fed(config, self.now_ms)
        self.say(f"{name} is fed version {config.version}: {answer.verdict.value} {answer.reason}")
        self.pump(broker)
        return answer

    def recover(self, name: str) -> None:
        """The offline command on a survivor."""
        broker = self.brokers[name]
        assert not broker.up
        identity = broker.records.identity
        assert identity is not None
        self.checks.recovered.add(identity.cluster_id)
        outcome = recovering.recover(broker.records, name=name, address=f"{name}:7582", confirm=identity.cluster_id, entropy=self._ids.randbytes(16))
        assert outcome.records, outcome.refusal
        for record in outcome.records:
            broker.records = broker.records.stored(record)
        broker.data = outcome.cluster_id
        if broker.member is not None:
            broker.member.token = outcome.cluster_id

    # ------------------------------------------------------------ effects

    def pump(self, broker: Broker) -> None:
        """Does what the machine asks for."""
        formation = broker.formation
        if formation is None:
            return
        while out := formation.take():
            for effect in out:
                if self.on_effect is not None and self.on_effect(broker, effect):
                    return
                _DO[type(effect)](self, broker, effect)
                if broker.formation is not formation:
                    return
        formation.check()
        due = formation.next_deadline_ms()
        if broker.wake_ms <= self.now_ms or due < broker.wake_ms:
            broker.wake_ms = max(due, self.now_ms + 1)
            self.at(broker.wake_ms - self.now_ms, self._wake, broker, broker.life, broker.wake_ms)

    def _wake(self, broker: Broker, life: int, wake_ms: int) -> None:
        if broker.life == life and broker.formation is not None and broker.wake_ms == wake_ms:
            broker.formation.tick(self.now_ms)
            self.pump(broker)

    def _store(self, broker: Broker, effect: effects.Store) -> None:
        self.at(self._disk.randrange(1, self.weather.sync_ms_max + 1), self._stored, broker, broker.life, effect.record)

    def _stored(self, broker: Broker, life: int, record: Record) -> None:
        if broker.life == life and broker.formation is not None and broker.formation._books.storing == record:
            self._durable(broker, record)
            broker.formation.stored(record, self.now_ms)
            self.pump(broker)

    def _durable(self, broker: Broker, record: Record) -> None:
        before = broker.records.identity
        assert decode(encode(record)) == record
        broker.records = broker.records.stored(record)
        self.checks.durable(broker.name, record, broker.records)
        identity = broker.records.identity
        if before is not None and identity is not None and before.incarnation != identity.incarnation:
            self.checks.wiped.add(before.incarnation)
        if identity is not None and (identity.formed or identity.standalone):
            broker.data = identity.cluster_id

    def _aside(self, broker: Broker, effect: effects.SetAside) -> None:
        identity = broker.records.identity
        self.checks.sets_aside(broker.name, effect, identity is not None and identity.standalone)
        if broker.member is not None:
            broker.member.running = False
        self.at(self._disk.randrange(1, 50), self._set_aside, broker, broker.life, effect.id)

    def _set_aside(self, broker: Broker, life: int, id: str) -> None:
        if broker.life != life or broker.formation is None:
            return
        if broker.records.identity is not None and broker.records.aside is not None and broker.records.identity.aside != id:
            self.checks.wiped.add(broker.records.identity.incarnation)
            if broker.data:
                broker.aside.append(broker.data)
            broker.records = broker.records.without_data()
            broker.member = None
            broker.data = ""
            self.say(f"{broker.name} has set its data aside")
        broker.formation.set_aside(id, self.now_ms)
        self.pump(broker)

    def _start_consensus(self, broker: Broker, effect: StartConsensus) -> None:
        self.checks.starts(broker.name, effect, broker.records, broker.member)
        self.say(f"{broker.name} starts its member: {effect.mode} {effect.token[:6]} seat {effect.seat}")
        member = broker.member
        if effect.mode == "new" or (effect.mode == "existing" and member is None):
            log: list[Entry] = [tuple(effects.ConsensusMember(n, s, False, True) for n, s, _ in effect.initial)]
            broker.member = Member(broker.name, effect, log)
        elif effect.mode == "join":
            broker.member = Member(broker.name, effect, [])
        elif effect.mode == "alone":
            assert member is not None
            if effect.token not in self.store.ledgers:
                member.log = [*member.log, (effects.ConsensusMember(broker.name, effect.seat, False, True),)]
                self.store.ledgers[effect.token] = list(member.log)
            member.token, member.running = effect.token, True
        else:
            assert member is not None
            member.running = True
        self._soon(broker)

    def _stop_consensus(self, broker: Broker, effect: effects.StopConsensus) -> None:
        if broker.member is not None:
            broker.member.running = False
            if effect.drop:
                broker.member = None
        self.say(f"{broker.name} stops its member: {effect.reason}")

    def _follow(self, broker: Broker, effect: effects.Follow) -> None:
        broker.followed = effect
        self._soon(broker)

    def _token(self, broker: Broker) -> str:
        if broker.member is not None and broker.member.running:
            return broker.member.token
        return broker.followed.cluster_id if broker.followed is not None else ""

    def _request(self, broker: Broker, effect: Any) -> None:
        if isinstance(effect, effects.Promote):
            self.checks.promotes(broker.name, self._token(broker), effect.name, effect.seat)
        self.at(self._net.randrange(1, 30), self._carry_out, broker, broker.life, effect)

    def _carry_out(self, broker: Broker, life: int, effect: Any) -> None:
        if broker.life != life:
            return
        token, store = self._token(broker), self.store
        if isinstance(effect, effects.Commit):
            fault = store.commit(token, broker.name, effect.expected, effect.charter)
            self.say(f"{broker.name} commits revision {effect.charter.revision} version {effect.charter.config.version}: {fault or 'done'}")
        elif isinstance(effect, effects.AddLearner):
            fault = store.add(token, broker.name, effect.name, effect.seat)
        elif isinstance(effect, effects.Promote):
            fault = store.promote(token, broker.name, effect.name, effect.seat)
        else:
            fault = store.remove(token, broker.name, effect.name, effect.seat)
        if not isinstance(effect, effects.Commit):
            self.say(f"{broker.name}: {type(effect).__name__} {effect.name} {effect.seat}: {fault or 'done'}")
        if not self._net.happens(self.weather.answer_lost):
            self.at(self._net.randrange(1, 30), self._answer, broker, life, effect.number, fault)
        if not fault:
            for other in self.brokers.values():
                if other.up and self._token(other) == token:
                    self._soon(other)

    def _answer(self, broker: Broker, life: int, number: int, fault: str) -> None:
        if broker.life == life and broker.formation is not None:
            broker.formation.answered(number, self.now_ms, fault=fault)
            self.pump(broker)

    def _soon(self, broker: Broker) -> None:
        if not broker.polled:
            broker.polled = True
            self.at(self._net.randrange(1, 60), self._look, broker, broker.life)

    def _poll(self, broker: Broker, life: int) -> None:
        if broker.life == life and broker.formation is not None:
            self._look(broker, life)
            self.at(self._net.randrange(600, 1000), self._poll, broker, life)

    def _look(self, broker: Broker, life: int) -> None:
        broker.polled = False
        if broker.life != life or broker.formation is None:
            return
        token = self._token(broker)
        if not token:
            return
        member = broker.member if broker.member is not None and broker.member.running else None
        seen, charter = self.store.seen(token, broker.name, member)
        if seen.caught_up and member is not None:
            self.checks.caught_up(token, broker.name, member.seat)
        broker.formation.consensus(seen, self.now_ms)
        if seen.leader:
            broker.formation.committed(charter, self.now_ms)
        self.pump(broker)

    def _drain(self, broker: Broker, effect: effects.Drain) -> None:
        if not effect.names:
            return
        self.at(self._net.randrange(50, 2000), self._drained, broker, broker.life, effect.names)

    def _drained(self, broker: Broker, life: int, names: tuple[str, ...]) -> None:
        if broker.life == life and broker.formation is not None:
            broker.formation.drained(names, self.now_ms)
            self.pump(broker)

    def _changed(self, broker: Broker, effect: effects.Changed) -> None:
        self.say(f"{broker.name}: {effect.now.state.value} ({effect.now.code}): {effect.now.reason}; on {', '.join(effect.now.on)}")

    def _alarm(self, broker: Broker, effect: effects.Alarm) -> None:
        self.say(f"{broker.name} alarm {effect.key}: {effect.reason}")
        if effect.reason:
            broker.alarms[effect.key] = effect.reason
        else:
            broker.alarms.pop(effect.key, None)

    def _exit(self, broker: Broker, effect: effects.Exit) -> None:
        broker.exited = effect.reason

    # ------------------------------------------------------------ looking

    def cluster(self, name: str) -> str:
        identity = self.brokers[name].records.identity
        return identity.cluster_id if identity is not None and identity.formed else ""

    def charter(self, token: str) -> Charter | None:
        return next((e for e in reversed(self.store.ledgers.get(token, [])) if isinstance(e, Charter)), None)

    def incarnation(self, name: str) -> Directory:
        identity = self.brokers[name].records.identity
        return identity.incarnation if identity is not None else Directory("")

    def active(self, *names: str) -> bool:
        """Whether they all serve in one cluster that is as its config says."""
        clusters = {self.cluster(n) for n in names}
        if len(clusters) != 1 or "" in clusters:
            return False
        return all(b.up and b.state is State.ACTIVE and b.code in ("serving", "standalone") for b in (self.brokers[n] for n in names))

    def steady(self, *names: str) -> bool:
        """``active``, and nothing is left to do."""
        if not self.active(*names):
            return False
        return not any(f.plan() for n in names if (f := self.brokers[n].formation) is not None and f.view()["leader"] == n)


_DO: dict[type, Callable[[World, Broker, Any], None]] = {
    effects.Send: World._send,
    effects.Store: World._store,
    effects.StartConsensus: World._start_consensus,
    effects.StopConsensus: World._stop_consensus,
    effects.Follow: World._follow,
    effects.AddLearner: World._request,
    effects.Promote: World._request,
    effects.Remove: World._request,
    effects.Commit: World._request,
    effects.Drain: World._drain,
    effects.SetAside: World._aside,
    effects.Changed: World._changed,
    effects.Alarm: World._alarm,
    effects.Exit: World._exit,
}

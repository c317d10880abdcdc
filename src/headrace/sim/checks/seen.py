"""A finished history with its indexes: who saw what of each place, where copies of a message may rightly be, what may rightly have removed it.

A *place* is (name, partition, offset). A name that was deleted and declared again gives offsets out anew, so what its places held cannot be told
apart: such a name is *volatile* and left out by most checks, and so are partitions that damage or a repair concerns. Decides nothing.
"""

from bisect import bisect_left
from collections.abc import Sequence, Set
from typing import Final, NamedTuple

from headrace.model.specs import QueueSpec, Spec, StreamSpec
from headrace.sim.history import CONFIRMED, REFUSED, Arrival, Attached, Delivery, History, Publish, Read, Settle, Verb
from headrace.wire.frames import Level

Place = tuple[str, int, int]
LOCAL: Final = int(Level.LOCAL)
TERMINAL: Final = ("ack", "reject", "drop")


class Violation(NamedTuple):
    """A broken promise, in words that name messages, places and times."""

    invariant: str
    text: str


class Seen:
    """See the module's head. ``jumped``: whether a broker's wall clock was ever set; ``life``: the incarnation that serves at the end; ``lives``:
    when each incarnation began to start and when it was killed (infinite = never); ``cut``: whether a link was ever cut, so that one side alone may
    have lost patience."""

    def __init__(
        self, history: History, *, damage: Set[tuple[str, int]] | None = None, jumped: bool = False, life: int = 0,
        lives: Sequence[tuple[float, float]] = (), cut: bool = False,
    ) -> None:
        self.history = history
        self.damage = frozenset(damage or ())
        self.jumped = jumped
        self.life = life
        self.end = history.finished if history.finished is not None else float("inf")
        self.emptied = history.emptied if history.emptied is not None else self.end
        """When every queue was empty: what was there then had no later chance to expire."""
        self.lives = tuple(sorted(lives))
        self.cut = cut
        self.publishes = history.publishes
        self.attached: dict[int, Attached] = {a.number: a for a in history.attached}
        self.specs: dict[str, list[Spec]] = {name: [spec for _, spec in rows] for name, rows in history.specs.items()}
        self.volatile = {v.name: None for v in history.verbs if v.verb == "recreate" and v.outcome != REFUSED}
        self.damaged_names = {name: None for name, _ in sorted(self.damage)}
        self.deliveries: dict[Place, list[Delivery]] = {}
        self.arrivals: dict[Place, list[Arrival]] = {}
        self.arrival_order: dict[Arrival, int] = {}
        self.settles: dict[Place, list[Settle]] = {}
        self.copies: dict[int, dict[Place, None]] = {}
        """Where each message was seen or confirmed to be."""
        self.stored: dict[int, None] = {}
        """Messages that are certain to have been durable in a queue: confirmed, or delivered from one."""
        self._index()
        self._reach = {name: self._reachable(name) for name in self.specs}
        self._breaks: dict[str, list[float]] = {}
        self._connects: dict[str, list[float]] = {}
        for link in history.links:
            if not link.up:
                self._breaks.setdefault(link.client, []).append(link.at)
            else:
                self._connects.setdefault(link.client, []).append(link.at)
        self._all_breaks = sorted(at for ats in self._breaks.values() for at in ats)

    def _index(self) -> None:
        for delivery in self.history.deliveries:
            place = (delivery.name, delivery.partition, delivery.offset)
            self.deliveries.setdefault(place, []).append(delivery)
            self.copies.setdefault(delivery.id, {})[place] = None
            self.stored[delivery.id] = None
        for number, arrival in enumerate(self.history.arrivals):
            self.arrival_order[arrival] = number
            for offset in range(arrival.first, arrival.first + arrival.count):
                self.arrivals.setdefault((arrival.name, arrival.partition, offset), []).append(arrival)
        for settle in self.history.settles:
            self.settles.setdefault((settle.name, settle.partition, settle.offset), []).append(settle)
        for publish in self.publishes.values():
            if publish.outcome == CONFIRMED and publish.offset >= 0:
                self.copies.setdefault(publish.id, {})[publish.name, publish.partition, publish.offset] = None
                if self.kept(publish) and self.is_queue(publish.name):
                    self.stored[publish.id] = None

    # ------------------------------------------------------------ names

    def is_queue(self, name: str) -> bool:
        return isinstance(self.specs.get(name, [None])[-1], QueueSpec)

    def queue_specs(self, name: str) -> list[QueueSpec]:
        """All settings a queue may have had."""
        return [spec for spec in self.specs.get(name, ()) if isinstance(spec, QueueSpec)]

    def stream_specs(self, name: str) -> list[StreamSpec]:
        return [spec for spec in self.specs.get(name, ()) if isinstance(spec, StreamSpec)]

    def sound(self, name: str, partition: int) -> bool:
        """Whether its places can be told apart and no damage concerns them."""
        return name not in self.volatile and (name, partition) not in self.damage

    def verbs(self, name: str, *verbs: str) -> list[Verb]:
        """Those that may have been carried out."""
        return [v for v in self.history.verbs if v.name == name and v.verb in verbs and v.outcome != REFUSED]

    def reach(self, name: str) -> Sequence[str]:
        """Where messages published to ``name`` may be: there, among its dead letters, and where these and it were moved."""
        return self._reach.get(name, (name,))

    def _reachable(self, origin: str) -> list[str]:
        found, at = [origin], 0
        while at < len(found):
            name = found[at]
            at += 1
            nexts = [spec.dead_letter for spec in self.queue_specs(name) if spec.dead_letter]
            nexts += [v.what for v in self.verbs(name, "move")]
            if self.verbs(name, "redrive"):
                nexts += [origin, *(other for other in self.specs if any(spec.dead_letter == name for spec in self.queue_specs(other)))]
            found += [n for i, n in enumerate(nexts) if n not in found and n not in nexts[:i]]
        return found

    def target(self, name: str) -> bool:
        """Whether messages may arrive in ``name`` otherwise than by a publish."""
        if any(verb.what[1] for verb in self.verbs(name, "repartition")):  # forced, it moves what is left
            return True
        return any(
            v.what == name or v.verb == "redrive" for v in self.history.verbs if v.verb in ("move", "redrive") and v.outcome != REFUSED
        ) or any(spec.dead_letter == name for specs in self.specs.values() for spec in specs if isinstance(spec, QueueSpec))

    # ------------------------------------------------------------ messages

    def kept(self, publish: Publish) -> bool:
        """Whether its confirm promises that it is there now: durable, or accepted by a broker that has not died since."""
        return publish.outcome == CONFIRMED and (publish.promised >= LOCAL or (publish.promised == 1 and publish.broker_life == self.life))

    def broken_between(self, client: str, start: float, end: float) -> bool:
        """Whether that client lost its connection in that time."""
        return _any_in(self._breaks.get(client, []), start, end)

    def without_link(self, client: str, at: float) -> bool:
        """Whether that client had lost its connection and had no new one then."""
        connects = self._connects.get(client, [])
        last = bisect_left(connects, at)
        return self.broken_between(client, connects[last - 1] if last else 0.0, at)

    def last_break(self, client: str, end: float) -> float:
        """When that client lost its connection last before that time (0 = never)."""
        breaks = self._breaks.get(client, [])
        at = bisect_left(breaks, end)
        return breaks[at - 1] if at else 0.0

    def breaks(self, client: str, start: float, end: float) -> int:
        """How often that client lost its connection from ``start`` on, before ``end``."""
        return sum(1 for at in self._breaks.get(client, []) if start <= at < end)

    def any_broken(self, start: float, end: float) -> bool:
        """Whether any client did."""
        return _any_in(self._all_breaks, start, end)

    def client_of(self, consumer: int) -> str:
        found = self.attached.get(consumer)
        return found.client if found is not None else ""

    def too_late(self, settle: Settle) -> bool:
        """Whether the lease was certainly lost when the settlement was sent: a later attempt had arrived elsewhere. (A consumer that was granted it
        again settles that lease, whichever delivery it means.)"""
        place = (settle.name, settle.partition, settle.offset)
        # counts that were not durable start again from lower ones after a restart: only those of its own epoch or later ones are later
        mine = [d.epoch for d in self.deliveries.get(place, ()) if (d.consumer, d.attempt) == (settle.consumer, settle.attempt)]
        later = [a for a in self.arrivals.get(place, ()) if a.attempt > settle.attempt and a.epoch >= max(mine, default=0)]
        return any(a.at <= settle.at for a in later) and all(a.consumer != settle.consumer for a in later)

    def may_have_settled(self, settle: Settle) -> bool:
        """Whether it may have taken effect."""
        if settle.result == "done":
            return True
        if settle.result == "stale":
            # the first answer may have been lost with the connection, the repeated settlement is then too late
            return self.broken_between(self.client_of(settle.consumer), settle.at, settle.told_at)
        # of a connection that broke nobody knows whether the message was on its way to it once more
        return not self.too_late(settle) or self.broken_between(self.client_of(settle.consumer), settle.at, self.end)

    def describe(self, id: int) -> str:
        """All that is known of a message."""
        publish = self.publishes.get(id)
        rows = [repr(publish) if publish is not None else f"message {id}, never published"]
        for place in self.copies.get(id, {}):
            name, partition, offset = place
            for d in self.deliveries.get(place, ()):
                rows.append(f"delivered from {name}/{partition}/{offset} {d.at:.4f} s to consumer {d.consumer}, attempt {d.attempt}, epoch {d.epoch}")
            rows += [repr(s) for s in self.settles.get(place, ())]
        return "; ".join(rows)


def place_text(place: Place) -> str:
    return "/".join(map(str, place))


def reads_by_reader(history: History) -> dict[int, list[Read]]:
    """Each reader's records, in the order in which it saw them."""
    found: dict[int, list[Read]] = {}
    for read in history.reads:
        found.setdefault(read.reader, []).append(read)
    return found


def _any_in(times: list[float], start: float, end: float) -> bool:
    at = bisect_left(times, start)
    return at < len(times) and times[at] <= end

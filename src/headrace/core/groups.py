"""A group divides the partitions of one queue (a cohort) or stream (a reader group) among its members, each partition to one member at a time.

Owns the seats: who is there, in which order they came, what each holds under which generation. Knows no connection, no message, no cursor: the
runtime gates queue partitions and opens readers as the assignments say.

A *seat* outlives its member: a static member (one with a name of its own) that comes back within ``grace_ms`` takes its seat again, a dynamic
one (same member id) within ``reconnect_grace_ms``; until then nothing moves. The oldest seats are served, as many as there are partitions and
``target`` allows; the others stand by and take over when one of those ends.

The cooperative strategy moves a partition in two phases: its holder is told to give it up, and only once it has said so (``released``), left, or
let ``revoke_timeout_ms`` pass, it goes to the next. All other strategies move at once, unless ``handover`` says that partitions are served elsewhere:
then every move has those two phases, and what a member that is away was to give up goes on only when that is back and does so, or loses its seat.

Invariants: G1 a partition has at most one holder, and nobody while it is being given up. G2 planned shares of the seats served differ by at most
one. G3 the generation grows with every change of membership or assignment; a seat's own is the one under which its present share was told, and
a member that shows an older one, or has lost its seat, is a zombie. G4 deadlines are durations in snapshots and start anew on restore.
"""

from typing import Any

import msgspec

from headrace.core.assignment import Strategy, assign
from headrace.model import limits
from headrace.model.errors import Damaged, Invalid, LimitExceeded
from headrace.model.specs import check_name
from headrace.wire.journal import Kind

SNAPSHOT_VERSION = 1


class Assignment(msgspec.Struct, frozen=True):
    """What ``member`` holds from now on, under which generation; ``revoked`` is what it held until now and does not any more.

    In a cooperative group it answers ``revoked`` with ``released``; everywhere it must stop using those partitions.
    """

    member: str
    generation: int
    partitions: tuple[int, ...]
    revoked: tuple[int, ...] = ()


class Seat:
    """One place in a group. ``until_ms``: when it is given up, None while its member is connected."""

    __slots__ = ("generation", "member", "number", "partitions", "static_name", "until_ms")

    def __init__(self, number: int, member: str, static_name: str) -> None:
        self.number = number
        self.member = member
        self.static_name = static_name
        self.generation = 0
        self.partitions: tuple[int, ...] = ()
        self.until_ms: int | None = None


class Group:
    """See the module's head."""

    def __init__(
        self,
        partition_count: int,
        *,
        strategy: Strategy = "sticky",
        grace_ms: int = 10_000,
        reconnect_grace_ms: int = limits.RECONNECT_GRACE_MS,
        revoke_timeout_ms: int = limits.GROUP_REVOKE_TIMEOUT_MS,
        target: int = 0,
        generation: int = 0,
        handover: bool = False,
    ) -> None:
        """``generation``: the last one of whatever group was here before, so that its members are zombies to this one."""
        self.partition_count = partition_count
        self.strategy: Strategy = strategy
        self.grace_ms = grace_ms
        self.reconnect_grace_ms = reconnect_grace_ms
        self.revoke_timeout_ms = revoke_timeout_ms
        self.target = max(0, target)
        self.generation = generation
        self.handover = handover
        self._next_number = 1
        self._seats: dict[int, Seat] = {}
        """By number, so in order of age."""
        self._members: dict[str, Seat] = {}
        self._statics: dict[str, Seat] = {}
        self._plan: list[int | None] = [None] * partition_count
        """The seat that each partition is meant for."""
        self._holder: list[int | None] = [None] * partition_count
        self._revoking: dict[int, tuple[int, int, int]] = {}
        """Partition -> (seat that gives it up, generation in which it was told, deadline)."""
        self._changed = False

    # ------------------------------------------------------------ members

    def join(self, member: str, static_name: str = "", now_ms: int = 0) -> list[Assignment]:
        """``member`` (unique among the connected) takes its old seat or a new one; its assignment is always among those returned.

        Those that lose something come first. Raises ``Invalid`` or ``LimitExceeded``. A static name that is taken goes to the newcomer: whoever
        held it is fenced and told so by an empty assignment.
        """
        if static_name:
            check_name(static_name)
        seat = self._statics.get(static_name) if static_name else self._members.get(member)
        if seat is not None and seat.static_name != static_name:
            raise Invalid(f"member {member[:40]!r} already has the static name {seat.static_name!r}")
        if seat is None:
            return self._new_seat(member, static_name, now_ms)
        told: list[Assignment] = []
        if seat.member != member:
            if member in self._members:
                raise Invalid(f"member {member[:40]!r} already sits elsewhere in this group")
            self.generation += 1
            if seat.until_ms is None:
                told.append(Assignment(seat.member, self.generation, (), seat.partitions))
            del self._members[seat.member]
            self._members[member] = seat
            seat.member = member
            seat.generation = self.generation
            self._changed = True
            self._cannot_release(seat, now_ms)
        seat.until_ms = None
        return [*told, Assignment(member, seat.generation, seat.partitions)]

    def _new_seat(self, member: str, static_name: str, now_ms: int) -> list[Assignment]:
        if len(self._seats) >= limits.GROUP_MEMBERS_MAX:
            raise LimitExceeded(f"this group has {len(self._seats)} members, the most that are allowed")
        if not member or member in self._members:
            raise Invalid(f"member {member[:40]!r} already sits elsewhere in this group" if member else "a member needs an id")
        seat = self._seats[self._next_number] = Seat(self._next_number, member, static_name)
        self._next_number += 1
        self._members[member] = seat
        if static_name:
            self._statics[static_name] = seat
        return self._change(now_ms, {})

    def leave(self, member: str, now_ms: int = 0) -> list[Assignment]:
        """``member`` goes for good: its seat is given up at once."""
        seat = self._members.get(member)
        return [] if seat is None else self._end([seat], now_ms)

    def suspend(self, member: str, now_ms: int) -> None:
        """The connection of ``member`` is lost: it keeps its seat for its grace. What it was giving up is free at the next ``tick``."""
        seat = self._members.get(member)
        if seat is None or seat.until_ms is not None:
            return
        seat.until_ms = now_ms + (self.grace_ms if seat.static_name else self.reconnect_grace_ms)
        self._cannot_release(seat, now_ms)

    def released(self, member: str, generation: int, now_ms: int = 0) -> list[Assignment]:
        """A cooperative member has given up everything that it was told to up to ``generation``."""
        seat = self._members.get(member)
        if seat is None:
            return []
        free = [p for p, (number, told, _) in self._revoking.items() if number == seat.number and told <= generation]
        return self._freed(free, now_ms)

    def tick(self, now_ms: int) -> list[Assignment]:
        """Ends seats whose grace is over and waits for released partitions no longer than allowed."""
        over = [s for s in self._seats.values() if s.until_ms is not None and s.until_ms <= now_ms]
        told = self._end(over, now_ms) if over else []
        late = [p for p, (_, _, deadline) in self._revoking.items() if deadline <= now_ms]
        if late:
            told = _latest(told + self._freed(late, now_ms))
        return told

    def configure(
        self,
        now_ms: int = 0,
        *,
        partition_count: int | None = None,
        strategy: Strategy | None = None,
        target: int | None = None,
        grace_ms: int | None = None,
    ) -> list[Assignment]:
        """Takes over altered settings, a repartition among them."""
        if grace_ms is not None:
            self.grace_ms = grace_ms
        before = (self.partition_count, self.strategy, self.target)
        if strategy is not None:
            self.strategy = strategy
        if target is not None:
            self.target = max(0, target)
        if partition_count is not None and partition_count != self.partition_count:
            more: list[int | None] = [None] * (partition_count - self.partition_count)
            self._plan = self._plan[:partition_count] + more
            self._holder = self._holder[:partition_count] + more
            self._revoking = {p: r for p, r in self._revoking.items() if p < partition_count}
            self.partition_count = partition_count
        if self.strategy != "cooperative" and not self.handover:
            self._revoking.clear()
        return self._change(now_ms, {}) if before != (self.partition_count, self.strategy, self.target) else []

    def begin_above(self, generation: int) -> None:
        """What comes next is of a later generation, since a group of this name went so far without this one's knowing. Who is away is told that when
        it comes back."""
        if generation <= self.generation:
            return
        self.generation = generation
        for seat in self._seats.values():
            if seat.until_ms is not None:
                seat.generation = generation
        self._changed = True

    # ------------------------------------------------------------ questions

    def fence(self, generation: int, member: str) -> bool:
        """Whether ``member``, who believes in ``generation``, is a zombie and must be refused."""
        seat = self._members.get(member)
        return seat is None or not seat.generation <= generation <= self.generation

    def holder(self, partition: int) -> tuple[str, int] | None:
        """The member that holds ``partition`` and its generation, None while nobody may use it."""
        number = self._holder[partition] if 0 <= partition < self.partition_count else None
        if number is None:
            return None
        seat = self._seats[number]
        return seat.member, seat.generation

    def assignment(self, member: str) -> Assignment | None:
        """What ``member`` holds now, None if it has no seat."""
        seat = self._members.get(member)
        return None if seat is None else Assignment(member, seat.generation, seat.partitions)

    def static(self, member: str) -> bool:
        """Whether ``member`` has a name of its own."""
        seat = self._members.get(member)
        return seat is not None and bool(seat.static_name)

    def members(self) -> list[str]:
        """All members, the oldest seat first."""
        return [s.member for s in self._seats.values()]

    def standby(self) -> list[str]:
        """Members that wait for a seat among those served."""
        return [s.member for s in list(self._seats.values())[self._served() :]]

    def __len__(self) -> int:
        return len(self._seats)

    def next_deadline_ms(self) -> int | None:
        """When ``tick`` has something to do, None if nothing waits."""
        times = [s.until_ms for s in self._seats.values() if s.until_ms is not None]
        times += [deadline for _, _, deadline in self._revoking.values()]
        return min(times, default=None)

    # ------------------------------------------------------------ change

    def _served(self) -> int:
        return min(len(self._seats), self.partition_count, self.target or len(self._seats))

    def _end(self, seats: list[Seat], now_ms: int) -> list[Assignment]:
        gone: dict[int, Seat] = {}
        for seat in seats:
            gone[seat.number] = self._seats.pop(seat.number)
            del self._members[seat.member]
            if seat.static_name:
                del self._statics[seat.static_name]
        self._revoking = {p: r for p, r in self._revoking.items() if r[0] not in gone}
        return self._change(now_ms, gone)

    def _freed(self, partitions: list[int], now_ms: int) -> list[Assignment]:
        for partition in partitions:
            del self._revoking[partition]
        return self._change(now_ms, {}) if partitions else []

    def _change(self, now_ms: int, gone: dict[int, Seat]) -> list[Assignment]:
        """Plans anew, moves what may move now, and says whose share changed (those that lose something first)."""
        self.generation += 1
        self._changed = True
        served = list(self._seats)[: self._served()]
        self._plan = assign(self.strategy, self.partition_count, served, self._plan)
        shares: dict[int, list[int]] = {}
        for partition, wanted in enumerate(self._plan):
            holder = self._holder[partition]
            if holder != wanted and holder is not None and holder not in gone and self._must_release(holder):
                self._revoking[partition] = (holder, self.generation, now_ms + self.revoke_timeout_ms)
            if partition in self._revoking:
                wanted = None
            self._holder[partition] = wanted
            if wanted is not None:
                shares.setdefault(wanted, []).append(partition)
        losers: list[Assignment] = []
        others: list[Assignment] = []
        for seat in self._seats.values():
            share = tuple(shares.get(seat.number, ()))
            if share == seat.partitions and seat.generation:
                continue
            kept = set(share)
            revoked = tuple(p for p in seat.partitions if p not in kept)
            seat.partitions, seat.generation = share, self.generation
            (losers if revoked else others).append(Assignment(seat.member, self.generation, share, revoked))
        return losers + others

    def _cannot_release(self, seat: Seat, now_ms: int) -> None:
        """Nobody is there to say that ``seat`` gave its partitions up: they are free at the next ``tick``, or with ``handover`` after its grace."""
        if self.handover:
            return
        for partition, (number, generation, _) in list(self._revoking.items()):
            if number == seat.number:
                self._revoking[partition] = (number, generation, now_ms)

    def _must_release(self, number: int) -> bool:
        return self.handover or (self.strategy == "cooperative" and self._seats[number].until_ms is None)

    # ------------------------------------------------------------ durable state

    def take_journal(self) -> list[tuple[Kind, bytes]]:
        """The whole membership as one GROUP entry, if it changed since the last call."""
        if not self._changed:
            return []
        self._changed = False
        return [(Kind.GROUP, self.snapshot())]

    def replay(self, kind: Kind, payload: bytes, now_ms: int = 0) -> None:
        """Takes over a GROUP entry; raises ``Damaged``."""
        if kind == Kind.GROUP:
            self.restore(SNAPSHOT_VERSION, payload, now_ms)

    def snapshot(self) -> bytes:
        """Seats and what each holds. Partitions being given up belong to nobody in it; it says who has to give them up."""
        seats = [(s.number, s.member, s.static_name, s.generation, s.partitions) for s in self._seats.values()]
        moving = [(p, number, told) for p, (number, told, _) in sorted(self._revoking.items())]
        return _encode((self.generation, self._next_number, self.partition_count, self.strategy, self.target, seats, self._plan, moving))

    def restore(self, version: int, data: bytes, now_ms: int = 0) -> None:
        """Takes over a snapshot: all members count as suspended from now on. Raises ``Damaged``."""
        if version != SNAPSHOT_VERSION:
            raise Damaged(f"a group's snapshot of version {version} cannot be read here; this release reads {SNAPSHOT_VERSION}")
        try:
            generation, next_number, partition_count, strategy, target, seats, plan, moving = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            raise Damaged(f"a group's snapshot does not decode: {e}") from e
        numbers = [number for number, *_ in seats]
        if not 0 <= partition_count <= limits.PARTITIONS_MAX or target < 0:
            raise Damaged("a group's snapshot has numbers out of bounds")
        holder: list[int | None] = [None] * partition_count
        for number, _, _, _, partitions in seats:
            for p in partitions:
                if not 0 <= p < len(holder) or holder[p] is not None:
                    raise Damaged("a group's snapshot gives a partition to two members, or one that is not there")
                holder[p] = number
        statics = [static_name for _, _, static_name, _, _ in seats if static_name]
        sane = (
            numbers == sorted(set(numbers))
            and (not numbers or numbers[-1] < next_number)
            and len({member for _, member, _, _, _ in seats}) == len(seats)
            and len(set(statics)) == len(statics)
            and len(plan) == partition_count
            and all(h is None or h == wanted for h, wanted in zip(holder, plan, strict=True))
            and {*plan} <= {None, *numbers}
            and all(0 <= p < partition_count and holder[p] is None and told <= generation for p, _, told in moving)
        )
        if not sane:
            raise Damaged("a group's snapshot contradicts itself")
        self.generation, self._next_number, self.partition_count, self.strategy, self.target = (
            generation,
            next_number,
            partition_count,
            strategy,
            target,
        )
        self._plan, self._holder = plan, holder
        self._revoking.clear()
        self._seats, self._members, self._statics = {}, {}, {}
        for number, member, static_name, own, partitions in seats:
            seat = self._seats[number] = self._members[member] = Seat(number, member, static_name)
            if static_name:
                self._statics[static_name] = seat
            seat.generation, seat.partitions = own, partitions
            seat.until_ms = now_ms + (self.grace_ms if static_name else self.reconnect_grace_ms)
        for partition, wanted in enumerate(plan):
            if wanted is not None and holder[partition] is None:
                self._revoking[partition] = (-1, generation, now_ms)
        for partition, number, told in moving:
            if number in self._seats and partition in self._revoking:
                self._revoking[partition] = (number, told, now_ms + (self.revoke_timeout_ms if self.handover else 0))
        self._changed = False

    # ------------------------------------------------------------ shape of a machine

    def view(self) -> dict[str, Any]:
        """What admin shows."""
        served = self._served()
        return {
            "generation": self.generation,
            "strategy": self.strategy,
            "target": self.target,
            "members": [
                {
                    "member": s.member,
                    "static_name": s.static_name,
                    "generation": s.generation,
                    "partitions": list(s.partitions),
                    "state": "suspended" if s.until_ms is not None else "serving" if i < served else "standby",
                }
                for i, s in enumerate(self._seats.values())
            ],
            "moving": {p: r[0] for p, r in sorted(self._revoking.items())},
        }

    def check(self) -> None:
        """Asserts G1-G3."""
        assert list(self._seats) == sorted(self._seats)
        assert len(self._plan) == len(self._holder) == self.partition_count
        served = list(self._seats)[: self._served()]
        shares = dict.fromkeys(served, 0)
        for partition, (wanted, holder) in enumerate(zip(self._plan, self._holder, strict=True)):
            assert (wanted is None) == (not served)
            if wanted is not None:
                shares[wanted] += 1
            assert (holder is None) == (partition in self._revoking or wanted is None), (
                f"partition {partition} is held by {holder}, meant for {wanted}"
            )
            assert holder is None or holder == wanted
            assert holder is None or partition in self._seats[holder].partitions
        assert not shares or max(shares.values()) - min(shares.values()) <= 1
        assert sum(len(s.partitions) for s in self._seats.values()) == sum(h is not None for h in self._holder)
        for seat in self._seats.values():
            assert self._members[seat.member] is seat
            assert not seat.static_name or self._statics[seat.static_name] is seat
            assert 0 < seat.generation <= self.generation
        assert len(self._members) == len(self._seats)
        assert len(self._statics) == sum(bool(s.static_name) for s in self._seats.values())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    tuple[int, int, int, Strategy, int, list[tuple[int, str, str, int, tuple[int, ...]]], list[int | None], list[tuple[int, int, int]]],
).decode


def _latest(told: list[Assignment]) -> list[Assignment]:
    """One assignment a member: the last, with everything that was revoked on the way to it."""
    last: dict[str, Assignment] = {}
    for a in told:
        before = last.pop(a.member, None)
        if before is not None:
            revoked = tuple(sorted({*before.revoked, *a.revoked} - {*a.partitions}))
            a = Assignment(a.member, a.generation, a.partitions, revoked)
        last[a.member] = a
    return list(last.values())

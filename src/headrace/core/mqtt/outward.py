"""Messages on their way to session partitions that other brokers serve: one stream a partition, kept until it is acknowledged.

Owns numbers, what is sent again to whom, and when a publish counts as taken elsewhere. Knows no connection: ``flush`` says what is to be sent to
whom, ``acked`` and its like say what came back.

Invariants: O1 a partition is sent its messages in the order in which they were given, again from the oldest that is not acknowledged whenever its
owner changes or refuses one; with each goes the number of the one before it that is not acknowledged either, and who does not have that refuses it.
O2 what was given with a number is acknowledged, handed back or, unless it lasts, given up after ``WAIT_MS``, once. O3 what has no number (QoS 0) is
sent at most once, and dropped where nobody serves the partition. O4 with what is given up goes everything later of the same publisher to the same
partition: it sends again what it was not told of, and nothing may come before that.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final

from headrace.core.mqtt.message import Message
from headrace.model.errors import HeadraceError, LimitExceeded, Unavailable, UnknownOutcome

WAIT_MS: Final = 5_000
"""So long a partition may be unavailable before what is published to it is refused."""
BYTES_MAX: Final = 64 * 1024 * 1024
"""Of messages that are not acknowledged, of all partitions."""
PLAIN: Final = 0
RETAIN: Final = 1
"""The message is the last of its topic."""
Stored = Callable[[HeadraceError | None], None]


class Pledge:
    """A publish that goes to several places: ``stored`` is told once, when all have it or one cannot, as soon as all are named. ``lasting``: nobody
    can be told that it failed, so each place has as long as it takes."""

    __slots__ = ("_left", "_named", "_stored", "_told", "_why", "lasting")

    def __init__(self, stored: Stored, *, lasting: bool = False) -> None:
        self.lasting = lasting
        self._left = 1
        self._named = self._told = False
        self._stored = stored
        self._why: HeadraceError | None = None

    @property
    def open(self) -> bool:
        """Whether one of them has not answered yet."""
        return self._left > 0

    def more(self) -> Stored:
        """One more place, which says once that it has it, or why not."""
        self._left += 1
        return self._one

    def done(self) -> None:
        """All are named, but for those that come in place of one."""
        self._named = True
        self._one()

    def _one(self, why: HeadraceError | None = None) -> None:
        self._why = self._why or why
        self._left -= 1
        if self._named and not self._told and (not self._left or (self._why is not None and not self.lasting)):
            self._told = True
            self._stored(self._why)


class Part:
    """A message for one partition. ``sequence`` 0 = QoS 0; ``group``: for a member of that shared subscription; ``lasting`` as of its pledge."""

    __slots__ = ("after", "group", "kind", "lasting", "message", "number", "order", "sent", "sequence", "since_ms", "stored")

    def __init__(self, message: Message, number: int, sequence: int, kind: int, group: str, stored: Stored | None, order: int, now_ms: int) -> None:
        self.message = message
        self.number = number
        self.sequence = sequence
        self.after = 0
        """Sequence of the one before it that was not acknowledged when it was sent; 0 = it was the oldest."""
        self.kind = kind
        self.group = group
        self.stored = stored
        self.order = order
        self.since_ms = now_ms
        self.lasting = False
        self.sent = False


class _Stream:
    """To one partition."""

    __slots__ = ("held", "owner", "pending", "sequence", "waiting")

    def __init__(self) -> None:
        self.held = False
        """Its owner has just refused it: nothing is sent before ``release``."""
        self.sequence = 0
        self.owner = ""
        """To whom everything in ``pending`` was sent, but for what is in ``waiting``; "" = to nobody."""
        self.pending: deque[Part] = deque()
        self.waiting: list[Part] = []


class Outward:
    """See the module's head."""

    def __init__(self) -> None:
        self.dropped = 0
        """Messages of QoS 0 that were for a partition that nobody served."""
        self.nbytes = 0
        """Of what is not acknowledged."""
        self.late = 0
        """Messages that were given up."""
        self._streams: dict[int, _Stream] = {}
        self._dirty: dict[int, None] = {}
        self._order = 0
        self.stir: Callable[[], None] = _still
        """Called when there is something to flush."""

    @property
    def dirty(self) -> bool:
        """Whether ``flush`` has something to say."""
        return bool(self._dirty)

    def give(self, message: Message, targets: Sequence[tuple[int, int, str]], pledge: Pledge | None, now_ms: int) -> None:
        """``targets``: (partition, kind, group). With a pledge, a will or a retained message it is kept until it is acknowledged."""
        self._order += 1
        self.stir()
        for number, kind, group in targets:
            stored = pledge.more() if pledge is not None else None
            if stored is not None and self.nbytes > BYTES_MAX:
                stored(LimitExceeded("too much waits for other brokers"))
                continue
            part = self._give(message, number, kind, group, stored, self._order, now_ms)
            part.lasting = pledge is not None and pledge.lasting

    def _give(self, message: Message, number: int, kind: int, group: str, stored: Stored | None, order: int, now_ms: int) -> Part:
        stream = self._streams.get(number)
        if stream is None:
            stream = self._streams[number] = _Stream()
        kept = stored is not None or message.qos > 0 or kind == RETAIN
        if kept:
            stream.sequence += 1
        part = Part(message, number, stream.sequence if kept else 0, kind, group, stored, order, now_ms)
        if kept:
            stream.pending.append(part)
            self.nbytes += message.nbytes
        stream.waiting.append(part)
        self._dirty[number] = None
        return part

    def flush(self, owner_of: Callable[[int], str]) -> dict[str, list[Part]]:
        """What is to be sent now, by whom it is for, in order."""
        found: dict[str, list[Part]] = {}
        dirty, self._dirty = self._dirty, {}
        for number in dirty:
            stream = self._streams[number]
            owner = "" if stream.held else owner_of(number)
            if not owner:
                self.dropped += sum(1 for part in stream.waiting if not part.sequence)
                stream.waiting.clear()
                stream.owner = ""
                if stream.pending:
                    self._dirty[number] = None
                continue
            parts = stream.waiting
            if owner != stream.owner:
                newest = [part for part in parts if not part.sequence]
                parts = sorted([*stream.pending, *newest], key=lambda part: part.order) if newest else list(stream.pending)
                stream.owner = owner
            stream.waiting = []
            kept = sum(1 for part in parts if part.sequence)
            after = stream.pending[-kept - 1].sequence if len(stream.pending) > kept else 0
            for part in parts:
                part.sent = True
                if part.sequence:
                    part.after, after = after, part.sequence
            if parts:
                found.setdefault(owner, []).extend(parts)
        for some in found.values():
            some.sort(key=lambda part: part.order)  # of one message all parts together; the order of each partition is the order of all
        return found

    # ------------------------------------------------------------ what came back

    def acked(self, owner: str, number: int, sequence: int) -> None:
        """The owner of a partition has all up to that number, durably."""
        stream = self._streams.get(number)
        while stream is not None and stream.owner == owner and stream.pending and stream.pending[0].sequence <= sequence:
            part = stream.pending.popleft()
            self.nbytes -= part.message.nbytes
            if part.stored is not None:
                part.stored(None)

    def declined(self, owner: str, number: int, sequence: int) -> Part | None:
        """Nobody of the group is there: the part, which is the caller's again."""
        stream = self._streams.get(number)
        if stream is None or stream.owner != owner:
            return None
        for i, part in enumerate(stream.pending):
            if part.sequence == sequence:
                del stream.pending[i]
                self.nbytes -= part.message.nbytes
                return part
        return None

    def refused(self, owner: str, number: int) -> None:
        """It does not serve the partition, or lacks what came before: all is sent again, to whoever serves it."""
        stream = self._streams.get(number)
        if stream is not None and stream.owner == owner:
            stream.owner, stream.held = "", True
            if stream.pending:
                self._dirty[number] = None

    def turn(self, number: int) -> None:
        """The partition has another owner, who is known by now: what is not acknowledged goes there in the next ``flush``."""
        stream = self._streams.get(number)
        if stream is not None and stream.pending:
            stream.owner, stream.held = "", False
            self._dirty[number] = None
            self.stir()

    def release(self) -> None:
        """Whoever refused something may be asked again."""
        for stream in self._streams.values():
            stream.held = False

    def lost(self, owner: str) -> None:
        """There is no conversation with it any more."""
        for number in self._streams:
            self.refused(owner, number)

    def expire(self, now_ms: int) -> None:
        """Gives up what has waited for too long (O4). What has an origin may be with others, and keeps its number."""
        found = [part for stream in self._streams.values() for part in _given_up(stream, now_ms)]
        for part in found:
            self.nbytes -= part.message.nbytes
            self.late += 1
        for part in found:  # who is told may publish a will
            if part.stored is not None:
                what = f"session partition {part.number} is not available"
                part.stored(UnknownOutcome(what) if part.sent or part.message.origin is not None else Unavailable(what))

    def check(self) -> None:
        """Asserts the invariants."""
        parts = [part for stream in self._streams.values() for part in stream.pending]
        assert self.nbytes == sum(part.message.nbytes for part in parts)
        for stream in self._streams.values():
            numbers = [part.sequence for part in stream.pending]
            assert numbers == sorted(set(numbers)), "O1"
            assert all(part in stream.pending or not part.sequence for part in stream.waiting)


def _given_up(stream: _Stream, now_ms: int) -> list[Part]:
    """Takes out of it what has waited for too long, and what goes with that."""
    late = {part for part in takewhile(lambda part: now_ms - part.since_ms >= WAIT_MS, stream.pending) if not part.lasting}
    if not late:
        return []
    whose = {part.message.publisher for part in late if part.stored is not None}
    later = [part for part in stream.pending if part.stored is not None and not part.lasting and part.message.publisher in whose]
    gone = late.union(later)
    found = [part for part in stream.pending if part in gone]
    stream.pending = deque(part for part in stream.pending if part not in gone)
    stream.waiting = [part for part in stream.waiting if part not in gone]
    return found


def _still() -> None:
    pass

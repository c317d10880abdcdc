"""Which producer sequences a partition has stored, so that a publish tried again is stored once (I11).

Per producer it remembers the epoch and the last ``PRODUCER_RANGES`` ranges of sequences with the offsets they got. A sequence beyond the last is new,
also if some were skipped: those are remembered as not stored, and come late if they do. Sequences count records and wrap at 2^31; inside, they are
unwrapped integers, and a sequence on the wire means the nearest one.

I1: a producer's ranges ascend, disjoint, below its ``next``. I2: below ``known_from`` nothing is known, from there on everything is.
It knows neither batches nor the log. The table is rebuilt by telling it what the log holds, in order, any number of times.
"""

from bisect import bisect_right

import msgspec

from headrace.model.errors import Conflict, Damaged, Fenced, HeadraceError, SequenceTooOld
from headrace.model.ids import SEQUENCE_MODULUS
from headrace.model.limits import PRODUCER_RANGES, PRODUCERS_PER_PARTITION_MAX

MASK = SEQUENCE_MODULUS - 1
HALF = SEQUENCE_MODULUS // 2
FORGET_AT_ONCE = PRODUCERS_PER_PARTITION_MAX // 16
VERSION = 1


class Duplicate(msgspec.Struct, frozen=True):
    """All of it is stored already, densely from ``base_offset``."""

    base_offset: int


class Partial(msgspec.Struct, frozen=True):
    """Some of it is stored, or all of it in several places: check its batches one by one. ``error`` answers a single batch of which this is so."""

    stored: tuple[tuple[int, int, int], ...]
    """(first sequence, count, base offset) of the stored parts."""
    error: HeadraceError


class Overtaken(msgspec.Struct, frozen=True):
    """Nothing of it is stored, but later records of the same instance are: it was refused when it first came."""


Verdict = Duplicate | Partial | Overtaken | HeadraceError | None
"""None: new."""


_OVERTAKEN = Overtaken()


class _Producer:
    __slots__ = ("bases", "ends", "epoch", "firsts", "known_from", "next", "used")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.firsts: list[int] = []
        self.ends: list[int] = []
        self.bases: list[int] = []
        self.next = 0
        self.known_from = 0
        self.used = 0


class ProducerTable:
    """The producers of one partition; see the module's head."""

    __slots__ = ("_clock", "_forgot", "_producers")

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}
        self._clock = 0
        self._forgot = False
        """Whether a producer was ever forgotten: then an unknown one may have stored something."""

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, producer_id: int, epoch: int, first_sequence: int, count: int) -> Verdict:
        """Whether records ``[first_sequence, first_sequence + count)`` are new (None). Changes nothing. O(1) for the next in line and for what was
        never idempotent."""
        if producer_id < 0:
            return None
        producer = self._producers.get(producer_id)
        if producer is None or producer.epoch < epoch:
            return None
        if producer.epoch > epoch:
            return Fenced(f"producer {producer_id} has epoch {producer.epoch}, this publish came with {epoch}: another instance took over")
        if first_sequence == producer.next & MASK:
            return None
        first = _nearest(producer.next, first_sequence)
        end = first + count
        if first >= producer.next:
            return None
        if first < producer.known_from:
            return _too_old(producer_id, first_sequence)
        at = bisect_right(producer.firsts, first) - 1
        if at >= 0 and end <= producer.ends[at]:
            return Duplicate(producer.bases[at] + first - producer.firsts[at])
        stored = []
        for i in range(max(at, 0), len(producer.firsts)):
            low, high = max(first, producer.firsts[i]), min(end, producer.ends[i])
            if low < high:
                stored.append((low & MASK, high - low, producer.bases[i] + low - producer.firsts[i]))
        if not stored:
            return _OVERTAKEN
        error = Conflict(f"producer {producer_id}: only a part of this batch was stored before", hint="retry batches as they were first sent")
        return Partial(tuple(stored), error)

    def stored(self, producer_id: int, epoch: int, first_sequence: int, count: int, base_offset: int) -> None:
        """Records ``[first_sequence, first_sequence + count)`` were given offsets from ``base_offset`` on. O(1) for the next in line."""
        if producer_id < 0 or count <= 0:
            return
        producer = self._producers.get(producer_id)
        if producer is None or producer.epoch < epoch:
            producer = self._begin(producer_id, epoch, first_sequence, known=producer is not None or not self._forgot)
        elif producer.epoch > epoch:
            return
        self._clock = producer.used = self._clock + 1
        if first_sequence == producer.next & MASK:
            first = producer.next
            producer.next = end = first + count
            if producer.ends and producer.ends[-1] == first and producer.bases[-1] + first - producer.firsts[-1] == base_offset:
                producer.ends[-1] = end
                return
        else:
            first = _nearest(producer.next, first_sequence)
            end = first + count
        at = bisect_right(producer.firsts, first)
        if (at and producer.ends[at - 1] > first) or (at < len(producer.firsts) and producer.firsts[at] < end) or first < producer.known_from:
            return  # told before
        producer.firsts.insert(at, first)
        producer.ends.insert(at, end)
        producer.bases.insert(at, base_offset)
        producer.next = max(producer.next, end)
        self._join(producer, at)
        if len(producer.firsts) > PRODUCER_RANGES:
            producer.known_from = producer.ends[0]
            del producer.firsts[0], producer.ends[0], producer.bases[0]

    def _begin(self, producer_id: int, epoch: int, first_sequence: int, *, known: bool) -> _Producer:
        producer = self._producers[producer_id] = _Producer(epoch)
        # shifted so that unwrapped sequences before the first one stay positive
        producer.next = first_sequence + SEQUENCE_MODULUS
        producer.known_from = producer.next - HALF if known else producer.next
        if len(self._producers) > PRODUCERS_PER_PARTITION_MAX:
            producer.used = self._clock + 1
            for _, idle in sorted((other.used, id) for id, other in self._producers.items())[:FORGET_AT_ONCE]:
                del self._producers[idle]
            self._forgot = True
        return producer

    @staticmethod
    def _join(producer: _Producer, at: int) -> None:
        firsts, ends, bases = producer.firsts, producer.ends, producer.bases
        for i in (at, at - 1):
            if 0 <= i < len(firsts) - 1 and ends[i] == firsts[i + 1] and bases[i] + ends[i] - firsts[i] == bases[i + 1]:
                ends[i] = ends[i + 1]
                del firsts[i + 1], ends[i + 1], bases[i + 1]

    def resolve(self, producer_id: int, epoch: int, sequence: int) -> Duplicate | HeadraceError | None:
        """What became of one record: stored (at which offset), never stored here (None), or not known any more (an error)."""
        producer = self._producers.get(producer_id)
        if producer_id < 0 or (producer is None and self._forgot):
            return _too_old(producer_id, sequence)
        verdict = self.check(producer_id, epoch, sequence, 1)
        assert not isinstance(verdict, Partial), "one record is stored or not"
        return None if isinstance(verdict, Overtaken) else verdict

    def last_sequence(self, producer_id: int) -> int:
        """The last sequence stored for a producer in its current epoch, -1 = none."""
        producer = self._producers.get(producer_id)
        return (producer.next - 1) & MASK if producer is not None else -1

    def snapshot(self) -> bytes:
        """The table as bytes (version 1): producers from the longest idle on."""
        rows = [
            (id, p.epoch, p.next, p.known_from, list(zip(p.firsts, p.ends, p.bases, strict=True)))
            for id, p in sorted(self._producers.items(), key=lambda item: item[1].used)
        ]
        return msgspec.msgpack.encode((self._forgot, rows))

    def restore(self, version: int, data: bytes) -> None:
        """Becomes what the snapshot says. Raises ``Damaged``."""
        if version != VERSION:
            raise Damaged(f"a producer table of version {version}; this release reads version {VERSION}")
        try:
            forgot, rows = msgspec.msgpack.decode(data, type=tuple[bool, list[tuple[int, int, int, int, list[tuple[int, int, int]]]]])
        except (msgspec.DecodeError, ValueError) as e:
            raise Damaged(f"a producer table that cannot be read: {e}") from e
        self._forgot, self._producers, self._clock = forgot, {}, len(rows)
        for used, (id, epoch, next_sequence, known_from, ranges) in enumerate(rows, 1):
            producer = self._producers[id] = _Producer(epoch)
            producer.next, producer.known_from, producer.used = next_sequence, known_from, used
            producer.firsts = [first for first, _, _ in ranges]
            producer.ends = [end for _, end, _ in ranges]
            producer.bases = [base for _, _, base in ranges]

    def check_invariants(self) -> None:
        """Asserts I1 and I2 and the bounds."""
        assert len(self._producers) <= PRODUCERS_PER_PARTITION_MAX
        for producer in self._producers.values():
            assert len(producer.firsts) == len(producer.ends) == len(producer.bases) <= PRODUCER_RANGES
            before = producer.known_from
            for first, end in zip(producer.firsts, producer.ends, strict=True):
                assert before <= first < end
                before = end
            assert before <= producer.next


def _nearest(next_sequence: int, sequence: int) -> int:
    """The unwrapped sequence nearest to ``next_sequence`` that is ``sequence`` on the wire."""
    ahead = (sequence - next_sequence) & MASK
    return next_sequence + ahead if ahead < HALF else next_sequence + ahead - SEQUENCE_MODULUS


def _too_old(producer_id: int, sequence: int) -> SequenceTooOld:
    return SequenceTooOld(
        f"producer {producer_id}: sequence {sequence} lies before what is remembered; whether it was stored is not known",
        hint="read the queue or stream to find out, or go on with a new producer epoch",
    )

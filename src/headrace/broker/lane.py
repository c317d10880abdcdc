"""The way of a publish through one partition: gathered, appended once a tick, confirmed when a flush says that it is durable.

Owns what every partition keeps of it: journal position, gathered runs, entries in flight; and the calls that are gathered for a tick. Knows no
settings, levels or machines: ``Partition`` derives from ``Lane``, decides, and is asked only where something is out of the ordinary. One of the hot
modules: what stands here costs once per run, or once per partition and tick.

I1 Offsets are given out in the order in which runs are gathered, which is the order of the journal. I2 A confirm above ``accepted`` is sent only from
``flushed``. I3 Confirms of one partition go out in the order of its journal, before the answers of later entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from librt.strings import BytesWriter, write_i32_be, write_i64_be

from headrace.compiling import mypyc_attr
from headrace.storage.intake import Intake
from headrace.wire import ingress
from headrace.wire.confirms import write_confirm
from headrace.wire.entry import RUN
from headrace.wire.journal import RECORDS_HEAD, Kind

if TYPE_CHECKING:
    from headrace.broker.sink import Sink, Written
    from headrace.core.dedup import ProducerTable
    from headrace.model.errors import HeadraceError

_RECORDS: Final[int] = int(Kind.RECORDS)
_pack_run: Final = RUN.pack
_pack_head: Final = RECORDS_HEAD.pack
_SEQUENCE_AT: Final[int] = 12
_ONE_RUN: Final = 1 << 32
"""What the head of an entry ends with."""
assert RUN.format.startswith(">qhBBi")
assert RECORDS_HEAD.format == ">QIIqI4x"

Meta = tuple[int, int, int, int, int, int]
"""(record_count, nbytes, not_before_ms, expires_at_ms, priority, key_slot) of a run."""


class Publish:
    """One gathered run on its way to a confirm. ``blob``, its frames, is let go once they are appended."""

    __slots__ = ("arrived_ms", "base_offset", "blob", "channel", "expires_at_ms", "level", "nbytes", "not_before_ms", "run", "sink")

    def __init__(self, sink: Sink | None, channel: int, run: ingress.Run, level: int, base_offset: int, blob: bytes, arrived_ms: float) -> None:
        self.sink = sink
        self.channel = channel
        self.run = run
        self.level = level
        self.base_offset = base_offset
        self.blob = blob
        self.nbytes: int = len(blob)
        self.arrived_ms = arrived_ms
        self.not_before_ms: int = 0
        """Wall clock, as is ``expires_at_ms``; 0 = none."""
        self.expires_at_ms: int = 0


class InFlight:
    """An appended entry that is not committed yet, with what waits for it."""

    __slots__ = ("answers", "base_offset", "index", "metas", "nbytes", "publishes", "record_count", "wall_ms")

    def __init__(self, index: int, base_offset: int, record_count: int, nbytes: int, wall_ms: int, publishes: list[Publish]) -> None:
        self.index = index
        self.base_offset = base_offset
        self.record_count = record_count
        self.nbytes = nbytes
        self.wall_ms = wall_ms
        self.publishes = publishes
        self.metas: list[Meta] | None = None
        """None when no run has times or a priority, and no key slot matters."""
        self.answers: list[Callable[[], None]] | None = None


class Turn:
    """What the next tick has to do, and what this one has done so far."""

    __slots__ = ("_begin", "dirty", "entry_bytes_max", "published", "published_bytes", "refusing", "scheduled", "sinks")

    def __init__(self, begin: Callable[[], object], entry_bytes_max: int) -> None:
        """``begin()`` makes the loop run a tick soon; ``entry_bytes_max``: what one entry gathers in a tick (a single frame may be larger)."""
        self.entry_bytes_max = entry_bytes_max
        self._begin = begin
        self.dirty: list[Lane] = []
        self.sinks: list[Written] = []
        self.scheduled: bool = False
        self.published: int = 0
        """Records appended that the counters do not know of yet."""
        self.published_bytes: int = 0
        self.refusing: bool = False
        """Whether nothing may be published at all for now."""

    def schedule(self, lane: Lane) -> None:
        """``lane`` has something to do in this tick."""
        lane.dirty = True
        self.dirty.append(lane)
        if not self.scheduled:
            self.soon()

    def touch(self, sink: Written) -> None:
        """``sink`` was written to; it is flushed at the end of this tick."""
        if not sink.dirty:
            sink.dirty = True
            self.sinks.append(sink)
            if not self.scheduled:
                self.soon()

    def soon(self) -> None:
        """A tick is wanted."""
        if not self.scheduled:
            self.scheduled = True
            self._begin()

    def step(self, now_ms: int, wall_ms: int, failed: Callable[[Lane, Exception], object]) -> None:
        """Lets every lane that has something to do append it. What one of them raises is told to ``failed`` and stops no other."""
        lanes, self.dirty = self.dirty, []
        for lane in lanes:
            lane.dirty = False
            lane.used_ms = now_ms
            try:
                if lane.poked:
                    lane.step(now_ms, wall_ms)
                elif lane.gathered and lane.barred is None:
                    lane_append(lane, wall_ms)
            except Exception as e:
                failed(lane, e)


class Confirms:
    """Confirms of one flush or tick, gathered so that a sink is called once for neighbours and latencies are counted once for equal ones."""

    __slots__ = ("_arrived_ms", "_count", "_counters", "_nbytes", "_now_ms", "_out", "_records", "_sink", "_turn")

    def __init__(self, counters: Any, turn: Turn, now_ms: float) -> None:
        self._counters = counters
        self._turn = turn
        self._now_ms: float = now_ms
        self._sink: Sink | None = None
        self._out: BytesWriter | None = None
        self._nbytes: int = 0
        self._arrived_ms: float = 0.0
        self._records: int = 0

    def take(self, publish: Publish, confirm: bool, durable: bool) -> None:
        """``durable``: its bytes are no longer in flight."""
        sink = publish.sink
        if sink is None:
            return
        if sink is not self._sink:
            self.send()
            self._sink = sink
        if durable:
            self._nbytes += publish.nbytes
        if confirm:
            run = publish.run
            out = self._out
            if out is None:
                out = self._out = BytesWriter()
            write_confirm(out, publish.channel, run.first_correlation, run.frame_count, publish.base_offset, publish.level)
            if publish.arrived_ms != self._arrived_ms:
                self._count_latency()
                self._arrived_ms = publish.arrived_ms
            self._records += run.record_count

    def _count_latency(self) -> None:
        if self._records:
            self._counters.confirmed(self._now_ms - self._arrived_ms, self._records)
            self._records = 0

    def send(self) -> None:
        """Tells the sink what has gathered for it."""
        sink = self._sink
        if sink is None:
            return
        self._sink = None
        if self._nbytes:
            sink.in_flight_bytes -= self._nbytes
            self._nbytes = 0
        if self._out is not None:
            out, self._out = self._out, None
            sink.confirmed_all(out.getvalue())
            if not sink.dirty:
                self._turn.touch(sink)
            self._count_latency()


@mypyc_attr(allow_interpreted_subclasses=True)
class Lane:
    """What a partition needs for every publish; see the module's head."""

    def __init__(self, turn: Turn, store: Any, producers: ProducerTable, pid: int) -> None:
        self.turn = turn
        self.pid = pid
        self.append_entry = store.append
        self.intake: Intake | None = getattr(store, "intake", None)
        """Takes records entries without the way through ``append``; None: the store has none."""
        self.epoch: int = 0
        self.last_index: int = 0
        self.flushed_index: int = 0
        """Up to here the journal is durable."""
        self.next_offset: int = 0
        self.high_watermark: int = 0
        self.active: bool = False
        self.dirty: bool = False
        self.used_ms: int = 0
        self.quarantined: str = ""
        self.barred: HeadraceError | None = None
        """Why it takes nothing any more (deleted)."""
        self.message_bytes_max: int = 0
        self.producers = producers
        self.in_flight: list[InFlight] = []
        self.published: int = 0
        self.limited: bool = False
        """Whether ``admit`` has anything to say."""
        self.tells_appended: bool = False
        """Whether ``appended`` has anything to do."""
        self.poked: bool = False
        """Whether there is more to do in this tick than to append."""
        self.early: bool = False
        """Whether its own level is below durable, so that nothing is confirmed from a flush."""
        self.levels: list[int] = []
        """What each asked level means here, -1 = cannot be had."""
        self.lazy: bool = False
        """Whether what is committed is only counted (``lazy_count``) until somebody asks."""
        self.lazy_count: int = 0
        self.lazy_bytes: int = 0
        self.lazy_wall_ms: int = 0
        self.gathered: list[Publish] = []
        self.special: bool = False
        """Whether a gathered run has times or a priority."""
        self.slotted: bool = False
        """Whether key slots matter: some are held back."""
        self.routing: int = 1
        """The routing version that publishes must be of."""
        self.accepted: bool = False
        """Whether a gathered run is confirmed as soon as it is appended."""
        self.gather_base: int = 0
        self.gather_bytes: int = 0

    # What a partition says when it is asked

    def step(self, now_ms: int, wall_ms: int) -> None:
        raise NotImplementedError

    def activate(self) -> None:
        """Takes a new epoch before the first entry, lease or subscription of this incarnation."""
        raise NotImplementedError

    def wall_ms(self) -> int:
        raise NotImplementedError

    def appended(self, base: int, count: int, nbytes: int, wall_ms: int) -> None:
        raise NotImplementedError

    def committed(self, base: int, count: int, nbytes: int, wall_ms: int, metas: Sequence[Meta] | None, now_ms: int) -> None:
        raise NotImplementedError

    def confirm_accepted(self, publishes: list[Publish]) -> None:
        """Confirms those that wanted no more than to be accepted."""
        raise NotImplementedError


def lane_publish(lane: Lane, sink: Sink, channel: int, asked_level: int, run: ingress.Run, blob: bytes, now_ms: float) -> bool:
    """Takes a run with which everything is ordinary. False: something is not, and nothing has happened. Its bytes are in flight from now on: the
    caller says so to the sink, once for all that it brings."""
    level = lane.levels[asked_level]
    nbytes = len(blob)
    if level < 0 or lane.limited or lane.barred is not None or lane.quarantined or lane.turn.refusing or 0 < lane.message_bytes_max < nbytes:
        return False
    records = run.record_count
    if run.producer_id >= 0 and lane.producers.check(run.producer_id, run.producer_epoch, run.first_sequence, records) is not None:
        return False
    if level == 1:
        lane.accepted = True
    lane_gather(lane, Publish(sink, channel, run, level, lane.next_offset, blob, now_ms))
    return True


def lane_gather(lane: Lane, publish: Publish) -> None:
    """Takes a run that was found good."""
    size = publish.nbytes
    run = publish.run
    if lane.gathered:
        if lane.gather_bytes + size > lane.turn.entry_bytes_max:
            lane_append(lane, lane.wall_ms())
            lane.gather_base = lane.next_offset
    else:
        if not lane.active:
            lane.activate()
        lane.gather_base = lane.next_offset
    if run.not_before_ms or run.expires_at_ms or run.priority:
        not_before: int = 0
        expires_at: int = 0
        wall = lane.wall_ms()
        publish.blob = ingress.absolute(publish.blob, wall)
        if run.not_before_ms:
            not_before = wall + run.not_before_ms
        if run.expires_at_ms:
            expires_at = wall + run.expires_at_ms
        publish.not_before_ms = not_before
        publish.expires_at_ms = expires_at
        lane.special = True
    if run.producer_id >= 0:
        lane.producers.stored(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count, lane.next_offset)
    lane.gathered.append(publish)
    lane.next_offset += run.record_count
    lane.gather_bytes += size
    if not lane.dirty:
        lane.turn.schedule(lane)


def lane_append(lane: Lane, wall_ms: int) -> None:
    """Makes the one ``records`` entry of this tick."""
    base, gathered, size = lane.gather_base, lane.gathered, lane.gather_bytes
    records = lane.next_offset - base
    index = lane.last_index + 1
    lane.last_index = index
    if len(gathered) == 1:
        publish = gathered[0]
        run = publish.run
        shape = run.shape
        if shape is None:
            row: bytes = _row_of(publish)
            payload: bytes = b"".join((_pack_head(base, records, run.frame_count, wall_ms, 1), row, publish.blob))
        else:
            if not shape.after:
                row = _row_of(publish)
                shape.before, shape.after = row[:_SEQUENCE_AT], row[_SEQUENCE_AT + 4 :]
            entry_bytes = BytesWriter()
            write_i64_be(entry_bytes, base)
            write_i64_be(entry_bytes, records << 32 | 1)
            write_i64_be(entry_bytes, wall_ms)
            write_i64_be(entry_bytes, _ONE_RUN)
            entry_bytes.write(shape.before)
            write_i32_be(entry_bytes, run.first_sequence)
            entry_bytes.write(shape.after)
            entry_bytes.write(publish.blob)
            payload = entry_bytes.getvalue()
        publish.blob = b""
    else:
        payload = _joined(gathered, base, records, wall_ms)
    intake = lane.intake
    if intake is not None:
        intake.records(lane.pid, lane.epoch, index, payload, base, records, wall_ms, not lane.lazy)
    else:
        lane.append_entry(lane.pid, lane.epoch, index, _RECORDS, (payload,), len(payload), base, records)
    entry = InFlight(index, base, records, size, wall_ms, gathered)
    if lane.special or lane.slotted:
        entry.metas = [(p.run.record_count, p.nbytes, p.not_before_ms, p.expires_at_ms, p.run.priority, p.run.key_slot) for p in gathered]
        lane.special = False
    lane.in_flight.append(entry)
    lane.published += records
    turn = lane.turn
    turn.published += records
    turn.published_bytes += size
    if lane.accepted:
        lane.accepted = False
        lane.confirm_accepted(gathered)
    lane.gathered = []
    lane.gather_bytes = 0
    if lane.tells_appended:
        lane.appended(base, records, size, wall_ms)


def _row_of(publish: Publish) -> bytes:
    """A run's row in its entry's table."""
    run = publish.run
    row: bytes = _pack_run(
        run.producer_id,
        run.producer_epoch,
        run.priority,
        run.compressed,
        run.first_sequence,
        run.record_count,
        run.frame_count,
        publish.nbytes,
        run.frame_bytes,
        publish.not_before_ms,
        publish.expires_at_ms,
        run.key_slot,
    )
    return row


def _joined(gathered: list[Publish], base: int, records: int, wall_ms: int) -> bytes:
    """The payload of an entry of several runs."""
    frames: int = 0
    pieces: list[bytes] = [b""]
    blobs: list[bytes] = []
    for publish in gathered:
        run = publish.run
        frames += run.frame_count
        pieces.append(_row_of(publish))
        blobs.append(publish.blob)
        publish.blob = b""
    pieces[0] = _pack_head(base, records, frames, wall_ms, len(gathered))
    pieces.extend(blobs)
    return b"".join(pieces)


def lane_flushed(lane: Lane, index: int, now_ms: int, confirms: Confirms) -> None:
    """Everything up to ``index`` is durable, so (one copy) committed: confirm it and make it available."""
    in_flight = lane.in_flight
    lane.flushed_index = index
    done: int = 0
    for entry in in_flight:
        if entry.index > index:
            break
        done += 1
    if not done:
        return
    if done == len(in_flight):
        ready = in_flight
        lane.in_flight = []
    else:
        ready = in_flight[:done]
        del in_flight[:done]
    for entry in ready:
        if entry.record_count:
            lane.high_watermark = entry.base_offset + entry.record_count
            if lane.lazy and entry.metas is None:
                lane.lazy_count += entry.record_count
                lane.lazy_bytes += entry.nbytes
                lane.lazy_wall_ms = entry.wall_ms
            else:
                lane.committed(entry.base_offset, entry.record_count, entry.nbytes, entry.wall_ms, entry.metas, now_ms)
            early = lane.early
            for publish in entry.publishes:
                confirms.take(publish, not early and publish.level >= 2, True)
        if entry.answers is not None:
            confirms.send()
            for answer in entry.answers:
                answer()


def all_flushed(lanes: dict[int, Any], done: Sequence[tuple[int, int]], now_ms: int, confirms: Confirms) -> None:
    """A flush is durable: (partition, last index) each."""
    for pid, index in done:
        lane: Lane | None = lanes.get(pid)
        if lane is not None:
            lane_flushed(lane, index, now_ms, confirms)
    confirms.send()

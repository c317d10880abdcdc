"""What queue and stream partitions share: gathering publishes into one entry a tick, epochs, and confirms when entries are durable.

Owns a partition's journal position (epoch, last index, next offset), what is gathered and what is in flight. Knows nothing of readiness or cursors:
subclasses do.
Where an appended entry becomes committed is the one thing in which a lone broker and one of a cluster differ here: by the flush that makes it
durable, or by what the replica says (``copies``, then ``copy`` is set).
Invariants: offsets are given out in the order in which runs are gathered, which is the order of the journal; a confirm above ``accepted`` is sent
only from ``flushed``, or ``Copy.satisfied``;
the epoch grows at each activation, before the first entry of this incarnation.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.broker.catalogue import Item
from headrace.broker.lane import Confirms, InFlight, Lane, Meta, Publish, lane_append, lane_gather
from headrace.broker.sink import Sink
from headrace.broker.waiting import Waiting
from headrace.core.dedup import Duplicate, Overtaken, Partial, ProducerTable
from headrace.core.group_records import GroupRecords
from headrace.model import limits
from headrace.model.errors import (
    DiskFull,
    Draining,
    Elsewhere,
    HeadraceError,
    LevelUnavailable,
    Quarantined,
    QueueFull,
    StaleRouting,
    TooLarge,
    Unavailable,
)
from headrace.storage.api import Checkpoint, PartitionLog, StoredEntry
from headrace.wire import control, ingress
from headrace.wire.entry import runs
from headrace.wire.frames import BATCH, ENVELOPE, Level
from headrace.wire.journal import RECORDS_HEAD, Kind

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.copies import Copy
    from headrace.wire import replication

OVERHEAD_BYTES = ENVELOPE.size + BATCH.size
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Partition(Lane, ABC):
    """One partition, loaded: made by ``Broker.partition`` at first use, or by the ``Copy`` that a broker of a cluster has of it."""

    def __init__(self, broker: Broker, item: Item, number: int, pid: int) -> None:
        super().__init__(broker.turn, broker.store, ProducerTable(), pid)
        self.broker = broker
        self.store = broker.store
        self.item = item
        self.number = number
        self.routing = item.routing_version
        self.copy: Copy | None = broker.cluster.copies[pid] if broker.cluster is not None else None
        """What says which entries are committed; None: this broker is alone, and its flushes do."""
        if self.copy is not None:
            self.append_entry, self.intake = self.copy.append, None
        self.epoch_kept = False
        """The epoch is durable: nobody is shown one that a crash could give to another start. In a cluster: it may deliver, lease and assign."""
        self.bounded = False
        """Whether its settings can refuse a publish for lack of room; else a full disk alone can."""
        self.groups = GroupRecords()
        self.epochs: list[tuple[int, int]] = []
        """(epoch, offset at which it began) of the newest epochs, ascending: what an older one had there and beyond was taken back."""
        self.deadline_ms: int | None = None
        self.publishers = 0
        self.delivered = self.settled_count = 0
        self.rates = (0.0, 0.0, 0.0)
        """Published, delivered and settled a second, as of the last sample."""
        self._sampled = (0, 0, 0)
        self._answers: list[Callable[[], None]] = []

    # ------------------------------------------------------------ start

    def recover(self, log: PartitionLog, now_ms: int, wall_ms: int) -> None:
        """Rebuilds the state from a checkpoint and the entries after it. Everything recovered is durable, so it is committed."""
        self.epoch, self.last_index, self.flushed_index = log.last_epoch, log.last_index, log.last_index
        state: dict[str, Any] = {}
        if log.checkpoint is not None:
            state = _decode(log.checkpoint.data)
            self.next_offset = log.checkpoint.next_offset
            self.epochs = [(epoch, first) for epoch, first in state.get("epochs", ())]
            self.producers.restore(1, state["producers"])
            if "groups" in state:
                self.groups.restore(state["groups"])
        self.restore(state, now_ms, wall_ms)
        for base, count, nbytes, wall, metas in state.get("pending", ()):
            # an earlier release kept no key slots
            self._committed_again(base, count, nbytes, wall, None if metas is None else [(*meta, 0)[:6] for meta in metas], now_ms=now_ms)
        for entry in log.entries:
            self.apply(entry, now_ms, wall_ms)
        self.next_offset = max(self.next_offset, log.next_offset)
        self.high_watermark = self.next_offset
        self.recovered(now_ms, wall_ms)

    def apply(self, entry: StoredEntry | replication.Entry, now_ms: int, wall_ms: int) -> None:
        """Takes a committed entry into the state: of the log at a start, or of another broker's journal that is copied here."""
        if entry.kind != Kind.RECORDS:
            if entry.kind == Kind.EPOCH_START:
                self._epoch_began(entry.epoch)
            elif entry.kind == Kind.GROUP:
                self.groups.replay(bytes(entry.payload))
            else:
                self.replay(Kind(entry.kind), bytes(entry.payload), now_ms, wall_ms)
            return
        table = runs(entry.payload)
        offset = entry.base_offset
        plain = True
        metas = []
        for run in table:
            if run.producer_id >= 0:
                self.producers.stored(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count, offset)
            offset += run.record_count
            plain = plain and not (run.not_before_ms or run.expires_at_ms or run.priority or (self.slotted and run.key_slot))
            metas.append((run.record_count, run.nbytes, run.not_before_ms, run.expires_at_ms, run.priority, run.key_slot))
        wall = RECORDS_HEAD.unpack_from(entry.payload)[3]
        self._committed_again(entry.base_offset, entry.record_count, sum(m[1] for m in metas), wall, None if plain else metas, now_ms=now_ms)

    def _committed_again(self, base: int, count: int, nbytes: int, wall_ms: int, metas: Any, *, now_ms: int) -> None:
        self.next_offset = base + count
        self.high_watermark = self.next_offset
        self.committed(base, count, nbytes, wall_ms, metas, now_ms)

    def activate(self) -> None:
        """Takes a new epoch before the first entry, lease or subscription of this incarnation."""
        if self.quarantined and self.copy is None:  # a repair may cut what is decided now, or, without a known next index, find it where its own goes
            raise Quarantined(f"partition {self.number} of {self.item.name!r} is quarantined: {self.quarantined}")
        if self.active:
            return
        if self.copy is not None:
            raise self.barred or self.copy.elsewhere()
        self.active = True
        self.epoch += 1
        body = _encode({"epoch": self.epoch, "broker": self.broker.id, "incarnation": self.broker.incarnation, "wall_ms": self.broker.wall_ms})
        started = InFlight(self._append(Kind.EPOCH_START, (body,), len(body)), -1, 0, 0, 0, [])
        started.answers = [self._epoch_kept]
        self.in_flight.append(started)
        self._epoch_began(self.epoch)
        self.turn.schedule(self)

    def lead(self, epoch: int, index: int, now_ms: int, wall_ms: int) -> None:
        """Its copy serves from now on, in an epoch whose beginning, the entry at ``index``, was the last to be applied."""
        self.epoch, self.last_index, self.flushed_index = epoch, index, index
        self.active, self.barred = True, None
        self.recovered(now_ms, wall_ms)
        self.broker.groups.found(self)
        self.broker.mark(self)

    def taken_away(self, why: HeadraceError, unknown: HeadraceError) -> None:
        """Its epoch has ended: what was gathered is refused with ``why``; whether what was appended will be committed nobody knows."""
        self.barred = why
        self.active = self.epoch_kept = False
        confirms = Confirms(self.broker.counters, self.turn, self.broker.precise_ms)
        gathered, self.gathered = self.gathered, []
        refused: dict[tuple[int, int], Sink] = {}
        for publish in gathered:
            confirms.take(publish, False, True)
            if publish.sink is not None:
                self.refuse(publish.sink, publish.channel, publish.run, publish.level, why)
                refused[id(publish.sink), publish.channel] = publish.sink
        for (_, channel), sink in refused.items() if type(why) in (Elsewhere, Unavailable) else ():
            self.close_channel(sink, channel, why)  # nothing may follow on it that would tell them
        in_flight, self.in_flight = self.in_flight, []
        answers, self._answers = self._answers, []
        for entry in in_flight:
            for publish in entry.publishes:
                confirms.take(publish, False, True)
            answers.extend(entry.answers or ())
        confirms.send()
        for answer in answers:
            if isinstance(answer, Waiting):
                answer.unknown(unknown)

    def _epoch_began(self, epoch: int) -> None:
        self.epochs = [*self.epochs[1 - limits.EPOCHS_KEPT :], (epoch, self.next_offset)]

    def taken_back(self, position: int, epoch: int) -> int:
        """Up to where a reader still has what is here, that had read to ``position`` in ``epoch``."""
        return min((first for newer, first in self.epochs if newer > epoch), default=position) if epoch else position

    def _epoch_kept(self) -> None:
        self.epoch_kept = True
        self.broker.mark(self)

    # ------------------------------------------------------------ publishing

    @abstractmethod
    def own_level(self) -> int:
        """The confirm level that ``Level.QUEUE`` stands for."""

    def level_here(self) -> int:
        """The highest confirm level that there is here."""
        return self.copy.level if self.copy is not None else Level.LOCAL if self.broker.durable else Level.ACCEPTED

    @abstractmethod
    def admit(self, count: int, nbytes: int, *, whole: bool = False) -> HeadraceError | None:
        """Limits, checked before anything is gathered; called only while ``limited``. ``whole``: as for the queue's machine."""

    def settings_changed(self) -> None:
        """Takes what the hot path needs of the settings: which level each asked one means (-1 = cannot be had)."""
        own = self.own_level()
        self.levels = [int(own) if asked == Level.QUEUE else asked if asked <= own else -1 for asked in range(8)]
        self.early = own < Level.LOCAL or self.copy is not None

    def refusal(self, level: int = Level.QUEUE) -> HeadraceError | None:
        """Why nothing may be published now at that level, or None."""
        if self.barred is not None:
            return self.barred
        if self.quarantined:
            return Quarantined(f"partition {self.number} of {self.item.name!r} is quarantined: {self.quarantined}")
        broker = self.broker
        if broker.draining:
            return Draining("this broker is going away and takes no publishes any more")
        if broker.disk_nearly_full:
            return DiskFull("the disk is nearly full, so publishes are refused while acks and reads go on")
        if broker.store_error is None and self.copy is not None:
            return self.copy.refusal(level)
        return broker.store_error

    def publish(self, sink: Sink, channel: int, asked_level: int, run: ingress.Run, blob: bytes, now_ms: float) -> HeadraceError | None:
        """Takes one run of frames as it arrived; its confirm or refusal goes to ``sink``. In a cluster: says why nothing that follows on this channel
        may be taken, None = it may."""
        level = self.levels[asked_level]
        nbytes = len(blob)
        copy = self.copy
        if (
            level < 0
            or self.broker.refusing
            or self.barred is not None
            or self.quarantined
            or 0 < self.message_bytes_max < nbytes
            or (copy is not None and copy.refusal(level) is not None)
        ):
            error = self.refusal(level) or self._above(asked_level) or self._too_large(blob)
            if error is not None:
                passing = isinstance(error, (DiskFull, Unavailable)) and self.barred is None and not self.quarantined
                if passing and level >= 0 and run.producer_id >= 0:
                    # sent again because its confirm was lost: what is stored must not be refused for certain
                    stored = self.producers.check(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count)
                    if stored is not None and not isinstance(stored, Overtaken):
                        return self._not_new(sink, channel, asked_level, level, run, blob, stored, now_ms)
                self.refuse(sink, channel, run, asked_level, error)
                return error if copy is not None and type(error) in (Elsewhere, Unavailable) else None
        records = run.record_count
        if run.producer_id >= 0:
            verdict = self.producers.check(run.producer_id, run.producer_epoch, run.first_sequence, records)
            if verdict is not None:
                return self._not_new(sink, channel, asked_level, level, run, blob, verdict, now_ms)
        if self.limited and (error := self.admit(records, nbytes)) is not None:
            self.refuse(sink, channel, run, asked_level, error)
            return None
        sink.in_flight_bytes += nbytes
        if level == 1:
            self.accepted = True
        if copy is not None:
            self.poked = True  # a tick asks first whether it may append
        lane_gather(self, Publish(sink, channel, run, level, self.next_offset, blob, now_ms))
        return None

    def _above(self, asked_level: int) -> HeadraceError | None:
        if self.levels[asked_level] >= 0:
            return None
        own = Level(self.own_level()).name.lower()
        return LevelUnavailable(f"{self.item.name!r} confirms at most at level {own}, {asked_level} was asked for")

    def append_own(self, run: ingress.Run, blob: bytes, done: Callable[[int, HeadraceError | None], None]) -> None:
        """Publishes frames made by the broker itself (transfers), which ``run`` describes; ``done(base_offset, error)`` is called once they are
        committed or refused."""
        error = self.refusal()
        if error is None and run.producer_id < 0:
            error = self.admit(run.record_count, len(blob), whole=True) if self.limited else None
        if error is None and run.producer_id >= 0:
            verdict = self.producers.check(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count)
            if isinstance(verdict, Duplicate):
                base = verdict.base_offset
                self.when_committed(lambda: done(base, None), lambda why: done(-1, why))
                return
            error = verdict if isinstance(verdict, HeadraceError) else self.admit(run.record_count, len(blob), whole=True) if self.limited else None
        if error is not None:
            done(-1, error)
            return
        base = self.next_offset
        lane_gather(self, Publish(None, 0, run, Level.NONE, base, blob, self.broker.now_ms))
        self._answers.append(Waiting(lambda: done(base, None), lambda why: done(-1, why)))
        self.broker.mark(self)

    def when_committed(self, answer: Callable[[], None], unknown: Callable[[HeadraceError], None] | None = None) -> None:
        """Calls ``answer`` once everything gathered or appended up to now is committed, or ``unknown`` when nobody will know whether it is."""
        if unknown is not None:
            answer = Waiting(answer, unknown)
        if self.gathered or self.dirty:
            self._answers.append(answer)
            self.broker.mark(self)
        else:
            self._answer_when_flushed([answer])

    async def settled_down(self) -> None:
        """Returns once everything gathered or appended up to now is committed; ``UnknownOutcome`` when nobody will know whether it is."""
        done: asyncio.Future[None] = self.broker.loop.create_future()

        def committed() -> None:
            if not done.done():
                done.set_result(None)

        def unknown(why: HeadraceError) -> None:
            if not done.done():
                done.set_exception(why)

        self.broker.mark(self)
        self.when_committed(committed, unknown)
        await done

    @property
    def _gathered(self) -> list[Publish]:
        return self.gathered

    def wall_ms(self) -> int:
        return self.broker.wall_ms

    def confirm_accepted(self, publishes: list[Publish]) -> None:
        confirms = Confirms(self.broker.counters, self.turn, self.broker.precise_ms)
        for publish in publishes:
            confirms.take(publish, publish.level == Level.ACCEPTED, False)
        confirms.send()

    def _append(self, kind: Kind, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0) -> int:
        self.last_index += 1
        self.append_entry(self.pid, self.epoch, self.last_index, kind, payload, nbytes, base_offset, record_count)
        return self.last_index

    # ------------------------------------------------------------ each tick

    def step(self, now_ms: int, wall_ms: int) -> None:
        """Appends what this tick gathered and journals what was decided, grants and sends."""
        if self.barred is not None or (self.copy is not None and not self.copy.turn()):
            return
        if self.gathered:
            lane_append(self, wall_ms)
        if self.poked:
            self.poked = False
            self.serve(now_ms, wall_ms)
            self.append_journal()
            if self.copy is not None:
                self.copy.journalled()

    def append_journal(self) -> None:
        """Appends the machine's decisions since the last call; settle confirmations wait for them. What is quarantined and has no epoch decides
        nothing that lasts."""
        taken = self.take_journal()
        if self.groups.changed:
            taken = (*self.groups.take_journal(), *taken)
        for kind, payload in () if self.quarantined and not self.active else taken:
            if not self.active:
                self.activate()
            self._append(kind, (payload,), len(payload))
        if self._answers:
            answers, self._answers = self._answers, []
            self._answer_when_flushed(answers)

    def _answer_when_flushed(self, answers: list[Callable[[], None]]) -> None:
        """Calls them once all that was appended up to now is durable."""
        if self.flushed_index >= self.last_index:
            for answer in answers:
                answer()
        elif self.in_flight and self.in_flight[-1].index == self.last_index:
            last = self.in_flight[-1]
            last.answers = [*(last.answers or ()), *answers]
        else:
            entry = InFlight(self.last_index, -1, 0, 0, 0, [])
            entry.answers = answers
            self.in_flight.append(entry)

    def floor_moved(self, floor: int) -> None:
        """Offsets below ``floor`` are settled, once what was decided is committed."""
        if self.copy is None:
            self.store.set_floor(self.pid, floor)
        else:
            self.copy.floor_moved(floor)

    def failed(self, error: HeadraceError) -> None:
        """The log failed: everything that waits has an unknown outcome."""
        for entry in [*self.in_flight]:
            for publish in entry.publishes:
                if publish.sink is not None and publish.level >= Level.LOCAL:
                    publish.sink.refused(publish.channel, publish.run.first_correlation, publish.run.frame_count, error)
                    self.broker.touch(publish.sink)
        self.in_flight.clear()

    # ------------------------------------------------------------ refusals and duplicates

    def refuse(self, sink: Sink, channel: int, run: ingress.Run, asked_level: int, error: HeadraceError) -> None:
        self.broker.counters.refused += run.record_count
        if asked_level != Level.NONE:
            sink.refused(channel, run.first_correlation, run.frame_count, error)
            self.broker.touch(sink)

    def close_channel(self, sink: Sink, channel: int, why: HeadraceError) -> None:
        """Tells a publisher that what it sends on ``channel`` is refused from now on, until it is opened anew."""
        sink.event(control.PublisherClosed(channel=channel, code=why.code, message=str(why), detail=dict(why.detail)))
        self.broker.touch(sink)

    def _not_new(
        self, sink: Sink, channel: int, asked: int, level: int, run: ingress.Run, blob: bytes, verdict: Any, now_ms: float
    ) -> HeadraceError | None:
        """A run that the producer table does not take as simply the next: stored before, fenced, only partly new, or late."""
        if isinstance(verdict, HeadraceError):
            self.refuse(sink, channel, run, asked, verdict)
        elif isinstance(verdict, Overtaken):
            # its refusal was lost with a connection; stored now, it would stand behind what was sent after it. It was for lack of room, in a cluster
            # too: what is refused because of who serves closes its channel, and what an owner loses are the last entries of the journal
            full = QueueFull if self.bounded else DiskFull
            late = full("there was no room when it first came, and later messages of its publisher are stored", hint="publish it anew")
            self.refuse(sink, channel, run, asked, late)
        elif isinstance(verdict, Duplicate):
            base, first, count = verdict.base_offset, run.first_correlation, run.frame_count
            self.broker.counters.duplicates += run.record_count
            if level != Level.NONE:

                def confirm() -> None:
                    sink.confirmed(channel, first, count, base, level, True)
                    self.broker.touch(sink)

                def unknown(why: HeadraceError) -> None:
                    self.refuse(sink, channel, run, asked, why)

                self.when_committed(confirm, unknown)
        else:
            pos, single, why = 0, len(blob), None
            if run.frame_count == 1:
                self.refuse(sink, channel, run, asked, verdict.error)
                return None
            while pos < single:
                stop = pos + 4 + int.from_bytes(blob[pos : pos + 4], "big")
                part = ingress.scan_run(blob, pos, stop, limits.FRAME_BYTES_MAX)
                why = self.publish(sink, channel, asked, part, blob[pos:stop], now_ms) or why
                pos = stop
            return why
        return None

    def answer_late(self, sink: Sink, channel: int, asked_level: int, run: ingress.Run, blob: bytes, error: HeadraceError, now_ms: float) -> None:
        """A run that was routed under an earlier version: confirmed if it is stored, else refused with ``error``, for certain, since nothing of that
        version is taken any more."""
        level = self.levels[asked_level]
        given_up = type(self.barred) is StaleRouting  # and empty, but what is stored of whom it still knows
        if run.producer_id >= 0 and level >= 0 and (self.barred is None or given_up) and not self.quarantined:
            verdict = self.producers.check(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count)
            if isinstance(verdict, Duplicate):
                self._not_new(sink, channel, asked_level, level, run, blob, verdict, now_ms)
                return
            if isinstance(verdict, Partial) and run.frame_count > 1:
                pos = 0
                while pos < len(blob):
                    stop = pos + 4 + int.from_bytes(blob[pos : pos + 4], "big")
                    part = ingress.scan_run(blob, pos, stop, limits.FRAME_BYTES_MAX)
                    self.answer_late(sink, channel, asked_level, part, blob[pos:stop], error, now_ms)
                    pos = stop
                return
            known = self.producers.resolve(run.producer_id, run.producer_epoch, run.first_sequence) if verdict is None else verdict
            if isinstance(known, Partial):
                known = known.error
            if isinstance(known, HeadraceError):
                error = known  # whether it is stored is not known any more
        elif self.barred is not None and not given_up:
            error = self.barred
        self.refuse(sink, channel, run, asked_level, error)

    def _too_large(self, blob: bytes) -> HeadraceError | None:
        for pos, length, count in ingress.walk(blob):
            if (length - OVERHEAD_BYTES) // count > self.message_bytes_max:
                most = f"{self.message_bytes_max} bytes that {self.item.name!r} takes"
                return TooLarge(f"a message of {length} bytes is above the {most} (at byte {pos} of the run)")
        return None

    # ------------------------------------------------------------ checkpoints

    def checkpoint(self) -> Checkpoint:
        """The state at the last appended index. It may be used only once that index is durable; publishes in flight are in it as pending."""
        if self.gathered:
            lane_append(self, self.broker.wall_ms)
        self.append_journal()
        return self.state(self.epoch, self.last_index)

    def state(self, epoch: int, index: int) -> Checkpoint:
        """What is here, as the state at ``index``."""
        pending = [(e.base_offset, e.record_count, e.nbytes, e.wall_ms, e.metas) for e in self.in_flight if e.record_count]
        groups = {"groups": self.groups.snapshot()} if self.groups else {}
        data = _encode({**self.snapshot(), **groups, "producers": self.producers.snapshot(), "pending": pending, "epochs": self.epochs})
        return Checkpoint(epoch, index, data, self.floor(), self.next_offset, self.wake_at_ms())

    def sample(self, seconds: float) -> None:
        """Measures the rates since the last call."""
        now = (self.published, self.delivered, self.settled_count)
        before, self._sampled = self._sampled, now
        self.rates = ((now[0] - before[0]) / seconds, (now[1] - before[1]) / seconds, (now[2] - before[2]) / seconds)

    def idle(self) -> bool:
        """Nothing in flight, nobody attached, no group whose members may come back, nothing that time alone would change: it can be unloaded."""
        busy = self.dirty or self.in_flight or self.gathered or self.groups.homed or self.publishers or self.attached() or self.item.change
        return not busy and self.wake_at_ms() == 0

    # ------------------------------------------------------------ what a queue and a stream do differently

    @abstractmethod
    def restore(self, state: dict[str, Any], now_ms: int, wall_ms: int) -> None: ...

    @abstractmethod
    def snapshot(self) -> dict[str, Any]: ...

    @abstractmethod
    def replay(self, kind: Kind, payload: bytes, now_ms: int, wall_ms: int) -> None: ...

    @abstractmethod
    def recovered(self, now_ms: int, wall_ms: int) -> None: ...

    @abstractmethod
    def appended(self, base: int, count: int, nbytes: int, wall_ms: int) -> None: ...

    @abstractmethod
    def committed(self, base: int, count: int, nbytes: int, wall_ms: int, metas: Sequence[Meta] | None, now_ms: int) -> None: ...

    @abstractmethod
    def serve(self, now_ms: int, wall_ms: int) -> None: ...

    @abstractmethod
    def take_journal(self) -> Sequence[tuple[Kind, bytes]]: ...

    @abstractmethod
    def floor(self) -> int: ...

    @abstractmethod
    def wake_at_ms(self) -> int: ...

    @abstractmethod
    def oldest_ms(self) -> int:
        """Age of the oldest unsettled message or retained record, 0 = none."""

    @abstractmethod
    def attached(self) -> int:
        """How many subscriptions it has."""

    @abstractmethod
    def subscription_ids(self) -> Iterable[int]: ...

    @abstractmethod
    def configure(self, item: Item) -> None: ...

"""This broker's copy of one partition in a cluster: the seam between the partition that serves and the replica that decides what is committed.

Owns which entries have been applied, whether the partition serves, who waits for which level, and the state that a checkpoint may show. Decides
nothing: who leads, what is committed and what may be appended the replica says (``Told``). A lone broker has none of these: there an entry is
committed by the flush that makes it durable.

C1 While it does not lead, the partition's state is exactly that of the entries up to ``applied``, all committed, and it takes nothing. C2 While it
leads, everything above an ``accepted`` is confirmed by ``satisfied`` alone, and state moves on by ``committed`` alone. C3 What an owner had decided
and nobody committed goes with its object: after ``fenced`` the partition is made anew from what is committed. C4 Nothing is erased, and no
checkpoint shown, for what is not committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from headrace.broker.catalogue import Item
from headrace.broker.lane import Confirms, Publish, lane_flushed
from headrace.core.replica.change import Wish
from headrace.core.replica.effects import Refusal
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.cluster import NOBODY, Assignment, BrokerId
from headrace.model.errors import Damaged, Elsewhere, HeadraceError, StorageError, Unavailable, UnknownOutcome
from headrace.storage.api import Checkpoint
from headrace.wire import replication as wire
from headrace.wire.frames import Level
from headrace.wire.journal import Kind

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.queue_partition import QueuePartition
    from headrace.broker.stream_partition import StreamPartition
    from headrace.cluster.replication.partition import Replicated

    Partition: TypeAlias = QueuePartition | StreamPartition

LEVELS: Final = {"local_durable": Level.LOCAL, "majority_durable": Level.MAJORITY, "replica_durable": Level.REPLICA}
LOOK_S: Final = 0.05
"""How soon a partition that may not deliver, or not append, looks again whether it may."""
STUCK_S: Final = 1.0
"""An owner that committed nothing for so long, though it has appended something, makes a checkpoint of what is committed without that."""
_log = get_logger("broker")


class Copy:
    """See the module's head. It is a ``replication.interface.Told``."""

    def __init__(self, broker: Broker, document: Assignment) -> None:
        self.pid: int = document.partition
        self.broker = broker
        self.document = document
        self.replicated: Replicated
        """Given right after it is made."""
        self.partition: Partition | None = None
        """None: its queue or stream is not known here (yet), its copy is damaged, or nothing is done for it any more."""
        self.applied = 0
        """Index of the last entry that the partition's state holds; of its own ones while it leads."""
        self.end = 1
        """Everything below is committed."""
        self.serving = False
        self.taken_up_s = 0.0
        """By the loop's clock."""
        self.begun = asyncio.Event()
        """It has been served here, or never will be."""
        self._ended: HeadraceError | None = None
        """Why nothing is done for it any more."""
        self._lead = (0, 0)
        """The epoch that it was given, and the index at which that begins; 0 = it does not lead."""
        self._owner: BrokerId = NOBODY
        self._reading = False
        self._looking = False
        self._tokens: dict[int, tuple[int, list[Publish]]] = {}
        """Who waits: level, and the publishes of the entry, those at other levels among them."""
        self._token = 0
        self._floor = 0
        self._floors: list[tuple[int, int]] = []
        """(index, floor): below the floor nothing is needed once that index is committed."""
        self._shown: Checkpoint | None = None
        """The state at an index that was not committed when it was made."""
        self._shown_s, self._shown_end = 0.0, 0
        """Since when nothing more is committed, and up to where it was then."""
        self._stuck: Checkpoint | None = None

    # ------------------------------------------------------------ for the partition

    @property
    def level(self) -> Level:
        """What a confirm at the level of the queue promises, as its assignment has it."""
        return LEVELS[self.document.level]

    def append(
        self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0
    ) -> None:
        """What ``store.append`` is for a lone broker; ``Fenced`` if the epoch has just ended, of which it is told in the same turn."""
        given = self.replicated.append(kind, payload[0] if len(payload) == 1 else b"".join(payload), base_offset, record_count)
        assert given == index, f"entry {index} of partition {pid} was given index {given}"
        if kind == Kind.RECORDS:
            assert self.partition is not None
            publishes = self.partition.gathered
            for level in sorted({p.level for p in publishes if p.level >= Level.LOCAL and p.sink is not None}):
                self._token += 1
                self._tokens[self._token] = level, publishes
                self.replicated.wait(level, index, self._token)

    @property
    def is_starting(self) -> bool:
        """It is this broker's to serve and not served yet."""
        return not self.serving and self.document.owner == self.broker.id and self._ended is None and not self.replicated.halted

    def refusal(self, level: int) -> HeadraceError | None:
        """Why nothing is appended at that level now; asked before anything is."""
        why = self.replicated.refusal(level)
        if why is None:
            return None
        return self.elsewhere() if why is Refusal.NOT_OWNER else self._later(why)

    def turn(self) -> bool:
        """At the beginning of a tick: whether it may append; says to the partition whether it may deliver, lease and assign."""
        partition = self.partition
        if partition is None or self.replicated.refusal(Level.NONE) is not None:
            self._look_soon()
            return False
        partition.epoch_kept = self.replicated.delivers() is None
        if not partition.epoch_kept:
            self._look_soon()
        return True

    def journalled(self) -> None:
        """At the end of a tick: everything that was decided is appended."""
        if self._floor and self.partition is not None and (not self._floors or self._floors[-1][1] != self._floor):
            self._floors.append((self.partition.last_index, self._floor))
            self._floor = 0
            self._erase()

    def floor_moved(self, floor: int) -> None:
        """Nothing below ``floor`` is needed once what was decided is committed."""
        self._floor = floor

    def elsewhere(self) -> HeadraceError:
        """Why it is not served here."""
        if self._ended is not None:
            return self._ended
        what = f"partition {self.pid} of {self.document.item!r}"
        if self.document.owner != self.broker.id:
            cluster = self.broker.cluster
            assert cluster is not None
            return Elsewhere(f"{what} is served by broker {self.document.owner}", hint=cluster.where(self.pid), detail=cluster.detail(self.pid))
        return self._later(Refusal.STARTING)

    def _later(self, why: Refusal) -> Unavailable:
        return Unavailable(f"partition {self.pid} of {self.document.item!r} takes nothing now: {why.value}", hint="try again in a moment")

    def hand_over(self) -> None:
        """Begins to give it to a broker that has everything, if there is one; until then, or until that has failed, it takes nothing."""
        document = self.document
        if self.serving:
            any(self.replicated.hand_over(b) for b in (document.isr or document.replicas) if b != self.broker.id)

    def _look_soon(self) -> None:
        if not self._looking and self.serving:
            self._looking = True
            self.broker.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        if self.serving and self.partition is not None:
            self.broker.mark(self.partition)

    # ------------------------------------------------------------ what the replica says

    def assigned(self, document: Assignment) -> None:
        """The recorded document, in which this broker has, or had, a copy."""
        before, self.document = self.document, document
        partition = self.partition
        if partition is None:
            return
        if not self.serving:
            partition.barred = self.elsewhere()
        if before.level != document.level:
            partition.settings_changed()

    def wish(self, item: Item) -> None:
        """Its queue or stream is known, as it is set now."""
        spec = item.spec
        self.replicated.wish(Wish(spec.durability, spec.min_in_sync_replicas))
        if self.partition is None and not self.replicated.halted:
            self._load()
            self._apply()

    def close(self, why: HeadraceError) -> None:
        """Its queue or stream was deleted: nothing is done for it any more in this life."""
        if self._ended is not None:
            return
        self._ended = why
        self.begun.set()
        self.replicated.halt(str(why))
        if self.partition is not None:
            self.partition.barred = why
            self.broker.loading.forget(self.partition)
            self.partition = None

    def leads(self, epoch: int, at: int) -> None:
        self._lead = epoch, at
        self._serve()

    def follows(self, owner: BrokerId, epoch: int) -> None:
        self._owner = owner

    def fenced(self, epoch: int, reason: str) -> None:
        self.broker.refresh()
        self._lead = 0, 0
        self._tokens.clear()
        self._floors.clear()
        self._floor, self._shown, self._stuck = 0, None, None
        if not self.serving:
            return
        self.serving = False
        old = self.partition
        assert old is not None
        why = self.elsewhere()
        old.taken_away(why, _unknown(reason))
        self.broker.sessions.end_readers(old, why)
        self._drop(f"epoch {epoch} has ended: {reason}")
        if not self.replicated.halted:
            self._load()
            self._apply()

    def committed(self, end: int) -> None:
        self.broker.refresh()
        self.end = end
        if not self.serving:
            self._apply()
            return
        partition = self.partition
        assert partition is not None
        self.applied = end - 1
        broker = self.broker
        confirms = Confirms(broker.counters, broker.turn, broker.precise_ms)
        lane_flushed(partition, end - 1, broker.now_ms, confirms)
        confirms.send()  # nobody is confirmed here, but what is committed is in flight no more
        self._erase()

    def replaced(self, end: int) -> None:
        self.broker.refresh()
        self._drop("what was here of it was replaced by a copy of another broker")
        self.end = min(end, self.replicated.high_watermark)
        if self._ended is None:
            self._load()
            self._apply()

    def _drop(self, why: str) -> None:
        """The object goes; publishers look for the one that takes its place."""
        old, self.partition = self.partition, None
        if old is not None:
            old.barred = old.barred or self.elsewhere()
            old.quarantined = why
            self.broker.loading.forget(old)

    def satisfied(self, tokens: Sequence[int]) -> None:
        broker = self.broker
        confirms = Confirms(broker.counters, broker.turn, broker.precise_ms)
        for token in tokens:
            level, publishes = self._tokens.pop(token)
            for publish in publishes:
                if publish.level == level:
                    confirms.take(publish, True, False)
        confirms.send()

    def unknown(self, tokens: Sequence[int], reason: str) -> None:
        error = _unknown(reason)
        for token in tokens:
            level, publishes = self._tokens.pop(token)
            for publish in publishes:
                if publish.level == level and publish.sink is not None:
                    publish.sink.refused(publish.channel, publish.run.first_correlation, publish.run.frame_count, error)
                    self.broker.touch(publish.sink)

    # ------------------------------------------------------------ state

    def _load(self) -> None:
        """Makes the partition anew, with what the store has of it as far as that is committed."""
        self.applied = self._floor = 0
        partition = self.broker.loading.make(self.pid, self.document.item)
        if partition is None:
            return
        self.partition = partition
        partition.barred = self.elsewhere()
        try:
            self.applied = self._recover(partition)
        except Damaged as e:
            partition.quarantined = str(e)

    def _recover(self, partition: Partition) -> int:
        """Gives it what the store has, as far as that is committed: the index of the last entry. ``Damaged``."""
        log = self.broker.store.replay(self.pid)
        start = self.replicated.replica.journal.start
        reached = max(start - 1, log.checkpoint.index if log.checkpoint is not None else 0)
        self.end = max(self.end, reached + 1)
        entries = [entry for entry in log.entries if entry.index < self.end]
        partition.recover(log._replace(entries=entries, next_offset=0), self.broker.now_ms, self.broker.wall_ms)
        return max(reached, entries[-1].index if entries else 0)

    def _apply(self) -> None:
        """Applies what is committed, from memory as far as it goes."""
        partition = self.partition
        if partition is None or partition.quarantined or self._reading:
            return
        while self.applied + 1 < self.end:
            pieces, _ = self.replicated.recent.pieces(self.applied + 1, self.end, limits.READ_CHUNK_BYTES)
            if not pieces:
                self._reading = True
                self.broker.spawn(self._read(partition))
                return
            self._take(partition, wire.entries(b"".join(pieces), self.pid))
        self._serve()

    async def _read(self, partition: Partition) -> None:
        try:
            while self.partition is partition and self.applied + 1 < self.end and not self.replicated.halted:
                found = await self.replicated.read(self.applied + 1, self.end)
                if self.partition is not partition:
                    break
                if not found:  # moved out of the log
                    self._load()
                    break
                self._take(partition, [entry for entry in found if entry.index > self.applied])
        except StorageError as e:
            partition.quarantined = str(e)
        self._reading = False
        if not self.replicated.halted:
            self._apply()

    def _take(self, partition: Partition, entries: Sequence[wire.Entry]) -> None:
        broker = self.broker
        for entry in entries:
            partition.apply(entry, broker.now_ms, broker.wall_ms)
        self.applied = entries[-1].index
        floor = partition.floor()
        if floor != self._floor:
            self._floor = floor
            broker.store.set_floor(self.pid, floor)

    def _serve(self) -> None:
        """Begins to serve once everything up to the start of its epoch is applied."""
        epoch, at = self._lead
        partition = self.partition
        if not epoch or self.serving or partition is None or partition.quarantined or self.applied < at:
            return
        broker = self.broker
        broker.refresh()
        self.serving = True
        self.begun.set()
        self._floor = 0
        partition.lead(epoch, self.applied, broker.now_ms, broker.wall_ms)
        _log.info("partition %d of %r is served here in epoch %d", partition.number, partition.item.name, epoch)

    # ------------------------------------------------------------ what is committed leaves the log

    def _erase(self) -> None:
        floors = self._floors
        while floors and floors[0][0] < self.end:
            self.broker.store.set_floor(self.pid, floors.pop(0)[1])

    def checkpoint(self) -> Checkpoint | None:
        """The partition's state at a committed index; None: the newest one stands, a newer one can be had a little later."""
        partition = self.partition
        if partition is None or partition.quarantined:
            return None
        if not self.serving:
            return _state(partition, self.applied)
        found = self._shown if self._shown is not None and self._shown.index < self.end else None
        if self._shown is None or found is not None:
            self._shown = self._stuck = None
            if self.replicated.refusal(Level.NONE) is None:
                made = partition.checkpoint()
                if made.index < self.end:
                    return made
                self._shown, self._shown_s, self._shown_end = made, self.broker.loop.time(), self.end
        elif self.end != self._shown_end:
            self._shown_s, self._shown_end, self._stuck = self.broker.loop.time(), self.end, None
        elif self.broker.loop.time() - self._shown_s > STUCK_S:
            return self._committed_state()
        return found

    def _committed_state(self) -> Checkpoint | None:
        """Nothing more is committed: perhaps it waits for a broker that waits for a checkpoint to begin with. So it is made of a second object, which
        has what is committed and not what was appended since."""
        if self._stuck is None:
            made = self.broker.loading.make(self.pid, self.document.item, keep=False)
            if made is None:
                return None
            made.barred = self._later(Refusal.BELOW_FLOOR)
            try:
                self._stuck = _state(made, self._recover(made))
            except Damaged:
                return None  # whoever reads it next is told
        return self._stuck


def _state(partition: Partition, applied: int) -> Checkpoint | None:
    epoch = partition.epochs[-1][0] if partition.epochs else 0  # every epoch begins with an entry that says so
    return partition.state(epoch, applied) if applied else None


def _unknown(reason: str) -> UnknownOutcome:
    return UnknownOutcome(f"whether it is stored is not known: {reason}")

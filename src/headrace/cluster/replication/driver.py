"""All replicas of a broker: frames in and out, what flushes have made durable, who is connected, which copies are in doubt.

Owns what a turn ends with: once all machines were asked (``turns``), one frame a peer, then one flush for all. Does not know what is appended, nor
who shall own what.

D1 A machine is asked once a turn, after everything that came in. D2 Completions are told in the order of the log. D3 Nothing is answered in a life
before the small state says that it is not cleanly stopped. D4 A machine that raises stops alone. D5 A copy that has lost what it acknowledged is
known as such in the small state before it begins anew.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from msgspec.structs import replace

from headrace.ambient import ambient
from headrace.cluster.replication import marks
from headrace.cluster.replication.heads import filled, pack, unpack
from headrace.cluster.replication.heard import Heard
from headrace.cluster.replication.intake import Intake
from headrace.cluster.replication.interface import FlushRow, Log, Peers, Store, Swaps, Told
from headrace.cluster.replication.knocking import Knocking, owner_to_wake
from headrace.cluster.replication.messages import Offer, Want
from headrace.cluster.replication.messages import Part as CopyPart
from headrace.cluster.replication.outbox import Outbox
from headrace.cluster.replication.partition import Replicated
from headrace.cluster.replication.recent import Memory
from headrace.cluster.replication.tasks import Tasks
from headrace.cluster.replication.throttle import Throttle
from headrace.cluster.replication.turns import Turns
from headrace.cluster.transport.link import Lost
from headrace.core.replica import effects, term
from headrace.core.replica.configuration import recorded
from headrace.core.replica.effects import Outcome
from headrace.core.replica.follower import Phase
from headrace.core.replica.journal import Recovered
from headrace.core.replica.messages import Ack, AnyMessage, Append, Fetched, Install, Quarantined
from headrace.core.replica.peer import Pace
from headrace.core.replica.replica import Replica
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.config import Config
from headrace.model.errors import Malformed, Refused, StorageError
from headrace.wire import replication as wire
from headrace.wire.journal import Kind
from headrace.wire.peer import Introduction

_log = get_logger("replicas")
CATCH_UP_BYTES_PER_SECOND: Final = Config().peers.catch_up_bytes_per_second
OWN_PID: Final = 0
"""The partition of the store's own journal, which has one copy."""
_TRUNCATE: Final = int(Kind.TRUNCATE)
_PROMISE: Final = int(Kind.PROMISE)


class Driver:
    """See the module's head. Made on the loop; ``start`` before anything else. It is a ``transport.Watcher`` and ``storage.api.Replication``."""

    def __init__(
        self, me: BrokerId, incarnation: Incarnation, peers: Peers, swaps: Swaps, *, pace: Pace = Pace(), memory: Memory | None = None,
        catch_up_bytes_per_second: int = CATCH_UP_BYTES_PER_SECOND, part_bytes: int = limits.READ_CHUNK_BYTES,
        take_up: Callable[[int], None] = lambda pid: None,
    ) -> None:  # fmt: skip
        """``take_up``: opens a partition of which another broker speaks, if there is a copy of it here that is not open yet."""
        self.me = me
        self.incarnation = incarnation
        self._take_up = take_up
        self.partitions: dict[int, Replicated] = {}
        self.links: dict[BrokerId, Incarnation] = {}
        loop = asyncio.get_running_loop()
        self._ambient = ambient()
        self._peers = peers
        self._swaps = swaps
        self._pace = pace
        self._memory = memory or Memory()
        self._heard = Heard(peers.heard_ms, self.links)
        self._sure = Heard(peers.answered_ms, self.links)
        self._draining: dict[BrokerId, bool] = {}
        self._outboxes: dict[BrokerId, Outbox] = {}
        self._crowded: dict[BrokerId, dict[int, Replicated]] = {}
        self._knocking = Knocking(loop, self._knock)
        self.ended = False
        self.turns = Turns(loop, self.partitions, self.now_ms, self._turned)
        self.tasks = Tasks(loop)
        self.throttle = Throttle(catch_up_bytes_per_second, self.now_s)
        self.part_bytes = part_bytes
        """Of a copy that is given as a whole, in one message."""
        self.intake = Intake()
        self.fitness: Callable[[int, bool], None] = lambda pid, unfit: None
        """Told of a partition that is open whenever ``unfit`` has another answer."""
        self.news: Callable[[], None] = lambda: None
        """Told when ``missed`` may have another answer, and when somebody is connected."""
        self._collecting: dict[int, Replicated] = {}
        self._awaits = False
        """Whether what is missed may have changed in this turn."""
        self._marks = marks.Marks()
        self._store: Store
        self._log: Log

    def now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    def now_s(self) -> float:
        return self._ambient.monotonic()

    # ------------------------------------------------------------ life

    async def start(self, store: Store) -> None:
        """``store`` was reserved for this driver before it was opened. Returns once it is durable that this life has begun."""
        self._store = store
        self._log = store.replicated(self, self.flushed)
        self._marks = marks.unpack(store.state.get(marks.KEY))
        await self._mark()

    async def _mark(self) -> None:
        last = self._marks
        await self._store.commit_state({marks.KEY: marks.pack(clean=False, suspect=last.suspect, given_up=last.given_up)})

    def open(self, pid: int, told: Told) -> Replicated:
        """What this broker has of a partition, if anything; to be called soon after ``start``, or when it is given a copy."""
        assert pid not in self.partitions
        replica = self._replica(pid)
        partition = self.partitions[pid] = Replicated(self, pid, replica, told, self._log, self._memory)
        damage = self._log.damage(pid)
        if damage:
            replica.follower.quarantine(damage)
        self.turns.stir(partition)
        return partition

    def _replica(self, pid: int) -> Replica:
        found, last = self._log.found(pid), self._marks
        empty = found.end == 1 and not found.promised
        recovered = Recovered(
            start=found.start,
            end=found.end,
            high_watermark=found.covered,
            promised=found.promised,
            generation=found.generation,
            version=found.version,
            base_epoch=found.base_epoch,
            runs=found.runs,
            unclean=not empty and (not last.clean or pid in last.unclean),
            suspect=pid in last.suspect or pid in last.given_up,
        )
        if self._log.damage(pid):
            recovered = Recovered(promised=found.promised, generation=found.generation, version=found.version, suspect=True)
        replica = Replica(self.me, self.incarnation, recovered, self._heard, sure=self._sure, pace=self._pace)
        for broker, incarnation in self.links.items():
            replica.connected(broker, incarnation, self.now_ms())
        for broker in self._draining:
            replica.draining(broker, True)
        return replica

    def unfit(self, pid: int) -> bool:
        """Whether the copy here must not be made the owner, nor count as in sync: it is damaged, stands still, or has lost what it acknowledged. What
        the controller is told of (``cluster.control``), from before this broker is given anything."""
        partition = self.partitions.get(pid)
        if partition is None:
            return bool(self._log.damage(pid)) or pid in self._marks.suspect or pid in self._marks.given_up
        replica = partition.replica
        return bool(partition.halted) or replica.journal.suspect or replica.follower.phase in (Phase.QUARANTINED, Phase.RENEWING)

    @property
    def suspect(self) -> tuple[int, ...]:
        """The partitions whose copy here had lost what it acknowledged when this life began, or began anew in it."""
        return self._marks.suspect

    def damage(self, pid: int) -> str:
        """What is damaged of the copy here, as the log knows it; "" = nothing."""
        return self._log.damage(pid)

    def damaged(self, pid: int, why: str) -> None:
        """Damage was found while it is open: it takes and gives nothing until ``renew``, or until a later life. Who owns it hears of it."""
        partition = self.partitions.get(pid)
        if partition is None or partition.halted:
            return
        follower = partition.replica.follower
        if partition.replica.owner is None and follower.owner:
            said = Quarantined(epoch=follower.epoch, session=follower.session, reason=why)
            self.outbox(follower.owner).add(pid, pack(said))
            self.turns.stir(partition)
        partition.halt(f"it is quarantined: {why}")

    def holds(self, pid: int) -> bool:
        """Whether anything of that partition is on this broker's disk."""
        if pid in self.partitions or self._log.damage(pid):
            return True
        found = self._log.found(pid)
        return found.end > 1 or bool(found.promised)

    def keeps(self, pid: int) -> bool:
        """Whether there are data of that partition on this broker's disk, more than what it has promised."""
        return self._log.keeps(pid)

    async def give_up(self, pid: int) -> None:
        """Others have all of it and nobody counts on the copy here any more: its data go. What it has promised stays, and it counts as one that has
        lost something if it is a member in an older document that comes back. ``StorageError``: not all of that was done; ask again."""
        if pid in self.partitions:  # until its data are gone it may be opened again
            self._log.left(pid, self.partitions[pid].replica.journal.history.runs)
        self._end(pid, "it was moved to other brokers")
        trouble: list[StorageError] = []
        await asyncio.shield(self.tasks.settle(self._give_up(pid, trouble)))
        if trouble:
            raise trouble[0]

    async def _give_up(self, pid: int, trouble: list[StorageError]) -> None:
        self._marks = replace(self._marks, given_up=tuple({*self._marks.given_up, pid}))
        try:
            await self._mark()
            await self._log.replace(pid, None, 0)
        except StorageError as e:
            trouble.append(e)

    def close(self, pid: int) -> None:
        """Nothing of it is here any more: it was deleted and its data are gone."""
        self._end(pid, "it was deleted")
        last = self._marks
        suspect, given_up = (tuple(other for other in pids if other != pid) for pids in (last.suspect, last.given_up))
        self._marks = replace(last, suspect=suspect, given_up=given_up)

    def _end(self, pid: int, why: str) -> None:
        partition = self.partitions.pop(pid, None)
        if partition is not None:
            partition.halt(why)
            self.turns.forget(pid)
            self._collecting.pop(pid, None)
            for crowd in self._crowded.values():
                crowd.pop(pid, None)

    def collects(self, partition: Replicated, collects: bool) -> None:
        """It has begun to wait for answers of others, waits on, or waits no more."""
        if collects:
            self._collecting[partition.pid] = partition
        elif self._collecting.pop(partition.pid, None) is None:
            return
        self._awaits = True

    def missed(self) -> frozenset[BrokerId]:
        """The brokers for whose answers partitions wait that are owned here: those that are proven dead need not be waited for (``dead``)."""
        found: dict[BrokerId, None] = {}
        for partition in self._collecting.values():
            owner = partition.replica.owner
            if owner is not None:
                found.update(dict.fromkeys(term.missing(owner.document, self.me, owner.peers)))
        return frozenset(found)

    async def renew(self, pid: int, reason: str) -> None:
        """The copy here of a partition that is damaged or cannot go on is given up (what its log had of it is set aside, if it is damaged) and made
        anew from another broker's. Until then it counts as one that has lost what it acknowledged. ``Refused``: no other broker may have what was
        committed, or it is not known yet who has; ``StorageError``. Nothing was given up then."""
        partition = self.partitions[pid]
        document = partition.replica.document
        if document is None:
            raise Refused(f"it is not known yet who has copies of partition {pid}", hint="try again once this broker hears from the coordinator")
        if not [broker for broker in recorded(document) if broker != self.me]:
            raise Refused(f"partition {pid} has no copy elsewhere that counts", hint="repair it: what is sound of it here is kept")
        trouble: list[StorageError] = []
        await asyncio.shield(self.tasks.settle(self._renew(partition, reason, trouble)))
        if trouble:
            raise trouble[0]

    async def _renew(self, partition: Replicated, reason: str, trouble: list[StorageError]) -> None:
        pid = partition.pid
        _log.warning("partition %d begins anew: %s", pid, reason)
        partition.halt(f"it begins anew: {reason}")
        self._marks = replace(self._marks, suspect=tuple({*self._marks.suspect, pid}))
        try:
            await self._mark()
            await self._log.replace(pid, None, 0)
        except StorageError as e:
            trouble.append(e)
            return
        if not self.ended:
            partition.renewed(self._replica(pid))
            self._knocking.knock(partition)

    def held(self) -> Collection[int]:
        """The partitions of which anything is on this broker's disk. Blocks for a scan of the small state."""
        return self._log.held()

    async def stop(self) -> None:
        """Cleanly: everything appended is durable, nothing is answered any more, and the next life is told so. Before the store is closed. What an
        earlier life has left in doubt of copies that were not opened stays so."""
        self.abandon()
        await self.tasks.settled()
        for partition in self.partitions.values():
            await self._log.durable(partition.pid)
        last = self._marks
        unclean = [p.pid for p in self.partitions.values() if p.replica.journal.unclean]
        unclean += [pid for pid in self._log.held() if pid not in self.partitions and (not last.clean or pid in last.unclean)]
        suspect = [p.pid for p in self.partitions.values() if p.replica.journal.suspect]
        suspect += [pid for pid in last.suspect if pid not in self.partitions]
        given_up = [pid for pid in last.given_up if pid not in self.partitions]
        await self._store.commit_state({marks.KEY: marks.pack(clean=True, unclean=unclean, suspect=suspect, given_up=given_up)})

    def abandon(self, reason: str = "this broker stops") -> None:
        """Does nothing more, as after a failed write: what waits has an unknown outcome."""
        if self.ended:
            return
        self.ended = True
        self.turns.stop()
        self.tasks.stop()
        self.intake.close()
        for partition in self.partitions.values():
            partition.halt(reason)

    # ------------------------------------------------------------ turns

    def _turned(self) -> None:
        """Every partition that something came in for was asked."""
        if self._awaits:  # once for all of them: who is told asks each that waits
            self._awaits = False
            self.news()
        for box in self._outboxes.values():
            box.flush(self._peers)
        self._log.flush()
        self._crowd()

    def introduction(self, epoch: int) -> dict[str, Any]:
        """What the first entry of an epoch says."""
        wall_ms = self._ambient.wall_ns() // 1_000_000
        return {"epoch": epoch, "broker": self.me, "incarnation": self.incarnation, "wall_ms": wall_ms}

    # ------------------------------------------------------------ the coordinator

    def assigned(self, document: Assignment) -> None:
        """The recorded document of a partition that is open here."""
        partition = self.partitions.get(document.partition)
        if partition is not None:
            partition.replica.assigned(document, self.now_ms())
            self.turns.stir(partition)
            self._knocking.knock(partition)

    def swap(self, partition: Replicated, effect: effects.Swap) -> None:
        replica = partition.replica

        def answered(outcome: Outcome, document: Assignment | None) -> None:
            if not self.ended and not partition.halted and partition.replica is replica:
                partition.replica.swapped(effect.number, outcome, document, self.now_ms())
                self.turns.stir(partition)

        self._swaps.swap(effect.document, expected=effect.expected, answered=answered)

    # ------------------------------------------------------------ other brokers

    def outbox(self, peer: BrokerId) -> Outbox:
        box = self._outboxes.get(peer)
        if box is None:
            box = self._outboxes[peer] = Outbox(peer)
        return box

    def crowded(self, partition: Replicated, peer: BrokerId) -> None:
        """There was no room for its entries: it is asked again once there is."""
        self._crowded.setdefault(peer, {})[partition.pid] = partition

    def _crowd(self) -> None:
        for peer in [peer for peer in self._crowded if self.outbox(peer).room]:
            for partition in self._crowded.pop(peer).values():
                self.turns.again(partition, 0.0)

    def connected(self, peer: BrokerId, who: Introduction) -> None:
        self._broken(peer)
        self.links[peer] = Incarnation(who.incarnation)
        for partition in self.partitions.values():
            partition.replica.connected(peer, self.links[peer], self.now_ms())
            self.turns.stir(partition)
            self._knocking.knock(partition)
        self.news()

    def _knock(self, partition: Replicated) -> bool:
        owner = owner_to_wake(partition, self.me)
        if self.ended or owner not in self.links or self.partitions.get(partition.pid) is not partition:
            return False
        self.outbox(owner).acknowledge(partition.pid, 0, 0, 0)
        self.turns.stir(partition)
        return True

    def lost(self, peer: BrokerId, why: Lost) -> None:
        self._broken(peer)
        for partition in self.partitions.values():
            partition.replica.disconnected(peer, self.now_ms())
            self.turns.stir(partition)

    def _broken(self, peer: BrokerId) -> None:
        self.links.pop(peer, None)
        self.outbox(peer).clear()

    def full(self, peer: BrokerId) -> None:
        self.outbox(peer).full = True

    def drained(self, peer: BrokerId) -> None:
        box = self.outbox(peer)
        box.full = False
        box.flush(self._peers)
        self._crowd()

    def dead(self, peer: BrokerId) -> None:
        """That broker is proven dead."""
        for partition in self.partitions.values():
            partition.replica.dead(peer)
            self.turns.stir(partition)

    def draining(self, peer: BrokerId, draining: bool) -> None:
        """That broker is about to go, or is not any more."""
        if draining:
            self._draining[peer] = True
        else:
            self._draining.pop(peer, None)
        for partition in self.partitions.values():
            partition.replica.draining(peer, draining)
            self.turns.stir(partition)

    def take(self, peer: BrokerId, body: bytes) -> None:
        """A frame of another broker; ``Malformed`` ends its connection."""
        if self.ended or peer not in self.links:
            return
        rows, items = wire.decode(body)
        now_ms = self.now_ms()
        for pid, epoch, session, end in rows:
            self._received(peer, pid, Ack(epoch=epoch, session=session, end=end), now_ms)
        for item in items:
            message = unpack(item.head)
            if isinstance(message, (Offer, Want, CopyPart)):
                partition = self._spoken_of(item.pid)
                if partition is not None and not partition.halted:
                    partition.installs.received(peer, message, b"".join(item.entries))
                continue
            if isinstance(message, Install):
                raise Malformed("a checkpoint comes in parts, not as one message")
            if isinstance(message, (Append, Fetched)):
                message = filled(message, wire.entries(b"".join(item.entries), item.pid))
            elif item.entries:
                raise Malformed(f"a message without entries comes with {len(item.entries[0])} bytes of them")
            self._received(peer, item.pid, message, now_ms)

    def _received(self, peer: BrokerId, pid: int, message: AnyMessage, now_ms: int) -> None:
        partition = self._spoken_of(pid)
        if partition is not None and not partition.halted:
            partition.replica.received(peer, message, now_ms)
            self.turns.stir(partition)

    def _spoken_of(self, pid: int) -> Replicated | None:
        if pid not in self.partitions:
            self._take_up(pid)
        return self.partitions.get(pid)

    # ------------------------------------------------------------ the log

    def flushed(self, rows: Sequence[FlushRow]) -> None:
        """What a flush has made durable, in the order of the log."""
        if self.ended:
            return
        ends: dict[int, int] = {}
        now_ms = self.now_ms()
        for pid, first, last, _, marker in rows:
            if pid not in self.partitions:
                continue
            if marker:
                self._durable(pid, ends.pop(pid, 0), now_ms)
                replica = self.partitions[pid].replica
                if marker == _TRUNCATE:
                    replica.cut(first, now_ms)
                elif marker == _PROMISE:
                    replica.promised(first, now_ms)
                self.turns.stir(self.partitions[pid])
            else:
                ends[pid] = last + 1
        for pid, end in ends.items():
            self._durable(pid, end, now_ms)
        self.throttle.came_in(sum(row[3] for row in rows))
        self._memory.evict()

    def _durable(self, pid: int, end: int, now_ms: int) -> None:
        partition = self.partitions[pid]
        if end and not partition.halted:
            partition.replica.durable(end, now_ms)
            partition.recent.durable_end = partition.replica.journal.durable_end
            self.turns.stir(partition)

    def failed(self, error: BaseException) -> None:
        """The log has failed: what waits is unknown, and nothing is promised any more in this life."""
        self.abandon(f"the log has failed: {error}")

    # ------------------------------------------------------------ what storage asks

    def committed_index(self, pid: int) -> int | None:
        if pid == OWN_PID:
            return None
        partition = self.partitions.get(pid)
        if partition is None:
            return 0  # nothing is known to be committed of what is not open yet
        if self._log.damage(pid):
            return None  # all of it will be replaced: until then it need not hold back others' files
        held = partition.installs.held_index()
        return partition.high_watermark - 1 if held is None else min(held, partition.high_watermark - 1)

    def epoch_at(self, pid: int, index: int) -> int:
        partition = self.partitions.get(pid)
        return 0 if partition is None else max(0, partition.replica.journal.history.epoch_at(index))

    def moved(self, pid: int, moved_to: int) -> None:
        partition = self.partitions.get(pid)
        if partition is not None and not partition.halted:
            partition.replica.trimmed(moved_to + 1)
            self.turns.stir(partition)

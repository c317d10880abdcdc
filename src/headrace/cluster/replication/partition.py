"""One partition's replica with what its machine's effects are done with: its newest entries, its followers' reads, the partition that is told.

Owns the way from effects to the log, to frames and to the partition, in the order in which they were given. Decides nothing: what may be appended,
sent or committed the machine says. One thing it answers itself: how much of a range fits now (``sent_less``). ``installs`` has what goes as a whole.

D1 Entries are appended to the log in the order of the effects, and completions come back in the order of the log. D2 After less was sent to a
follower nothing more goes to it in that turn, so ranges never overtake each other. D3 What the partition is told of is told in the order in which
it came to be. D4 Whatever takes the place of the log as a whole is done to its end, also by a broker that stops.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from headrace.cluster.replication.catchup import CatchUp
from headrace.cluster.replication.heads import pack
from headrace.cluster.replication.installs import Installs
from headrace.cluster.replication.interface import Log, Told
from headrace.cluster.replication.outbox import ENTRY_BYTES_MAX
from headrace.cluster.replication.recent import Memory, Recent
from headrace.core.replica import effects
from headrace.core.replica.change import Wish
from headrace.core.replica.effects import Refusal
from headrace.core.replica.messages import Ack, Append, Fetched
from headrace.core.replica.opening import Part
from headrace.core.replica.replica import Replica
from headrace.log import get_logger
from headrace.model.cluster import BrokerId
from headrace.model.errors import DiskFull, Fenced, Refused, StorageError, TooLarge
from headrace.wire import replication as wire
from headrace.wire.journal import Kind

if TYPE_CHECKING:
    from headrace.cluster.replication.driver import Driver

_log = get_logger("replicas")
_encode = msgspec.msgpack.Encoder().encode
RETRY_S: Final = 1.0


class Replicated:
    """See the module's head. Made by ``Driver.open``."""

    def __init__(self, driver: "Driver", pid: int, replica: Replica, told: Told, log: Log, memory: Memory) -> None:
        self.pid = pid
        self.replica = replica
        self.recent = Recent(memory, replica.journal.end)
        self.halted = ""
        """Why nothing is done for it any more in this life."""
        self.wake_ms = 0
        self._driver = driver
        self._told = told
        self._log = log
        self.installs = Installs(driver, self, log)
        self._catchup = CatchUp(
            lambda first, end: log.read(pid, first, end), driver.throttle.spend, driver.tasks.spawn, lambda seconds: driver.turns.again(self, seconds)
        )
        self._short: dict[BrokerId, bool] = {}
        self._lead: tuple[int, int] | None = None
        self._owner: tuple[BrokerId, int] = (BrokerId(""), 0)
        self._wanted = False
        self._wish: Wish | None = None
        self._unfit = self._collects = False
        """As the driver was told."""

    # ------------------------------------------------------------ for the partition

    @property
    def high_watermark(self) -> int:
        """Exclusive end of what is known here to be committed."""
        return self.replica.journal.high_watermark

    def refusal(self, level: int) -> Refusal | None:
        """Why nothing may be appended at that level now: to be asked before anything is."""
        return Refusal.NOT_OWNER if self.halted else self.replica.refusal(level, self._driver.now_ms())

    def delivers(self) -> Refusal | None:
        """Why nothing may be delivered, leased or assigned now."""
        if self.halted:
            return Refusal.NOT_OWNER
        why = self.replica.delivers(self._driver.now_ms())
        if why is Refusal.ISOLATED:
            self._driver.turns.stir(self)
        return why

    def append(self, kind: int, payload: bytes, base_offset: int = -1, record_count: int = 0) -> int:
        """Appends an entry in the epoch that this broker leads; its index. ``Fenced`` if it leads in none (nothing was appended), ``TooLarge``."""
        owner, journal = self.replica.owner, self.replica.journal
        if owner is None or owner.part is not Part.SERVING or self.halted:
            raise Fenced(f"this broker does not own partition {self.pid}", hint="ask again who does")
        if len(payload) > ENTRY_BYTES_MAX:
            raise TooLarge(f"an entry of {len(payload)} bytes cannot be sent to other brokers; at most {ENTRY_BYTES_MAX}")
        index = journal.end
        self.recent.add(self._log.append(self.pid, owner.epoch, index, kind, payload, base_offset, record_count), payload)
        owner.appended(1, self._driver.now_ms())
        self._driver.turns.stir(self)
        return index

    def wait(self, level: int, index: int, token: int) -> None:
        """``token`` is told once the entry at ``index`` has reached ``level``; to be called in the turn in which it was appended."""
        assert self.replica.owner is not None
        self.replica.owner.wait(level, index + 1, token)
        self._driver.turns.stir(self)

    def activate(self) -> None:
        """It is wanted here: if this broker owns it, a new epoch is taken for this life."""
        self._wanted = True
        self.replica.activate(self._driver.now_ms())
        self._driver.turns.stir(self)

    def wish(self, wish: Wish) -> None:
        """What the settings of its queue or stream ask for."""
        self._wish = wish
        self.replica.wish(wish, self._driver.now_ms())
        self._driver.turns.stir(self)

    def hand_over(self, target: BrokerId) -> bool:
        """Begins to give it to ``target``; whether that is possible."""
        owner = self.replica.owner
        begun = owner is not None and owner.hand_over(target, self._driver.now_ms())
        self._driver.turns.stir(self)
        return begun

    async def read(self, first: int, end: int) -> list[wire.Entry]:
        """Entries from index ``first`` on, below ``end``, as far as one read goes; [] = the first of them is not in the log:
        if it lies below the log's start, it was moved out of it before it was applied here and is loaded from the store. ``Damaged``."""
        pieces, _ = self.recent.pieces(first, end, ENTRY_BYTES_MAX)
        raws = pieces or await self._log.read(self.pid, first, end)
        return wire.entries(b"".join(raws), self.pid)

    # ------------------------------------------------------------ each turn

    def turn(self, now_ms: int) -> None:
        """Lets the machine act on what came in, and does what it asks for."""
        replica = self.replica
        replica.step(now_ms)
        while found := replica.take():
            self._short.clear()
            for effect in found:
                _DOING[type(effect)](self, effect)
        self._tell_part()
        self._tell_fitness()

    def _tell_fitness(self) -> None:
        unfit = self._driver.unfit(self.pid)
        if unfit != self._unfit and not self._driver.ended:
            self._unfit = unfit
            self._driver.fitness(self.pid, unfit)

    def _tell_part(self) -> None:
        replica = self.replica
        owner = replica.owner
        collects = owner is not None and owner.part is Part.COLLECTING
        if collects or self._collects:
            self._collects = collects
            self._driver.collects(self, collects)
        lead = (owner.epoch, owner.begun_at) if owner is not None and owner.part in (Part.SERVING, Part.SEALED) else None
        if lead != self._lead:
            before, self._lead = self._lead, lead
            self._catchup.clear()
            if before is not None:
                self._told.fenced(before[0], owner.reason if owner is not None else "another broker owns it, or an epoch is begun anew")
            if lead is not None:
                self._told.leads(*lead)
        following = (replica.follower.owner, replica.follower.epoch) if owner is None and replica.follower.owner else (BrokerId(""), 0)
        if following != self._owner:
            self._owner = following
            if following[0]:
                self._told.follows(*following)

    # ------------------------------------------------------------ frames

    def _send(self, effect: effects.Send) -> None:
        message, box = effect.message, self._driver.outbox(effect.to)
        if isinstance(message, Ack):
            box.acknowledge(self.pid, message.epoch, message.session, message.end)
        else:
            box.add(self.pid, pack(message))

    def _stream(self, effect: effects.Stream) -> None:
        to, message = effect.to, effect.message
        if isinstance(message, Fetched):
            self._driver.tasks.spawn(self._give(to, message))
            return
        if to in self._short:
            return
        box, first, end = self._driver.outbox(to), message.first, message.first + message.count
        pieces: list[bytes] = []
        stop = end
        if message.count:
            room = box.room
            if not room:
                self._sent_less(to, message, first)
                self._driver.crowded(self, to)
                return
            pieces, stop = self.recent.pieces(first, end, room)
            if not pieces:
                pieces, stop = self._catchup.pieces(to, first, min(end, self.recent.first), room)
        if stop < end:
            self._sent_less(to, message, stop)
            if stop == first:
                return
            self._driver.turns.again(self, 0.0)
            message = replace(message, count=stop - first, runs=[run for run in message.runs if run[1] < stop])
        box.add(self.pid, pack(message), pieces)

    def _sent_less(self, to: BrokerId, message: Append, end: int) -> None:
        self._short[to] = True
        if self.replica.owner is not None:
            self.replica.owner.sent_less(to, message.session, end)

    async def _give(self, to: BrokerId, message: Fetched) -> None:
        """Answers a new owner that lacks entries."""
        first, end = message.first, message.first + message.count
        pieces, stop = self.recent.pieces(first, end, ENTRY_BYTES_MAX // 4)
        if not pieces:
            pieces = await self._log.read(self.pid, first, end)
            stop = first + len(pieces)
        if stop > first:
            runs = [run for run in message.runs if run[1] < stop]
            self._driver.outbox(to).add(self.pid, pack(replace(message, count=stop - first, runs=runs)), pieces)
            self._driver.turns.stir(self)

    def _transfer(self, effect: effects.Transfer) -> None:
        self.installs.transfer(effect)

    # ------------------------------------------------------------ the log

    def _promise(self, effect: effects.Promise) -> None:
        self._log.promise(self.pid, effect.epoch, effect.generation, effect.version)

    def _store(self, effect: effects.Store) -> None:
        assert effect.first == self.recent.end
        for entry in effect.entries:
            self.recent.add(self._log.received(self.pid, entry), entry.payload)

    def _begin(self, effect: effects.Begin) -> None:
        assert effect.at == self.recent.end
        payload = _encode(self._driver.introduction(effect.epoch))
        self.recent.add(self._log.append(self.pid, effect.epoch, effect.at, int(Kind.EPOCH_START), payload), payload)

    def _cut(self, effect: effects.Cut) -> None:
        self._catchup.clear()
        if effect.set_aside:
            self._driver.tasks.settle(self._set_aside(effect))
            return
        self.recent.cut(effect.at)
        self._log.truncate(self.pid, effect.at, effect.epoch)

    async def _set_aside(self, effect: effects.Cut) -> None:
        """An operator has accepted that committed entries are lost: they are kept for people to look at, then cut."""
        path = await self._kept(effect.at)
        if path is None or self.halted:
            return
        _log.warning("partition %d is cut at index %d by an election that was forced; what was there is in %s", self.pid, effect.at, path)
        if self._log.covered(self.pid) > effect.at:
            await self._renew(f"its checkpoint is newer than index {effect.at}, where a forced election has cut it")
            return
        self.recent.cut(effect.at)
        self._log.truncate(self.pid, effect.at, effect.epoch)
        self._told.replaced(effect.at)
        self._driver.turns.stir(self)

    def _begin_anew(self, effect: effects.Renew) -> None:
        self._driver.tasks.settle(self._give_up(effect.reason))

    async def _give_up(self, reason: str) -> None:
        """An operator has given up everything that is here."""
        path = await self._kept(self.replica.journal.start)
        if path is None or self.halted:
            return
        _log.warning("partition %d begins anew: %s; what its log had is in %s", self.pid, reason, path or "no file, it was empty")
        await self._renew(reason)

    async def _kept(self, at: int) -> str | None:
        """What the log has from ``at`` on is copied to a file, whose path is returned; None: this broker stops."""
        while True:
            try:
                return await self._log.set_aside(self.pid, at)
            except StorageError as e:
                if self._driver.ended:
                    return None
                _log.error("partition %d: %s", self.pid, e)
            await asyncio.sleep(RETRY_S)

    async def _renew(self, reason: str) -> None:
        try:
            await self._driver.renew(self.pid, reason)
        except (Refused, StorageError) as e:
            self.halt(f"it cannot begin anew: {e}")

    def _stage(self, effect: effects.Stage) -> None:
        self.installs.handed()
        self._driver.tasks.settle(self._put_in_place(effect))

    async def _put_in_place(self, effect: effects.Stage) -> None:
        replica = self.replica
        while True:
            try:
                await self._log.replace(self.pid, effect.data, effect.base_epoch)
                break
            except DiskFull as e:
                if self._driver.ended:
                    return
                _log.warning("partition %d: a checkpoint of another broker waits for room on the disk: %s", self.pid, e)
            except StorageError as e:
                self.halt(f"a checkpoint of another broker could not be put into place: {e}")
                return
            await asyncio.sleep(RETRY_S)
        _log.info("partition %d: a checkpoint at index %d has taken the place of what was here", self.pid, effect.end - 1)
        if self.replica is not replica:
            return
        self._catchup.clear()
        self.recent.restart(effect.end)
        replica.installed(effect.end, self._driver.now_ms())
        if not self.halted:
            self._told.replaced(effect.end)
            self._driver.turns.stir(self)

    def renewed(self, replica: Replica) -> None:
        """What is here begins anew: ``replica`` is its machine from now on."""
        document = self.replica.document
        self.replica = replica
        self.recent.restart(replica.journal.end)
        self._owner, self.halted, self.wake_ms = (BrokerId(""), 0), "", 0
        self._told.replaced(replica.journal.end)
        if document is not None:
            replica.assigned(document, self._driver.now_ms())
        if self._wish is not None:
            self.wish(self._wish)
        if self._wanted:
            self.activate()
        self._driver.turns.stir(self)

    # ------------------------------------------------------------ the coordinator, the partition

    def _swap(self, effect: effects.Swap) -> None:
        self._driver.swap(self, effect)

    def _committed(self, effect: effects.Committed) -> None:
        self._told.committed(effect.high_watermark)

    def _confirmed(self, effect: effects.Confirmed) -> None:
        self._told.satisfied(effect.tokens)

    def _unknown(self, effect: effects.Unknown) -> None:
        self._told.unknown(effect.tokens, effect.reason)

    def _changed(self, effect: effects.Changed) -> None:
        _log.info("partition %d, epoch %d: %s (%s)", self.pid, effect.epoch, effect.part, effect.reason)

    def _alarm(self, effect: effects.Alarm) -> None:
        (_log.warning if effect.mends else _log.error)("partition %d: %s", self.pid, effect.reason)

    # ------------------------------------------------------------ the end

    def halt(self, reason: str) -> None:
        """Nothing more is done for it in this life: going on could break what it has promised. What waits has an unknown outcome."""
        self.halted = reason
        self._driver.collects(self, False)
        self._catchup.clear()
        self.installs.clear()
        if self.replica.owner is not None:
            self.replica.owner.stop(reason)
        for effect in self.replica.take():  # of an owner too that has ended since the last turn
            if isinstance(effect, effects.Unknown):
                self._told.unknown(effect.tokens, effect.reason)
            elif isinstance(effect, effects.Confirmed):
                self._told.satisfied(effect.tokens)
        if self._lead is not None:
            epoch, self._lead = self._lead[0], None
            self._told.fenced(epoch, reason)
        self._tell_fitness()


_DOING: dict[type, Callable[[Replicated, Any], None]] = {
    effects.Send: Replicated._send, effects.Stream: Replicated._stream, effects.Transfer: Replicated._transfer,
    effects.Promise: Replicated._promise, effects.Store: Replicated._store, effects.Begin: Replicated._begin, effects.Cut: Replicated._cut,
    effects.Stage: Replicated._stage, effects.Renew: Replicated._begin_anew, effects.Swap: Replicated._swap, effects.Committed: Replicated._committed,
    effects.Confirmed: Replicated._confirmed, effects.Unknown: Replicated._unknown, effects.Changed: Replicated._changed,
    effects.Alarm: Replicated._alarm,
}  # fmt: skip

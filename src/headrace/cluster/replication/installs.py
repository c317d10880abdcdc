"""A copy given as a whole: what a replica sends to one whose journal ends below its own start, and what such a one takes in.

Owns how far each copy has come, on both sides. The receiver asks for one part of about 1 MiB after the other, so what is on its way is bounded by it;
the machines decide who is given one, and whether it may take the place of what is there.

X1 A copy goes on where it was after broken connections, new sessions and epochs, as long as both brokers live. X2 A checkpoint is handed to the
machine only with all the records that it needs, all of it durable. X3 A checkpoint that is older than the start of the sender's log when the records
have been sent is replaced by a newer one; what is left to send gets smaller each time. X4 While the end of a copy is put into place the log after it
stays for ``HELD_S``. X5 An offer for which there is no place now is taken as soon as there is one (``intake``), unless it is of a session that is
over by then.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from crc32c import crc32c

from headrace.cluster.replication.heads import pack
from headrace.cluster.replication.interface import Log, Snapshot, Staging
from headrace.cluster.replication.messages import AnyInstall, Offer, Part, Want
from headrace.core.replica.effects import Transfer
from headrace.core.replica.follower import Phase
from headrace.core.replica.messages import Install
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.errors import HeadraceError, Malformed
from headrace.wire import replication as wire

if TYPE_CHECKING:
    from headrace.cluster.replication.driver import Driver
    from headrace.cluster.replication.partition import Replicated

IDLE_S: Final = 30.0
"""A copy of which nothing was heard for so long is given up, on both sides."""
HELD_S: Final = 10.0
LOOK_S: Final = 0.1
LOOKS_MAX: Final = 50
CHECKPOINT_BYTES_MAX: Final = 256 * 1024 * 1024
_log = get_logger("replicas")


class _Outgoing:
    """One that is being given."""

    __slots__ = ("above", "base_epoch", "crc", "epoch", "held_until_s", "number", "offering", "seen_s", "serving", "session", "snapshot", "wanted")

    def __init__(self, number: int) -> None:
        self.number = number
        self.epoch = self.session = self.above = 0
        self.snapshot: Snapshot | None = None
        self.base_epoch = self.crc = 0
        self.offering = self.serving = False
        self.wanted: Want | None = None
        self.seen_s = self.held_until_s = 0.0

    def answered(self, want: Want) -> None:
        """It may have been asked for again meanwhile."""
        if self.wanted == want:
            self.wanted = None


class _Incoming:
    """The one that is being taken in."""

    __slots__ = ("busy", "checkpoint", "incarnation", "offer", "offset", "seen_s", "sender", "staged", "staging")

    def __init__(self, sender: BrokerId, incarnation: Incarnation, offer: Offer, staging: Staging) -> None:
        self.sender, self.incarnation, self.offer, self.staging = sender, incarnation, offer, staging
        self.offset = offer.first_offset
        self.checkpoint = bytearray()
        self.staged: object = None
        self.busy = False
        """Something of it is on its way to the disk."""
        self.seen_s = 0.0


class Installs:
    """Of one partition."""

    def __init__(self, driver: "Driver", partition: "Replicated", log: Log) -> None:
        self._driver = driver
        self._partition = partition
        self._log = log
        self._outgoing: dict[BrokerId, _Outgoing] = {}
        self._incoming: _Incoming | None = None
        self._numbers = 0
        self._looking = False

    def clear(self) -> None:
        """Nothing of what is under way counts any more."""
        self._outgoing.clear()
        self._give_up()

    def held_index(self) -> int | None:
        """The last index up to which the log may go, if a copy that ends there is being put into place elsewhere."""
        if not self._outgoing:
            return None
        now = self._driver.now_s()
        return min((o.snapshot.index for o in self._outgoing.values() if o.snapshot is not None and now < o.held_until_s), default=None)

    def received(self, peer: BrokerId, message: AnyInstall, blob: bytes) -> None:
        """``Malformed`` for what no driver sends; what was taken in of such a copy is given up."""
        try:
            if isinstance(message, Offer):
                self._offered(peer, message)
            elif isinstance(message, Want):
                self._wanted(peer, message)
            else:
                self._part(peer, message, blob)
        except Malformed:
            self._give_up()
            raise

    # ------------------------------------------------------------ giving

    def transfer(self, effect: Transfer) -> None:
        """The machine wants that replica to have a copy; it says so again as long as it has none."""
        out = self._outgoing.get(effect.to)
        if out is None:
            self._numbers += 1
            out = self._outgoing[effect.to] = _Outgoing(self._numbers)
            self._look()
        out.epoch, out.session, out.above = effect.epoch, effect.session, effect.above
        out.seen_s = self._driver.now_s()
        if not out.offering:
            out.offering = True
            self._driver.tasks.spawn(self._offer(effect.to, out))

    def _fits(self, snapshot: Snapshot, above: int) -> bool:
        """Whether whoever has it can go on from this broker's log."""
        journal = self._partition.replica.journal
        if not above <= snapshot.index < journal.high_watermark or snapshot.index + 1 < journal.start:
            return False
        return journal.history.epoch_at(snapshot.index) > 0

    async def _offer(self, to: BrokerId, out: _Outgoing) -> None:
        try:
            if await self._renewed(to, out):
                snapshot = out.snapshot
                assert snapshot is not None
                offer = Offer(
                    epoch=out.epoch, session=out.session, number=out.number, end=snapshot.index + 1, base_epoch=out.base_epoch,
                    first_offset=snapshot.first_offset, end_offset=snapshot.end_offset, checkpoint_bytes=len(snapshot.packed),
                    checkpoint_crc=out.crc,
                )  # fmt: skip
                self._send(to, offer)
        finally:
            out.offering = False

    async def _renewed(self, to: BrokerId, out: _Outgoing) -> bool:
        """Whether there is a checkpoint to give, a new one if the last one does not fit any more."""
        if out.snapshot is not None and self._fits(out.snapshot, out.above):
            return True
        for _ in range(LOOKS_MAX):
            if self._outgoing.get(to) is not out:
                return False
            snapshot = self._log.snapshot(self._partition.pid)
            if snapshot is not None and self._fits(snapshot, out.above):
                out.snapshot, out.crc = snapshot, crc32c(snapshot.packed)
                out.base_epoch = self._partition.replica.journal.history.epoch_at(snapshot.index)
                return True
            await asyncio.sleep(LOOK_S)
        _log.warning("partition %d: %s needs a checkpoint above index %d; there is none yet", self._partition.pid, to, out.above)
        return False

    def _wanted(self, peer: BrokerId, want: Want) -> None:
        out = self._outgoing.get(peer)
        if out is None or out.snapshot is None or (want.number, want.end) != (out.number, out.snapshot.index + 1):
            return
        out.wanted = want
        out.seen_s = self._driver.now_s()
        if not out.serving:
            out.serving = True
            self._driver.tasks.spawn(self._serve(peer, out))

    async def _serve(self, peer: BrokerId, out: _Outgoing) -> None:
        try:
            while (want := out.wanted) is not None and self._outgoing.get(peer) is out:
                snapshot = out.snapshot
                assert snapshot is not None
                out.wanted = None
                if want.offset >= snapshot.end_offset and not want.at and not self._fits(snapshot, out.above):
                    await self._offer(peer, out)
                    continue
                part, pieces = await self._next(out, snapshot, want)
                await self._driver.throttle.spend(sum(map(len, pieces)))
                while not self._driver.outbox(peer).room:
                    if peer not in self._driver.links:
                        return
                    await asyncio.sleep(LOOK_S / 10)
                if out.snapshot is snapshot:
                    self._send(peer, part, pieces)
                out.answered(want)
        except HeadraceError as e:
            _log.warning("partition %d: its copy for %s ends: %s", self._partition.pid, peer, e)
            self._outgoing.pop(peer, None)
        finally:
            out.serving = False

    async def _next(self, out: _Outgoing, snapshot: Snapshot, want: Want) -> tuple[Part, Sequence[bytes]]:
        number, end = want.number, want.end
        if want.offset < snapshot.end_offset:
            raws, upto = await self._log.records(self._partition.pid, snapshot, max(0, want.offset), self._driver.part_bytes)
            part = Part(epoch=out.epoch, session=out.session, number=number, end=end, offset=want.offset, at=0, next_offset=upto)
            return part, raws
        piece = snapshot.packed[max(0, want.at) :][: self._driver.part_bytes]
        out.held_until_s = self._driver.now_s() + HELD_S
        upto = snapshot.end_offset
        return Part(epoch=out.epoch, session=out.session, number=number, end=end, offset=upto, at=want.at, next_offset=upto), [piece]

    def _send(self, to: BrokerId, message: AnyInstall, pieces: Sequence[bytes] = ()) -> None:
        self._driver.outbox(to).add(self._partition.pid, pack(message), pieces)
        self._driver.turns.stir(self._partition)

    # ------------------------------------------------------------ taking

    def _expected(self, peer: BrokerId, offer: Offer) -> bool:
        """Whether the machine waits for a copy from there."""
        replica = self._partition.replica
        owner, follower = replica.owner, replica.follower
        if replica.journal.busy:
            return False
        if owner is not None:
            return owner.epoch == offer.epoch and owner.offered(peer, offer.session, offer.end)
        at = (follower.owner, follower.epoch, follower.session)
        return follower.phase is Phase.READY and at == (peer, offer.epoch, offer.session)

    def _offered(self, peer: BrokerId, offer: Offer) -> None:
        if offer.end < 2 or offer.base_epoch < 1 or not 0 <= offer.first_offset <= offer.end_offset:
            raise Malformed(f"a checkpoint of partition {self._partition.pid} is offered that cannot be: {offer}")
        if not 1 <= offer.checkpoint_bytes <= CHECKPOINT_BYTES_MAX:
            raise Malformed(f"a checkpoint of {offer.checkpoint_bytes} bytes is offered, more than {CHECKPOINT_BYTES_MAX}")
        if not self._expected(peer, offer):
            return
        incoming, incarnation = self._incoming, self._driver.links[peer]
        if incoming is None or (incoming.sender, incoming.incarnation, incoming.offer.number) != (peer, incarnation, offer.number):
            self._discard()
            owned = self._partition.replica.owner is not None
            if not self._driver.intake.enter(self._partition.pid, partial(self._offered_again, peer, incarnation, offer), owned=owned):
                return
            incoming = self._incoming = _Incoming(peer, incarnation, offer, self._log.staging(self._partition.pid))
            self._look()
        elif incoming.offer.end != offer.end:  # X3
            incoming.checkpoint.clear()
            incoming.staged = None
            incoming.offset = max(incoming.offset, offer.first_offset)
        incoming.offer = offer
        incoming.seen_s = self._driver.now_s()
        if incoming.staged is not None:
            self._hand(incoming)
        elif not incoming.busy:
            self._ask(incoming)

    def _offered_again(self, peer: BrokerId, incarnation: Incarnation, offer: Offer) -> None:
        """There is a place for it, if it still stands."""
        if self._driver.links.get(peer) == incarnation:
            self._offered(peer, offer)

    def _ask(self, incoming: _Incoming) -> None:
        offer = incoming.offer
        at = len(incoming.checkpoint)
        want = Want(epoch=offer.epoch, session=offer.session, number=offer.number, end=offer.end, offset=incoming.offset, at=at)
        self._send(incoming.sender, want)

    def _part(self, peer: BrokerId, part: Part, blob: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.sender != peer or incoming.busy or incoming.staged is not None:
            return
        offer = incoming.offer
        if (part.number, part.end, part.offset, part.at) != (offer.number, offer.end, incoming.offset, len(incoming.checkpoint)):
            return  # asked for twice
        incoming.seen_s = self._driver.now_s()
        pid = self._partition.pid
        if part.offset < offer.end_offset:
            if not part.offset < part.next_offset <= offer.end_offset:
                raise Malformed(f"records of partition {pid} from offset {part.offset} are to go on at {part.next_offset}")
            incoming.busy = True
            self._driver.tasks.spawn(self._keep(incoming, wire.pieces(blob, pid), part.next_offset))
            return
        incoming.checkpoint += blob
        if not blob or len(incoming.checkpoint) > offer.checkpoint_bytes:
            raise Malformed(f"a checkpoint of partition {pid} has another size than was said")
        if len(incoming.checkpoint) < offer.checkpoint_bytes:
            self._ask(incoming)
            return
        if crc32c(bytes(incoming.checkpoint)) != offer.checkpoint_crc:
            raise Malformed(f"the checkpoint sent of partition {pid} does not match its checksum")
        incoming.busy = True
        self._driver.tasks.spawn(self._finish(incoming, offer))

    async def _keep(self, incoming: _Incoming, pieces: Sequence[wire.Piece], next_offset: int) -> None:
        try:
            await incoming.staging.add(pieces)
        except HeadraceError as e:
            self._failed(incoming, e)
            return
        incoming.busy = False
        incoming.offset = max(incoming.offset, next_offset)
        if self._incoming is incoming:
            self._ask(incoming)

    async def _finish(self, incoming: _Incoming, offer: Offer) -> None:
        try:
            staged = await incoming.staging.finish(bytes(incoming.checkpoint))
        except HeadraceError as e:
            self._failed(incoming, e)
            return
        incoming.busy = False
        if self._incoming is not incoming:
            return
        if incoming.offer.end != offer.end:
            self._ask(incoming)
            return
        incoming.staged = staged
        self._hand(incoming)

    def _failed(self, incoming: _Incoming, error: HeadraceError) -> None:
        _log.warning("partition %d: the copy that %s sends is begun again: %s", self._partition.pid, incoming.sender, error)
        if self._incoming is incoming:
            self._give_up()

    def _hand(self, incoming: _Incoming) -> None:
        """All of it is here: the machine decides."""
        offer, partition = incoming.offer, self._partition
        install = Install(
            epoch=offer.epoch, session=offer.session, end=offer.end, history_start=offer.end, base_epoch=offer.base_epoch, runs=(),
            data=incoming.staged,
        )  # fmt: skip
        partition.replica.received(incoming.sender, install, self._driver.now_ms())
        self._driver.turns.stir(partition)

    def handed(self) -> None:
        """The machine has taken it: from now on its files are the log's."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.staging.handed()
        self._driver.intake.leave(self._partition.pid)

    def _give_up(self) -> None:
        self._discard()
        self._driver.intake.leave(self._partition.pid)

    def _discard(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.staging.discard()

    # ------------------------------------------------------------ forgetting

    def _look(self) -> None:
        """Looks now and then, as long as there is something, whether somebody has gone."""
        if not self._looking:
            self._looking = True
            self._driver.tasks.spawn(self._forget())

    async def _forget(self) -> None:
        try:
            while self._outgoing or self._incoming is not None:
                await asyncio.sleep(IDLE_S / 3)
                before = self._driver.now_s() - IDLE_S
                for peer in [peer for peer, out in self._outgoing.items() if out.seen_s < before]:
                    del self._outgoing[peer]
                if self._incoming is not None and self._incoming.seen_s < before:
                    self._give_up()
        finally:
            self._looking = False

"""Elections with accepted loss, asked for by an operator: what each copy of a partition holds, what would be lost, and the election itself.

Owns the looking and the choice of the copy that reaches furthest. What is shown and accepted, and when it is refused, is ``core.control.forcing``'s;
it is recorded by the controller, and any other broker passes the request on.

F1 Nothing is changed unless the loss was accepted, at the version at which it was shown. F2 A copy whose broker does not answer is never chosen, and
counts as given up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from headrace.broker import forwarding
from headrace.core.control.forcing import Acceptance, Tail
from headrace.core.control.liveness import verdict
from headrace.model.cluster import Assignment, BrokerId
from headrace.model.errors import Conflict, Elsewhere, HeadraceError, Invalid, Malformed, NotFound, Refused, Unavailable
from headrace.model.ids import Epoch, Index, PartitionId
from headrace.wire import control
from headrace.wire.peer import Service
from headrace.wire.topology import UNKNOWN, CopyRow

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.cluster import Cluster
    from headrace.cluster.transport import Transport

ASK_MS: Final = 2_000
"""A copy whose broker does not answer within this time counts as gone."""
FORWARD_MS: Final = 8_000
SHOWN: Final = {"alive": "alive", "doubted": "suspect", "dead": "dead"}


class _Asked(msgspec.Struct, frozen=True):
    """A request of ``Service.COPY_ENDS``: how far does your copy reach?"""

    partition: Annotated[int, Meta(ge=0)]


class _Told(msgspec.Struct, frozen=True):
    """Its answer: index and epoch of the last entry on the disk, the highest promised epoch, what is known to be committed, the next offset."""

    index: Annotated[int, Meta(ge=0, le=1 << 62)]
    epoch: Annotated[int, Meta(ge=0, le=1 << 62)]
    promised: Annotated[int, Meta(ge=0, le=1 << 62)]
    committed: int
    next_offset: int


_encode = msgspec.msgpack.Encoder().encode
_asked = msgspec.msgpack.Decoder(_Asked).decode
_told = msgspec.msgpack.Decoder(_Told).decode


class Electing:
    """See the module's head. Of a broker in a cluster."""

    def __init__(self, broker: Broker, cluster: Cluster, transport: Transport) -> None:
        self._broker = broker
        self._cluster = cluster
        transport.on_request(Service.COPY_ENDS, self._answer)

    async def ask(self, r: control.ForceElection) -> control.Reply:
        """Carried out by the controller, wherever that is."""
        holder = self._cluster.control.picturing.holder.broker
        if holder == self._broker.id:
            return await self.here(r)
        if not holder:
            raise Unavailable("nobody is the controller now", hint="try again in a moment")
        return await forwarding.ask(self._broker, holder, r, (r.partition,), timeout_ms=FORWARD_MS)

    async def here(self, r: control.ForceElection) -> control.Election:
        """By this broker, which is the controller."""
        controller, picturing = self._cluster.control.controller, self._cluster.control.picturing
        if not controller.election.look():
            raise Elsewhere("this broker is not the controller any more", hint="ask again in a moment")
        item = self._broker.catalogue.get(r.name)
        if not 0 <= r.partition < len(item.partitions):
            raise NotFound(f"{r.name!r} has partitions 0..{len(item.partitions) - 1}, not {r.partition}")
        pid = PartitionId(item.partitions[r.partition])
        stored = picturing.stored.get(pid)
        if stored is None:
            raise NotFound(f"partition {r.partition} of {r.name!r} has no copy yet", hint="the controller places it by itself")
        if r.accept_data_loss and not r.version:
            raise Invalid("an acceptance names the version at which the loss was shown", hint="ask without accept_data_loss first")
        known = await self._ends(stored.assignment)
        tails = tuple(Tail(BrokerId(id), Epoch(e.epoch), Index(e.index), Epoch(e.promised)) for id, e in known.items())
        rows = self._rows(stored.assignment, known)
        chosen = self._chosen(r, rows)
        shown = controller.risk(pid, chosen, tails)
        epoch = 0
        if r.accept_data_loss:
            change = await controller.force(shown, Acceptance(version=r.version, chosen=chosen, accepted_by=r.by[:200] or "an operator"), tails)
            assert change.assignment is not None
            epoch = change.assignment.epoch
        reason, floor = shown.reason, stored.assignment.floor
        if stored.assignment.level == "replica_durable" and floor > 1:
            reason += f"; it serves once {floor} copies are in sync, or min_in_sync_replicas is lowered to 1"
        return control.Election(
            name=r.name, partition=r.partition, version=shown.version, chosen=chosen, reason=reason, given_up=shown.given_up, copies=rows,
            elected=epoch > 0, epoch=epoch,
        )  # fmt: skip

    # ------------------------------------------------------------ the copies

    async def _ends(self, a: Assignment) -> dict[str, _Told]:
        """How far each copy reaches whose broker answers."""

        async def ask(id: BrokerId) -> tuple[str, _Told | None]:
            try:
                if id == self._broker.id:
                    return id, self._tell(a.partition)
                return id, _told(await self._cluster.request(id, _encode(_Asked(a.partition)), timeout_ms=ASK_MS, service=Service.COPY_ENDS))
            except (HeadraceError, msgspec.DecodeError, UnicodeDecodeError):
                return id, None

        return {id: told for id, told in await asyncio.gather(*map(ask, a.copies)) if told is not None}

    def _rows(self, a: Assignment, known: dict[str, _Told]) -> tuple[CopyRow, ...]:
        picturing = self._cluster.control.picturing
        rows = []
        for id in a.copies:
            seen, told = picturing.seen(id), known.get(id)
            judgement = None if seen is None else verdict(seen, picturing.settings, picturing.now_ms())
            if seen is None or judgement is None:
                state, why = "dead", "it has not been registered since the controller looks"
            elif a.partition in seen.unfit:
                state, why = "damaged", "it calls its copy damaged"
            else:
                state, why = SHOWN[judgement.state], "" if judgement.state == "alive" else judgement.reason
            row = CopyRow(broker=id, name=id if seen is None else seen.registered.name, state=state, why=why, in_sync=id in (*a.isr, *a.elr))
            if told is not None:
                figures = {"index": told.index, "epoch": told.epoch, "committed": told.committed, "next_offset": told.next_offset}
                row = msgspec.structs.replace(row, **figures)
            elif state == "alive":
                row = msgspec.structs.replace(row, why="it did not say how far its copy reaches")
            rows.append(row)
        return tuple(rows)

    @staticmethod
    def _chosen(r: control.ForceElection, rows: tuple[CopyRow, ...]) -> BrokerId:
        if r.chosen:
            named = [row for row in rows if r.chosen in (row.broker, row.name)]
            if not named:
                have = ", ".join(row.name for row in rows)
                raise NotFound(f"{r.chosen!r} has no copy of partition {r.partition} of {r.name!r}", hint=f"those who have one: {have}")
            return BrokerId(named[0].broker)
        able = [row for row in rows if row.state == "alive" and row.index != UNKNOWN]
        if not able:
            whys = "; ".join(f"{row.name} is {row.state}: {row.why}" for row in rows)
            raise Conflict(f"no copy of partition {r.partition} of {r.name!r} can be asked what it holds: {whys}", hint="start one of these brokers")
        return BrokerId(max(able, key=lambda row: (row.epoch, row.index, row.broker)).broker)

    def _tell(self, pid: int) -> _Told:
        copy = self._cluster.copies.get(pid)
        if copy is None or copy.replicated.halted:
            raise Refused(f"this broker has no copy of partition {pid} at work")
        journal = copy.replicated.replica.journal
        index = journal.durable_end - 1
        offset = copy.partition.next_offset if copy.partition is not None else UNKNOWN
        return _Told(index, max(0, journal.history.epoch_at(index)), journal.promising, journal.high_watermark - 1, offset)

    async def _answer(self, peer: BrokerId, body: bytes) -> bytes:
        try:
            asked = _asked(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"what broker {peer} asks cannot be read: {e}") from None
        return _encode(self._tell(asked.partition))

"""A consensus member of one's own: etcd as this broker's child, a directory a seat, and a client of all members.

Owns where seats lie, how members are called (``NAME-SEAT``), what is in etcd about the formation, and the way from a member that shall run to one
that does. Whether it may run is the machine's affair, when it is started again after a crash the supervisor's.

    formation/charter          the charter
    formation/seats/HOST:PORT  name and seat of the member that was added at this address last: etcd does not know its name before it has started
    formation/recovered        written when a survivor goes on alone

V1 a seat's data is that of this seat only: one that is founded or joins begins without any, and nothing runs on data that is given up. V2 who joins
is started with the members as they are now, read from a majority each time it is tried. V3 what is remembered of members is never used: every look
and every request reads them. V4 a survivor is started alone once and then as any other, so that a crash later does not throw out those who have
joined since; and not before its log begins with a snapshot: etcd takes what it had applied, and not yet noted as committed, out of the log of a
member that goes on alone, so who would learn that log from its beginning would lack it. V5 etcd's own check of changes is off, for it lets nobody in
while a voter is away, so that the dead could not be replaced: nobody who votes is taken out before a majority of the others has just answered.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from headrace.cluster.etcd.calls import FIRST_TRY_S, Closed, RpcError, Seat, pb
from headrace.cluster.etcd.child import last_lines, strays
from headrace.cluster.etcd.client import EtcdCoordinator, end_of
from headrace.cluster.etcd.command import Voter, timings
from headrace.cluster.etcd.program import Program, find
from headrace.cluster.etcd.supervisor import STOP_GRACE_S, Supervisor
from headrace.cluster.formation.addresses import etcd_client, etcd_peer
from headrace.cluster.formation.place import CHARTER_KEY, Request, Seen
from headrace.core.formation.effects import AddLearner, Commit, Consensus, ConsensusMember, Follow, Promote, StartConsensus
from headrace.core.formation.records import Charter, decode_charter, encode
from headrace.log import get_logger
from headrace.model.config import Address, Coordination
from headrace.model.errors import Conflict, CoordinatorUnavailable, HeadraceError, NotFound, StorageError

_log = get_logger("formation")

SPACE: Final = "formation/"
SEATS: Final = "formation/seats/"
RECOVERED: Final = "formation/recovered"
ALONE_SNAPSHOT_COUNT: Final = 10
AGAIN_S: Final = 1.0
READY_S: Final = 30.0
LAST_SEATS: Final = "dropped"


class _SeatOf(msgspec.Struct, frozen=True):
    """Document under ``SEATS``."""

    name: str
    seat: int


class Listed(NamedTuple):
    """A member as etcd lists it, with the name and seat that it has for us."""

    id: int
    member: ConsensusMember
    etcd_name: str
    peer: str
    client: str


def etcd_name(name: str, seat: int) -> str:
    return f"{name}-{seat}"


def seat_of(etcd_name: str) -> tuple[str, int]:
    """What ``etcd_name`` was made from; a name of somebody else's has seat 0."""
    name, _, seat = etcd_name.rpartition("-")
    return (name, int(seat)) if name and seat.isdecimal() and len(seat) < 20 else (etcd_name, 0)


class Voting:
    """Implements ``Place``."""

    def __init__(self, name: str, folder: Path, settings: Coordination, address: Callable[[], str], *, listen_host: str = "") -> None:
        """``address``: of this broker, as declared; ``listen_host``: what etcd binds, "" = the declared host."""
        self.trouble = ""
        self._name = name
        self._folder = folder
        self._settings = settings
        self._address = address
        self._listen_host = listen_host
        self._program: Program | None = None
        self._client: EtcdCoordinator | None = None
        self._started: StartConsensus | None = None
        self._supervisor: Supervisor | None = None
        self._starting: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ the member

    def _seat(self, seat: int) -> Path:
        return self._folder / f"seat-{seat}"

    def _has_data(self, seat: int) -> bool:
        """As etcd sees it: it begins anew without a log."""
        return any((self._seat(seat) / "data" / "member" / "wal").glob("*.wal"))

    def found(self) -> int:
        seats = [int(p.name[5:]) for p in self._folder.glob("seat-*") if p.name[5:].isdecimal()]
        return max((seat for seat in seats if self._has_data(seat)), default=0)

    @property
    def coordinator(self) -> EtcdCoordinator | None:
        return self._client

    @property
    def _own_client(self) -> str:
        return str(etcd_client(self._address()))

    async def start(self, effect: StartConsensus) -> None:
        await self._end()
        self._started = effect
        others = [str(etcd_client(address)) for name, _, address in effect.initial if name != self._name and address]
        await self._use([self._own_client, *others])
        self._starting = asyncio.get_running_loop().create_task(self._keep_starting(effect), name="start of the consensus member")

    async def _keep_starting(self, effect: StartConsensus) -> None:
        told = ""
        while True:
            try:
                await self._start_once(effect)
                self.trouble = ""
                return
            except (HeadraceError, OSError) as e:
                hint = f"; {e.hint}" if isinstance(e, HeadraceError) and e.hint else ""
                self.trouble = f"{e}{hint}"
            if self.trouble != told:
                told = self.trouble
                _log.warning("the consensus member does not run yet: %s", told)
            await asyncio.sleep(AGAIN_S)

    async def _start_once(self, effect: StartConsensus) -> None:
        """Returns once its log is there: from then on the supervisor's care is enough."""
        seat, fresh = effect.seat, effect.mode in ("new", "join")
        if self._program is None:
            self._program = await asyncio.to_thread(find, self._settings.etcd.binary, tryout=self._settings.etcd.tryout)
        if fresh and self._supervisor is None:
            await self._clear(seat)
        if effect.mode == "alone":
            await self._go_alone(effect)
        elif fresh:
            await self._supervise(await self._voter(effect))
            assert self._supervisor is not None
            async with asyncio.timeout(READY_S):
                while not self._has_data(seat):
                    if self._supervisor.failures:
                        await self._supervisor.stop()
                        self._supervisor = None
                        raise CoordinatorUnavailable("etcd ends before it has begun: " + last_lines(self._seat(seat) / "etcd.log", 1))
                    await asyncio.sleep(0.05)
            return
        await self._supervise(await self._voter(effect))

    async def _go_alone(self, effect: StartConsensus) -> None:
        """Makes the member the only one, and its log begin with a snapshot (V4)."""
        await self._supervise(await self._voter(effect, alone=True))
        assert self._supervisor is not None
        await self._supervisor.ready(READY_S)
        folder = self._seat(effect.seat) / "data" / "member" / "snap"
        before = set(folder.glob("*.snap"))
        async with asyncio.timeout(READY_S):
            for n in range(2 * ALONE_SNAPSHOT_COUNT):
                await self._need().transact({}, {RECOVERED: f"{effect.token} {n}".encode()})
            while True:
                if not set(folder.glob("*.snap")) <= before:
                    break
                await asyncio.sleep(0.05)
        await self._supervisor.stop()

    async def _supervise(self, voter: Voter) -> None:
        assert self._program is not None
        if self._supervisor is not None:
            await self._supervisor.stop()
        self._supervisor = Supervisor(self._program, voter, Path(voter.data_dir).parent)
        await self._supervisor.start()

    async def _voter(self, effect: StartConsensus, *, alone: bool = False) -> Voter:
        own = self._address()
        mine = etcd_name(self._name, effect.seat)
        if effect.mode == "new":
            members = {etcd_name(name, seat): etcd_peer(address) for name, seat, address in effect.initial}
        elif effect.mode == "join":
            members = await self._joined(effect)
        else:
            members = {}
        members[mine] = etcd_peer(own)
        peers = [etcd_peer(address) for _, _, address in effect.initial if address] or [etcd_peer(own)]
        heartbeat_ms, election_ms = timings(peers, heartbeat_ms=self._settings.heartbeat_ms, election_ms=self._settings.election_ms)
        return Voter(
            name=mine, data_dir=str(self._seat(effect.seat) / "data"), client=etcd_client(own), peer=etcd_peer(own), members=members,
            founding=effect.mode == "new", token=effect.token, heartbeat_ms=heartbeat_ms, election_ms=election_ms,
            snapshot_count=ALONE_SNAPSHOT_COUNT if alone else self._settings.snapshot_count, listen_host=self._listen_host, alone=alone,
        )  # fmt: skip

    async def _joined(self, effect: StartConsensus) -> dict[str, Address]:
        """All members of now, by names of which only one's own matters (V2)."""
        peer = str(etcd_peer(self._address()))
        found: dict[str, Address] = {}
        for listed in await self._members():
            if listed.peer == peer:
                if listed.etcd_name:
                    raise Conflict(f"the seat at {peer} is {listed.etcd_name}'s, which has been at work", hint="wait until it is taken out")
                continue
            host, _, port = listed.peer.rpartition(":")
            found[listed.etcd_name or f"member-{listed.id:x}"] = Address(host.strip("[]"), int(port))
        return found

    async def _clear(self, seat: int) -> None:
        """Nothing runs on, or lies in, a seat that is taken for the first time (V1)."""
        await self._stop_strays()
        folder = self._seat(seat)
        if folder.exists():
            await asyncio.to_thread(self._drop, folder)
        await asyncio.to_thread(self._make, folder)

    async def _stop_strays(self) -> None:
        """Ends what killed brokers have left running on seats of this directory, also of one that was wiped since."""
        for child in await asyncio.to_thread(strays, f"--data-dir={self._folder}/seat-"):
            _log.warning("an etcd that an earlier life of this broker has left is stopped (pid %d)", child.record.pid)
            await child.stop(STOP_GRACE_S)

    def _make(self, folder: Path) -> None:
        """With its name durable: etcd makes durable what is below."""
        (folder / "data").mkdir(mode=0o700, parents=True)
        for path in (folder, self._folder, self._folder.parent):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _drop(self, folder: Path) -> None:
        """Out of the way; only what was dropped last is kept."""
        dropped = self._folder / LAST_SEATS
        shutil.rmtree(dropped, ignore_errors=True)
        folder.rename(dropped)

    async def _end(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
        if self._supervisor is not None:
            await self._supervisor.stop()
            self._supervisor = None
        self._started = None

    async def stop(self, *, drop: bool) -> None:
        await self._end()
        self.trouble = ""
        if drop:
            for folder in sorted(self._folder.glob("seat-*")):
                await asyncio.to_thread(self._drop, folder)

    async def follow(self, effect: Follow) -> None:
        await self._use([str(etcd_client(address)) for _, address in effect.voters if address])

    async def _use(self, endpoints: Sequence[str]) -> None:
        if not endpoints:
            return
        if self._client is None:
            self._client = EtcdCoordinator(endpoints)
        else:
            await self._client.use(endpoints)

    async def forget(self) -> None:
        await self._end()
        await self._stop_strays()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def close(self) -> None:
        await self.forget()

    # ------------------------------------------------------------ what is in it

    def _need(self) -> EtcdCoordinator:
        if self._client is None:
            raise CoordinatorUnavailable("no consensus is used now")
        return self._client

    async def look(self) -> Seen | None:
        client, started = self._client, self._started
        if client is None:
            return None
        running = self._supervisor is not None and self._supervisor.state == "serving"
        try:
            read = await self._read(client)
        except StorageError as e:
            self.trouble = f"what is in the coordinator cannot be read: {e}"
            return Seen(Consensus(running=running))
        except HeadraceError:
            return Seen(Consensus(running=running))
        caught_up = running and await self._answers(client, read.revision)
        seen = Consensus(running=running, leader=read.leader, caught_up=caught_up, members=tuple(m.member for m in read.members))
        own = [self._own_client] if started is not None else []
        if self._client is client and self._started is started:  # else what was used has been given up meanwhile
            await client.use([*own, *(m.client for m in read.members if m.client and (m.member.name != self._name or started is None))])
        return Seen(seen, read=bool(read.leader), charter=read.charter)

    async def _read(self, client: EtcdCoordinator) -> "_Read":
        """All of it from one member that has just heard a majority."""
        prefix = client.name(SPACE)
        documents = pb.RangeRequest(key=prefix, range_end=end_of(prefix))

        async def ask(seat: Seat, timeout_s: float, metadata: Sequence[tuple[str, str]]) -> Any:
            found = await seat.kv.Range(documents, timeout=timeout_s, metadata=metadata)
            listed = await seat.cluster.MemberList(pb.MemberListRequest(), timeout=timeout_s, metadata=metadata)
            status = await seat.maintenance.Status(pb.StatusRequest(), timeout=timeout_s, metadata=metadata)
            return found, listed, status

        since = client.calls.seen
        found, listed, status = await client.calls.call(ask, "how the formation stands", writes=False)
        client.calls.notice(found.header, since)
        cut = len(prefix) - len(SPACE)
        values = {kv.key.decode()[cut:]: (kv.value, kv.version) for kv in found.kvs}
        members = tuple(_listed(m, values) for m in listed.members)
        leader = next((m.member.name for m in members if m.id == status.leader), "")
        charter = decode_charter(values[CHARTER_KEY][0]) if CHARTER_KEY in values else None
        return _Read(found.header.revision, leader, members, charter, values)

    async def _answers(self, client: EtcdCoordinator, revision: int) -> bool:
        """Whether the own member has, by its own word, all that a majority had when it was asked before."""
        status = await self._status(client, self._own_client)
        return status is not None and bool(status.leader) and status.header.revision >= revision

    async def _status(self, client: EtcdCoordinator, address: str) -> Any:
        """What the member there says of itself, None = it is not used, or does not answer."""
        seat = next((s for s in client.calls.seats if s.address == address), None)
        if seat is None:
            return None
        try:
            metadata = await client.calls.metadata(seat, leader=False)
            return await seat.maintenance.Status(pb.StatusRequest(), timeout=FIRST_TRY_S, metadata=metadata)
        except (RpcError, Closed):
            return None

    async def _members(self) -> tuple[Listed, ...]:
        return (await self._read(self._need())).members

    async def carry_out(self, request: Request) -> None:
        client = self._need()
        read = await self._read(client)
        if isinstance(request, Commit):
            revision = read.charter.revision if read.charter is not None else 0
            if revision != request.expected:
                raise Conflict(f"the charter has revision {revision}, not {request.expected}", hint="look again")
            version = read.documents[CHARTER_KEY][1] if read.charter is not None else 0
            if not await client.transact({CHARTER_KEY: version}, {CHARTER_KEY: encode(request.charter)}):
                raise Conflict("the charter was changed by another broker meanwhile", hint="look again")
            return
        if isinstance(request, AddLearner):
            if read.charter is None:
                raise Conflict("there is no charter", hint="look again")
            peer = str(etcd_peer(request.address))
            if any(m.peer == peer or m.member.name == request.name for m in read.members):
                raise Conflict(f"{request.name}, or another one at {peer}, is a member already", hint="list the members")
            key = SEATS + peer
            seat = msgspec.json.encode(_SeatOf(request.name, request.seat))
            known = read.documents.get(key)
            if known is None or known[0] != seat:
                expected = {CHARTER_KEY: read.documents[CHARTER_KEY][1], key: known[1] if known is not None else 0}
                if not await client.transact(expected, {key: seat}):
                    raise Conflict("the charter was changed by another broker meanwhile", hint="look again")
            await client.add_member(peer)
            return
        found = next((m for m in read.members if (m.member.name, m.member.seat) == (request.name, request.seat)), None)
        if found is None:
            raise NotFound(f"{request.name} has no member in seat {request.seat}", hint="list the members")
        if isinstance(request, Promote):
            await client.promote_member(found.id)
        else:
            await self._leaves_quorum(client, found, read.members)
            await client.remove_member(found.id)

    async def _leaves_quorum(self, client: EtcdCoordinator, leaving: Listed, members: Sequence[Listed]) -> None:
        """``CoordinatorUnavailable`` unless a majority of the voters that remain answers now, each for itself (V5)."""
        rest = [m for m in members if not m.member.learner and m.id != leaving.id]
        if leaving.member.learner:
            return
        answers = await asyncio.gather(*(self._status(client, self._own_client if m.member.name == self._name else m.client) for m in rest))
        if sum(status is not None and bool(status.leader) for status in answers) < len(rest) // 2 + 1:
            silent = ", ".join(m.member.name for m, status in zip(rest, answers, strict=True) if status is None or not status.leader)
            raise CoordinatorUnavailable(
                f"without {leaving.member.name} there would be no quorum: {silent or 'nobody else'} of the other voters does not answer"
            )

    def view(self) -> dict[str, Any]:
        supervisor = self._supervisor
        return {
            "kind": "etcd",
            "trouble": self.trouble,
            "seat": self._started.seat if self._started is not None else 0,
            "state": supervisor.state if supervisor is not None else "stopped",
            "pid": supervisor.pid if supervisor is not None else 0,
            "starts": supervisor.starts if supervisor is not None else 0,
            "endpoints": [s.address for s in self._client.calls.seats] if self._client is not None else [],
        }


class _Read(NamedTuple):
    revision: int
    leader: str
    members: tuple[Listed, ...]
    charter: Charter | None
    documents: dict[str, tuple[bytes, int]]
    """By key: value and version."""


def _listed(m: Any, values: dict[str, tuple[bytes, int]]) -> Listed:
    peers, clients = ([u.partition("://")[2] for u in urls] for urls in (m.peerURLs, m.clientURLs))
    peer = peers[0] if peers else ""
    name, seat = seat_of(m.name)
    if not m.name:
        name, seat = peer, 0
        with contextlib.suppress(msgspec.MsgspecError):
            document = values.get(SEATS + peer)
            if document is not None:
                made = msgspec.json.decode(document[0], type=_SeatOf)
                name, seat = made.name, made.seat
    member = ConsensusMember(name=name, seat=seat, learner=m.isLearner, started=bool(m.name))
    return Listed(m.ID, member, m.name, peer, clients[0] if clients else "")

"""A consensus that runs anyway: an etcd named by its endpoints, in which brokers that vote keep a list of themselves instead of running members.

What etcd does for members of its own is written down here, so that the same machine works on both: who is a member in which seat, whether it votes,
who leads (does the steps of a change). A quorum of brokers is not needed: the etcd that runs anyway has one of its own.

    formation/charter            the charter
    formation/members/NAME-SEAT  one member
    formation/running/NAME       under the lease of a broker whose member runs
    formation/leader             the name of the one that leads, under its lease

Owns these documents, in a space of each cluster (``headrace/CLUSTER/``), and the marks in the directory that stand for a seat's data: a wiped machine
has lost them with all else.

E1 every change compares what it was decided from. E2 who leads is a member that votes and whose lease is alive.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cluster.coordinator import Document, read_all
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.registering import EtcdRegistration
from headrace.cluster.formation.place import CHARTER_KEY, Request, Seen
from headrace.core.formation.effects import AddLearner, Commit, Consensus, ConsensusMember, Follow, Promote, StartConsensus
from headrace.core.formation.records import decode_charter, encode
from headrace.model.errors import Conflict, CoordinatorUnavailable, Damaged, HeadraceError, NotFound

FORMATION: Final = "formation/"
MEMBERS: Final = "formation/members/"
RUNNING: Final = "formation/running/"
FOUNDED: Final = "formation/founded"
LEADER: Final = "formation/leader"

Make = Callable[[str], Awaitable[EtcdCoordinator]]
"""A client whose keys lie in the given space."""


class External:
    """Implements ``Place``."""

    def __init__(self, name: str, folder: Path, make: Make, *, ttl_ms: int) -> None:
        self.trouble = ""
        self._name = name
        self._folder = folder
        self._make = make
        self._ttl_ms = ttl_ms
        self._token = ""
        self._client: EtcdCoordinator | None = None
        self._started: StartConsensus | None = None
        self._registration: EtcdRegistration | None = None

    # ------------------------------------------------------------ the member

    def found(self) -> int:
        return max((int(p.name[5:]) for p in self._folder.glob("seat-*") if p.name[5:].isdecimal()), default=0)

    @property
    def coordinator(self) -> EtcdCoordinator | None:
        return self._client

    async def start(self, effect: StartConsensus) -> None:
        await self._leave()
        await self._use(effect.token)
        await asyncio.to_thread((self._folder / f"seat-{effect.seat}").mkdir, parents=True, exist_ok=True)
        self._started = effect

    async def stop(self, *, drop: bool) -> None:
        await self._leave()
        if drop:
            for folder in sorted(self._folder.glob("seat-*")):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def follow(self, effect: Follow) -> None:
        await self._use(effect.cluster_id)

    async def forget(self) -> None:
        await self._leave()
        client, self._client, self._token = self._client, None, ""
        if client is not None:
            await client.close()

    async def close(self) -> None:
        await self.forget()

    async def _use(self, token: str) -> None:
        if token != self._token:
            await self.forget()
            self._client, self._token = await self._make(f"headrace/{token}/"), token

    async def _leave(self) -> None:
        self._started = None
        registration, self._registration = self._registration, None
        if registration is not None:
            await registration.release()

    # ------------------------------------------------------------ what is in it

    async def look(self) -> Seen | None:
        client = self._client
        if client is None:
            return None
        try:
            if self._started is not None:
                await self._present(client, self._started)
            seen = await self._seen(client)
        except HeadraceError as e:
            self.trouble = str(e)
            return Seen(Consensus(running=self._running))
        self.trouble = ""
        return seen

    @property
    def _running(self) -> bool:
        return self._registration is not None and self._registration.alive

    async def _present(self, client: EtcdCoordinator, started: StartConsensus) -> None:
        """Its member runs, as far as that goes: the founders are written down, its lease is there, and it leads if nobody does."""
        if started.mode == "new" and await client.get(FOUNDED) is None:
            members = {_key(n, s): _encode(ConsensusMember(n, s, False, False)) for n, s, _ in started.initial}
            await client.transact({FOUNDED: 0}, {FOUNDED: started.token.encode(), **members})
        if not self._running:
            registration = await client.register(RUNNING + self._name, str(started.seat).encode(), ttl_ms=self._ttl_ms)
            if self._started is not started:
                await registration.release()  # it was stopped meanwhile
                return
            self._registration = registration
        mine = await client.get(_key(self._name, started.seat))
        member = _decode(mine) if mine is not None else None
        if mine is not None and member is not None and not member.started:
            await client.transact({mine.key: mine.version}, {mine.key: _encode(msgspec.structs.replace(member, started=True))})
        if member is not None and not member.learner and await client.get(LEADER) is None:
            await client.transact({LEADER: 0}, {LEADER: self._name.encode()}, under=self._registration)

    async def _seen(self, client: EtcdCoordinator) -> Seen:
        documents = {d.key: d for d in (await read_all(client, FORMATION)).documents}
        members = tuple(_decode(d) for key, d in documents.items() if key.startswith(MEMBERS))
        leader = documents[LEADER].value.decode() if LEADER in documents else ""
        if not any(m.name == leader and not m.learner for m in members):
            leader = ""
        charter = decode_charter(documents[CHARTER_KEY].value) if CHARTER_KEY in documents else None
        return Seen(Consensus(running=self._running, leader=leader, caught_up=self._running, members=members), read=bool(leader), charter=charter)

    async def carry_out(self, request: Request) -> None:
        client = self._client
        if client is None:
            raise CoordinatorUnavailable("no consensus is used now")
        documents = {d.key: d for d in (await read_all(client, FORMATION)).documents}
        charter = documents.get(CHARTER_KEY)
        if isinstance(request, Commit):
            revision = decode_charter(charter.value).revision if charter is not None else 0
            if revision != request.expected:
                raise Conflict(f"the charter has revision {revision}, not {request.expected}", hint="look again")
            await self._change({CHARTER_KEY: charter.version if charter is not None else 0}, {CHARTER_KEY: encode(request.charter)})
            return
        if charter is None:
            raise Conflict("there is no charter", hint="look again")
        key = _key(request.name, request.seat)
        expected = {CHARTER_KEY: charter.version, key: documents[key].version if key in documents else 0}
        if isinstance(request, AddLearner):
            if any(_decode(d).name == request.name for k, d in documents.items() if k.startswith(MEMBERS)):
                raise Conflict(f"{request.name} is a member already", hint="list the members")
            await self._change(expected, {key: _encode(ConsensusMember(request.name, request.seat, True, False))})
            return
        if key not in documents:
            raise NotFound(f"{request.name} has no member in seat {request.seat}", hint="list the members")
        if isinstance(request, Promote):
            await self._change(expected, {key: _encode(msgspec.structs.replace(_decode(documents[key]), learner=False))})
            return
        puts: dict[str, bytes | None] = {key: None}
        if LEADER in documents and documents[LEADER].value.decode() == request.name:
            expected[LEADER], puts[LEADER] = documents[LEADER].version, None
        await self._change(expected, puts)

    async def _change(self, expected: dict[str, int], puts: dict[str, bytes | None]) -> None:
        assert self._client is not None
        if not await self._client.transact(expected, puts):
            raise Conflict("the formation was changed by another broker meanwhile", hint="look again")

    def view(self) -> dict[str, Any]:
        return {
            "kind": "external",
            "trouble": self.trouble,
            "seat": self._started.seat if self._started is not None else 0,
            "state": "serving" if self._running else "stopped",
            "endpoints": [s.address for s in self._client.calls.seats] if self._client is not None else [],
        }


def _key(name: str, seat: int) -> str:
    return f"{MEMBERS}{name}-{seat}"


def _encode(member: ConsensusMember) -> bytes:
    return msgspec.json.encode(member)


def _decode(document: Document) -> ConsensusMember:
    try:
        return msgspec.json.decode(document.value, type=ConsensusMember)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise Damaged(f"{document.key} cannot be read: {e}") from None

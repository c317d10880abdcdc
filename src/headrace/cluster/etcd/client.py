"""``Coordinator`` over etcd: documents as keys under one prefix, versions as etcd counts them.

Owns the translation of the contract into etcd's requests. Endpoints and failures are ``calls``, watches ``watching``, leases ``registering``.
All reads are linearizable.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

from headrace.cluster.coordinator import (
    RANGE_KEYS_MAX,
    Document,
    Endpoint,
    Member,
    Page,
    Registration,
    Status,
    WatchEvent,
    check_transaction,
)
from headrace.cluster.etcd.batching import Batcher
from headrace.cluster.etcd.calls import ANSWER_TIMEOUT_S, CALL_TIMEOUT_S, FIRST_TRY_S, Access, Calls, RpcError, Seat, pb
from headrace.cluster.etcd.registering import EtcdRegistration
from headrace.cluster.etcd.watching import watch
from headrace.model.errors import Conflict, CoordinatorUnavailable, Invalid, TooLarge

SPACE: Final = "headrace/"
"""Before every key of ours, so that an etcd can be shared."""


class EtcdCoordinator:
    """Implements ``Coordinator``."""

    def __init__(
        self,
        endpoints: Sequence[str],
        access: Access = Access(),
        *,
        space: str = SPACE,
        timeout_s: float = CALL_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """``endpoints`` are HOST:PORT. Call it on the loop that uses it."""
        self.calls = Calls(endpoints, access, timeout_s=timeout_s, answer_timeout_s=answer_timeout_s)
        self._batcher = Batcher(self.calls)
        self._space = space
        self._registrations: list[EtcdRegistration] = []

    async def use(self, endpoints: Sequence[str]) -> None:
        """Asks these endpoints from now on."""
        await self.calls.use(endpoints)

    def name(self, key: str) -> bytes:
        """A key of ours as etcd knows it."""
        return (self._space + key).encode()

    async def get(self, key: str) -> Document | None:
        answer = await self._range(pb.RangeRequest(key=self.name(key)), f"for {key}")
        return _document(answer.kvs[0], len(self._space)) if answer.kvs else None

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page:
        limit = max(1, min(limit, RANGE_KEYS_MAX))
        start = max(self.name(prefix), self.name(after) + b"\0" if after else b"")
        while True:
            request = pb.RangeRequest(key=start, range_end=end_of(self.name(prefix)), limit=limit, revision=revision)
            try:
                answer = await self._range(request, f"for all of {prefix!r}")
            except TooLarge:
                limit = limit // 4  # a single value always fits
                continue
            documents = tuple(_document(kv, len(self._space)) for kv in answer.kvs)
            return Page(documents, answer.more, revision or answer.header.revision)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, under: Registration | None = None) -> bool:
        check_transaction(expected, puts)
        lease = 0
        if under is not None:
            if not isinstance(under, EtcdRegistration):
                raise Invalid("that registration is another coordinator's")
            if not under.alive:
                raise Conflict(f"the registration of {under.key} is lost", hint="register again")
            lease = under.incarnation
        request = pb.TxnRequest(
            compare=[pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VERSION, key=self.name(k), version=v) for k, v in expected.items()],
            success=[
                pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self.name(k)))
                if v is None
                else pb.RequestOp(request_put=pb.PutRequest(key=self.name(k), value=v, lease=lease))
                for k, v in puts.items()
            ],
        )
        if puts:
            return await self._batcher.transact(request, expected, puts, lease=lease != 0)
        since = self.calls.seen
        answer = await self.calls.read("kv.Txn", request, what="for a comparison")
        self.calls.notice(answer.header, since)
        return bool(answer.succeeded)

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> EtcdRegistration:
        check_transaction({}, {key: value})
        registration = await EtcdRegistration.enter(self.calls, key, self.name(key), value, ttl_ms)
        self._registrations = [r for r in self._registrations if r.alive] + [registration]
        return registration

    def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncGenerator[WatchEvent, None]:
        name = self.name(prefix)
        return watch(self.calls, name, end_of(name), len(self._space), from_revision)

    async def members(self) -> tuple[Member, ...]:
        barrier = pb.RangeRequest(key=self.name(""), count_only=True)

        async def ask(seat: Seat, timeout_s: float, metadata: Sequence[tuple[str, str]]) -> Any:
            await seat.kv.Range(barrier, timeout=timeout_s, metadata=metadata)  # etcd 3.4 lists what this member knows, which may lag behind
            return await seat.cluster.MemberList(pb.MemberListRequest(), timeout=timeout_s, metadata=metadata)

        answer = await self.calls.call(ask, "who its members are", writes=False)
        return tuple(_member(m) for m in answer.members)

    async def add_member(self, peer_addr: str) -> Member:
        request = pb.MemberAddRequest(peerURLs=[peer_url(peer_addr)], isLearner=True)
        answer = await self.calls.write("cluster.MemberAdd", request, what=f"the addition of {peer_addr}")
        return _member(answer.member)

    async def promote_member(self, member: int) -> None:
        request = pb.MemberPromoteRequest(ID=member)
        await self.calls.write("cluster.MemberPromote", request, what=f"the promotion of member {member:x}")

    async def remove_member(self, member: int) -> None:
        request = pb.MemberRemoveRequest(ID=member)
        await self.calls.write("cluster.MemberRemove", request, what=f"the removal of member {member:x}")

    async def status(self) -> Status:
        endpoints = await asyncio.gather(*(self._endpoint(seat) for seat in self.calls.seats))
        newest = max((e for e in endpoints if e.reachable), key=lambda e: (e.term, e.leader != 0, e.revision), default=None)
        if newest is None:
            return Status(0, 0, 0, tuple(endpoints))
        return Status(newest.leader, newest.term, max(e.revision for e in endpoints), tuple(endpoints))

    async def compact(self, revision: int) -> None:
        """Lets the store forget what was before ``revision``. etcd does so by itself where this broker started it."""
        request = pb.CompactionRequest(revision=revision)
        await self.calls.read("kv.Compact", request, what="a compaction")

    async def close(self) -> None:
        """Stops renewing (leases end by themselves) and closes all connections."""
        for registration in self._registrations:
            registration.finish("the coordinator's client was closed")
        self._registrations.clear()
        self._batcher.close()
        await self.calls.close()

    async def _range(self, request: Any, what: str) -> Any:
        since = self.calls.seen
        answer = await self.calls.read("kv.Range", request, what=what)
        self.calls.notice(answer.header, since)
        return answer

    async def _endpoint(self, seat: Seat) -> Endpoint:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(FIRST_TRY_S):
                metadata = await self.calls.metadata(seat, leader=False)
                answer = await seat.maintenance.Status(pb.StatusRequest(), timeout=FIRST_TRY_S, metadata=metadata)
        except (RpcError, TimeoutError, CoordinatorUnavailable) as e:
            return Endpoint(seat.address, False, fault=(e.details() or e.code().name) if isinstance(e, RpcError) else "no answer in time")
        return Endpoint(
            seat.address, True, latency_ms=(time.perf_counter() - started) * 1000, member=answer.header.member_id, version=answer.version,
            leader=answer.leader, term=answer.raftTerm, revision=answer.header.revision, data_bytes=answer.dbSize, learner=answer.isLearner,
            fault="; ".join(answer.errors),
        )  # fmt: skip


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def peer_url(addr: str) -> str:
    """HOST:PORT as etcd writes it; a URL as it is."""
    return addr if "://" in addr else f"http://{addr}"


def _document(kv: Any, cut: int) -> Document:
    return Document(kv.key.decode()[cut:], kv.value, kv.version)


def _member(m: Any) -> Member:
    peers, clients = ([u.partition("://")[2] for u in urls] for urls in (m.peerURLs, m.clientURLs))
    return Member(m.ID, m.name, peers[0] if peers else "", clients[0] if clients else "", m.isLearner)

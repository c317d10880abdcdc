"""A registration on etcd: a lease that is renewed three times within its time, and a watch on its document that tells at once when it is lost.

I1 it is lost only when etcd says so: the lease is gone, or the document is gone or under another lease. Silence is no loss.
"""

import asyncio
from contextlib import aclosing
from typing import Any, Final

from headrace.cluster.coordinator import Reread
from headrace.cluster.etcd.calls import Calls, RpcError, Seat, kv_pb, pb
from headrace.cluster.etcd.watching import responses
from headrace.cluster.presence import Presence
from headrace.log import get_logger
from headrace.model.errors import Conflict, CoordinatorUnavailable, HeadraceError, UnknownOutcome

RENEWALS_PER_TTL: Final = 3
RETRY_S: Final = 0.2

_log = get_logger("cluster.etcd")


class EtcdRegistration(Presence):
    """See the module's head; its incarnation is the lease's number."""

    def __init__(self, calls: Calls, key: str, name: bytes, lease: int, *, ttl_s: float, asked_at: float, revision: int) -> None:
        super().__init__(key, lease, asked_at)
        self._calls, self._name = calls, name
        self._tasks = (
            self._loop.create_task(self._renew(ttl_s / RENEWALS_PER_TTL), name=f"renewal of {key}"),
            self._loop.create_task(self._watch(revision + 1), name=f"watch on {key}"),
        )

    @classmethod
    async def enter(cls, calls: Calls, key: str, name: bytes, value: bytes, ttl_ms: int) -> "EtcdRegistration":
        """Grants a lease and puts the document under it. Both may be repeated: an unused lease ends, and the document is the same."""
        asked_at = asyncio.get_running_loop().time()
        grant = pb.LeaseGrantRequest(TTL=-(-ttl_ms // 1000))
        lease = await calls.read("lease.LeaseGrant", grant, what="for a lease")
        put = pb.PutRequest(key=name, value=value, lease=lease.ID)
        answer = await calls.read("kv.Put", put, what=f"the registration of {key}")
        return cls(calls, key, name, lease.ID, ttl_s=float(lease.TTL), asked_at=asked_at, revision=answer.header.revision)

    async def update(self, value: bytes) -> None:
        if not self.alive:
            raise Conflict(f"the registration of {self.key} is lost", hint="register again")
        mine = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.LEASE, key=self._name, lease=self.incarnation)
        put = pb.RequestOp(request_put=pb.PutRequest(key=self._name, value=value, lease=self.incarnation))
        request = pb.TxnRequest(compare=[mine], success=[put])
        answer = await self._calls.write("kv.Txn", request, what=f"the registration of {self.key}")
        if not answer.succeeded:
            self.finish("its document is another's")
            raise Conflict(f"the registration of {self.key} is lost", hint="register again")

    async def release(self) -> None:
        if not self.finish("it was released"):
            return
        request = pb.LeaseRevokeRequest(ID=self.incarnation)
        try:
            await self._calls.write("lease.LeaseRevoke", request, what=f"the release of {self.key}")
        except (CoordinatorUnavailable, UnknownOutcome, Conflict):
            return  # its time to live ends it

    def finish(self, reason: str) -> bool:
        news = self.end(reason)
        if news:
            for task in self._tasks:
                if task is not asyncio.current_task():
                    task.cancel()
        return news

    def _lose(self, reason: str) -> None:
        if self.finish(reason):
            _log.warning("the registration of %s is lost: %s", self.key, reason)

    async def _renew(self, pause_s: float) -> None:
        request = pb.LeaseKeepAliveRequest(ID=self.incarnation)

        async def once(seat: Seat, timeout_s: float, metadata: Any) -> Any:
            stream = seat.lease.LeaseKeepAlive(timeout=timeout_s, metadata=metadata)
            try:
                async with asyncio.timeout(timeout_s):  # a stream whose connection is closed in this moment has no end of its own
                    await stream.write(request)
                    answer = await stream.read()
            except asyncio.InvalidStateError:  # it ended before the question went out
                raise await _why(stream) from None
            finally:
                stream.cancel()
            if not hasattr(answer, "TTL"):
                raise await _why(stream)
            return answer

        while True:
            await asyncio.sleep(pause_s)
            asked_at = self._loop.time()
            try:
                answer = await self._calls.call(once, f"to renew {self.key}", writes=False)
            except HeadraceError as e:
                _log.warning("the registration of %s could not be renewed for %d ms: %s", self.key, self.silent_ms, e)
                await asyncio.sleep(RETRY_S)
                continue
            if answer.TTL <= 0:
                self._lose("its lease ended: no renewal came in time")
                return
            self.renewed(asked_at)

    async def _watch(self, revision: int) -> None:
        while True:
            async with aclosing(responses(self._calls, self._name, b"", revision)) as answers:
                async for answer in answers:
                    if isinstance(answer, Reread):
                        break
                    newest = answer.events[-1]
                    if newest.type == kv_pb.Event.DELETE or newest.kv.lease != self.incarnation:
                        self._lose("its document is gone" if newest.type == kv_pb.Event.DELETE else "another incarnation registered")
                        return
            try:
                request = pb.RangeRequest(key=self._name)
                answer = await self._calls.read("kv.Range", request, what=f"for {self.key}")
            except CoordinatorUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            if not answer.kvs or answer.kvs[0].lease != self.incarnation:
                self._lose("its document is not there any more: the coordinator was restored or compacted")
                return
            revision = answer.header.revision + 1


async def _why(stream: Any) -> RpcError:
    return RpcError(await stream.code(), await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details())

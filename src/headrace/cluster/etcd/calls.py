"""Questions to etcd: which endpoint is asked, what happens when it does not answer, and whether the outcome is known.

Owns the channels, the order of endpoints, timeouts, the token, and the notice of a store that went back in time. Does not know what is
asked. The only module that imports gRPC and the stubs (docs/decisions/007-etcd-client.md).

I1 what changes the store is sent a second time only if the first was certainly not proposed. I2 every call ends within its timeout.
I3 an answer whose revision or term is below one seen before it was asked, or that is another cluster's, means that the store was restored:
``restores`` grows.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is loaded: it would write to standard error in a form of its own

import grpc
import grpc.aio
import msgspec
from aetcd.rpc import auth_pb2, kv_pb2, rpc_pb2, rpc_pb2_grpc

from headrace.cluster.etcd.verdicts import judge, refusal
from headrace.log import get_logger
from headrace.model.errors import CoordinatorUnavailable, Invalid, TooLarge, UnknownOutcome

pb = rpc_pb2
kv_pb = kv_pb2
auth_pb = auth_pb2
RpcError = grpc.aio.AioRpcError
Closed = grpc.aio.UsageError
"""What gRPC raises in whoever asks on a channel that was closed meanwhile."""

CALL_TIMEOUT_S: Final = 5.0
FIRST_TRY_S: Final = 1.0
"""In the first round an endpoint that is silent for so long is given up for the next; later rounds wait as long as there is time."""
ANSWER_TIMEOUT_S: Final = 2.0
"""A change that was sent and not answered for so long has an unknown outcome."""
LOOK_S: Final = 0.05
"""A change that waits so long makes us look, again and again, whether the leader is another: the one who had it may have died with it."""
SILENT: Final = 0.3
"""Of that time an endpoint may be silent. Telling its status costs it nothing: if it does not do so, an answer is not to be expected either."""
TERM_FRESH_S: Final = 1.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.5
ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 6000),  # etcd refuses clients that ask more often than every 5 s
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_LEADER: Final = ("hasleader", "true")  # a member without a leader says so at once

_log = get_logger("cluster.etcd")


class Access(msgspec.Struct, frozen=True):
    """How etcd is reached and who asks. Without ``ca`` there is no TLS; certificate and key are PEM."""

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""
    user: str = ""
    password: str = ""


class Seat:
    """One endpoint and its stubs."""

    def __init__(self, address: str, access: Access) -> None:
        self.address = address
        if access.ca or access.cert:
            credentials = grpc.ssl_channel_credentials(access.ca or None, access.key or None, access.cert or None)
            self.channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.watch = rpc_pb2_grpc.WatchStub(self.channel)
        self.lease = rpc_pb2_grpc.LeaseStub(self.channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)
        self.auth = rpc_pb2_grpc.AuthStub(self.channel)

    async def connected(self, timeout_s: float) -> bool:
        """Whether there is a connection now, after an attempt to make one."""
        state = self.channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return bool(state is grpc.ChannelConnectivity.READY)


Ask = Callable[[Seat, float, Sequence[tuple[str, str]]], Awaitable[Any]]
"""Puts one question to one endpoint: (seat, timeout in seconds, metadata)."""


class Calls:
    """See the module's head. Endpoints are asked in their order, beginning with the one that answered last."""

    def __init__(self, addresses: Sequence[str], access: Access, *, timeout_s: float, answer_timeout_s: float) -> None:
        if not addresses:
            raise Invalid("no endpoint of etcd is named", hint="set coordination.etcd.endpoints, or let this broker host a voter")
        self._access = access
        self._timeout_s, self._answer_timeout_s, self._silent_s = timeout_s, answer_timeout_s, SILENT * answer_timeout_s
        self._seats = [Seat(a, access) for a in dict.fromkeys(addresses)]
        self._first = 0
        self._token = ""
        self._closed = False
        self._noticed_at = float("-inf")
        self.revision = self.term = self.cluster = self.restores = 0

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(self._seats)

    async def use(self, addresses: Sequence[str]) -> None:
        """Asks these from now on; connections to those that stay are kept."""
        known = {s.address: s for s in self._seats}
        wanted = list(dict.fromkeys(addresses))
        if not wanted or list(known) == wanted:
            return
        current = self._seats[self._first].address
        self._seats = [known.pop(a) if a in known else Seat(a, self._access) for a in wanted]
        self._first = wanted.index(current) if current in wanted else 0
        for seat in known.values():
            await seat.channel.close()

    async def close(self) -> None:
        self._closed = True
        for seat in self._seats:
            await seat.channel.close()

    async def read(self, rpc: str, request: Any, *, what: str) -> Any:
        """The answer to a question (``service.Method``) that may be put again and again."""
        return await self.call(_unary(rpc, request), what, writes=False)

    async def write(self, rpc: str, request: Any, *, what: str) -> Any:
        """The answer to what changes the store; ``UnknownOutcome`` if it was sent and none came."""
        return await self.call(_unary(rpc, request), what, writes=True)

    async def call(self, ask: Ask, what: str, *, writes: bool) -> Any:
        """The first answer that any endpoint gives within the time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        faults: dict[str, str] = {}
        pause_s, first_round, tokens = PAUSE_MIN_S, True, 0
        while not self._closed:
            for seat in list(self._order()):
                left_s = deadline - loop.time()
                if left_s <= 0:
                    break
                try_s = min(left_s, FIRST_TRY_S) if first_round and len(self._seats) > 1 else left_s
                if not await seat.connected(try_s):
                    faults[seat.address] = "no connection"
                    continue
                sent = False
                try:
                    metadata = await self.metadata(seat, timeout_s=try_s)
                    left_s = deadline - loop.time()
                    if left_s <= 0:
                        raise TimeoutError
                    sent = True
                    if writes:
                        answer = await self._change(seat, ask(seat, min(left_s, self._answer_timeout_s), metadata))
                    else:
                        answer = await ask(seat, min(left_s, try_s), metadata)
                except (RpcError, Closed, TimeoutError, asyncio.CancelledError) as e:
                    if isinstance(e, asyncio.CancelledError) and being_cancelled():
                        raise
                    sent = sent and not isinstance(e, Closed)
                    message = "no answer in time" if isinstance(e, TimeoutError) else "the connection was closed"
                    if isinstance(e, RpcError):
                        message = e.details() or e.code().name
                    verdict = judge(message)
                    if verdict == "refused":
                        raise refusal(message) from None
                    if verdict == "oversize":
                        raise TooLarge(f"etcd's answer to {what} is too large") from None
                    faults[seat.address] = message
                    if verdict == "token" and tokens < 3:
                        self._token = ""
                        tokens += 1
                    elif verdict == "unknown" and writes and sent:
                        self.leave(seat)
                        why = f"etcd at {seat.address} did not answer {what}: {message}; it may have been done"
                        raise UnknownOutcome(why, hint="read the documents again before deciding") from None
                    continue
                self._stay(seat)
                return answer
            if loop.time() + pause_s >= deadline:
                break
            await asyncio.sleep(pause_s)
            pause_s, first_round = min(2 * pause_s, PAUSE_MAX_S), False
        raise CoordinatorUnavailable(f"etcd did not answer {what}: " + ("; ".join(f"{a}: {m}" for a, m in faults.items()) or "the client is closed"))

    async def _change(self, seat: Seat, asking: Awaitable[Any]) -> Any:
        """The answer to a change, or ``UnknownOutcome`` as soon as the leader that it went to is one no more (a follower does not notice that what it
        passed on was lost) or the endpoint is silent: both would let us wait for the whole timeout."""
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        task = asyncio.ensure_future(asking)
        term = self.term if loop.time() - self._noticed_at < TERM_FRESH_S else 0
        elected = False
        try:
            while not (await asyncio.wait((task,), timeout=LOOK_S))[0]:
                if elected:
                    why = f"etcd at {seat.address} has another leader than when it was asked; the change may be lost, or done"
                    raise UnknownOutcome(why, hint="read the documents again before deciding")
                try:
                    status = await seat.maintenance.Status(pb.StatusRequest(), timeout=LOOK_S, metadata=await self.metadata(seat, leader=False))
                except RpcError:
                    if loop.time() - heard_at < self._silent_s:
                        continue
                    self.leave(seat)
                    why = f"etcd at {seat.address} is silent since it was asked for a change, which may be lost, or done"
                    raise UnknownOutcome(why, hint="read the documents again before deciding") from None
                heard_at = loop.time()
                if not status.leader:
                    term = -1  # whoever it will be is another
                elif not term:
                    term = status.raftTerm
                else:
                    elected = status.raftTerm > term
            return task.result()
        finally:
            task.cancel()

    async def metadata(self, seat: Seat, *, leader: bool = True, timeout_s: float = FIRST_TRY_S) -> tuple[tuple[str, str], ...]:
        """What goes with a question: that a leader is needed, and the token, for which etcd works hard (it is to cost who guesses passwords)."""
        head = (_LEADER,) if leader else ()
        if not self._access.user:
            return head
        if not self._token:
            request = pb.AuthenticateRequest(name=self._access.user, password=self._access.password)
            self._token = (await seat.auth.Authenticate(request, timeout=timeout_s)).token
        return (*head, ("token", self._token))

    def renew_token(self) -> None:
        """The next question asks for a new one first."""
        self._token = ""

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def seen(self) -> tuple[int, int, int]:
        """Revision, term and restores as they are known now."""
        return (self.revision, self.term, self.restores)

    def notice(self, header: Any, since: tuple[int, int, int]) -> None:
        """Compares an answer that needed a majority with what had been ``seen`` when it was asked (I3)."""
        revision, term, restores = since
        if restores != self.restores:
            return  # this may be an answer of before
        if header.revision < revision or header.raft_term < term or (self.cluster and header.cluster_id != self.cluster):
            self.restores += 1
            self.revision, self.term = header.revision, header.raft_term
            _log.error("the coordinator was restored to an older state: revision %d, %d was seen", header.revision, revision)
        self.cluster = header.cluster_id
        self._noticed_at = asyncio.get_running_loop().time()
        self.revision, self.term = max(self.revision, header.revision), max(self.term, header.raft_term)

    def leave(self, seat: Seat) -> None:
        """It failed: others are asked first from now on."""
        if self._seats[self._first] is seat:
            self._first = (self._first + 1) % len(self._seats)

    def best(self) -> Seat:
        """The one to be asked first."""
        return self._seats[self._first]

    def _order(self) -> Iterator[Seat]:
        for i in range(len(self._seats)):
            yield self._seats[(self._first + i) % len(self._seats)]

    def _stay(self, seat: Seat) -> None:
        if self._seats[self._first] is not seat and seat in self._seats:
            _log.info("the coordinator is now asked at %s: it answered, %s did not", seat.address, self._seats[self._first].address)
            self._first = self._seats.index(seat)


def being_cancelled() -> bool:
    """Whether this task is. (gRPC raises the same error in whoever waits on a channel that is closed.)"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unary(rpc: str, request: Any) -> Ask:
    method = attrgetter(rpc)

    async def ask(seat: Seat, timeout_s: float, metadata: Sequence[tuple[str, str]]) -> Any:
        return await method(seat)(request, timeout=timeout_s, metadata=metadata)

    return ask

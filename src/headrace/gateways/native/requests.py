"""Control requests of one connection: decoded, carried out in order where order matters, answered by correlation id.

Requests about the connection itself (hello, publishers, subscriptions) run one after another and after all earlier ones; the others may overlap, so
that many
declarations share a commit. At most ``PENDING_MAX`` with ``PENDING_BYTES_MAX`` wait or run.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from headrace import __version__
from headrace.broker.attach import Attachments
from headrace.model.errors import Conflict, HeadraceError, Invariant, LimitExceeded, Malformed, Refused, UnsupportedVersion
from headrace.wire import control
from headrace.wire.frames import VERSION_MAX, VERSION_MIN

if TYPE_CHECKING:
    from headrace.gateways.native.connection import NativeConnection

PENDING_MAX = 4096
PENDING_BYTES_MAX = 8 * 1024 * 1024
FEATURES = ("batches", "streams", "pull", "filters", "cohorts")
CLUSTER = "cluster"
"""Partitions may be served by other brokers: ``topology`` says where."""
_SCOPED = (
    *(control.Hello, control.OpenPublisher, control.ClosePublisher, control.Subscribe, control.SubscribeStream, control.Unsubscribe),
    *(control.Join, control.Released),
)
_HEAVY = (
    *(control.List, control.Describe, control.Inspect, control.Status, control.ConnectionsList, control.Topology, control.CursorsList),
    *(control.QuarantineList, control.OffsetForTime, control.ClusterTopology),
    *(control.mqtt.MqttSessions, control.mqtt.MqttSubscriptions, control.mqtt.MqttRetained),
)
"""Requests that only look, at much: one of a connection at a time and one a turn of the loop, while its peer reads the answers."""


class Requests:
    """The control side of one connection."""

    def __init__(self, connection: NativeConnection) -> None:
        self._connection = connection
        self._tail: asyncio.Task[None] | None = None
        """The last request about the connection itself, while it is not answered."""
        self._since: list[asyncio.Task[None]] = []
        """The others that came after it."""
        self._waiting: dict[asyncio.Task[None], None] = {}
        self._turn = asyncio.Lock()
        self._count = 0
        self._nbytes = 0

    def take(self, correlation: int, body: bytes) -> None:
        """Begins one request."""
        connection = self._connection
        size = len(body)
        if self._count >= PENDING_MAX or (self._count and self._nbytes + size > PENDING_BYTES_MAX):
            error = LimitExceeded(f"{self._count} requests of {self._nbytes} bytes of this connection are waiting already")
            if connection.attachments is None:
                raise error
            connection.error(correlation, error)
            return
        try:
            request = control.decode_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            malformed = Malformed(f"the request cannot be read: {e}")
            if connection.attachments is None:
                raise malformed from None
            connection.error(correlation, malformed)
            return
        if connection.attachments is None and not isinstance(request, control.Hello):
            raise Malformed("the first request of a connection is hello")
        before = [] if self._tail is None else [self._tail]
        scoped = isinstance(request, _SCOPED)
        if scoped:
            before += [task for task in self._since if not task.done()]
        task = connection.broker.spawn(self._serve(correlation, request, before))
        self._count += 1
        self._nbytes += size
        self._waiting[task] = None

        def done(task: asyncio.Task[None]) -> None:
            self._count -= 1
            self._nbytes -= size
            self._waiting.pop(task, None)
            if self._tail is task:
                self._tail = None

        task.add_done_callback(done)
        if scoped:
            self._tail = task
            self._since.clear()
        else:
            if len(self._since) > 2 * self._count:
                self._since = [task for task in self._since if not task.done()]
            self._since.append(task)

    def cancel(self) -> None:
        """The connection is gone: what waits is not begun, what was begun is finished."""
        for task in list(self._waiting):
            task.cancel()

    async def _serve(self, correlation: int, request: control.Request, before: list[asyncio.Task[None]]) -> None:
        connection = self._connection
        for task in before:
            if not task.done():
                await asyncio.wait([task])
        if not isinstance(request, _HEAVY):
            await self._answer(correlation, request)
            return
        async with self._turn:
            await connection.room()
            await self._answer(correlation, request)
            await asyncio.sleep(0)

    async def _answer(self, correlation: int, request: control.Request) -> None:
        connection = self._connection
        current = asyncio.current_task()
        assert current is not None
        self._waiting.pop(current, None)
        try:
            connection.reply(correlation, await self._call(request))
        except HeadraceError as e:
            connection.error(correlation, e)
            if connection.attachments is None:
                connection.close(e)
        except Exception as e:
            connection.error(correlation, Invariant(f"the broker failed on {type(request).__name__}: {e!r}"))
            raise

    async def _call(self, request: control.Request) -> control.Reply:
        connection = self._connection
        if isinstance(request, control.Hello):
            return self._hello(request)
        attachments = connection.attachments
        assert attachments is not None
        if isinstance(request, control.OpenPublisher):
            connection.check_publisher(request.channel)
            publisher, opened = await attachments.open_publisher(request)
            connection.open_publisher(publisher)
            return opened
        if isinstance(request, control.ClosePublisher):
            old = connection.publishers.pop(request.channel, None)
            if old is not None:
                old.close()
            return control.Done(count=int(old is not None))
        if isinstance(request, control.Subscribe):
            return await attachments.subscribe(request)
        if isinstance(request, control.SubscribeStream):
            return await attachments.subscribe_stream(request)
        if isinstance(request, control.Join):
            return await attachments.join(request)
        if isinstance(request, control.Released):
            return attachments.released(request)
        if isinstance(request, control.Unsubscribe):
            return attachments.unsubscribe(request)
        if isinstance(request, control.Topology):
            connection.server.watches.add(connection, request.names[:1000])
        return await connection.server.verbs.call(request)

    def _hello(self, hello: control.Hello) -> control.Welcome:
        connection = self._connection
        broker, config = connection.broker, connection.server.config
        if connection.attachments is not None:
            raise Refused("hello is said once on a connection")
        low, high = hello.versions
        version = min(high, VERSION_MAX)
        if version < max(low, VERSION_MIN):
            raise UnsupportedVersion(f"the client speaks versions {low}-{high}, this broker {VERSION_MIN}-{VERSION_MAX}")
        if broker.draining:
            raise Conflict("this broker is going away")
        if hello.session and not _is_token(hello.session):
            raise Malformed("a session token has 32 lower-case hexadecimal digits")
        heartbeat_ms = min(max(500, hello.heartbeat_ms), config.connection.heartbeat_ms)
        session, resumed = broker.sessions.open(hello.session, hello.name or hello.client, connection)
        connection.ready(Attachments(broker, session, connection), hello, heartbeat_ms)
        return control.Welcome(
            version=version,
            features=tuple(f for f in (*FEATURES, *((CLUSTER,) if broker.cluster is not None else ())) if not hello.features or f in hello.features),
            broker=broker.id,
            incarnation=broker.incarnation,
            session=session.token,
            resumed=resumed,
            heartbeat_ms=heartbeat_ms,
            reconnect_grace_ms=config.connection.reconnect_grace_ms,
            frame_bytes_max=config.limits.frame_bytes_max,
            message_bytes_max=config.limits.message_bytes_max,
            channels_max=config.limits.channels_max,
            release=__version__,
        )


def _is_token(text: str) -> bool:
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)

"""Control requests of one connection: decoded, carried out in order where order matters, answered by correlation id.

Requests about the connection itself (hello, publishers, subscriptions) run one after another and after all earlier ones; the others may overlap, so
that many
declarations share a commit. At most ``PENDING_MAX`` wait or run.
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
FEATURES = ("batches", "streams", "pull", "filters", "cohorts")
_SCOPED = (control.Hello, control.OpenPublisher, control.ClosePublisher, control.Subscribe, control.SubscribeStream, control.Unsubscribe)


class Requests:
    """The control side of one connection."""

    def __init__(self, connection: NativeConnection) -> None:
        self._connection = connection
        self._tail: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    def take(self, correlation: int, body: bytes) -> None:
        """Begins one request."""
        connection = self._connection
        if len(self._running) >= PENDING_MAX:
            connection.error(correlation, LimitExceeded(f"{PENDING_MAX} requests of this connection are waiting already"))
            return
        try:
            request = control.decode_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            error = Malformed(f"the request cannot be read: {e}")
            if connection.attachments is None:
                raise error from None
            connection.error(correlation, error)
            return
        if connection.attachments is None and not isinstance(request, control.Hello):
            raise Malformed("the first request of a connection is hello")
        scoped = isinstance(request, _SCOPED)
        before = list(self._running) if scoped else [self._tail] if self._tail is not None else []
        task = connection.broker.spawn(self._serve(correlation, request, before))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if scoped:
            self._tail = task
            task.add_done_callback(self._forget_tail)

    def cancel(self) -> None:
        """The connection is gone: what waits is not begun, what runs is finished by the broker."""
        for task in self._running:
            task.cancel()

    def _forget_tail(self, task: asyncio.Task[None]) -> None:
        if self._tail is task:
            self._tail = None

    async def _serve(self, correlation: int, request: control.Request, before: list[asyncio.Task[None]]) -> None:
        connection = self._connection
        for task in before:
            if not task.done():
                await asyncio.wait([task])
        try:
            connection.reply(correlation, await self._call(request))
        except HeadraceError as e:
            connection.error(correlation, e)
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
        if isinstance(request, control.Unsubscribe):
            return attachments.unsubscribe(request)
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
        session, resumed = broker.open_session(hello.session, hello.name or hello.client, connection)
        connection.ready(Attachments(broker, session, connection), hello, heartbeat_ms)
        return control.Welcome(
            version=version,
            features=tuple(f for f in FEATURES if not hello.features or f in hello.features),
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

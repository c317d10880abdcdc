"""Serves the admin application on the running loop.

It takes uvicorn's protocol without its main loop, signal handlers and logging, so that idling costs nothing and the broker alone decides when
to stop. The web framework is imported by a thread when the first connection comes: until then a broker needs 20 MiB less, and starts sooner.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, cast

from headrace.admin.service import Service
from headrace.model.errors import Unavailable

if TYPE_CHECKING:
    import uvicorn

CONCURRENCY_MAX: Final = 256
STOP_TIMEOUT_S: Final = 2
BACKLOG: Final = 128


async def serve(broker: Service, host: str, port: int) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Listens and answers from now on: the bound port, and what stops it (requests under way may finish). ``Unavailable`` if the address is taken."""
    loop = asyncio.get_running_loop()
    sockets = await _listen(host, port)
    house = _House(broker)
    servers = [await loop.create_server(house.protocol, sock=bound, backlog=BACKLOG) for bound in sockets]

    async def stop() -> None:
        await house.close(servers)

    return sockets[0].getsockname()[1], stop


class _House:
    """The application, once somebody has asked for it."""

    def __init__(self, broker: Service) -> None:
        self.broker = broker
        self.server: uvicorn.Server | None = None
        self.doors: set[_Door] = set()
        self._loading: asyncio.Task[None] | None = None

    def protocol(self) -> asyncio.Protocol:
        """What a new connection speaks to."""
        return _Door(self) if self.server is None else self.serving(self.server)

    def serving(self, server: uvicorn.Server) -> asyncio.Protocol:
        protocol: asyncio.Protocol = server.config.http_protocol_class(  # type: ignore[call-arg]
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return protocol

    def open(self) -> None:
        """Begins to load the application, if nobody has; then lets in who waits."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        try:
            self.server = await asyncio.to_thread(_make, self.broker)
        except Exception:
            self._loading = None
            for door in list(self.doors):
                door.shut()
            raise
        for door in list(self.doors):
            door.enter(self.serving(self.server))

    async def close(self, servers: list[asyncio.Server]) -> None:
        for listening in servers:
            listening.close()
        if self._loading is not None:
            await asyncio.wait((self._loading,))
        for door in list(self.doors):
            door.shut()
        if self.server is not None:
            self.server.servers = []
            await self.server.shutdown()


class _Door(asyncio.Protocol):
    """A connection that waits for the application; at most one read of it is kept until then."""

    def __init__(self, house: _House) -> None:
        self.house = house
        self.transport: asyncio.Transport | None = None
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.house.doors.add(self)
        self.house.open()
        if self.house.server is not None:
            self.enter(self.house.serving(self.house.server))

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.pause_reading()
        self.early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.house.doors.discard(self)

    def enter(self, protocol: asyncio.Protocol) -> None:
        """Hands the connection over."""
        self.house.doors.discard(self)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.set_protocol(protocol)
            protocol.connection_made(self.transport)
            if self.early:
                protocol.data_received(self.early)
            self.transport.resume_reading()

    def shut(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _make(broker: Service) -> uvicorn.Server:
    """Imports and builds everything; no part of it touches the loop."""
    import uvicorn

    from headrace.admin.app import create_app

    config = uvicorn.Config(
        create_app(broker),
        log_config=None,
        access_log=False,
        lifespan="off",
        http="h11",
        ws="none",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONCURRENCY_MAX,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    return server


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Bound sockets on every address that ``host`` stands for, all on one port."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(sockets) > 1:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            bound.setblocking(False)
            bound.bind(address)
            bound.listen(BACKLOG)
    except OSError as e:
        for bound in sockets:
            bound.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        hint = "choose another with --admin HOST:PORT (port 0: the system picks), or --admin off"
        raise Unavailable(f"cannot listen on {where} for the admin HTTP: {e.strerror or e}", hint=hint) from None
    return sockets

"""Serves the admin application on the running loop.

It takes uvicorn's protocol without its main loop, signal handlers and logging, so that idling costs nothing and the broker
alone decides when to stop.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import uvicorn

from headrace.admin.app import create_app
from headrace.admin.service import Service
from headrace.model.errors import Unavailable

CONCURRENCY_MAX: Final = 256
STOP_TIMEOUT_S: Final = 2
BACKLOG: Final = 128


async def serve(broker: Service, host: str, port: int) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Listens and answers from now on: the bound port, and what stops it (requests under way may finish). ``Unavailable`` if the address is taken."""
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
    sockets = await _listen(host, port)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=sockets)

    async def stop() -> None:
        await server.shutdown(sockets=sockets)

    return sockets[0].getsockname()[1], stop


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address that ``host`` stands for, all on one port."""
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

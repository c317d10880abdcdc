"""The seam between brokers' connections and what carries them: TCP now; TLS and QUIC fit in behind the same two calls.

A carrier gives each connection an ordered stream of bytes both ways as asyncio's pair of Protocol and Transport: ``data_received``,
``connection_lost``, ``pause_writing`` on one side, ``write``, ``writelines``, ``close``, ``abort``, ``pause_reading`` on the other. QUIC: one
connection a pair of brokers with one bidirectional stream, whose transport it wraps; what would gain from streams of their own (copies) can get them
behind this seam later, since nothing above relies on order between services.

Owns names to addresses and sockets. Does not know what the bytes mean, nor who is trusted.
"""

import asyncio
from collections.abc import Callable
from errno import ECONNREFUSED
from typing import Final, Protocol

from headrace.model.config import Address

BACKLOG: Final = 256


class Listening(Protocol):
    """A listener that is open."""

    @property
    def port(self) -> int: ...

    def close(self) -> None:
        """Takes no more connections; those that exist stay."""


class Carrier(Protocol):
    """See the module's head."""

    async def dial(self, make: Callable[[], asyncio.Protocol], to: Address) -> None:
        """Connects; then ``make`` is called and told ``connection_made``. OSError if it cannot."""

    async def listen(self, make: Callable[[], asyncio.Protocol], at: Address) -> Listening:
        """Calls ``make`` for every connection that comes in."""

    def binding(self, transport: asyncio.BaseTransport) -> bytes:
        """What both ends of this channel, and nobody else, know of it; b"" where there is nothing such."""


class _TcpListening:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()


class Tcp:
    """Plain TCP. A host is a name, IPv4 or IPv6; a name is looked up at every dial, each of its addresses tried in turn."""

    async def dial(self, make: Callable[[], asyncio.Protocol], to: Address) -> None:
        try:
            await asyncio.get_running_loop().create_connection(make, to.host, to.port)
        except OSError as e:  # of a name with several addresses the errors come as one without a number
            text = str(e)
            refused = text.count(f"[Errno {ECONNREFUSED}]")
            if e.errno is None and refused and refused == text.count("[Errno"):
                raise ConnectionRefusedError(ECONNREFUSED, text) from None
            raise

    async def listen(self, make: Callable[[], asyncio.Protocol], at: Address) -> Listening:
        return _TcpListening(await asyncio.get_running_loop().create_server(make, at.host, at.port, backlog=BACKLOG))

    def binding(self, transport: asyncio.BaseTransport) -> bytes:
        return b""

"""Transports for tests: two or more of them, what they saw, and peers that misbehave."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Known, Lost, Me, Settings, Transport
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.wire.peer import Introduction, Service

SECRET = b"a secret of sixteen bytes or more"
OTHER = b"another secret of such a length"
A, B, C = BrokerId("a"), BrokerId("b"), BrokerId("c")


class Seen:
    """A watcher that remembers, and waits."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.batches: list[tuple[BrokerId, bytes]] = []
        self.losses: list[Lost] = []
        self._changed = asyncio.Event()

    def note(self, what: str, peer: str) -> None:
        self.events.append((what, peer))
        self._changed.set()

    def connected(self, peer: BrokerId, who: Introduction) -> None:
        self.note("connected", peer)

    def lost(self, peer: BrokerId, why: Lost) -> None:
        self.losses.append(why)
        self.note("lost", peer)

    def full(self, peer: BrokerId) -> None:
        self.note("full", peer)

    def drained(self, peer: BrokerId) -> None:
        self.note("drained", peer)

    def batch(self, peer: BrokerId, body: bytes) -> None:
        self.batches.append((peer, body))
        self._changed.set()

    async def until(self, holds: Callable[[], Any], timeout: float = 10.0) -> None:
        """Waits until ``holds()``, asking again after every event and a little later."""
        async with asyncio.timeout(timeout):
            while not holds():
                self._changed.clear()
                try:
                    async with asyncio.timeout(0.02):
                        await self._changed.wait()
                except TimeoutError:
                    pass


class End:
    """A transport and what it saw."""

    def __init__(self, id: str, *, secret: bytes = SECRET, cluster: str = "one", life: str = "1", settings: Settings | None = None) -> None:
        self.id = BrokerId(id)
        self.me = Me(broker=self.id, incarnation=Incarnation(f"{id}-{life}"), cluster=cluster, release="test")
        self.seen = Seen()
        self.transport = Transport(self.me, Secrets([secret]), settings)
        self.transport.watch(self.seen)
        self.transport.on_batch(Service.REPLICAS, self.seen.batch)
        self.host = "127.0.0.1"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> "End":
        self.host = host
        await self.transport.start(Address(host, port))
        return self

    @property
    def address(self) -> Address:
        return Address(self.host, self.transport.port)

    def serve(self, work: Callable[[BrokerId, bytes], Awaitable[bytes]]) -> None:
        self.transport.on_request(Service.VERBS, work)


def introduce(*ends: End) -> None:
    """Everybody knows everybody."""
    for end in ends:
        end.transport.know({other.id: Known(other.address) for other in ends if other is not end})


async def meet(*ends: End) -> None:
    introduce(*ends)
    for end in ends:
        await end.seen.until(lambda end=end: all(end.transport.connected(other.id) for other in ends if other is not end))

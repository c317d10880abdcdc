"""Coordinators of every kind behind one face, with the faults that the contract suite asks for."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from headrace.cluster.coordinator import Coordinator, Registration
from headrace.cluster.local import LocalCoordinator
from headrace.cluster.memory import MemoryStore
from headrace.storage.memory import MemoryState


class Place(Protocol):
    """One coordinator with all its brokers."""

    shared: bool
    """Several brokers can use it at once."""
    ttl_ms: int
    """The shortest time to live of a registration."""

    async def client(self, broker: str = "a") -> Coordinator: ...

    async def compact(self, revision: int) -> None:
        """Forgets what happened up to ``revision``, which is the newest."""

    async def drop_lease(self, registration: Registration) -> None: ...

    async def stop_renewing(self, broker: str) -> None:
        """Nothing of that broker reaches the coordinator any more."""

    async def close(self) -> None: ...


class LocalPlace:
    shared, ttl_ms = False, 1000

    def __init__(self) -> None:
        self._state = MemoryState()
        self.coordinator = LocalCoordinator(self._state, self._commit)

    async def _commit(self, puts: Mapping[bytes, bytes | None]) -> None:
        await asyncio.sleep(0)
        for key, value in puts.items():
            if value is None:
                self._state.values.pop(key, None)
            else:
                self._state.values[key] = value
        await asyncio.sleep(0)

    async def client(self, broker: str = "a") -> Coordinator:
        return self.coordinator

    async def compact(self, revision: int) -> None:
        self.coordinator.forget(revision)

    async def drop_lease(self, registration: Registration) -> None:
        raise NotImplementedError

    async def stop_renewing(self, broker: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.coordinator.close()


class MemoryPlace:
    shared, ttl_ms = True, 300

    def __init__(self) -> None:
        self.store = MemoryStore(latency_s=0.0, timeout_s=0.05)
        self._clients: dict[str, Coordinator] = {}

    async def client(self, broker: str = "a") -> Coordinator:
        if broker not in self._clients:
            self._clients[broker] = self.store.client(broker)
        return self._clients[broker]

    async def compact(self, revision: int) -> None:
        self.store.compact()

    async def drop_lease(self, registration: Registration) -> None:
        self.store.drop_lease(registration.key)

    async def stop_renewing(self, broker: str) -> None:
        self.store.unreachable(broker)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

"""Clients of this broker's own cluster, by which it consumes for the MQTT sessions it serves: a few, each for many of them.

Owns how many there are. A client has a connection to each broker that serves something it consumes; so they are shared, by as many as their channels
bear. One that nobody uses any more is closed at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from headrace.client.client import Client, connect
from headrace.model.errors import HeadraceError, NotConnected

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

USERS_MAX = 32
"""Consumers of one client: each has a channel a partition at most, and a connection has 4096."""
NAME = "mqtt"
"""By which they are listed among a broker's connections."""
CONNECT_S = 5.0
REQUEST_S = 10.0
"""So long a consumer is opened; then who asked is told what is waited for."""
CLOSE_S = 3.0


class Shared:
    """One of them."""

    def __init__(self, opening: asyncio.Task[Client]) -> None:
        self.opening = opening
        self.users = 0

    @property
    def client(self) -> Client:
        """Once it has been taken."""
        return self.opening.result()


class Clients:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._shared: list[Shared] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._none = asyncio.Event()

    async def take(self) -> Shared:
        """One with room for a user more; ``give_back`` it. Raises ``NotConnected``."""
        if self._closed:
            raise NotConnected("this broker is stopping")
        shared = next((s for s in self._shared if s.users < USERS_MAX), None)
        if shared is None:
            shared = Shared(self.broker.loop.create_task(self._open(), name="headrace-mqtt-client"))
            self._shared.append(shared)
        shared.users += 1
        try:
            await asyncio.shield(shared.opening)
        except BaseException:
            self.give_back(shared)
            raise
        return shared

    async def _open(self) -> Client:
        url = self.broker.listeners.get("url", "")
        if not url:
            raise NotConnected("this broker has no listener of the native protocol yet")
        return await connect(url, name=NAME, wait=CONNECT_S, request_timeout=REQUEST_S)

    def give_back(self, shared: Shared) -> None:
        """One of its users uses it no more."""
        shared.users -= 1
        if not shared.users:
            self._end(shared)

    def _end(self, shared: Shared) -> None:
        if shared in self._shared:
            self._shared.remove(shared)
            task = self.broker.loop.create_task(self._close(shared), name="headrace-mqtt-client")
            self._closing.add(task)
            task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not self._shared and not self._closing:
            self._none.set()

    @staticmethod
    async def _close(shared: Shared) -> None:
        with suppress(HeadraceError):  # it was never open
            await (await shared.opening).close()

    async def close(self) -> None:
        """No more are made. Returns once all are closed: by their users, who end now, or after a while without them."""
        self._closed = True
        if self._shared or self._closing:
            self._none.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._none.wait()
        for shared in list(self._shared):
            self._end(shared)
        if self._closing:
            await asyncio.wait(list(self._closing), timeout=CLOSE_S)

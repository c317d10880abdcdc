"""Starting and stopping a whole broker in the running loop: broker, native listener, admin interface."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING

from headrace.broker import tuning
from headrace.broker.broker import Broker, MakeStore
from headrace.broker.verbs import Verbs
from headrace.log import get_logger
from headrace.model.config import Config, advertised, mqtt_address
from headrace.model.errors import HeadraceError, Invalid, StorageError

if TYPE_CHECKING:
    from headrace.broker.cluster import Means

__all__ = ["Listener", "RunningBroker", "start"]

_log = get_logger("run")
Stop = Callable[[], Awaitable[None]]
Listener = Callable[[Broker, Verbs], Awaitable[tuple[dict[str, str], Stop]]]
"""Opens one kind of listener: gives the URLs it serves by name, and how to stop it."""


class RunningBroker:
    """A broker that serves. ``url`` and ``admin_url`` hold the real addresses ("" = no such listener); ``stopped`` is set when it has ended for
    whatever reason."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.verbs = Verbs(broker, self._drain_soon)
        self.url = ""
        self.admin_url = ""
        self.stopped = asyncio.Event()
        self.draining = asyncio.Event()
        """Set when its end begins, whoever wants it."""
        self.drain_grace_ms = 0
        """What clients are given then."""
        self._stops: list[Stop] = []
        self._stopping: asyncio.Task[None] | None = None

    @property
    def error(self) -> HeadraceError | None:
        """Why it has ended, if nobody wanted it to."""
        return self.broker.store_error

    @property
    def addresses(self) -> dict[str, str]:
        """What a ready file holds."""
        more = {name: url for name, url in self.broker.listeners.items() if name.startswith("mqtt")}
        return {"url": self.url, "admin": self.admin_url, **more}

    def _drain_soon(self, grace_ms: int, message: str) -> None:
        self.draining.set()
        if self._stopping is None:
            self.drain_grace_ms = grace_ms
            self._stopping = asyncio.get_running_loop().create_task(self._stop(grace_ms, message))

    async def stop(self, drain_grace_ms: int = 0, message: str = "") -> None:
        """Drains for at most that long, then stops. Safe to call more than once."""
        self._drain_soon(drain_grace_ms, message)
        await self.stopped.wait()

    async def _stop(self, grace_ms: int, message: str) -> None:
        try:
            if self.broker.store_error is None:
                await self.broker.drain(grace_ms, message)
            for stop in reversed(self._stops):
                await stop()
            try:
                await self.broker.stop()
            except StorageError as e:  # what was confirmed is in the log
                _log.warning("the store did not close cleanly, so the next start reads more of the log: %s", e)
        finally:
            self.stopped.set()

    async def _on_failure(self) -> None:
        await self.broker.failed.wait()
        self._drain_soon(0, "storage failed")


async def start(
    config: Config,
    listeners: tuple[Listener, ...] | None = None,
    *,
    tune: bool = True,
    make_store: MakeStore | None = None,
    means: Means | None = None,
) -> RunningBroker:
    """Starts everything ``config`` asks for; returns once it serves. ``tune`` sets knobs of the whole process (``tuning``).
    ``means``: of a broker in coordinated mode, which ``broker.member`` has once there is a cluster; without them it is refused."""
    if config.coordination.mode != "standalone" and means is None:
        raise Invalid(
            "coordination.mode is coordinated: this would be a lone broker where a cluster is meant",
            hint="start it with `headrace start`, or remove coordination.mode (--voters and --cluster set it)",
        )
    if tune:
        tuning.begin()
    broker = Broker(config, make_store=make_store, means=means)
    running = RunningBroker(broker)
    await broker.start()
    try:
        for listener in listeners if listeners is not None else default_listeners(config):
            urls, stop = await listener(broker, running.verbs)
            running._stops.append(stop)
            broker.listeners.update(urls)
    except BaseException:
        for stop in running._stops:
            await stop()
        await broker.stop()
        raise
    running.url = broker.listeners.get("url", "")
    if broker.cluster is not None:
        broker.cluster.advertise(native=running.url)
    running.admin_url = broker.listeners.get("admin", "")
    broker.spawn(running._on_failure())
    if tune:
        tuning.settled()
    _log.info("broker %s serves %s (data in %s, pid %d)", broker.id, running.url, config.broker.data_dir if broker.durable else "memory", os.getpid())
    return running


def native_url(config: Config, port: int) -> str:
    """The address clients are told."""
    return f"headrace://{advertised(config.listen.native, config.listen.native_advertise, port=port, hostname=socket.gethostname())}"


def default_listeners(config: Config) -> tuple[Listener, ...]:
    """Those that ``config`` names. Imported where used: the broker layer itself knows no gateway."""
    names = ["headrace.gateways.native.listen"]
    if config.listen.admin and config.listen.admin != "off":
        names.append("headrace.admin.listen")
    if mqtt_address(config, "mqtt") or mqtt_address(config, "mqtt_ws"):
        names.append("headrace.gateways.mqtt.listen")
    return tuple(import_module(name).listen for name in names)

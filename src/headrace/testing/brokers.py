"""Starting and stopping real brokers for tests.

Owns the temporary directory and, for the blocking form, the thread and its loop. Invariants: I1 nothing is left behind: no thread, no socket, no
file. I2 a broker that was restarted serves the same data on the same port.
"""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeVar

import msgspec

from headrace.broker.run import RunningBroker, start
from headrace.model.config import MIB, Broker, Config, Listen, Storage

T = TypeVar("T")
StorageMode = Literal["disk", "memory"]

START_TIMEOUT_S = 30.0
_ANY = "127.0.0.1:0"


class TestBroker:
    """A running broker. ``url`` is what clients connect to, ``admin_url`` the admin interface, ``mqtt_url`` and ``mqtt_ws_url`` where MQTT clients do
    (all but the first "" without)."""

    __test__ = False  # not a test class, whatever its name

    def __init__(self, config: Config) -> None:
        self.config = config
        self.url = ""
        self.admin_url = ""
        self.mqtt_url = ""
        self.mqtt_ws_url = ""
        self._running: RunningBroker | None = None

    @property
    def running(self) -> bool:
        return self._running is not None

    async def start(self) -> None:
        """Starts it, again if it was stopped: on the same data and, from the second time on, the same port."""
        assert self._running is None, "it runs already"
        self._running = await start(self.config, tune=False)
        addresses = self._running.addresses
        self.url, self.admin_url = self._running.url, self._running.admin_url
        self.mqtt_url, self.mqtt_ws_url = addresses.get("mqtt", ""), addresses.get("mqtt_ws", "")
        urls = {"native": self.url, "mqtt": self.mqtt_url, "mqtt_ws": self.mqtt_ws_url}
        ports = {name: url.partition("//")[2].partition("/")[0] for name, url in urls.items() if url}
        self.config = msgspec.structs.replace(self.config, listen=msgspec.structs.replace(self.config.listen, **ports))

    async def stop(self, drain_grace_ms: int = 0, message: str = "") -> None:
        """Stops it; the data stays until the context is left."""
        running, self._running = self._running, None
        if running is not None:
            await running.stop(drain_grace_ms, message)

    async def restart(self) -> None:
        """Stops it and starts it on the same data and port; clients reconnect by themselves."""
        await self.stop()
        await self.start()

    def cut(self) -> None:
        """Breaks every client connection, as a network would; sessions wait for their clients to return."""
        if self._running is not None:
            for sink in list(self._running.broker.sinks.values()):
                sink.close(None)


def _config(directory: str, storage: StorageMode, admin: bool, mqtt: bool, config: Config | None) -> Config:
    given = config or Config(storage=Storage(wal_file_bytes=32 * MIB, disk_free_bytes_min=0, ballast_bytes=0))
    return msgspec.structs.replace(
        given,
        broker=msgspec.structs.replace(given.broker, data_dir=directory, storage=storage)
        if config is not None
        else Broker(data_dir=directory, storage=storage),
        listen=Listen(native=_ANY, admin=_ANY if admin else "off", mqtt=_ANY if mqtt else "off", mqtt_ws=_ANY if mqtt else "off"),
    )


@asynccontextmanager
async def broker(
    *, storage: StorageMode = "disk", admin: bool = False, mqtt: bool = False, config: Config | None = None
) -> AsyncIterator[TestBroker]:
    """A real broker on the running loop. ``storage="memory"`` writes nothing; ``config`` sets anything but addresses, directory and storage."""
    directory = tempfile.mkdtemp(prefix="headrace-test-")
    made = TestBroker(_config(directory, storage, admin, mqtt, config))
    try:
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class BlockingTestBroker:
    """A running broker in a thread of its own."""

    def __init__(self, inner: TestBroker, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def admin_url(self) -> str:
        return self._inner.admin_url

    @property
    def mqtt_url(self) -> str:
        return self._inner.mqtt_url

    @property
    def mqtt_ws_url(self) -> str:
        return self._inner.mqtt_ws_url

    def start(self) -> None:
        self._run(self._inner.start())

    def stop(self) -> None:
        self._run(self._inner.stop())

    def restart(self) -> None:
        """Stops it and starts it on the same data and port."""
        self._run(self._inner.restart())

    def cut(self) -> None:
        """Breaks every client connection."""

        async def cut() -> None:
            self._inner.cut()

        self._run(cut())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)


@contextmanager
def blocking_broker(
    *, storage: StorageMode = "disk", admin: bool = False, mqtt: bool = False, config: Config | None = None
) -> Iterator[BlockingTestBroker]:
    """A real broker for code without an event loop."""
    loop = _new_loop()
    thread = threading.Thread(target=loop.run_forever, name="headrace-test-broker", daemon=True)
    thread.start()
    context = broker(storage=storage, admin=admin, mqtt=mqtt, config=config)
    try:
        inner = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(START_TIMEOUT_S)
        try:
            yield BlockingTestBroker(inner, loop)
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(START_TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""The same client for code without an event loop: a loop in a thread of its own, the same verbs, iterators and context managers.

Knows nothing of the protocol: every call is carried out by the asyncio client on its loop. Thread-safe: one client may be used from many threads.
Invariants: I1 the thread ends with ``close``. I2 messages cross threads in chunks, settlements of one burst in one call.
"""

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from headrace.client.client import DEFAULT_URL, Client
from headrace.client.client import connect as connect_async
from headrace.client.consumer import Consumer
from headrace.client.lane import Receipt
from headrace.client.message import Message
from headrace.client.payload import Duration
from headrace.client.publisher import Confirm, Publisher
from headrace.client.reader import Reader, Record
from headrace.model import limits
from headrace.model.errors import Conflict, HeadraceError, NotConnected

if TYPE_CHECKING:
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 1000


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._calls: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="headrace-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Carries out a coroutine there and waits for it; an interrupt cancels it."""
        if self.loop.is_closed() or not self._thread.is_alive():
            work.close()
            raise NotConnected("the client was closed", hint="open another with headrace.connect_blocking()")
        if threading.current_thread() is self._thread:
            work.close()
            raise Conflict("a blocking call was made from the client's own thread", hint="use the asyncio client in callbacks")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def soon(self, call: Callable[[], object]) -> None:
        """Has ``call`` made there, together with all others of this burst."""
        with self._lock:
            first = not self._calls
            self._calls.append(call)
        if first:
            self.loop.call_soon_threadsafe(self._make_calls)

    def _make_calls(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
        for call in calls:
            call()

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
) -> "Callable[Concatenate[BlockingClient, P], R]":
    """The blocking form of one of the client's methods."""

    @functools.wraps(method)
    def call(self: "BlockingClient", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.run(method(self._client, *args, **kwargs))

    return call


class BlockingMessage:
    """A message, to be settled from any thread. As a context manager: ack on success, retry on an exception."""

    __slots__ = ("_loop", "_message")

    def __init__(self, loop: _Loop, message: Message) -> None:
        self._loop = loop
        self._message = message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)

    def json(self) -> Any:
        return self._message.json()

    @property
    def value(self) -> bytes:
        return self._message.value

    def ack(self, *, confirmed: bool = False) -> None:
        """Done; with ``confirmed`` it returns once the broker has it durably, or raises ``StaleSettle``."""
        self._settle(lambda: self._message.ack(confirmed=confirmed), confirmed)

    def retry(self, delay: Duration | None = None, *, confirmed: bool = False) -> None:
        self._settle(lambda: self._message.retry(delay, confirmed=confirmed), confirmed)

    def reject(self, *, drop: bool = False, confirmed: bool = False) -> None:
        self._settle(lambda: self._message.reject(drop=drop, confirmed=confirmed), confirmed)

    def extend(self, lease: Duration | None = None) -> None:
        async def extend() -> None:
            await self._message.extend(lease)

        self._loop.run(extend())

    def _settle(self, settle: Callable[[], Any], confirmed: bool) -> None:
        message = self._message
        if message.settled:
            raise Conflict(f"message {message.partition}/{message.offset} was settled already", hint="settle each message once")
        if not confirmed:
            message.settled = True  # at once, in this thread; the settlement itself follows on the loop

            def later() -> None:
                message.settled = False
                settle()

            self._loop.soon(later)
            return

        async def wait() -> None:
            await settle()

        self._loop.run(wait())

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if not self._message.settled:
            if kind is None:
                self.ack()
            else:
                self.retry()

    def __repr__(self) -> str:
        return repr(self._message)


class BlockingRecord:
    """A record of a stream."""

    __slots__ = ("_loop", "_record")

    def __init__(self, loop: _Loop, record: Record) -> None:
        self._loop = loop
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    def json(self) -> Any:
        return self._record.json()

    @property
    def value(self) -> bytes:
        return self._record.value

    def commit(self, *, confirmed: bool = False) -> None:
        """Moves the cursor past this record and all before it in its partition."""
        self._do(lambda: self._record.commit(confirmed=confirmed), confirmed)

    def ack(self, *, confirmed: bool = False) -> None:
        self._do(lambda: self._record.ack(confirmed=confirmed), confirmed)

    def _do(self, call: Callable[[], Any], confirmed: bool) -> None:
        if not confirmed:
            self._loop.soon(call)
            return

        async def wait() -> None:
            await call()

        self._loop.run(wait())

    def __repr__(self) -> str:
        return repr(self._record)


class BlockingConsumer:
    """An iterator of messages. ``stop`` (from any thread, or a signal handler) ends the iteration."""

    def __init__(self, loop: _Loop, consumer: Consumer) -> None:
        self._loop = loop
        self._consumer = consumer
        self._here: deque[Message] = deque()

    def __enter__(self) -> "Self":
        self._loop.run(self._consumer.start())
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[BlockingMessage]:
        while True:
            message = self.next()
            if message is None:
                return
            yield message

    def next(self, timeout: float | None = None) -> BlockingMessage | None:
        """The next message; None when ``timeout`` seconds are over or the iteration was stopped."""
        while True:
            try:
                return BlockingMessage(self._loop, self._here.popleft())
            except IndexError:
                chunk = self._loop.run(_some(self._consumer, timeout))
            if not chunk:
                return None
            self._here.extend(chunk)

    def stop(self) -> None:
        """Ends the iteration; what was not handed out goes back with ``close``."""
        self._loop.soon(self._consumer.stop)

    def close(self) -> None:
        """Sends what was settled and gives everything else back."""
        unused = [*self._here]
        self._here.clear()
        self._loop.run(self._consumer.close(unused))


class BlockingReader:
    """An iterator of records."""

    def __init__(self, loop: _Loop, reader: Reader, *, auto: bool) -> None:
        self._loop = loop
        self._reader = reader
        self._auto = auto and bool(reader.cursor)
        self._here: deque[Record] = deque()
        self._passed: dict[int, int] = {}
        self._last: Record | None = None

    def __enter__(self) -> "Self":
        self._loop.run(self._reader.start())
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._pass()
        self.close()

    def __iter__(self) -> Iterator[BlockingRecord]:
        while True:
            record = self.next()
            if record is None:
                return
            yield record

    def next(self, timeout: float | None = None) -> BlockingRecord | None:
        """The next record; None when ``timeout`` seconds are over."""
        self._pass()
        if not self._here:
            self._commit()
            self._here.extend(self._loop.run(_some(self._reader, timeout)))
            if not self._here:
                return None
        self._last = self._here.popleft()
        return BlockingRecord(self._loop, self._last)

    def _pass(self) -> None:
        last, self._last = self._last, None
        if last is not None and self._auto:
            self._passed[last.partition] = last.offset

    def _commit(self) -> None:
        """Automatic commit: once a chunk, for what the application went past."""
        passed, self._passed = self._passed, {}
        for partition, offset in passed.items():
            self._loop.soon(functools.partial(self._reader.commit_up_to, partition, offset))

    def close(self) -> None:
        """Sends what was committed and ends the reading."""
        self._commit()
        self._here.clear()
        self._loop.run(self._reader.close())


async def _some(source: Any, timeout_s: float | None) -> list[Any]:
    """What a consumer or reader has, at least one unless the time is over or it ended."""
    try:
        async with asyncio.timeout(timeout_s):
            found: list[Any] = await source.take(CHUNK)
            return found
    except TimeoutError:
        return []


class BlockingPublisher:
    """Publishes to one name from any thread."""

    def __init__(self, loop: _Loop, publisher: Publisher) -> None:
        self._loop = loop
        self._publisher = publisher
        self._posted = 0
        """Posts on their way to the loop; a little more or less with several threads does no harm."""

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def send(self, value: Any, **options: Any) -> Receipt:
        """Publishes one message and waits for its confirm; ``options`` as for ``client.publish``."""
        return self._loop.run(self._publisher.send(value, **options))

    def send_many(self, values: Iterable[Any], *, confirm: Confirm | None = None) -> list[Receipt]:
        """Publishes many values in order and waits for all confirms."""
        return self._loop.run(self._publisher.send_many(values, confirm=confirm))

    def post(self, value: Any, **options: Any) -> "Future[Receipt]":
        """Publishes without waiting; blocks only while too much is in flight. The future gives the receipt."""
        answered: Future[Receipt] = Future()
        answered.set_running_or_notify_cancel()  # what was posted cannot be called back
        publisher = self._publisher
        if self._posted >= CHUNK or publisher.full:
            self._loop.run(publisher.room())  # after what was posted before, which is carried out first
        self._posted += 1
        self._loop.soon(functools.partial(self._post, answered, value, options))
        return answered

    def _post(self, answered: "Future[Receipt]", value: Any, options: dict[str, Any]) -> None:
        self._posted -= 1
        try:
            self._publisher.post_to(answered, value, **options)
        except HeadraceError as e:
            answered.set_exception(e)

    def flush(self) -> None:
        """Waits until everything posted is answered."""

        async def flush() -> None:
            await asyncio.sleep(0)  # what this thread posted before comes first
            await self._publisher.flush()

        self._loop.run(flush())

    def close(self) -> None:
        self.flush()
        self._loop.run(self._publisher.close())


class BlockingClient:
    """The client without an event loop of yours. Made by ``headrace.connect_blocking``; close it, or use it as a context manager."""

    def __init__(self, loop: _Loop, client: Client) -> None:
        self._loop = loop
        self._client = client

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for confirms, gives back what was prefetched, disconnects and ends the thread."""
        if not self._loop.loop.is_closed():
            try:
                self._loop.run(self._client.close())
            finally:
                self._loop.stop()

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now; the client reconnects by itself."""
        return self._client.connected

    def on_going_away(self, callback: Callable[[int, str], None]) -> Callable[[int, str], None]:
        """Has ``callback(grace_ms, message)`` called, in the client's thread, when the broker is about to stop."""
        return self._client.on_going_away(callback)

    publish = _blocking(Client.publish)
    append = _blocking(Client.publish)
    request = _blocking(Client.request)
    wait_connected = _blocking(Client.wait_connected)
    declare_queue = _blocking(Client.declare_queue)
    declare_stream = _blocking(Client.declare_stream)
    alter_queue = _blocking(Client.alter_queue)
    alter_stream = _blocking(Client.alter_stream)
    delete = _blocking(Client.delete)
    list = _blocking(Client.list)
    describe = _blocking(Client.describe)
    inspect = _blocking(Client.inspect)
    purge = _blocking(Client.purge)
    pause = _blocking(Client.pause)
    repartition = _blocking(Client.repartition)
    resume = _blocking(Client.resume)
    move = _blocking(Client.move)
    redrive = _blocking(Client.redrive)
    transfer = _blocking(Client.transfer)
    offset_for_time = _blocking(Client.offset_for_time)
    trim = _blocking(Client.trim)
    cursors = _blocking(Client.cursors)
    set_cursor = _blocking(Client.set_cursor)
    delete_cursor = _blocking(Client.delete_cursor)
    status = _blocking(Client.status)
    drain = _blocking(Client.drain)
    quarantine = _blocking(Client.quarantine)
    repair = _blocking(Client.repair)
    topology = _blocking(Client.topology)
    connections = _blocking(Client.connections)

    def publisher(self, name: str, **options: Any) -> BlockingPublisher:
        """A publisher of its own; ``options`` as for the asyncio client's ``publisher``."""

        async def make() -> Publisher:
            return self._client.publisher(name, **options)

        return BlockingPublisher(self._loop, self._loop.run(make()))

    def consume(self, name: str, **options: Any) -> BlockingConsumer:
        """``with client.consume("orders") as messages: for message in messages: ...``; ``options`` as for the asyncio client's ``consume``."""

        async def make() -> Consumer:
            return self._client.consume(name, **options)

        return BlockingConsumer(self._loop, self._loop.run(make()))

    def fetch(self, name: str, max_messages: int = 1, *, wait: Duration = 0) -> Any:
        """Up to ``max_messages`` messages of a queue, waiting up to ``wait`` seconds for the first ones."""
        return [BlockingMessage(self._loop, m) for m in self._loop.run(self._client.fetch(name, max_messages, wait=wait))]

    def read(self, name: str, *, commit: Literal["auto", "explicit"] = "auto", **options: Any) -> BlockingReader:
        """``with client.read("events", cursor="billing") as records: for record in records: ...``; ``options`` as for the asyncio client's
        ``read``."""

        async def make() -> Reader:
            return self._client.read(name, commit="explicit", **options)

        return BlockingReader(self._loop, self._loop.run(make()), auto=commit == "auto")


def connect(
    url: str = DEFAULT_URL,
    *,
    name: str = "",
    user: str = "",
    password: str = "",
    wait: float = 0.0,
    confirm_timeout: float = limits.CONFIRM_TIMEOUT_MS / 1000,
    heartbeat: Duration = limits.HEARTBEAT_MS / 1000,
    connect_timeout: float = 5.0,
    request_timeout: float = 30.0,
) -> BlockingClient:
    """A blocking client: ``with headrace.connect_blocking("headrace://host:port") as client: ...``. Arguments as for ``headrace.connect``."""
    loop = _Loop()

    async def open_client() -> Client:
        return await connect_async(
            url,
            name=name,
            user=user,
            password=password,
            wait=wait,
            confirm_timeout=confirm_timeout,
            heartbeat=heartbeat,
            connect_timeout=connect_timeout,
            request_timeout=request_timeout,
        )

    try:
        return BlockingClient(loop, loop.run(open_client()))
    except BaseException:
        loop.stop()
        raise

"""The asyncio client: one object per connection to a broker, from which publishers, consumers, readers and verbs are had.

Owns the connection and what was made from it. All of it belongs to one event loop; from other threads use ``headrace.connect_blocking``.
"""

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headrace.client.connection import Connection
from headrace.client.consumer import Consumer
from headrace.client.lane import Receipt
from headrace.client.message import Message
from headrace.client.pattern import PatternReader
from headrace.client.payload import Duration, milliseconds
from headrace.client.publisher import MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, Compression, Confirm, Publisher
from headrace.client.reader import PREFETCH as STREAM_PREFETCH
from headrace.client.reader import Reader, Strategy
from headrace.client.requests import Requester, Responder
from headrace.client.routing import Router, addresses
from headrace.client.spread import SpreadConsumer, SpreadReader
from headrace.client.target import Target, parse_target
from headrace.client.verbs import Verbs
from headrace.client.worker import Handler, Worker
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid, NotConnected
from headrace.model.ports import DefaultPort
from headrace.wire import control

if TYPE_CHECKING:
    from typing import Self

M = TypeVar("M", bound=control.Message)
H = TypeVar("H", bound=Handler)

DEFAULT_URL = f"headrace://127.0.0.1:{int(DefaultPort.NATIVE)}"
PUBLISHERS_MAX = 1024
GoingAwayCallback = Callable[[int, str], None]


class Client(Verbs):
    """See the module's head. Made by ``headrace.connect``."""

    def __init__(
        self,
        target: Target,
        *,
        confirm_timeout: float = limits.CONFIRM_TIMEOUT_MS / 1000,
        heartbeat: Duration = limits.HEARTBEAT_MS / 1000,
        connect_timeout: float = 5.0,
        request_timeout: float = 30.0,
    ) -> None:
        self._timing: dict[str, Any] = {
            "heartbeat_ms": milliseconds(heartbeat, what="heartbeat"),
            "connect_timeout_s": connect_timeout,
            "request_timeout_s": request_timeout,
        }
        self._request_timeout = request_timeout
        self._connection = Connection(target, on_event=self._on_event, on_state=self._on_state, **self._timing)
        self._router = Router(self._connection, self._connect_to)
        self._confirm_timeout = confirm_timeout
        self._publishers: dict[str, Publisher] = {}
        self._made: list[Publisher] = []
        self._pullers: dict[str, Consumer] = {}
        self._opening = asyncio.Lock()
        self._subscriptions: list[Consumer | Reader | PatternReader] = []
        self._workers: list[Worker] = []
        self._stopping = asyncio.Event()
        self._requester: Requester | None = None
        self._going_away: list[GoingAwayCallback] = []
        self._states: list[Callable[[bool], None]] = []
        self._catalogue: list[Callable[[control.CatalogueChanged | None], None]] = []

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for confirms of what was published, gives back what was prefetched, and disconnects. What cannot be confirmed in time is failed."""
        if self._connection.closed:
            return
        self._stopping.set()
        for subscription in list(self._subscriptions):
            await subscription.close()
        self._subscriptions.clear()
        if self._requester is not None:
            await self._requester.close()
        publishers = [*self._publishers.values(), *self._made]
        if self._router.up:
            for publisher in publishers:
                with suppress(HeadraceError):  # told to whoever awaits the receipt; without receipts, flush() is where to ask
                    await publisher.close()
        error = NotConnected("the client was closed", hint="open another with headrace.connect()")
        for publisher in publishers:
            publisher.fail(error)
        for puller in self._pullers.values():
            await puller.close()
        await self._router.close()
        await self._connection.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now; the client reconnects by itself. In a cluster: the one that any broker can serve."""
        return self._connection.up

    @property
    def session(self) -> str:
        """The token by which the broker knows this client again."""
        return self._connection.session

    async def wait_connected(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (a plain number is what people pass)
        """Returns once there is a connection; raises ``NotConnected`` after ``timeout`` seconds."""
        await self._connection.wait_up(None if timeout is None else self._connection.loop.time() + timeout)

    def on_going_away(self, callback: GoingAwayCallback) -> GoingAwayCallback:
        """Has ``callback(grace_ms, message)`` called when the broker is about to stop. Usable as a decorator."""
        self._going_away.append(callback)
        return callback

    def on_connection(self, callback: Callable[[bool], None]) -> Callable[[bool], None]:
        """Has ``callback(connected)`` called whenever the connection is lost or there again. Usable as a decorator."""
        self._states.append(callback)
        return callback

    def add_catalogue_listener(self, listener: Callable[[control.CatalogueChanged | None], None]) -> None:
        """Tells ``listener`` of declared, altered and deleted names; None = some may have been missed."""
        self._catalogue.append(listener)

    def remove_catalogue_listener(self, listener: Callable[[control.CatalogueChanged | None], None]) -> None:
        if listener in self._catalogue:
            self._catalogue.remove(listener)

    def _on_event(self, event: control.Event) -> None:
        if isinstance(event, control.GoingAway):
            for callback in self._going_away:
                callback(event.grace_ms, event.message)
        elif isinstance(event, control.CatalogueChanged):
            for listener in list(self._catalogue):
                listener(event)
        elif isinstance(event, control.TopologyChanged):
            self._router.event(event)

    def _connect_to(self, broker: str, urls: tuple[str, ...], session: str) -> Connection:
        """The connection to one broker of a cluster, for what it alone serves."""

        def on_event(event: control.Event) -> None:
            welcome = self._connection.welcome
            if isinstance(event, control.GoingAway):
                self._router.going_away(broker)
                if not (self._connection.up and welcome is not None and welcome.broker == broker):
                    self._on_event(event)  # else the client's own connection tells it

        mine = self._connection.target
        target = Target(addresses=addresses(urls), user=mine.user, password=mine.password, name=mine.name)
        made = Connection(
            target,
            on_event=on_event,
            on_state=lambda up: self._router.state_changed(made, up),
            session=session,
            expected=broker,
            push=(),
            **self._timing,
        )
        return made

    def _on_state(self, connected: bool) -> None:
        self._router.state_changed(self._connection, connected)
        for callback in self._states:
            callback(connected)
        if connected and self._connection.connects > 1:
            for listener in list(self._catalogue):
                listener(None)

    async def _request(self, message: control.Message, expected: type[M], *, again: bool = True, timeout_s: float | None = None) -> M:
        return await self._connection.request(message, expected, again=again, timeout_s=timeout_s)

    # ------------------------------------------------------------ publishing

    async def publish(
        self,
        name: str,
        value: Any,
        *,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        delay: Duration | None = None,
        ttl: Duration | None = None,
        priority: int | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        confirm: Confirm | None = None,
    ) -> Receipt:
        """Publishes one message to a queue or stream and waits for its confirm.

        ``value``: bytes as they are, text as UTF-8, anything else as JSON. ``delay`` and ``ttl`` in seconds (or timedelta). ``confirm``: the level
        that the receipt promises (default: the queue's own). Idempotent: what a broken connection makes the client send again is stored once.
        """
        return await self._publisher(name).send(
            value, key=key, headers=headers, delay=delay, ttl=ttl, priority=priority, partition=partition, timestamp_ms=timestamp_ms, confirm=confirm
        )

    append = publish
    """Publishing to a stream."""

    def publisher(
        self,
        name: str,
        *,
        confirm: Confirm = "queue",
        compression: Compression = "none",
        confirm_timeout: float | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        headers: Mapping[str, str | bytes] | None = None,
        idempotent: bool = True,
    ) -> Publisher:
        """A publisher of its own, for settings of its own and for posting without waiting."""
        self._check_open()
        publisher = Publisher(
            self._connection,
            name,
            router=self._router,
            confirm=confirm,
            compression=compression,
            confirm_timeout=self._confirm_timeout if confirm_timeout is None else confirm_timeout,
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            headers=headers,
            idempotent=idempotent,
        )
        self._made = [p for p in self._made if not p.closed]
        self._made.append(publisher)
        return publisher

    def _publisher(self, name: str) -> Publisher:
        publisher = self._publishers.get(name)
        if publisher is None:
            self._check_open()
            if len(self._publishers) >= PUBLISHERS_MAX:
                idle = next((p for p in self._publishers.values() if not p.in_flight), None)
                if idle is not None:
                    del self._publishers[idle.name]
                    idle.fail(NotConnected("closed"))
            publisher = self._publishers[name] = Publisher(
                self._connection, name, router=self._router, confirm_timeout=self._confirm_timeout
            )
        return publisher

    def _check_open(self) -> None:
        if self._connection.closed:
            raise NotConnected("the client was closed", hint="open another with headrace.connect()")

    # ------------------------------------------------------------ consuming

    def consume(
        self,
        name: str,
        *,
        prefetch: int = limits.PREFETCH_MESSAGES,
        prefetch_bytes: int = limits.PREFETCH_BYTES,
        auto_ack: bool = False,
        lease: Duration | None = None,
        filter: str | control.Filter | None = None,
        cohort: str = "",
        member: str = "",
        auto_extend: bool = False,
        pull: bool = False,
        on_event: Callable[[control.Event], None] | None = None,
    ) -> Consumer:
        """A consumer of a queue: ``async with client.consume("orders") as messages: async for message in messages: ...``.

        ``prefetch``: messages that may be here unsettled. ``lease``: how long each is held (default: the queue's); ``auto_extend`` extends it while
        it is held. ``cohort``: divide the partitions exclusively among the consumers of that name; ``member``: a fixed name within it.
        ``pull``: deliver nothing by itself, only what ``consumer.fetch`` asks for.
        """
        self._check_open()
        consumer = self._consumer(
            name,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            auto_ack=auto_ack,
            lease=lease,
            filter=filter,
            cohort=cohort,
            member=member,
            auto_extend=auto_extend,
            pull=pull,
            on_event=on_event,
        )
        self._keep(consumer)
        return consumer

    async def fetch(self, name: str, max_messages: int = 1, *, wait: Duration = 0) -> "list[Message]":
        """Up to ``max_messages`` messages of a queue, waiting up to ``wait`` seconds for the first ones. Settle each as usual."""
        if not 1 <= max_messages <= limits.PREFETCH_MESSAGES_MAX:
            raise Invalid(f"max_messages is {max_messages}; it lies in 1..{limits.PREFETCH_MESSAGES_MAX}")
        async with self._opening:
            puller = self._pullers.get(name)
            if puller is None or puller.ended:
                self._check_open()
                puller = self._consumer(name, pull=True)
                await puller.start()
                self._pullers[name] = puller
        return await puller.fetch(max_messages, wait_ms=milliseconds(wait, what="wait"))

    def _consumer(self, name: str, **options: Any) -> Consumer:
        if self._router.clustered:
            return SpreadConsumer(self._connection, self._router, name, options, self._request_timeout)
        return Consumer(self._connection, name, **options)

    def _keep(self, subscription: "Consumer | Reader | PatternReader") -> None:
        self._subscriptions = [s for s in self._subscriptions if isinstance(s, PatternReader) or not s.ended]
        self._subscriptions.append(subscription)

    # ------------------------------------------------------------ streams

    def read(
        self,
        name: str,
        *,
        start: str | int = "",
        cursor: str = "",
        group: str = "",
        member: str = "",
        strategy: Strategy = "sticky",
        partitions: Iterable[int] = (),
        commit: Literal["auto", "explicit"] = "auto",
        prefetch: int = STREAM_PREFETCH,
        prefetch_bytes: int = limits.PREFETCH_BYTES,
        filter: str | control.Filter | None = None,
        on_event: Callable[[control.Event], None] | None = None,
    ) -> Reader:
        """A reader of a stream: ``async with client.read("events", cursor="billing") as records: async for record in records: ...``.

        ``start``: an offset, or earliest, latest, timestamp:MS, last:N; default the cursor if one is named, else latest. ``commit``: ``auto`` moves
        the cursor past each record when the next is asked for, ``explicit`` leaves it to ``record.commit()`` and ``record.ack()``. ``group``: share
        the partitions with its other members. ``on_event`` is told ``Assigned``, ``Retracted`` and ``CursorMoved``.
        """
        self._check_open()
        options: dict[str, Any] = {
            "start": start,
            "cursor": cursor,
            "group": group,
            "member": member,
            "strategy": strategy,
            "partitions": tuple(partitions),
            "commit": commit,
            "prefetch": prefetch,
            "prefetch_bytes": prefetch_bytes,
            "filter": filter,
            "on_event": on_event,
        }
        if self._router.clustered:
            reader: Reader = SpreadReader(self._connection, self._router, name, options, self._request_timeout)
        else:
            reader = Reader(self._connection, name, **options)
        self._keep(reader)
        return reader

    def read_pattern(self, pattern: str, **options: Any) -> PatternReader:
        """Reads all streams whose name matches the glob, and those that will; ``options`` as for ``read``."""
        self._check_open()
        reader = PatternReader(self, pattern, options)
        self._keep(reader)
        return reader

    # ------------------------------------------------------------ workers, request and reply

    def worker(self, name: str, *, concurrency: int = 1, **options: Any) -> Callable[[H], H]:
        """Decorator: the function handles messages of that queue once ``run_workers`` runs; ``options`` as for ``consume``."""

        def register(handler: H) -> H:
            self._workers.append(Worker(name, handler, concurrency, options))
            return handler

        return register

    def responder(self, name: str, *, concurrency: int = 1, **options: Any) -> Callable[[H], H]:
        """Decorator: what the function returns is the reply to ``request(name, ...)``."""

        def register(handler: H) -> H:
            self._workers.append(Responder(self, name, handler, concurrency, options))
            return handler

        return register

    async def run_workers(self, *, grace: float = 30.0) -> None:
        """Runs all registered workers until ``stop_workers``, ``close`` or cancellation; then waits up to ``grace`` seconds for the handlers that
        run."""
        if not self._workers:
            raise Invalid("no worker is registered", hint='decorate a function with @client.worker("queue")')
        self._stopping.clear()
        tasks = [asyncio.create_task(worker.run(self, self._stopping, grace)) for worker in self._workers]
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            self._stopping.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        finally:
            self._stopping.set()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop_workers(self) -> None:
        """Lets ``run_workers`` return once the handlers that run are done."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop()

    async def request(
        self,
        name: str,
        value: Any,
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 (a plain number is what people pass)
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> Message:
        """Publishes a request and waits for its reply; ``UnknownOutcome`` when none came in time."""
        if self._requester is None:
            self._check_open()
            self._requester = Requester(self)
        return await self._requester.request(name, value, timeout_s=timeout, key=key, headers=dict(headers or {}))


class Connecting:
    """What ``headrace.connect`` returns: await it for a client, or enter it to have the client closed at the end."""

    __slots__ = ("_client", "_options", "_target", "_wait")

    def __init__(self, target: Target, wait: float, options: dict[str, Any]) -> None:
        self._target = target
        self._wait = wait
        self._options = options
        self._client: Client | None = None

    async def _connect(self) -> Client:
        client = Client(self._target, **self._options)
        await client._connection.open(self._wait)
        return client

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connect().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect()
        return self._client

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._client is not None:
            await self._client.close()


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
) -> Connecting:
    """Connects to a broker: ``async with headrace.connect("headrace://host:port,other:port") as client: ...`` or ``client = await
    headrace.connect(...)``.

    Tries every address; raises ``NotConnected`` when none answers and ``wait`` seconds are over. Once connected, the client reconnects by itself
    for ever.
    """
    target = parse_target(url)
    target = Target(addresses=target.addresses, user=user or target.user, password=password or target.password, name=name or target.name)
    options = {"confirm_timeout": confirm_timeout, "heartbeat": heartbeat, "connect_timeout": connect_timeout, "request_timeout": request_timeout}
    return Connecting(target, wait, options)

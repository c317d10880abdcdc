"""Workers: handlers of a queue's messages, a bounded number at a time, and an orderly stop.

One task per unit of concurrency, none per message. A handler that returns acks, one that raises has its message retried (by the queue's back-off)
and is logged; it may settle the message itself. Stopping hands out nothing more, waits for the handlers that run, and gives everything else back.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.client.consumer import Consumer
from headrace.client.message import Message
from headrace.model.errors import HeadraceError, Invalid

if TYPE_CHECKING:
    from headrace.client.client import Client

log = logging.getLogger("headrace.client.worker")

Handler = Callable[[Message], Any]
"""A function or coroutine function. A plain function runs in a thread, so it may block."""


class Worker:
    """A registered handler."""

    __slots__ = ("_consumer", "_coroutine", "concurrency", "handler", "name", "options")

    def __init__(self, name: str, handler: Handler, concurrency: int, options: dict[str, Any]) -> None:
        if not 1 <= concurrency <= 10_000:
            raise Invalid(f"concurrency is {concurrency}; it lies in 1..10000")
        self.name = name
        self.handler = handler
        self.concurrency = concurrency
        self.options = options
        self._consumer: Consumer | None = None
        self._coroutine = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004

    async def call(self, message: Message) -> Any:
        """Runs the handler."""
        if self._coroutine:
            return await self.handler(message)
        return await asyncio.to_thread(self.handler, message)

    async def run(self, client: "Client", stopping: asyncio.Event, grace_s: float) -> None:
        """Consumes until ``stopping``; raises what ends the subscription."""
        options = {"prefetch": max(self.concurrency * 2, 10), **self.options}
        async with client.consume(self.name, **options) as consumer:
            self._consumer = consumer
            tasks = [asyncio.create_task(self._loop(consumer), name=f"headrace-worker-{self.name}-{i}") for i in range(self.concurrency)]
            stop = asyncio.create_task(stopping.wait())
            try:
                await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
                consumer.stop()
                _, late = await asyncio.wait(tasks, timeout=grace_s)
                if late:
                    log.warning("%d handler(s) of %r did not finish within %.1f s; their messages go back", len(late), self.name, grace_s)
            finally:
                stop.cancel()
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, HeadraceError):
                    raise result

    def stop(self) -> None:
        """Hands out nothing more, from this moment on."""
        if self._consumer is not None:
            self._consumer.stop()

    async def _loop(self, consumer: Consumer) -> None:
        async for message in consumer:
            try:
                await self.call(message)
            except asyncio.CancelledError:
                if not message.settled:
                    message.retry(0)
                raise
            except Exception:
                log.exception("the handler of %r failed on message %d/%d (attempt %d)", self.name, message.partition, message.offset, message.attempt)
                if not message.settled:
                    message.retry()
            else:
                if not message.settled:
                    message.ack()

"""Request and reply over queues: a request names a private reply queue and a correlation id, the responder's answer comes back there.

At least once, as everything on queues: a responder may see a request again after a crash, an answer that comes twice is dropped. Errors of a
responder come back as the error they are where they are Headrace's, as ``Refused`` otherwise.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from headrace.client.consumer import Consumer
from headrace.client.message import Message
from headrace.client.worker import Handler, Worker
from headrace.model.errors import HeadraceError, Refused, UnknownOutcome, from_wire

if TYPE_CHECKING:
    from headrace.client.client import Client

log = logging.getLogger("headrace.client.requests")

REPLY_TO = "reply-to"
CORRELATION = "correlation-id"
ERROR = "error"
ERROR_CODE = "error-code"
REPLIES_TTL_MS = 60_000


class Requester:
    """The asking side of one client: one private queue, one consumer, any number of requests at a time."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._name = f"reply.{self._client._connection.ambient.token(12)}"
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._consumer: Consumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def request(self, name: str, value: Any, *, timeout_s: float, key: str | bytes | None, headers: dict[str, str | bytes]) -> Message:
        await self._start()
        correlation = self._client._connection.ambient.token(8)
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = answered
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.publish(name, value, key=key, headers={**headers, REPLY_TO: self._name, CORRELATION: correlation}, ttl=timeout_s)
                message = await answered
        except TimeoutError:
            raise UnknownOutcome(
                f"no reply from {name!r} within {timeout_s:g} s", hint="is a responder running? the request may still have been carried out"
            ) from None
        finally:
            self._waiting.pop(correlation, None)
        sent = message.headers
        if ERROR in sent:
            code = sent.get(ERROR_CODE, "")
            raise from_wire(int(code), sent[ERROR]) if code.isdigit() else Refused(sent[ERROR])
        return message

    async def _start(self) -> None:
        async with self._starting:
            if self._consumer is not None:
                return
            await self._client.declare_queue(self._name, ttl_ms=REPLIES_TTL_MS)
            consumer = self._client.consume(self._name, prefetch=1000, auto_ack=True)
            await consumer.start()
            self._consumer = consumer
            self._task = asyncio.create_task(self._collect(consumer), name="headrace-replies")

    async def _collect(self, consumer: Consumer) -> None:
        async for message in consumer:
            waiting = self._waiting.get(message.headers.get(CORRELATION, ""))
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.close()
            self._consumer = None
            if self._client.connected:
                try:
                    await self._client.delete(self._name, kind="queue")
                except HeadraceError as e:
                    log.info("the reply queue %s stays behind: %s", self._name, e)


class Responder(Worker):
    """The answering side: a worker whose return value is the reply."""

    __slots__ = ("_client",)

    def __init__(self, client: "Client", name: str, handler: Handler, concurrency: int, options: dict[str, Any]) -> None:
        super().__init__(name, handler, concurrency, options)
        self._client = client

    async def call(self, message: Message) -> Any:
        headers = message.headers
        back, correlation = headers.get(REPLY_TO, ""), headers.get(CORRELATION, "")
        answer: dict[str, str | bytes] = {CORRELATION: correlation}
        value: Any = b""
        try:
            value = await super().call(message)
        except HeadraceError as e:
            answer |= {ERROR: str(e), ERROR_CODE: str(e.code)}
        except Exception as e:
            log.exception("the responder of %r failed", self.name)
            answer[ERROR] = f"the responder of {self.name!r} failed: {type(e).__name__}: {e}"
        if not back:
            return
        try:
            await self._client.publish(back, value, headers=answer)
        except HeadraceError as e:
            log.info("the reply to %s could not be sent (who asked is gone): %s", back, e)

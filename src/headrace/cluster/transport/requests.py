"""Requests between brokers: those asked of one peer, which await an answer or their deadline, and those it asks, each a task with a bound.

Owns correlation and deadlines. Does not know links: frames go out through a callable.

I1 a request ends exactly once: by its answer, its error, its deadline or the end of the connection. I2 an error is definite unless it is an
``UnknownOutcome``: what was handed to a connection and not answered may have been carried out. I3 what nobody waits for any more is not begun, and
what is begun is cancelled at its deadline.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from headrace.cluster.transport.counters import Counters
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.cluster import BrokerId
from headrace.model.errors import ConnectionLost, HeadraceError, Invariant, LimitExceeded, Malformed, NotFound, UnknownOutcome
from headrace.wire import peer as wire
from headrace.wire.peer import PeerOp, Service

_log = get_logger("peers")

Serve: TypeAlias = Callable[[BrokerId, bytes], Awaitable[bytes]]
"""Carries out a request of a peer. ``HeadraceError`` is told to it."""


class Calls:
    """What is asked of one peer."""

    def __init__(self, peer: BrokerId, counters: Counters, requests_max: int) -> None:
        self._peer = peer
        self._counters = counters
        self._requests_max = requests_max
        self._number = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, send: Callable[[int], None], timeout_ms: int) -> bytes:
        """Calls ``send`` with the correlation to use, and waits for what comes back."""
        if len(self._waiting) >= self._requests_max:
            raise LimitExceeded(f"{len(self._waiting)} requests to broker {self._peer} wait for an answer", hint="try again in a moment")
        self._number = self._number % 0xFFFFFFFF + 1
        number = self._number
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._counters.requests_out += 1
        try:
            send(number)
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            self._counters.requests_timed_out += 1
            raise UnknownOutcome(
                f"broker {self._peer} did not answer within {timeout_ms} ms", hint="it may have done it: look before asking again"
            ) from None
        finally:
            self._waiting.pop(number, None)

    def answered(self, op: PeerOp, correlation: int, body: bytes) -> None:
        """An answer came; one to nothing that waits is late and dropped."""
        future = self._waiting.pop(correlation, None)
        if future is None or future.done():
            if op == PeerOp.ERROR and correlation == 0:
                raise Malformed("an error that answers nothing")
        elif op == PeerOp.REPLY:
            future.set_result(body)
        else:
            future.set_exception(wire.parse_failure(body))

    def lost(self, why: str) -> None:
        """The connection is gone."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(
                    ConnectionLost(f"the connection to broker {self._peer} ended before it answered: {why}", hint="look before asking again")
                )


class Served:
    """What one peer asks."""

    def __init__(self, peer: BrokerId, counters: Counters, requests_max: int, table: dict[Service, Serve]) -> None:
        self._peer = peer
        self._counters = counters
        self._requests_max = requests_max
        self._table = table
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, service: int, body: bytes, reply: Callable[[bytes | HeadraceError], None]) -> None:
        """``reply`` is called once, unless nobody waits any more."""
        timeout_ms, asked = wire.parse_request(body)
        self._counters.requests_in += 1
        serve = self._table.get(service)  # type: ignore[call-overload]
        if serve is None:
            reply(NotFound(f"this broker has no service {service} for its peers", hint="one of the two is of another release"))
        elif len(self._tasks) >= self._requests_max:
            reply(LimitExceeded(f"{len(self._tasks)} requests of broker {self._peer} are being carried out", hint="try again in a moment"))
        else:
            timeout_ms = min(timeout_ms, limits.PEER_REQUEST_MS_MAX)
            task = asyncio.get_running_loop().create_task(self._carry_out(serve, asked, timeout_ms, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, serve: Serve, body: bytes, timeout_ms: int, reply: Callable[[bytes | HeadraceError], None]) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                answer: bytes | HeadraceError = await serve(self._peer, body)
        except TimeoutError:
            return
        except HeadraceError as e:
            answer = e
        except Exception as e:
            _log.exception("a request of broker %s failed", self._peer)
            answer = Invariant(f"the broker failed on a request of a peer: {e!r}")
        reply(answer)

    def cancel(self) -> None:
        """The broker stops."""
        for task in list(self._tasks):
            task.cancel()

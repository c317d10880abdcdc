"""The requests of one link that are not answered yet, and what becomes of their answers. Does no I/O.

Owns the correlation ids, which go on over links: the answer to a request of an earlier one is never taken for another's.
Invariant: who asked is called once, with the reply or the error, unless it is forgotten.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.model.errors import ConnectionLost, HeadraceError, Malformed, from_wire
from headrace.wire import control
from headrace.wire.frames import Op, frame

Answer = Callable[[Any, HeadraceError | None], None]
"""Called once with the reply or the error."""


class Answers:
    """See the module's head."""

    def __init__(self) -> None:
        self._waiting: dict[int, Answer] = {}
        self._correlation = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def asked(self, message: control.Message, answer: Answer) -> tuple[int, bytes]:
        """The correlation id of a request, and its frame, which is to be sent now."""
        self._correlation = self._correlation % 0xFFFF_FFFF + 1
        self._waiting[self._correlation] = answer
        return self._correlation, frame(Op.REQUEST, control.encode(message), correlation=self._correlation)

    def answered(self, correlation: int, body: bytes, is_error: bool) -> HeadraceError | None:
        """Hands an answer to who asked. An error that answers no request is returned: it is about the whole link."""
        answer = self._waiting.pop(correlation, None)
        if answer is None:
            return _failure(body) if is_error else None
        if is_error:
            answer(None, _failure(body))
            return None
        try:
            reply = control.decode_reply(body)
        except msgspec.MsgspecError as e:
            answer(None, Malformed(f"the broker's answer cannot be read: {e}"))
            return None
        answer(reply, None)
        return None

    def forget(self, correlation: int) -> None:
        """Nobody waits for this one any more."""
        self._waiting.pop(correlation, None)

    def clear(self) -> None:
        """Nobody waits for any of them."""
        self._waiting.clear()

    def lost(self, why: HeadraceError) -> None:
        """The link is gone: no answer will come."""
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer(None, ConnectionLost(str(why), hint="the client reconnects by itself; repeat the request if doing it twice does no harm"))


def resolving(future: "asyncio.Future[Any]") -> Answer:
    """An answer that becomes the result of ``future``, if somebody still waits for that."""

    def answer(reply: Any, error: HeadraceError | None) -> None:
        if not future.done():
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(reply)

    return answer


def ignore(reply: Any, error: HeadraceError | None) -> None:
    """An answer that nobody needs."""


def _failure(body: bytes) -> HeadraceError:
    try:
        failure = control.decode_failure(body)
    except msgspec.MsgspecError as e:
        return Malformed(f"the broker's refusal cannot be read: {e}")
    return from_wire(failure.code, failure.message, failure.hint, failure.detail)

"""Keeps the real world out of a simulation: what would block, start a thread or leave the machine is refused with what to do instead.

One audit hook for the process (Python has no way to remove one), which does nothing but while a simulation runs, in the thread that runs it; and
``time.sleep`` and ``Thread.start`` are replaced for that while (they tell audit hooks in new versions of Python only).
Invariant: outside ``guarded`` nothing is refused.
"""

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

from headrace.sim.loop import NotSimulated

Real = Literal["sleep", "sockets", "threads"]
REAL: Final[tuple[Real, ...]] = ("sleep", "sockets", "threads")

_PAGE: Final = "see docs/testing-your-app.md, what is virtual and what is not"
_THREADS: Final = (
    "threads",
    "a thread was started: a simulation runs in one thread. Use the asyncio client (headrace.connect) rather than headrace.connect_blocking; what is "
    "given to asyncio.to_thread or run_in_executor runs by itself, without a thread. ",
)
_SOCKETS: Final = (
    "sockets",
    "a real connection was asked for: in a simulation there are only simulated machines. Put a stand-in for that service into the test, or run "
    "one as a simulated machine. ",
)
_SLEEP: Final = (
    "sleep",
    "time.sleep() was called: it would stop the real process, and no virtual time passes. Use await asyncio.sleep(), which takes none. ",
)
_EVENTS: Final[dict[str, tuple[Real, str]]] = {
    "time.sleep": _SLEEP,
    "socket.connect": _SOCKETS,
    "socket.getaddrinfo": _SOCKETS,
    "threading.Thread.start": _THREADS,
}


class _Guard(NamedTuple):
    thread: int
    allowed: Collection[str]
    tell: Callable[[str], None]


_guard: _Guard | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _guard is not None and event in _EVENTS:
        _refuse(event)


def _refuse(event: str) -> None:
    if _guard is None:
        return
    what, why = _EVENTS[event]
    if what in _guard.allowed or threading.get_ident() != _guard.thread:
        return
    _guard.tell(why)
    raise NotSimulated(f'{why}If it must be, allow it with simulated(allow=["{what}"]); {_PAGE}')


@contextmanager
def guarded(allowed: Collection[str], tell: Callable[[str], None]) -> Iterator[None]:
    """Refuses within the block, in this thread, all that is not ``allowed``; ``tell`` hears of it, should the error be swallowed."""
    global _guard, _hooked  # noqa: PLW0603 - an audit hook belongs to the process
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    sleep, start = time.sleep, threading.Thread.start

    def refusing_sleep(seconds: Any, /) -> None:
        _refuse("time.sleep")
        sleep(seconds)

    def refusing_start(self: threading.Thread) -> None:
        _refuse("threading.Thread.start")
        start(self)

    _guard = _Guard(threading.get_ident(), allowed, tell)
    time.sleep, threading.Thread.start = refusing_sleep, refusing_start  # type: ignore[method-assign]
    try:
        yield
    finally:
        time.sleep, threading.Thread.start = sleep, start  # type: ignore[method-assign]
        _guard = None

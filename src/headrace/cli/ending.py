"""The end of a broker's process, whatever its loop does: a thread takes the signals, and a stop that takes too long is cut short.

Owns who may ask for the end, how long a stop may take, and what is said of one that takes longer. What a stop consists of it does not know.

E1 the first signal asks for a stop, a second one ends the process at once. E2 once a stop was asked for, the process ends in bounded time, whatever
its loop, its threads and its log do. E3 neither waits for the disk: what was confirmed is durable by then, so to the data it is a crash.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from math import ceil
from typing import Any, Final

from headrace.log import get_logger

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
SIGNALLED_AGAIN: Final = 130
TOO_LONG: Final = 75
LOOK_S: Final = 0.5
SAY_S: Final = 2.0
"""How long the log may keep the process from its end."""
TASKS_MAX: Final = 100
DEPTH_MAX: Final = 30
READ_BYTES: Final = 65536
_log = get_logger("ending")


class Ending:
    """See the module's head. ``allowed_s`` says how long a stop may take that begins now."""

    def __init__(self, allowed_s: Callable[[], float]) -> None:
        self.allowed_s = allowed_s
        self._lock = threading.Lock()
        self._asked = self._bound = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: Callable[[], object] | None = None

    def take_signals(self) -> None:
        """From now on signals ask for a stop. Called by the main thread before there are others: all of them leave signals to one thread then."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _beside(self._signals, "signals")

    def take_input(self) -> None:
        """The end of standard input asks for a stop; what comes before it is ignored."""
        _beside(self._input, "standard input")

    def tell(self, loop: asyncio.AbstractEventLoop, told: Callable[[], object]) -> None:
        """``told`` is called in ``loop`` when a stop is asked for, or if it was already."""
        with self._lock:
            self._loop, self._told = loop, told
            asked = self._asked
        if asked:
            loop.call_soon(told)

    def ask(self) -> None:
        """Asks for a stop, whose time runs from now on. From any thread."""
        with self._lock:
            self._asked = True
            loop, told = self._loop, self._told
        self.bound()
        if loop is not None and told is not None:
            try:
                loop.call_soon_threadsafe(told)
            except RuntimeError:  # it is closed: the process is at its end anyway
                return

    def bound(self) -> None:
        """A stop has begun: its time runs, if it does not yet. From any thread."""
        with self._lock:
            if self._bound:
                return
            self._bound = True
        _beside(self._watch, "bound of the stop")

    def _signals(self) -> None:
        signal.sigwait(SIGNALS)
        self.ask()
        signal.sigwait(SIGNALS)
        _leave(SIGNALLED_AGAIN, lambda: print("headrace: again: stopping at once; what was confirmed is safe", file=sys.stderr, flush=True))

    def _input(self) -> None:
        try:
            while os.read(0, READ_BYTES):
                pass
        except OSError as e:
            _log.warning("standard input cannot be read, which counts as its end: %s", e)
        else:
            _log.info("standard input has ended, so the broker stops")
        self.ask()

    def _watch(self) -> None:
        allowed_s = self.allowed_s()
        for _ in range(ceil(allowed_s / LOOK_S)):
            time.sleep(LOOK_S)  # in pieces: the time in which the whole machine stood still does not count
        _leave(TOO_LONG, lambda: _say(allowed_s, self._loop))


def _beside(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _leave(code: int, say: Callable[[], None]) -> None:
    _beside(say, "last words").join(SAY_S)
    os._exit(code)


def _say(allowed_s: float, loop: asyncio.AbstractEventLoop | None) -> None:
    _log.error(
        "the stop is not over after %g s, so the process ends without waiting (code %d; what was confirmed is safe); still running:\n%s\n%s",
        allowed_s, TOO_LONG, _tasks(loop), _threads(),
    )  # fmt: skip


def _tasks(loop: asyncio.AbstractEventLoop | None) -> str:
    """The tasks of a loop that another thread runs, or does not any more, and on what each of them waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()) if loop is not None else []
    lines = [f"task {task.get_name()!r}: {_where(task.get_coro())}" for task in tasks[:TASKS_MAX]]
    return "\n".join(lines) + (f"\nand {len(tasks) - TASKS_MAX} other tasks" if len(tasks) > TASKS_MAX else "") if lines else "no task"


def _where(waits: Any) -> str:
    """From the outermost coroutine in: where each of them stands."""
    found: list[str] = []
    while waits is not None and len(found) < DEPTH_MAX:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if frame is None:
            found.append(repr(waits))
            break
        found.append(f"{frame.f_code.co_qualname} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})")
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None) or getattr(waits, "ag_await", None)
    return " > ".join(found)


def _threads() -> str:
    """Where every thread stands. Through a file in memory: it is written by its descriptor, and the log may have another form."""
    names = [f"thread 0x{thread.ident or 0:016x} is {thread.name!r}" for thread in threading.enumerate()]
    with open(os.memfd_create("threads"), "w+b") as file:
        faulthandler.dump_traceback(file.fileno(), all_threads=True)
        file.seek(0)
        return "\n".join([*names, file.read().decode(errors="replace")])

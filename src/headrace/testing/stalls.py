"""What the tasks of a simulation wait for, in words: for a test that does not end.

Walks the chain of awaits of each task; lines of the product and of asyncio are summed up, lines of the user's are shown. Only looks.
"""

import asyncio
import linecache
import os
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, NamedTuple

import headrace
from headrace.sim.loop import Machine, SimLoop

TASKS_SHOWN_MAX: Final = 50
_OURS: Final = os.path.dirname(headrace.__file__) + os.sep
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep


class Level(NamedTuple):
    """One await of a chain."""

    frame: FrameType
    name: str

    @property
    def users(self) -> bool:
        return not self.frame.f_code.co_filename.startswith((_OURS, _ASYNCIO))


def chain(awaited: Any) -> Iterator[Level | str]:
    """From the outermost coroutine to what it waits for in the end; a word for that comes last, where there is one."""
    while True:
        if frame := getattr(awaited, "cr_frame", None):
            yield Level(frame, awaited.cr_code.co_qualname)
            awaited = awaited.cr_await
        elif frame := getattr(awaited, "gi_frame", None):
            yield Level(frame, awaited.gi_code.co_qualname)
            awaited = awaited.gi_yieldfrom
        else:
            break
    if isinstance(awaited, asyncio.Task):
        yield f"task {awaited.get_name()!r}"


def waiting(machine: Machine, task: "asyncio.Task[Any]") -> str:
    """Where a task stands; "" if no line of the user's is in it."""
    levels = list(chain(task.get_coro()))
    if not any(isinstance(level, Level) and level.users for level in levels):
        return ""
    lines = [f"  {machine.name}{' (paused)' if machine.paused else ''}, task {task.get_name()!r}:"]
    inner: list[str] = []
    for level in levels:
        if isinstance(level, str):
            inner.append(level)
        elif not level.users:
            inner.append(level.name)
        else:
            inner.clear()
            name, number = level.frame.f_code.co_filename, level.frame.f_lineno
            lines.append(f"    {os.path.relpath(name)}:{number}, in {level.name}")
            if line := linecache.getline(name, number).strip():
                lines.append(f"      {line}")
    if inner:
        lines.append(f"      which waits in {' > '.join(inner)}")
    return "\n".join(lines)


def all_waiting(loop: SimLoop) -> list[str]:
    """One text per task that runs a line of the user's, oldest first."""
    texts = [text for machine, task in loop.unfinished() if (text := waiting(machine, task))]
    more = len(texts) - TASKS_SHOWN_MAX
    return [*texts[:TASKS_SHOWN_MAX], f"  and {more} more tasks"] if more > 0 else texts

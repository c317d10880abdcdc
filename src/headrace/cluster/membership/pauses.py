"""Noticing that this broker stood still: a stopped process, a suspended machine, a long hold of the interpreter.

Meanwhile others may have taken over what it owns. So before it serves on, it asks again what it may: those who registered here are told before the
turn in which the pause is noticed does anything else, provided that every turn that serves begins with ``check`` (one comparison).

Owns when a gap between two turns counts as a pause. Does not know what is validated again.

Two clocks are looked at, since a suspended machine's monotonic one may stand still with it: the wall clock's lead over it is a pause too. A wall
clock that is set forward therefore looks like one; to validate again without need is harmless.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

from headrace.ambient import Ambient, ambient
from headrace.log import get_logger

_log = get_logger("membership")

BEAT_MS: Final = 100
PAUSE_MS: Final = 500
"""A gap of so much more than ``BEAT_MS`` is a pause. Half of the second after which an owner that hears too few of its followers calls itself
isolated, and shorter than any way to be replaced by silence."""

Validate: TypeAlias = Callable[[int], None]
"""Given the length of the pause in milliseconds."""


class Gaps:
    """The judgement alone, without a loop: times in milliseconds go in."""

    def __init__(self, now_ms: int, wall_ms: int, *, pause_ms: int = PAUSE_MS) -> None:
        self.pause_ms = pause_ms
        self._due_ms = now_ms + BEAT_MS
        self._lead_ms = wall_ms - now_ms

    def beat(self, now_ms: int, wall_ms: int) -> int:
        """The length of the pause that has ended now, 0 = there was none. Called at least every ``BEAT_MS`` while the broker runs."""
        late_ms = now_ms - self._due_ms
        lead_ms = wall_ms - now_ms
        jumped_ms = lead_ms - self._lead_ms
        self._due_ms = now_ms + BEAT_MS
        self._lead_ms = lead_ms
        return max(late_ms, jumped_ms) if max(late_ms, jumped_ms) >= self.pause_ms else 0

    def late(self, now_ms: int) -> bool:
        """Whether a beat is overdue by a pause: then ``beat`` comes first."""
        return now_ms - self._due_ms >= self.pause_ms


class Pauses:
    """Beats on the running loop and tells of pauses."""

    def __init__(self, *, pause_ms: int = PAUSE_MS) -> None:
        self._ambient: Ambient = ambient()
        self._loop = asyncio.get_running_loop()
        self._gaps = Gaps(self._now_ms(), self._wall_ms(), pause_ms=pause_ms)
        self._told: list[Validate] = []
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0
        self.longest_ms = 0

    def tell(self, validate: Validate) -> None:
        """Calls it, at once and in order, when a pause has ended."""
        self._told.append(validate)

    def start(self) -> None:
        self._timer = self._loop.call_later(BEAT_MS / 1000, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def check(self, now_ms: int) -> None:
        """For the begin of a turn: ``now_ms`` of the loop's monotonic clock. After a pause sockets are read before timers run; this comes first."""
        if self._gaps.late(now_ms):
            self._judge()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(BEAT_MS / 1000, self._beat)
        self._judge()

    def _judge(self) -> None:
        pause_ms = self._gaps.beat(self._now_ms(), self._wall_ms())
        if pause_ms:
            self.count += 1
            self.longest_ms = max(self.longest_ms, pause_ms)
            _log.warning("this broker stood still for %d ms: it looks anew at what it may serve before it goes on", pause_ms)
            for validate in self._told:
                validate(pause_ms)

    def _now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    def _wall_ms(self) -> int:
        return self._ambient.wall_ns() // 1_000_000

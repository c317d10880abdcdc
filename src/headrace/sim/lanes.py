"""Storage's lanes on virtual time: work happens when its delay is over, on the machine it was given to, and not at all if that died before. Work
that is given for a machine that has died is an error of the run: something of it goes on in the name of another (``Machine.call``).

While a piece of work is under way it is ``current``: whoever kills the machine decides what the disk has of it (``Disk.crash``).
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.sim.loop import Machine, SimLoop
from headrace.storage.flusher import Done, Work


class SimLane:
    """A ``storage.flusher.Lane``."""

    def __init__(self, loop: SimLoop, machine: Machine, name: str, delay_s: Callable[[], float]) -> None:
        self._loop = loop
        self._machine = machine
        self._delay_s = delay_s
        self.name = name
        self.current: tuple[Work, Done] | None = None
        self._waiting: deque[tuple[Work, Done]] = deque()
        machine.lanes.append(self)

    def submit(self, work: Work, done: Done) -> None:
        if not self._machine.alive:
            name, giver = self._machine.name, self._loop.ambient.name
            self._loop.call_exception_handler({"message": f"{name} is dead, and its disk is given work in the name of {giver}"})
        self._waiting.append((work, done))
        if self.current is None:
            self._begin()

    def _begin(self) -> None:
        self.current = self._waiting.popleft()
        self._loop.post(self._machine, self._delay_s(), self._end)

    def _end(self) -> None:
        if self.current is None:
            return
        work, done = self.current
        result: Any = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as e:
            error = e
        self.current = None
        if self._waiting:
            self._begin()
        done(result, error)

    def close(self) -> None:
        """Runs what was submitted, at once: the closing machine waits for its threads."""
        while self.current is not None:
            self._end()

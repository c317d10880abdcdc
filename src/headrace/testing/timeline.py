"""What is logged in a simulation, and its timeline in words.

The user's log lines become lines of the timeline. A traceback that the broker logs is a bug of the broker; one of the client's workers is that of a
handler of the user.
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from headrace.sim.trace import Row

if TYPE_CHECKING:
    from headrace.testing.simulation import Simulation

NOISE: Final = frozenset(
    "arrives end connects pwrite pwritev_durable fsync fsync_dir create unlink rename commit preallocate truncate".split()  # noqa: SIM905 - to be read
)
"""Rows of the trace that are not in the timeline."""


@contextmanager
def logged(sim: "Simulation") -> Generator[list[str], None, None]:
    """The user's log lines go into the timeline; gives a list of what brokers logged with a traceback."""
    found: list[str] = []
    users, ours = _Lines(sim), _Tracebacks(sim, found)
    root, product = logging.getLogger(), logging.getLogger("headrace")
    root.addHandler(users)
    product.addHandler(ours)
    try:
        yield found
    finally:
        root.removeHandler(users)
        product.removeHandler(ours)


class _Lines(logging.Handler):
    def __init__(self, sim: "Simulation") -> None:
        super().__init__()
        self._sim = sim

    def emit(self, record: logging.LogRecord) -> None:
        self._sim.world.trace.remark(self._sim.world.loop.ambient.name, "logs", record.getMessage())


class _Tracebacks(logging.Handler):
    def __init__(self, sim: "Simulation", found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._sim = sim
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return
        if record.name.startswith("headrace.client.worker"):
            self._sim.world.trace.remark(self._sim.world.loop.ambient.name, "logs", f"  {type(error).__name__}: {error}")
        else:
            self._found.append(f"{record.getMessage()}: {error!r}")


def shown(rows: Sequence[Row]) -> str:
    """Rows for people, one a line: virtual seconds, machine, what."""
    wide = max((len(row.machine) for row in rows), default=0)
    return "\n".join(f"  {row.at:12.6f}  {row.machine:<{wide}}  {row.what}{' ' if row.text else ''}{row.text}" for row in rows)

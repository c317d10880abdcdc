"""Where time and chance come from: the system, or the event loop that simulates both.

Whoever runs on a loop asks ``ambient()`` once and keeps the answer. A loop with an attribute ``ambient`` (``headrace.sim``) answers for the simulated
machine that asks, so that a run is repeated exactly by its seed; on any other loop it is the system. Nothing else here reads clocks or draws numbers.
"""

import asyncio
import random
import secrets
import time
from typing import Final, Protocol, cast


class Ambient(Protocol):
    """Clocks and random numbers of one machine."""

    def monotonic(self) -> float:
        """Seconds that only grow."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970; may jump."""

    def random(self) -> float:
        """0 <= x < 1, for spreading things out."""

    def bits(self, count: int) -> int:
        """That many unpredictable bits, for identities."""

    def token(self, nbytes: int) -> str:
        """Unpredictable hexadecimal digits, two for each byte."""


class System:
    """The real ones."""

    monotonic = staticmethod(time.monotonic)
    wall_ns = staticmethod(time.time_ns)
    random = staticmethod(random.random)
    bits = staticmethod(secrets.randbits)
    token = staticmethod(secrets.token_hex)


SYSTEM: Final[Ambient] = System()


def ambient() -> Ambient:
    """Of the running loop."""
    return cast(Ambient, getattr(asyncio.get_running_loop(), "ambient", SYSTEM))

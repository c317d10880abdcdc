"""Random numbers of a run: one seed, forked by name, so that one more draw in one place shifts nothing in another."""

from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance(Random):
    """A generator that can be forked. The same seed and name give the same numbers in every process and version of Python."""

    def __init__(self, seed: int, name: str = "") -> None:
        self.origin = seed
        self.name = name
        super().__init__(int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "big"))

    def fork(self, name: str) -> "Chance":
        """Another generator; asking for the same name twice gives the same numbers twice."""
        return Chance(self.origin, f"{self.name}/{name}")

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def between(self, low: float, high: float) -> float:
        """Spread over magnitudes rather than evenly: small values are as likely as large ones."""
        if low <= 0:
            return low + (high - low) * self.random() ** 3
        return low * float((high / low) ** self.random())

    def pick(self, weighted: Sequence[tuple[float, T]]) -> T:
        """One of them, as often as its weight says."""
        left = self.random() * sum(weight for weight, _ in weighted)
        for weight, item in weighted:
            left -= weight
            if left < 0:
                return item
        return weighted[-1][1]

    def __reduce__(self) -> tuple[type["Chance"], tuple[int, str]]:
        return Chance, (self.origin, self.name)

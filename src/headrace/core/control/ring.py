"""In which order the brokers are preferred for a partition: consistent hashing with virtual nodes, or another strategy.

Owns the stable hash (the same on every machine and in every process) and the ring. Knows neither loads' bounds nor racks: ``placement`` does.
Every order names each broker once, and follows from the arguments alone, whatever the order in which the brokers are given.

Source: Karger et al., Consistent Hashing and Random Trees, 1997.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b

from headrace.model.cluster import BrokerId, Placement

_RINGS_KEPT = 8
_ORDERS_KEPT = 16_384

Order = tuple[BrokerId, ...]


def stable_hash(text: str) -> int:
    """64 bits that every broker computes alike."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(_RINGS_KEPT)
def _ring(brokers: Order, virtual_nodes: int) -> tuple[tuple[int, ...], tuple[BrokerId, ...]]:
    points = sorted((stable_hash(f"{broker}#{number}"), broker) for broker in brokers for number in range(virtual_nodes))
    return tuple(point for point, _ in points), tuple(broker for _, broker in points)


@lru_cache(_ORDERS_KEPT)
def ring_order(brokers: Order, virtual_nodes: int, key: str) -> Order:
    """``brokers`` (ascending) as one meets them on the ring, clockwise from ``key``."""
    points, owners = _ring(brokers, virtual_nodes)
    at = bisect(points, stable_hash(key))
    met: dict[BrokerId, None] = {}
    for step in range(len(owners)):
        met.setdefault(owners[(at + step) % len(owners)])
        if len(met) == len(brokers):
            break
    return tuple(met)


def order(settings: Placement, brokers: Iterable[BrokerId], item: str, number: int, load: Callable[[BrokerId], int]) -> Order:
    """The brokers by preference for partition ``number`` of ``item`` (a name that is never used again, so the catalogue's id)."""
    ascending = tuple(sorted(brokers))
    if settings.strategy == "least_loaded":
        return tuple(sorted(ascending, key=lambda b: (load(b), b)))
    if settings.strategy == "round_robin":
        turn = (stable_hash(item) + number) % max(1, len(ascending))
        return ascending[turn:] + ascending[:turn]
    return ring_order(ascending, settings.virtual_nodes, f"{item}/{number}")

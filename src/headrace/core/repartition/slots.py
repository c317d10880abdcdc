"""Key slots: the grain in which a repartition holds keys back. Sets of them are masks, bit n for slot n.

A frame names the slot of its keys (``core.partitioner.key_slot``, u16, 0 = no key); here its low ten bits count. A slot of 1,024 lies in one
partition where their number is a power of two, else in several: then a slot is held a little longer than each of its keys needs.
"""

from functools import lru_cache
from math import gcd
from typing import Final

SLOTS: Final = 1024
"""A power of two, and no more than ``key_slot`` has values."""
ALL: Final = (1 << SLOTS) - 1
_BYTES: Final = SLOTS // 8


def slot_of(key_slot: int) -> int:
    """The slot of a frame whose key slot is not 0."""
    return key_slot % SLOTS


@lru_cache(maxsize=4096)
def _every(step: int, first: int) -> int:
    """Slots ``first``, ``first + step`` ... ; ``step`` divides ``SLOTS``."""
    return (ALL // ((1 << step) - 1)) << first


def moving(source: int, target: int, before: int, after: int) -> int:
    """The slots in which a key may be that lies in ``source`` among ``before`` partitions and in another, ``target``, among ``after``.

    A hash that is ``source`` modulo ``before`` and ``target`` modulo ``after`` agrees with each modulo what they share with ``SLOTS``.
    """
    if source == target or not (0 <= source < before and 0 <= target < after) or (source - target) % gcd(before, after):
        return 0
    old, new = gcd(SLOTS, before), gcd(SLOTS, after)
    return _every(old, source % old) & _every(new, target % new)


def count(mask: int) -> int:
    """How many slots."""
    return mask.bit_count()


def members(mask: int) -> list[int]:
    """The slots, ascending."""
    return [slot for slot in range(mask.bit_length()) if mask >> slot & 1]


def pack(mask: int) -> bytes:
    """128 bytes; none for the empty set."""
    return mask.to_bytes(_BYTES, "little") if mask else b""


def unpack(data: bytes) -> int:
    """The set again; bits beyond the last slot are none."""
    return int.from_bytes(data, "little") & ALL

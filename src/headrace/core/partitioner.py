"""Which partition a record goes to.

Owns the hash of keys (murmur2 exactly as Kafka's default partitioner, so that a key lands where other clients put it), the key slot of an
envelope, and the choice for records without a key. Knows neither routing versions nor owners.

Source: Austin Appleby's MurmurHash2 with Kafka's seed; KIP-480 for sticky partitioning.
"""

from struct import unpack_from
from typing import Final

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_U32: Final = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The hash of ``key`` as an unsigned 32-bit number."""
    length = len(key)
    words = length >> 2
    h = _SEED ^ length
    for k in unpack_from(f"<{words}I", key):
        k = k * _M & _U32
        k = (k ^ k >> 24) * _M & _U32
        h = (h * _M & _U32) ^ k
    if length & 3:
        h = (h ^ int.from_bytes(key[words << 2 :], "little")) * _M & _U32
    h = (h ^ h >> 13) * _M & _U32
    return h ^ h >> 15


def partition_for(key: bytes, partition_count: int) -> int:
    """The partition of ``key`` among ``partition_count`` (at least 1)."""
    return (murmur2(key) & 0x7FFFFFFF) % partition_count


def key_slot(key: bytes) -> int:
    """The slot (u16) by which a repartition holds keys back: low bits of the same hash, so with 2^n partitions a slot lies in one partition.
    Never 0, which says that there is no key: the one hash value that would be keeps its low bits and gets a high one."""
    return murmur2(key) & 0xFFFF or 0x8000


class StickyRoundRobin:
    """Partitions for records without a key: one partition until a batch's worth has gone there, then the next, so that batches stay large."""

    __slots__ = ("_bytes", "_count", "_partition", "bytes_max", "count_max")

    def __init__(self, first: int = 0, *, count_max: int = 1000, bytes_max: int = 64 * 1024) -> None:
        self._partition = max(0, first)
        self._count = 0
        self._bytes = 0
        self.count_max = max(1, count_max)
        self.bytes_max = max(1, bytes_max)

    def pick(self, partition_count: int, nbytes: int, count: int = 1) -> int:
        """The partition for ``count`` records of together ``nbytes`` bytes; never splits what is asked for at once."""
        if self._count and (self._count + count > self.count_max or self._bytes + nbytes > self.bytes_max):
            self.switch()
        self._count += count
        self._bytes += nbytes
        return self._partition % max(1, partition_count)

    def switch(self) -> None:
        """Goes on to the next partition: the batch was sealed, or the partition is unavailable."""
        self._partition += 1
        self._count = self._bytes = 0

"""The partitioner lands where Kafka's does."""

import pytest

from headrace.core.partitioner import StickyRoundRobin, key_slot, murmur2, partition_for


@pytest.mark.parametrize(
    ("key", "signed"),
    [  # the vectors of Kafka's own UtilsTest
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_vectors(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


def test_every_length_of_tail_is_hashed() -> None:
    hashes = {murmur2(b"abcdefgh"[:n]) for n in range(9)}
    assert len(hashes) == 9


def test_partition_is_the_positive_hash_modulo_count() -> None:
    assert partition_for(b"foobar", 7) == (-790332482 & 0x7FFFFFFF) % 7
    assert all(0 <= partition_for(bytes([n]), 5) < 5 for n in range(256))
    assert partition_for(b"", 1) == 0


def test_a_key_slot_lies_in_one_partition_of_a_power_of_two() -> None:
    for n in range(2000):
        key = str(n).encode()
        assert 0 <= key_slot(key) < 65536
        assert partition_for(key, 16) == key_slot(key) % 16


def test_sticky_stays_until_the_batch_is_full() -> None:
    sticky = StickyRoundRobin(2, count_max=3, bytes_max=100)
    assert [sticky.pick(4, 10) for _ in range(7)] == [2, 2, 2, 3, 3, 3, 0]
    assert sticky.pick(4, 95) == 1
    assert sticky.pick(4, 95) == 2, "a batch over the bytes goes to the next"
    sticky.switch()
    assert sticky.pick(4, 1) == 3


def test_sticky_never_splits_what_is_asked_for_at_once() -> None:
    sticky = StickyRoundRobin(count_max=10)
    assert sticky.pick(3, 1, count=50) == 0
    assert sticky.pick(3, 1) == 1


def test_sticky_follows_a_changed_partition_count() -> None:
    sticky = StickyRoundRobin(5)
    assert sticky.pick(4, 1) == 1
    assert sticky.pick(2, 1) == 1

"""The tail cache: the oldest durable entries of all partitions go first, and what is there is without a gap."""

import random

from headrace.storage.cache import Tail, TailCache
from headrace.storage.entry import Appended, StoredEntry

END = 1 << 62


def add(cache: TailCache, tail: Tail, index: int, *, size: int = 700, count: int = 2, durable: bool = True) -> None:
    cache.add(tail, Appended(1, 1, index, 1, index * count, count, 0, bytes(size)))
    if durable:
        landed(tail)


def landed(tail: Tail) -> None:
    for entry in tail.entries:
        entry.durable = True


def bases(found: list[StoredEntry] | None) -> list[int] | None:
    return None if found is None else [e.base_offset for e in found]


def test_the_oldest_go_first_over_all_partitions() -> None:
    cache, a, b = TailCache(4000), Tail(), Tail()
    add(cache, a, 0)
    for n in range(4):
        add(cache, b, n)
    add(cache, a, 1)
    assert cache.nbytes <= 4000
    assert a.find(0, END, END) is None
    assert bases(a.find(2, END, END)) == [2]
    assert bases(b.find(1, END, END)) is None
    assert bases(b.find(2, END, END)) == [2, 4, 6]


def test_what_is_not_durable_stays() -> None:
    cache, a, b = TailCache(3000), Tail(), Tail()
    for n in range(10):
        add(cache, a, n, durable=False)
    add(cache, b, 0)
    assert bases(a.find(0, END, END)) == [2 * n for n in range(10)]
    landed(a)
    cache.evict()
    assert cache.nbytes <= 3000
    assert bases(a.find(19, END, END)) == [18]


def test_find_keeps_to_its_bounds() -> None:
    cache, a = TailCache(1 << 20), Tail()
    for n in range(10):
        add(cache, a, n)
    assert bases(a.find(5, 1500, END)) == [4, 6]
    assert bases(a.find(5, 1, END)) == [4], "one at least"
    assert bases(a.find(5, END, 8)) == [4, 6]
    assert bases(a.find(19, END, END)) == [18]
    assert bases(a.find(20, END, END)) == []
    assert Tail().find(0, END, END) is None


def test_floors_and_cuts_free_memory_and_order_stays_bounded() -> None:
    cache, a, b = TailCache(1 << 20), Tail(), Tail()
    add(cache, b, 0)
    for n in range(20_000):
        add(cache, a, n)
        cache.below(a, 2 * n)
    assert len(cache._order) < 4000
    assert bases(a.find(39_998, END, END)) == [39_998]
    assert len(a.entries) < 200
    cache.cut(a, 5)
    assert a.find(39_998, END, END) is None
    cache.clear(b)
    assert cache.nbytes == 0


def test_random_work_against_a_plain_list() -> None:
    r = random.Random(7)
    for _ in range(30):
        cache = TailCache(r.choice((2000, 20_000)))
        tails = [Tail() for _ in range(3)]
        plain: list[list[int]] = [[], [], []]
        for _ in range(400):
            n = r.randrange(3)
            if r.random() < 0.6:
                add(cache, tails[n], len(plain[n]), size=r.choice((10, 300, 2500)), durable=r.random() < 0.5)
                plain[n].append(2 * len(plain[n]))
            elif r.random() < 0.5:
                landed(tails[n])
                cache.evict()
            else:
                cache.below(tails[n], r.randrange(2 * len(plain[n]) + 1))
            for tail, want in zip(tails, plain, strict=True):
                offset = r.randrange(2 * len(want) + 1)
                found = bases(tail.find(offset, END, END))
                assert found is None or found == want[offset // 2 :]
            assert cache.nbytes == sum(len(e.payload) + 300 for t in tails for e in t.entries[t.head :])

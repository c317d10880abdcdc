"""Compaction: the last of every key stays, in bounded memory, however the rows are fed."""

from headrace.core.compaction import Compaction, Row, worthwhile


def rows(*keys: str | None, wall_ms: int = 0, tombstones: tuple[int, ...] = ()) -> list[Row]:
    return [Row(n, None if k is None else k.encode(), n in tombstones, wall_ms) for n, k in enumerate(keys)]


def dropped(
    log: list[Row], *, clean_end: int = 0, wall_ms: int = 1_000, tombstone_ms: int = 100, keys_max: int = 1000, step: int = 1 << 30
) -> set[int]:
    run = Compaction(start=0, clean_end=clean_end, end=len(log), wall_ms=wall_ms, tombstone_ms=tombstone_ms, keys_max=keys_max)
    gone: set[int] = set()
    turns = 0
    while (wanted := run.wants()) is not None:
        run.check()
        first, end = wanted
        upto = min(end, first + step)
        for start, count in run.feed([r for r in log if first <= r.offset < upto], upto):
            gone.update(range(start, start + count))
        turns += 1
        assert turns < 10_000
    assert run.done
    assert run.clean_end == len(log)
    assert run.view()["phase"] == "done"
    return gone


def test_only_the_last_of_a_key_stays() -> None:
    assert dropped(rows("a", "b", "a", "c", "b")) == {0, 1}


def test_records_without_a_key_stay() -> None:
    assert dropped(rows(None, "a", None, "a")) == {1}


def test_ranges_are_joined() -> None:
    run = Compaction(start=0, clean_end=0, end=4, wall_ms=0, tombstone_ms=0)
    log = rows("a", "a", "b", "a")
    assert run.feed(log, 4) == []
    assert run.feed(log, 4) == [(0, 2)]
    assert run.dropped_count == 2


def test_tombstones_stay_a_while() -> None:
    log = rows("a", "a", "b", tombstones=(1,), wall_ms=500)
    assert dropped(log, wall_ms=599) == {0}
    assert dropped(log, wall_ms=600) == {0, 1}


def test_an_old_tombstone_of_the_clean_part_goes() -> None:
    assert dropped(rows("a", "b", tombstones=(0,)), clean_end=2) == {0}


def test_a_new_value_supersedes_a_tombstone() -> None:
    assert dropped(rows("a", "a", tombstones=(0,)), wall_ms=0) == {0}


def test_bounded_memory_takes_more_passes_and_drops_the_same() -> None:
    log = rows(*(str(n * 7 % 23) if n % 5 else None for n in range(300)), tombstones=tuple(range(0, 300, 11)))
    whole = dropped(log)
    for keys_max in (1, 2, 5, 22):
        assert dropped(log, keys_max=keys_max, step=17) == whole


def test_the_compacted_part_is_not_learned_again() -> None:
    log = rows("a", "b", "a", "c")
    run = Compaction(start=0, clean_end=3, end=4, wall_ms=0, tombstone_ms=0)
    assert run.wants() == (3, 4)
    run.feed(log[3:], 4)
    assert run.wants() == (0, 4)


def test_offsets_may_be_missing_and_rows_outside_are_ignored() -> None:
    run = Compaction(start=5, clean_end=5, end=20, wall_ms=0, tombstone_ms=0)
    log = [Row(n, b"k", False, 0) for n in (1, 7, 12, 25)]
    run.feed(log, 99)
    assert run.feed(log, 99) == [(7, 1)]
    assert run.done
    assert run.feed(log, 99) == []


def test_long_keys_and_their_digests_are_told_apart() -> None:
    long = "x" * 100
    assert dropped(rows(long, "x" * 16, "x" * 15, long + "y", long)) == {0}


def test_nothing_to_do() -> None:
    assert Compaction(start=9, clean_end=0, end=3, wall_ms=0, tombstone_ms=0).done
    assert not worthwhile(0, 0, 0)
    assert worthwhile(0, 50, 100)
    assert not worthwhile(0, 51, 100)
    assert worthwhile(90, 50, 100), "all of what is left is new"

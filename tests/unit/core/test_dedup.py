"""What a partition says to a publish that may have been stored before."""

from headrace.core.dedup import Duplicate, Overtaken, Partial, ProducerTable
from headrace.model.errors import Conflict, Fenced, SequenceTooOld
from headrace.model.ids import NO_PRODUCER, SEQUENCE_MODULUS
from headrace.model.limits import PRODUCERS_PER_PARTITION_MAX


def table(*stored: tuple[int, int, int]) -> ProducerTable:
    made = ProducerTable()
    for first, count, base in stored:
        made.stored(7, 0, first, count, base)
    return made


def test_a_publish_without_producer_is_always_new() -> None:
    made = ProducerTable()
    made.stored(NO_PRODUCER, 0, 0, 10, 0)
    assert made.check(NO_PRODUCER, 0, 0, 10) is None
    assert len(made) == 0


def test_the_next_in_line_is_new_and_what_was_stored_is_a_duplicate_with_its_offset() -> None:
    made = table((0, 10, 100), (10, 5, 110))
    assert made.check(7, 0, 15, 5) is None
    assert made.check(7, 0, 3, 9) == Duplicate(103)


def test_contiguous_sequences_at_distant_offsets_are_told_apart() -> None:
    made = table((0, 10, 100), (10, 10, 500))
    assert made.check(7, 0, 0, 10) == Duplicate(100)
    assert made.check(7, 0, 12, 3) == Duplicate(502)
    both = made.check(7, 0, 5, 10)
    assert isinstance(both, Partial)
    assert both.stored == ((5, 5, 105), (10, 5, 500))
    assert isinstance(both.error, Conflict)


def test_skipped_sequences_may_still_come() -> None:
    made = table((0, 5, 0), (20, 5, 5))
    assert isinstance(made.check(7, 0, 5, 15), Overtaken)
    made.stored(7, 0, 5, 15, 10)
    assert made.check(7, 0, 5, 15) == Duplicate(10)
    assert made.last_sequence(7) == 24


def test_sequences_before_the_first_seen_were_never_stored() -> None:
    made = table((100, 5, 0))
    assert isinstance(made.check(7, 0, 90, 10), Overtaken)
    assert made.resolve(7, 0, 95) is None


def test_half_new_is_partial() -> None:
    verdict = table((0, 10, 100)).check(7, 0, 8, 5)
    assert isinstance(verdict, Partial)
    assert verdict.stored == ((8, 2, 108),)


def test_a_newer_epoch_starts_over_and_fences_the_older_one() -> None:
    made = table((0, 10, 100))
    assert made.check(7, 1, 0, 10) is None
    made.stored(7, 1, 0, 10, 200)
    assert isinstance(made.check(7, 0, 10, 1), Fenced)
    assert made.check(7, 1, 0, 10) == Duplicate(200)
    assert isinstance(made.resolve(7, 0, 3), Fenced)


def test_sequences_wrap() -> None:
    last = SEQUENCE_MODULUS - 1
    made = table((last - 4, 10, 100))
    assert made.check(7, 0, 5, 3) is None
    assert made.check(7, 0, last, 3) == Duplicate(104)
    assert made.last_sequence(7) == 4


def test_the_longest_idle_producers_are_forgotten_and_unknown_ones_are_not_resolved_as_never() -> None:
    made = ProducerTable()
    for producer in range(PRODUCERS_PER_PARTITION_MAX):
        made.stored(producer, 0, 0, 1, producer)
    made.stored(0, 0, 1, 1, 99_999)
    assert made.resolve(123_456, 0, 0) is None
    made.stored(123_456, 0, 0, 1, 100_000)
    made.check_invariants()
    assert made.last_sequence(0) == 1
    assert made.last_sequence(1) == -1
    assert isinstance(made.resolve(1, 0, 0), SequenceTooOld)


def test_what_was_skipped_was_overtaken() -> None:
    table = ProducerTable()
    assert table.check(1, 0, 5, 1) is None
    table.stored(1, 0, 5, 2, 100)
    assert table.check(1, 0, 7, 1) is None
    table.stored(1, 0, 9, 1, 102)
    assert isinstance(table.check(1, 0, 7, 2), Overtaken)
    assert isinstance(table.check(1, 0, 8, 1), Overtaken)
    assert table.check(1, 1, 7, 1) is None
    assert table.check(2, 0, 7, 1) is None

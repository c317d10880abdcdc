"""A cursor moves only over contiguously acked records, never past the high watermark."""

import pytest

from headrace.core.stream.cursor import Cursor
from headrace.model import limits
from headrace.wire.journal import CursorEntry


@pytest.fixture
def cursor() -> Cursor:
    return Cursor("c", 0, 0)


def test_in_order(cursor: Cursor) -> None:
    cursor.settle(0, 10, 100)
    cursor.settle(10, 11, 100)
    assert cursor.row(100) == CursorEntry("c", 11, [], 0)


def test_a_gap_holds_it(cursor: Cursor) -> None:
    """It is not max(ack) + 1."""
    cursor.settle(5, 10, 100)
    assert cursor.next_offset == 0
    cursor.settle(0, 3, 100)
    assert cursor.next_offset == 3
    cursor.settle(3, 5, 100)
    assert cursor.next_offset == 10
    assert not cursor.above
    cursor.check(100)


def test_repeated_and_overlapping_acks(cursor: Cursor) -> None:
    assert cursor.settle(0, 10, 100)
    assert not cursor.settle(2, 7, 100)
    assert cursor.settle(4, 12, 100)
    cursor.settle(20, 30, 100)
    cursor.settle(15, 25, 100)
    assert cursor.row(100) == CursorEntry("c", 12, [(15, 15)], 0)


def test_the_high_watermark_holds_it_and_lets_it_go(cursor: Cursor) -> None:
    cursor.settle(0, 10, 4)
    assert cursor.next_offset == 4
    cursor.check(4)
    assert cursor.row(4) == CursorEntry("c", 4, [], 0), "nothing uncommitted is durable"
    assert cursor.advance(8)
    assert cursor.next_offset == 8
    assert cursor.advance(50)
    assert cursor.next_offset == 10
    assert not cursor.advance(60)


def test_a_retraction_takes_acks_back(cursor: Cursor) -> None:
    cursor.settle(0, 10, 4)
    assert cursor.retract(6)
    cursor.advance(20)
    assert cursor.next_offset == 6


def test_a_retraction_below_it_takes_back_what_was_acked_above_too(cursor: Cursor) -> None:
    cursor.settle(0, 10, 100)
    cursor.settle(12, 15, 100)
    assert cursor.retract(4)
    assert cursor.row(100) == CursorEntry("c", 4, [], 0)
    assert not cursor.retract(4)


def test_retention_moves_it_over_what_is_acked(cursor: Cursor) -> None:
    cursor.settle(5, 10, 100)
    cursor.forward(7, 100)
    assert cursor.next_offset == 10


def test_placing_forgets_what_was_acked_above(cursor: Cursor) -> None:
    cursor.settle(5, 10, 100)
    cursor.place(2)
    cursor.settle(2, 5, 100)
    assert cursor.next_offset == 5


def test_ranges_above_are_bounded(cursor: Cursor) -> None:
    for n in range(limits.CURSOR_RANGES_MAX):
        assert cursor.fits(2 * n + 1, 2 * n + 2)
        cursor.settle(2 * n + 1, 2 * n + 2, 1 << 40)
    assert not cursor.fits(1_000_000, 1_000_001)
    assert cursor.fits(0, 1), "at the cursor"
    assert cursor.fits(2, 3), "between two ranges"


def test_unacked(cursor: Cursor) -> None:
    cursor.settle(2, 4, 100)
    cursor.settle(6, 8, 100)
    assert cursor.unacked(10) == [(0, 2), (4, 6), (8, 10)]
    assert cursor.unacked(7) == [(0, 2), (4, 6)]
    assert cursor.unacked(0) == []


def test_its_durable_form_comes_back(cursor: Cursor) -> None:
    cursor.settle(0, 3, 100)
    cursor.settle(6, 8, 100)
    other = Cursor("c", 0, 0)
    other.load(cursor.row(100))
    other.settle(3, 6, 100)
    assert other.next_offset == 8

"""The verdict of ``--failover-verify``: what it must notice, each planted in a book that is good without it."""

import asyncio
from typing import Any

import pytest

from headrace.cli.tryout_failover import PARTITIONS, Book
from headrace.client.lane import Receipt
from headrace.model.errors import ConfirmTimeout
from headrace.wire.frames import Level


def answer(offset: int | None) -> Any:
    """What became of a publish: a receipt, or none."""
    future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    if offset is None:
        future.set_exception(ConfirmTimeout("no confirm came"))
    else:
        future.set_result(Receipt(0, offset, Level.REPLICA))
    return future


def filled(kind: str = "stream") -> Book:
    """Five messages on every partition, confirmed and delivered at offsets 0, 10, 20, 30, 40."""
    book = Book("orders", kind)
    for partition in range(PARTITIONS):
        for n in range(5):
            number, value = book.next(partition)
            book.answered(partition, number, answer(10 * n))
            book.came(partition, 10 * n, value)
    return book


async def test_a_good_run_has_no_fault() -> None:
    book = filled()
    assert book.faults() == []
    number, _ = book.next(1)
    book.answered(1, number, answer(None))  # not confirmed: it may be there or not
    assert book.faults() == []
    figures = book.figures([0, 1, 2])
    assert figures["sent"] == 5 * PARTITIONS + 1
    assert figures["confirmed"] == figures["delivered"] == 5 * PARTITIONS
    assert figures["failed"] == {"ConfirmTimeout": 1}
    assert figures["missing"] == 0


async def test_what_was_confirmed_and_does_not_come_is_missing() -> None:
    book = filled()
    number, _ = book.next(2)
    book.answered(2, number, answer(50))
    assert book.missing == [(2, 5)]
    assert book.faults() == ["message 5 of partition 2 was confirmed and never came"]


@pytest.mark.parametrize(
    ("partition", "offset", "value", "fault"),
    [
        (0, 50, b"nobody's", "was not sent there"),
        (0, 50, None, "was not sent there"),
        (0, 50, b"1 2", "was not sent there"),
        (0, 50, b"0 7", "was not sent there"),
        (0, 50, b"0 3", "came from offset 30 and from 50"),
    ],
)
async def test_what_comes_must_have_been_sent_there_and_lie_in_one_place(partition: int, offset: int, value: bytes | None, fault: str) -> None:
    book = filled()
    book.came(partition, offset, value)
    (told,) = book.faults()
    assert fault in told


async def test_a_receipt_says_where_it_lies() -> None:
    book = filled("queue")
    number, value = book.next(0)
    book.answered(0, number, answer(50))
    book.came(0, 60, value)
    assert book.faults() == ["message 5 of partition 0 was confirmed at offset 50 and came from 60"]


async def test_offsets_follow_the_order_of_sending() -> None:
    book = filled("queue")
    number, value = book.next(0)
    book.answered(0, number, answer(5))
    book.came(0, 5, value)
    assert book.faults() == ["messages 4 and 5 of partition 0 lie at 40 and 5: not as they were sent"]


async def test_a_queue_may_deliver_again_and_later_a_stream_is_read_in_order() -> None:
    for kind, faults in (("queue", []), ("stream", ["partition 0 was read at offset 50 after 60"])):
        book = filled(kind)
        book.came(0, 40, b"0 4")
        assert (book.again, book.faults()) == (1, [])
        values = [book.next(0) for _ in range(2)]
        for at, (number, _) in zip((50, 60), values, strict=True):
            book.answered(0, number, answer(at))
        book.came(0, 60, values[1][1])
        book.came(0, 50, values[0][1])
        assert book.faults() == faults


async def test_gaps_are_those_of_the_partitions_that_the_lost_owner_had() -> None:
    book = Book("orders", "queue")
    book.confirmed_s = [[1.0, 1.01, 3.01], [1.0, 9.0], [1.0, 1.0001]]
    assert book.figures([0])["confirm_gap_ms"] == {"p50": 1005.0, "max": 2000.0}
    assert book.figures([2])["confirm_gap_ms"] is None, "one moment"

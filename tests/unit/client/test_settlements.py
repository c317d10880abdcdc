from typing import Any

from headrace.client.settlements import EXTENSION, Settlements
from headrace.model import limits
from headrace.model.errors import ConnectionLost, StaleSettle
from headrace.wire.egress import parse_settle
from headrace.wire.frames import HEADER, Settle, SettleFlag


class Waiter:
    result: Any = None

    def done(self) -> bool:
        return self.result is not None

    def set_result(self, result: Any, /) -> None:
        self.result = "ok"

    def set_exception(self, exception: BaseException, /) -> None:
        self.result = exception


def frames(settlements: Settlements) -> list[tuple[int, int, int, list[tuple[int, int]]]]:
    """flags, partition, correlation and ranges of what is sent."""
    out: list[bytes] = []
    settlements.take(9, {0: 4}, out)
    found = []
    for data in out:
        _, _, flags, channel, correlation = HEADER.unpack_from(data)
        assert channel == 9
        parsed = parse_settle(data, 0, len(data))
        found.append((flags, parsed.partition, correlation, list(parsed.ranges)))
    return found


def test_acks_of_one_iteration_are_one_frame_of_ranges() -> None:
    settlements = Settlements()
    for offset in (3, 1, 2, 9):
        settlements.add(0, Settle.ACK, 0, offset, None)
    settlements.add(1, Settle.RETRY | SettleFlag.DELAY, 500, 7, None)
    assert frames(settlements) == [(4, 0, 1, [(1, 3), (9, 1)]), (1 | 4 | 16, 1, 2, [(7, 1)])]
    assert frames(settlements) == []


def test_stale_ranges_are_told_to_who_waits_for_them() -> None:
    settlements = Settlements()
    kept, lost = Waiter(), Waiter()
    settlements.add(0, Settle.ACK, 0, 1, kept)
    settlements.add(0, Settle.ACK, 0, 2, lost)
    ((_, _, correlation, _),) = frames(settlements)
    settlements.settled(correlation, [(2, 1)])
    assert kept.result == "ok"
    assert isinstance(lost.result, StaleSettle)
    assert settlements.quiet
    assert settlements.settled(correlation, []) is None


def test_what_was_not_answered_is_sent_again_and_still_counts_as_held() -> None:
    settlements = Settlements()
    settlements.add(0, Settle.ACK, 0, 1, None)
    frames(settlements)
    settlements.add(0, Settle.ACK, 0, 5, None)
    assert settlements.outstanding() == {0: {1, 5}}
    out: list[bytes] = []
    settlements.again(2, {0: 5}, out)
    assert [list(parse_settle(f, 0, len(f)).ranges) for f in out] == [[(1, 1)]]
    assert parse_settle(out[0], 0, len(out[0])).epoch == 5
    assert frames(settlements)[0][3] == [(5, 1)]


def test_a_frame_has_a_bounded_number_of_ranges() -> None:
    settlements = Settlements()
    waiter = Waiter()
    for i in range(limits.SETTLE_RANGES_MAX + 1):
        settlements.add(0, Settle.ACK, 0, i * 2, waiter if i == limits.SETTLE_RANGES_MAX else None)
    sent = frames(settlements)
    assert [len(ranges) for _, _, _, ranges in sent] == [limits.SETTLE_RANGES_MAX, 1]
    settlements.settled(sent[0][2], [])
    assert waiter.result is None
    settlements.settled(sent[1][2], [])
    assert waiter.result == "ok"


def test_failing_answers_every_waiter() -> None:
    settlements = Settlements()
    sent, gathered = Waiter(), Waiter()
    settlements.add(0, Settle.ACK, 0, 1, sent)
    frames(settlements)
    settlements.add(0, Settle.ACK, 0, 2, gathered)
    settlements.fail(ConnectionLost("gone"))
    assert isinstance(sent.result, ConnectionLost)
    assert isinstance(gathered.result, ConnectionLost)
    assert settlements.quiet


def test_an_extension_is_not_sent_again() -> None:
    settlements = Settlements()
    waiter = Waiter()
    settlements.expect((0, EXTENSION, 0), [(1, 1)], [(1, waiter)])
    assert settlements.settled_all
    assert not settlements.quiet
    assert settlements.outstanding() == {}
    out: list[bytes] = []
    settlements.again(1, {}, out)
    assert not out
    assert isinstance(waiter.result, ConnectionLost)

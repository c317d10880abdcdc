from headrace.client.redo import Redo
from headrace.model.errors import ConnectionLost, StaleSettle
from tests.unit.client.test_settlements import Waiter

BROKEN = ConnectionLost("broken")


def test_what_has_not_come_on_this_channel_is_early() -> None:
    redo = Redo()
    redo.opened({0: 5})
    assert not redo.early(0, 4)
    assert redo.early(0, 5)
    assert not redo.early(7, 0), "a partition of which nothing is known"
    redo.moved(0, 9)
    assert not redo.early(0, 8)
    redo.lost(BROKEN)
    assert redo.early(0, 0)


def test_it_is_given_out_as_far_as_records_have_come() -> None:
    redo = Redo()
    redo.lost(BROKEN)
    redo.commit(0, 3)
    redo.commit(0, 1)
    for offset in (7, 5, 9):
        redo.ack(0, offset)
    assert redo.take(0, 2) == (1, [])
    assert redo.take(0, 6) == (3, [(5, None)])
    assert redo.take(0, 8) == (-1, [(7, None)])
    assert redo
    assert redo.take(0, 100) == (-1, [(9, None)])
    assert not redo


def test_it_outlives_any_number_of_broken_connections_and_who_waits_is_told_at_the_first() -> None:
    redo, waiting, late = Redo(), [Waiter(), Waiter()], [Waiter(), Waiter()]
    redo.lost(BROKEN)
    redo.ack(0, 5, waiting[0])
    redo.commit(0, 3)
    redo.wait(0, 3, waiting[1])
    redo.lost(BROKEN)
    assert [w.result for w in waiting] == [BROKEN, BROKEN]
    redo.ack(0, 6, late[0])
    redo.wait(0, 3, late[1])
    redo.opened({0: 0})
    assert redo.take(0, 10) == (3, [(5, None), (6, late[0])])
    assert redo.waiting(0, 2) == []
    assert redo.waiting(0, 3) == [late[1]]


def test_what_the_cursor_has_passed_meanwhile_is_done() -> None:
    redo, single, commit, later = Redo(), Waiter(), Waiter(), Waiter()
    redo.lost(BROKEN)
    redo.ack(0, 3, single)
    redo.commit(0, 9)
    redo.wait(0, 2, commit)
    redo.wait(0, 9, later)
    redo.opened({0: 5})
    assert (single.result, commit.result, later.result) == ("ok", "ok", None)
    assert redo.take(0, 8) == (7, [])


def test_what_was_taken_back_is_forgotten() -> None:
    redo, single, commit = Redo(), Waiter(), Waiter()
    redo.lost(BROKEN)
    redo.ack(0, 2)
    redo.ack(0, 7, single)
    redo.commit(0, 6)
    redo.wait(0, 6, commit)
    redo.forget(StaleSettle("taken back"), 0, 5)
    assert isinstance(single.result, StaleSettle)
    assert isinstance(commit.result, StaleSettle)
    assert redo.take(0, 100) == (4, [(2, None)])
    redo.ack(1, 1, single)
    redo.end(BROKEN)
    assert not redo

"""The judge of the kill test notices every kind of broken promise."""

from collections.abc import Callable

import pytest

from tests.chaos.history import Broken, History


def kept() -> History:
    """A short history in which everything went well: three messages, one delivered twice before it was settled."""
    history = History("q")
    history.sent(0, 3)
    history.confirm(0, 0, 3, 0)
    for offset in (0, 1, 1, 2):
        history.deliver(0, offset, offset)
    history.settle(0, [(0, 2)], [])
    return history


def test_a_good_history_passes() -> None:
    history = kept()
    history.finish()
    assert history.totals() == {"published": 3, "confirmed": 3, "delivered": 4, "delivered_again": 1, "settled": 2, "stale": 0}


def lose(history: History) -> None:
    history.sent(0, 4)
    history.confirm(0, 3, 1, 3)
    history.finish()


def invent(history: History) -> None:
    history.deliver(0, 3, 99)


def deliver_settled(history: History) -> None:
    history.deliver(0, 1, 1)


def swap(history: History) -> None:
    history.deliver(0, 2, 1)


def confirm_elsewhere(history: History) -> None:
    history.confirm(0, 1, 1, 7)


def store_twice(history: History) -> None:
    history.deliver(0, 3, 2)


def leave_a_hole(history: History) -> None:
    history.sent(0, 5)
    history.deliver(0, 4, 4)
    history.finish()


def store_unconfirmed_twice(history: History) -> None:
    history.sent(0, 4)
    history.deliver(0, 3, 3)
    history.deliver(0, 4, 3)
    history.finish()


def turn_around(history: History) -> None:
    history.sent(0, 5)
    history.deliver(0, 3, 4)
    history.deliver(0, 4, 3)
    history.finish()


def deliver_refused(history: History) -> None:
    history.sent(0, 4)
    history.refuse(0, 3)
    history.deliver(0, 3, 3)


def refuse_delivered(history: History) -> None:
    history.sent(0, 4)
    history.deliver(0, 3, 3)
    history.refuse(0, 3)


def refuse_confirmed(history: History) -> None:
    history.refuse(0, 1)


BREACHES = [
    lose, invent, deliver_settled, swap, confirm_elsewhere, store_twice, leave_a_hole, store_unconfirmed_twice, turn_around, deliver_refused,
    refuse_delivered, refuse_confirmed,
]  # fmt: skip


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_broken_promise_is_noticed(breach: Callable[[History], None]) -> None:
    with pytest.raises(Broken):
        breach(kept())


@pytest.mark.parametrize(("to", "broken"), [((1, 1), True), ((2, 3), True), ((2, 2), False), ((2, 1), False)])
def test_only_what_was_on_its_way_to_another_consumer_may_come_after_a_settlement(to: tuple[int, int], broken: bool) -> None:
    history = kept()
    history.settle(0, [(2, 1)], [], by=(1, 2))
    if broken:
        with pytest.raises(Broken, match="settled attempt 2"):
            history.deliver(0, 2, 2, to=to)
    else:
        history.deliver(0, 2, 2, to=to)
        assert history.late == 1


def test_what_was_stale_may_come_again() -> None:
    history = kept()
    history.settle(0, [(2, 1)], [(2, 1)])
    history.deliver(0, 2, 2)
    history.finish()

"""What is excused in a run of faults with MQTT clients, and what is not."""

import pytest

from headrace.sim.mqtt import checks
from headrace.sim.mqtt.books import NEVER, Books, Got, Kept, Published, Wanted
from tests.chaos.excuses import CALM_S, Excuses


@pytest.fixture
def excuses() -> Excuses:
    """Partition 1 has a new owner between 10.0 and 10.3, partition 2 two between 20.0 and 20.2."""
    made = Excuses()
    for asked, epochs in ((9.8, {1: 1, 2: 1, 3: 1}), (10.0, {1: 1, 2: 1, 3: 1}), (10.2, {1: 2, 2: 1, 3: 1})):
        made.saw(epochs, asked, asked + 0.1)
    made.saw({1: 2, 2: 1, 3: 1}, 20.0, 20.1)
    made.saw({1: 2, 2: 3, 3: 1}, 20.1, 20.2)
    return made


@pytest.fixture
def books() -> Books:
    """A listener that knew everything from the start."""
    made = Books()
    made.sessions["listener"] = Kept("listener", 2, True, [Wanted("#", "#", "", known_at=0.0, acked_at=0.0)])
    return made


def published(
    books: Books, publisher: str, *, at: float, acked_at: float = NEVER, will: bool = False, died_at: float = NEVER, most: int = 1
) -> Published:
    made = books.message(publisher, "t", 2, will=will)
    made.at, made.acked_at, made.died_at, made.most, made.again = at, acked_at, died_at, most, not will
    made.due = int(will and most > 0)
    return made


def came(books: Books, message: Published, *ats: float) -> None:
    books.sessions["listener"].got += [Got(message.number, 2, False, False, at) for at in ats]


def wrong(books: Books) -> list[str]:
    return [text[:2] for text in [*checks.missing(books), *checks.wrong(books)]]


def test_what_comes_twice_is_not_excused(excuses: Excuses, books: Books) -> None:
    """Not even while its publisher's session went to another owner."""
    message = published(books, "talker", at=9.0, acked_at=11.0)
    came(books, message, 10.0, 12.0)
    will = published(books, "dies", at=15.0, will=True, died_at=16.0)
    came(books, will, 19.5, 20.5)
    excuses.apply(books)
    assert wrong(books) == ["M3", "M6"]


@pytest.mark.parametrize(("died_at", "excused"), [(9.0, True), (13.0, True), (14.0, False), (32.0, False), (33.5, True), (39.0, True)])
def test_a_goodbye_may_be_lost_while_something_is_wrong(excuses: Excuses, books: Books, died_at: float, excused: bool) -> None:
    excuses.fault(35.0)
    excuses.over(36.5)
    will = published(books, "listener", at=8.0, will=True, died_at=died_at, most=0)
    came(books, will, died_at + 1)
    excuses.apply(books)
    assert wrong(books) == ([] if excused else ["M6"])


def test_what_never_came_is_not_excused(excuses: Excuses, books: Books) -> None:
    published(books, "talker", at=9.0, acked_at=11.0)
    published(books, "dies", at=15.0, will=True, died_at=16.0)
    excuses.apply(books)
    assert wrong(books) == ["M1", "M6"]


def test_a_subscription_counts_from_when_nothing_is_wrong(excuses: Excuses, books: Books) -> None:
    def subscribed(acked_at: float) -> Wanted:
        wanted = Wanted("t", "t", "", acked_at=acked_at)
        books.sessions["listener"].wanted.append(wanted)
        return wanted

    before, calm = subscribed(21.0), 20.2 + CALM_S
    excuses.know(books, calm - 0.1)
    assert before.known_at == NEVER
    excuses.know(books, calm + 0.1)
    assert before.known_at == calm + 0.1
    in_peace = subscribed(30.0)
    excuses.know(books, 30.1)
    assert in_peace.known_at == 30.0
    excuses.fault(31.0)
    in_trouble = subscribed(31.5)
    excuses.know(books, 32.0)
    assert in_trouble.known_at == NEVER
    excuses.over(33.0)
    excuses.know(books, 33.0 + CALM_S + 1)
    assert in_trouble.known_at == 33.0 + CALM_S + 1

"""The checks of MQTT's promises, on histories that are written down: each sees what it is for, and nothing where nothing is wrong."""

import pytest

from headrace.sim.mqtt import checks
from headrace.sim.mqtt.books import SAID_S, Books, Got, Kept, Published, Wanted


def got(number: int, qos: int = 2, *, dup: bool = False, retain: bool = False, at: float = 3.0) -> Got:
    return Got(number, qos, dup, retain, at)


class History(Books):
    """A publisher with three messages of QoS 2, and a session that has them."""

    def __init__(self) -> None:
        super().__init__()
        for n in range(3):
            self.sent("p", "t", 2, 2.0 + n / 10)
        self.session = self.subscribed("s", "t")
        self.session.got = [got(1), got(2), got(3)]

    def sent(self, publisher: str, topic: str, qos: int, at: float, *, acked: bool = True, retain: bool = False) -> Published:
        message = self.message(publisher, topic, qos, retain=retain)
        message.at = at
        if acked:
            message.acked_at = at + 0.05
        return message

    def subscribed(self, client_id: str, path: str, group: str = "", *, qos: int = 2, durable: bool = True) -> Kept:
        kept = self.sessions[client_id] = Kept(client_id, qos, durable)
        kept.wanted.append(Wanted(f"$share/{group}/{path}" if group else path, path, group, known_at=1.0, acked_at=1.0))
        return kept

    def said(self) -> list[str]:
        """The promises that are broken."""
        return [text.split()[0] for text in (*checks.missing(self), *checks.wrong(self))]


@pytest.fixture
def books() -> History:
    return History()


def test_nothing_is_wrong(books: History) -> None:
    assert books.said() == []


def test_an_acknowledged_message_that_did_not_come(books: History) -> None:
    del books.session.got[1]
    assert books.said() == ["M1"]
    books.messages[2].acked_at = checks.NEVER
    assert books.said() == [], "nobody said that it would"


def test_only_who_was_known_to_be_subscribed_is_owed_anything(books: History) -> None:
    books.session.got.clear()
    books.session.wanted[0].known_at = 2.15
    assert books.said() == ["M1"]
    books.session.wanted[0].gone_at = 2.21
    assert books.said() == []
    books.session.wanted[0].known_at, books.session.wanted[0].gone_at = 1.0, checks.NEVER
    books.session.durable = False
    assert books.said() == []


def test_one_member_of_a_shared_subscription_is_enough(books: History) -> None:
    one, other = books.subscribed("m1", "#", "g"), books.subscribed("m2", "#", "g")
    assert books.said() == ["M1", "M1", "M1"]
    one.got, other.got = [got(3), got(1)], [got(2)]
    assert books.said() == []


def test_what_nobody_sent(books: History) -> None:
    books.session.got.append(got(77))
    assert books.said() == ["M2"]


def test_twice(books: History) -> None:
    books.session.got.append(got(2, dup=True))
    assert books.said() == ["M3"]
    books.session.got[-1].session = 1
    assert books.said() == [], "to two sessions"
    books.session.got[-1].session = 0
    books.messages[2].qos = 1
    assert books.said() == [], "QoS 1 may"
    books.messages[2].qos = 0
    assert books.said() == ["M3"]
    books.session.got[-1].retain = True
    assert books.said() == [], "it is the last of its topic"


def test_out_of_order(books: History) -> None:
    books.session.got.insert(0, books.session.got.pop())
    assert books.said() == ["M4", "M4"]
    books.session.got.insert(0, got(1))
    assert books.said() == ["M3", "M4"], "by when each came first"
    books.session.wanted[0].acked_at = books.session.wanted[0].known_at = 2.15
    assert books.said() == ["M3"], "what was sent before it was subscribed may have come by being sent again"
    books.session.wanted[0].acked_at = books.session.wanted[0].known_at = 1.0
    books.messages[2].publisher = "q"
    assert books.said() == ["M3"]


def test_wills(books: History) -> None:
    will = books.message("w", "t", 2, will=True)
    will.at, will.due = 1.5, 1
    assert books.said() == ["M6"]
    books.session.got.append(got(4))
    assert books.said() == []
    books.session.got.append(got(4))
    assert books.said() == ["M6"]
    will.due = will.most = 0
    assert books.said() == ["M6"], "it has said goodbye"


@pytest.mark.parametrize(("wrong_at", "excused"), [(1.9, False), (2.0, True), (2.0 + SAID_S / 2, True), (2.1 + SAID_S, False)])
def test_a_goodbye_is_lost_only_by_what_goes_wrong_before_it_has_arrived(books: History, wrong_at: float, excused: bool) -> None:
    will = books.message("w", "t", 2, will=True)
    will.at, will.died_at, will.most = 1.5, 2.0, 0
    never = books.message("n", "t", 2, will=True)
    never.at, never.most = 1.5, 0
    books.disturbed(wrong_at)
    books.session.got.append(got(will.number, at=13.0))
    assert books.said() == ([] if excused else ["M6"])
    books.session.got.append(got(will.number, at=14.0))
    books.session.got.append(got(never.number, at=14.0))
    assert books.said() == ["M6", "M6"], "once is what is excused, and only of who said goodbye"


def test_retained() -> None:
    books = History()
    assert list(checks.retained(books, "r", {"a": 0, "b": 0})) == []
    first, second = (books.sent("p", "r", 1, 3.0 + n, retain=True).number for n in range(2))
    assert list(checks.retained(books, "r", {"a": second, "b": second})) == []
    assert len(list(checks.retained(books, "r", {"a": first, "b": first}))) == 2, "an older one, at both"
    later = books.sent("p", "r", 1, 5.0, retain=True, acked=False).number
    assert list(checks.retained(books, "r", {"a": later, "b": later})) == [], "it may have been taken"
    (text,) = checks.retained(books, "r", {"a": later, "b": second})
    assert "do not agree" in text
    cleared = books.sent("p", "r", 1, 6.0, retain=True)
    cleared.clears = True
    assert list(checks.retained(books, "r", {"a": 0, "b": 0})) == []
    assert len(list(checks.retained(books, "r", {"a": second, "b": second}))) == 2

"""A reader's commits and acks over connections that break at any moment: the broker gets all of them, and none before it has sent their records."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.client.redo import Redo
from headrace.model.errors import ConnectionLost
from tests.property.effort import effort

COUNT = 12
BROKEN = ConnectionLost("broken")


class Reading:
    """A reader and its broker. ``pipe``: what is on its way to the broker; (offset, True) = all up to there."""

    def __init__(self) -> None:
        self.redo = Redo()
        self.open = False
        self.sent = self.handed_out = 0
        self.pipe: list[tuple[int, bool]] = []
        self.settled: set[int] = set()
        self.done: set[int] = set()
        self.connect()

    @property
    def cursor(self) -> int:
        return next(n for n in range(COUNT + 1) if n not in self.settled)

    def connect(self) -> None:
        if not self.open:
            self.open, self.sent = True, self.cursor
            self.redo.opened({0: self.sent})

    def lose(self) -> None:
        if self.open:
            self.open = False
            for offset, up_to in self.pipe:
                (self.redo.commit if up_to else self.redo.ack)(0, offset)
            self.pipe.clear()
            self.redo.lost(BROKEN)

    def deliver(self, count: int) -> None:
        if self.open:
            self.sent = min(COUNT, self.sent + count)
            self.redo.moved(0, self.sent)
            up_to, singly = self.redo.take(0, min(self.sent, self.handed_out))
            self.pipe += [(up_to, True)] if up_to >= 0 else []
            self.pipe += [(offset, False) for offset, _ in singly]
            self.handed_out = max(self.handed_out, self.sent)

    def use(self, offset: int, up_to: bool) -> None:
        if offset >= self.handed_out:
            return
        self.done |= set(range(offset + 1)) if up_to else {offset}
        if not self.redo.early(0, offset):
            self.pipe.append((offset, up_to))
        elif up_to:
            self.redo.commit(0, offset)
        else:
            self.redo.ack(0, offset)

    def arrive(self, count: int) -> None:
        taken, self.pipe = self.pipe[:count], self.pipe[count:]
        for offset, up_to in taken:
            assert offset < self.sent, "the broker has not sent it on this connection, and takes nothing of it"
            self.settled |= set(range(offset + 1)) if up_to else {offset}


steps = st.one_of(
    st.tuples(st.sampled_from(("connect", "lose")), st.just(0)),
    st.tuples(st.sampled_from(("deliver", "arrive")), st.integers(1, 5)),
    st.tuples(st.sampled_from(("ack", "commit")), st.integers(0, COUNT - 1)),
)


@effort(300)
@given(st.lists(steps, max_size=50))
def test_all_of_it_arrives_and_nothing_too_early(script: list[tuple[str, int]]) -> None:
    reading = Reading()
    for what, number in script:
        if what in ("ack", "commit"):
            reading.use(number, what == "commit")
        elif what in ("deliver", "arrive"):
            getattr(reading, what)(number)
        else:
            getattr(reading, what)()
        assert reading.settled <= reading.done
    reading.connect()
    reading.deliver(COUNT)
    reading.arrive(len(reading.pipe))
    assert reading.settled == reading.done
    assert not reading.redo

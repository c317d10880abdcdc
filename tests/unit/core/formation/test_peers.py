"""Whose words are believed: lives that answer, not messages that come late."""

from headrace.core.formation.messages import Hello
from headrace.core.formation.peers import SILENT_MS, Peers
from headrace.core.formation.records import Directory


def hello(boot: str, sequence: int, *, to: str = "", echo: int = 0) -> Hello:
    return Hello(boot=boot, sequence=sequence, incarnation=Directory("i"), condition="fresh", echo_boot=to, echo=echo)


class Two:
    """``a`` as it sees ``b``."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.peers = Peers("a", "boot a")
        self.peers.listed({"b": "b:1"}, 0)

    def greet(self) -> tuple[int, str, int]:
        """A greeting to b: its sequence, and whose words it echoes."""
        sequence, boot, echo, _ = self.peers.greeting("b", self.now_ms)
        return sequence, boot, echo

    def hear(self, boot: str, sequence: int, echo: int = 0) -> bool:
        return self.peers.heard("b", hello(boot, sequence, to="boot a" if echo else "", echo=echo), self.now_ms)

    def meet(self, boot: str) -> None:
        self.hear(boot, 1)
        sequence, _, _ = self.greet()
        assert self.hear(boot, 2, sequence)


def test_a_life_is_believed_once_it_has_answered() -> None:
    two = Two()
    sequence, _, _ = two.greet()
    assert not two.hear("new", 1, sequence), "it answers to what was sent before it was heard of"
    assert two.peers.reachable("b", 0) is None
    sequence, boot, echo = two.greet()
    assert (boot, echo) == ("new", 1)
    assert two.hear("new", 2, sequence)
    assert two.peers.reachable("b", 0) is not None


def test_a_life_that_was_replaced_never_comes_back() -> None:
    two = Two()
    two.meet("old")
    two.meet("new")
    sequence, _, _ = two.greet()
    assert not two.hear("old", 9, sequence)
    known = two.peers.known("b")
    assert known is not None
    assert known.boot == "new"


def test_a_late_word_of_an_unknown_dead_life_does_not_stand_between_two_that_speak() -> None:
    """Found by program 826: the late word was echoed for ever, so the living one never saw its own."""
    two = Two()
    two.meet("now")
    assert not two.hear("dead", 7)
    sequence, boot, _ = two.greet()
    assert boot == "dead", "it might be a new life"
    assert two.hear("now", 3, sequence)
    assert two.greet()[1:] == ("now", 3)
    assert not two.hear("dead", 8)
    assert two.greet()[1:] == ("now", 3), "it is known to be dead now"


def test_who_is_silent_is_not_reachable() -> None:
    two = Two()
    two.meet("now")
    assert two.peers.reachable("b", SILENT_MS - 1) is not None
    assert two.peers.reachable("b", SILENT_MS) is None
    two.peers.lost("b", 1)
    assert two.peers.reachable("b", 1) is None

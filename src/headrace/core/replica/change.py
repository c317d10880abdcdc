"""One change of a partition's document on its way: from before it is sent until its outcome is known.

Owns what was asked and what is known of it. Decides nothing about members. A lost answer is no answer: the same change is sent again, under the
same expected version, until somebody says definitely what is recorded; one of the two at most can have been applied.
"""

import msgspec

from headrace.core.replica.effects import Outcome, Swap
from headrace.model.cluster import Assignment

SWAP_TIMEOUT_MS = 2_000
SWAP_RETRY_MS = 200


class Change:
    """See the module's head. Numbers grow over all changes of a life, so that a late answer is told from one to this change."""

    __slots__ = ("document", "due_ms", "expected", "first", "last")

    def __init__(self, document: Assignment, expected: int) -> None:
        self.document = document
        self.expected = expected
        self.first = self.last = 0
        self.due_ms = 0
        """When it is sent again."""

    def send(self, number: int, now_ms: int) -> Swap:
        self.first = self.first or number
        self.last = number
        self.due_ms = now_ms + SWAP_TIMEOUT_MS
        return Swap(number, self.expected, self.document)

    def concerns(self, number: int) -> bool:
        return self.first <= number <= self.last

    def answered(self, outcome: Outcome, recorded: Assignment | None, now_ms: int) -> Assignment | None:
        """The document that is recorded now; None while nobody knows."""
        if outcome is Outcome.APPLIED:
            return self.document
        if outcome is Outcome.REFUSED and recorded is not None and later(recorded, self.expected, self.document.generation):
            return recorded
        self.due_ms = min(self.due_ms, now_ms + SWAP_RETRY_MS)
        return None


def later(document: Assignment, version: int, generation: int) -> bool:
    """Whether ``document`` was recorded after (generation, version)."""
    return (document.generation, document.version) > (generation, version)


class Wish(msgspec.Struct, frozen=True):
    """What the settings of the queue or stream ask for; it counts from when the owner has written it into the assignment."""

    level: str
    floor: int

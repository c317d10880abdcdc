"""The start of an epoch: whose answers are needed, which of them holds the most, what must be fetched from it.

Owns the choice. Knows neither connections nor the disk. What it rests on: any recovery quorum shares a replica with every commit quorum, so the
journal with the highest (epoch of its last entry, end) among the answers of one holds everything that was committed.

T1 Fewer than n - k + 1 answers never suffice. T2 An answer after an unclean stop does not complete the quorum while another recorded member may
still answer; one of a copy that is known to have lost something does not as long as any other has not answered, dead or not. T3 For each member that
is not proven dead the choice waits up to ``takeover_wait``; it is made from ALL answers.
"""

from collections.abc import Mapping

import msgspec

from headrace.core.replica.configuration import recorded
from headrace.core.replica.epochs import EpochHistory
from headrace.core.replica.journal import Journal
from headrace.core.replica.messages import State
from headrace.core.replica.peer import Peer
from headrace.model.cluster import Assignment, BrokerId

TAKEOVER_WAIT_MS = 1_000


class Best(msgspec.Struct, frozen=True):
    """Who holds the most."""

    source: BrokerId
    """The owner itself, if nothing need be fetched."""
    end: int
    at: int
    """Where the owner's journal is cut and goes on; 0 = an install is needed first."""
    high_watermark: int
    """The highest that any of them knew."""


def missing(document: Assignment, me: BrokerId, peers: Mapping[BrokerId, Peer]) -> list[BrokerId]:
    """The recorded members that have not answered and are not proven dead."""
    return [b for b in recorded(document) if b != me and peers[b].answer is None and not peers[b].dead]


def enough(document: Assignment, me: BrokerId, journal: Journal, peers: Mapping[BrokerId, Peer], *, waited: bool) -> bool:
    """Whether a choice may be made now; ``waited``: ``takeover_wait`` has passed."""
    needed = document.recovery_quorum
    answers = [peers[b].answer for b in recorded(document) if b != me]
    given = [a for a in answers if a is not None]
    mine = 1 if me in recorded(document) else 0
    if not missing(document, me, peers):
        if all(a is not None for a in answers):
            return len(given) + mine >= needed
        honest = sum(not a.suspect for a in given) + (0 if journal.suspect else mine)
        return honest >= needed
    sound = sum(not (a.unclean or a.suspect) for a in given) + (0 if journal.unclean or journal.suspect else mine)
    return sound >= needed and waited


def choose(document: Assignment, me: BrokerId, journal: Journal, peers: Mapping[BrokerId, Peer]) -> Best | str:
    """The journal to go on with; or why there is none."""
    source, best, high_watermark = me, (journal.last_epoch, journal.end), journal.high_watermark
    answer: State | None = None
    for broker in recorded(document):
        given = peers[broker].answer if broker != me else None
        if given is None:
            continue
        high_watermark = max(high_watermark, given.high_watermark)
        last = given.runs[-1][0] if given.runs else given.base_epoch
        if (last, given.end) > best:
            source, best, answer = broker, (last, given.end), given
    if answer is None:
        if high_watermark > journal.end:
            return f"everything below {high_watermark} was committed, but nobody who has answered holds more than {journal.end}"
        return Best(me, journal.end, journal.end, high_watermark)
    if high_watermark > answer.end:
        return f"everything below {high_watermark} was committed, but nobody who has answered holds more than {answer.end}"
    at = journal.history.divergence(journal.end, history_of(answer), answer.end)
    if at is None or at < answer.start:
        return Best(source, answer.end, 0, high_watermark)
    if at < journal.high_watermark:
        return f"{source} shares only what lies below {at}, but everything below {journal.high_watermark} was committed here"
    return Best(source, answer.end, at, high_watermark)


def history_of(answer: State) -> EpochHistory:
    """The epochs of the replica that gave it."""
    return EpochHistory(answer.history_start, answer.base_epoch, answer.runs)

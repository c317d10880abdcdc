"""Known bugs of replication, planted from outside as all mutants are (``sim.mutants.planting``), each to be caught in the small world."""

import time
from typing import Final

import msgspec

from headrace.sim.mutants.planting import Edit, Mutant
from headrace.sim.replicas.run import run


def _mutant(name: str, wrong: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name=name, wrong=wrong, notices=(), edits=tuple(Edit(*edit) for edit in edits))


REPLICATION: Final = (
    _mutant(
        "confirm-before-the-isr-has-it",
        "a publish at the queue's level is confirmed when the owner alone holds it durably",
        ("core.replica.owner:Owner.ends", "Level.QUEUE: watermark", "Level.QUEUE: journal.durable_end"),
    ),
    _mutant(
        "commit-with-one-member",
        "one member is a quorum",
        ("core.replica.configuration:Configuration.held", "[self.k - 1]", "[0]"),
    ),
    _mutant(
        "epoch-kept-over-a-restart",
        "an owner that starts again goes on in the epoch that it had",
        (
            "core.replica.replica:Replica._activate",
            "if document.incarnation == self.incarnation and document.epoch > self.journal.promising:",
            "if document.epoch >= self.journal.promising:",
        ),
    ),
    _mutant(
        "truncate-to-the-watermark",
        "a follower is cut at its own high watermark, not where the journals part",
        ("core.replica.streaming:Streaming.align", "if at is None or at < journal.start:", "at = answer.high_watermark\nif at < journal.start:"),
    ),
    _mutant(
        "epoch-not-checked",
        "a replica follows whoever says that it owns the partition, in whatever epoch",
        ("core.replica.follower:Follower.new_epoch", "if message.epoch < journal.promising:", "if message.epoch < 0:"),
        ("core.replica.follower:Follower.new_epoch", "newer = message.epoch > journal.promising", "newer = message.epoch != journal.promising"),
        (
            "core.replica.follower:Follower._promise",
            "journal.promising = epoch",
            "journal.promising = epoch\njournal.promised = min(journal.promised, epoch)",
        ),
    ),
    _mutant(
        "growth-without-catching-up",
        "a follower comes into the isr while it still lacks entries",
        ("core.replica.insync:View.in_sync", "peer.held >= self.bar", "peer.held >= 0"),
        ("core.replica.insync:provable", "configuration(wanted).held(view.held) >= view.bar", "True"),
    ),
    _mutant(
        "growth-without-the-epoch-start",
        "a new member need hold only what lies below a high watermark that may be older than the epoch",
        ("core.replica.owner:Owner._bar", "return max(self._journal.high_watermark, self.begun_at + 1)", "return self._journal.high_watermark"),
    ),
    _mutant(
        "shrink-used-before-recorded",
        "who is to leave the isr counts no more as soon as that is asked for",
        (
            "core.replica.owner:Owner._propose",
            "self._configurations = (configuration(self.document), configuration(document))",
            "fewer = len(document.isr) < len(self.document.isr)\n"
            "self._configurations = (configuration(document if fewer else self.document), configuration(document))",
        ),
    ),
    _mutant(
        "growth-counted-before-recorded",
        "who is to come into the isr counts as soon as that is asked for, and the old members alone do not",
        (
            "core.replica.owner:Owner._propose",
            "self._configurations = (configuration(self.document), configuration(document))",
            "more = len(document.isr) > len(self.document.isr)\n"
            "self._configurations = (configuration(document if more else self.document), configuration(document))",
        ),
    ),
    _mutant(
        "only-the-old-members-while-in-flight",
        "while a change is in flight only the members recorded before count",
        (
            "core.replica.owner:Owner._propose",
            "self._configurations = (configuration(self.document), configuration(document))",
            "self._configurations = (configuration(self.document), configuration(self.document))",
        ),
    ),
    _mutant(
        "lost-answer-is-a-no",
        "a change of which the answer was lost is taken for refused",
        (
            "core.replica.owner:Owner.swapped",
            "known = change.answered(outcome, document, now_ms)",
            "known = change.answered(outcome, document, now_ms)\nif outcome is Outcome.UNKNOWN:\n"
            "    self.change, self._configurations = None, (configuration(self.document),)",
        ),
    ),
    _mutant(
        "watermark-over-non-members",
        "learners and replicas out of sync count towards a commit",
        (
            "core.replica.owner:Owner._commit",
            "end = committed(self._configurations, self._held)",
            "end = sorted((self._held(b) for b in (self.me, *self.peers)), reverse=True)[min(self.document.k, 1 + len(self.peers)) - 1]",
        ),
    ),
    _mutant(
        "elect-outside-the-isr",
        "the controller gives the partition to any replica that lives",
        ("sim.replicas.coordination:Coordination._elect", "able = [b for b in truth.electable if", "able = [b for b in truth.replicas if"),
        ("sim.replicas.coordination:Coordination._elect", "able = [b for b in able if b in truth.isr] or able", "pass"),
    ),
    _mutant(
        "watermark-moves-below-the-floor",
        "entries are committed below the floor, and then somebody of the elr is elected",
        ("core.replica.configuration:configuration", "assignment.k, frozen)", "assignment.k, False)"),
    ),
    _mutant(
        "one-answer-taken",
        "one answer is enough for a new owner, although more could come",
        ("core.replica.term:enough", "needed = document.recovery_quorum", "needed, waited = 1, True"),
        ("core.replica.term:enough", "if not missing(document, me, peers):", "if True:"),
    ),
    _mutant(
        "own-answer-after-an-unclean-stop",
        "after an unclean stop the owner's own answer completes the quorum",
        (
            "core.replica.term:enough",
            "(0 if journal.unclean or journal.suspect else mine)",
            "mine",
        ),
    ),
    _mutant(
        "highest-index-wins",
        "of the answers the longest journal is taken, whatever epoch wrote its end",
        ("core.replica.term:choose", "if (last, given.end) > best:", "if given.end > best[1]:"),
    ),
    _mutant(
        "nothing-fetched",
        "a new owner begins with what it holds itself",
        ("core.replica.opening:Opening._collect", "if best.source == self.me:", "if best.source:"),
    ),
    _mutant(
        "older-epochs-committed-by-counting",
        "entries of an older epoch are committed before the start of the own epoch is",
        ("core.replica.owner:Owner._commit", "if end <= self.begun_at:", "if end <= 1:"),
    ),
    _mutant(
        "cut-not-written",
        "a follower forgets what it gives up and writes no marker",
        (
            "core.replica.follower:Follower.align",
            "self.phase = Phase.CUTTING\nself._out.append(journal.cut(at, self.epoch, set_aside=forced))",
            "journal.cut(at, self.epoch, set_aside=forced)\njournal.was_cut(at)\nself._follow()",
        ),
    ),
    _mutant(
        "promise-not-persisted",
        "an epoch is promised in memory only",
        (
            "core.replica.follower:Follower._promise",
            "self._out.append(Promise(epoch, journal.generation, journal.version))",
            "journal.promised = epoch",
        ),
    ),
    _mutant(
        "answer-before-the-promise-is-durable",
        "what is held is said as soon as the promise is asked for",
        ("core.replica.follower:Follower.answer", "if self.phase is Phase.ANSWERING and self._journal.settled:", "if self.phase is Phase.ANSWERING:"),
    ),
    _mutant(
        "acknowledged-before-durable",
        "a follower acknowledges what it has appended",
        ("core.replica.follower:Follower._acknowledge", "end=self._journal.durable_end", "end=self._journal.end"),
    ),
    _mutant(
        "owner-counts-what-is-not-synced",
        "the owner counts what is in its own buffer",
        ("core.replica.owner:Owner._held", "return self._journal.durable_end", "return self._journal.end"),
    ),
    _mutant(
        "watermark-off-by-one",
        "the high watermark is one too high",
        (
            "core.replica.owner:Owner._commit",
            "end = committed(self._configurations, self._held)",
            "end = min(self._journal.end, 1 + committed(self._configurations, self._held))",
        ),
    ),
    _mutant(
        "watermark-beyond-the-own-end",
        "a follower takes the owner's high watermark although it does not hold everything below it",
        (
            "core.replica.follower:Follower.append",
            "journal.commit(min(message.high_watermark, journal.end))",
            "journal.commit(message.high_watermark)",
        ),
    ),
    _mutant(
        "gap-not-noticed",
        "a follower appends whatever comes",
        (
            "core.replica.follower:Follower.append",
            "if first > journal.end or",
            "if first > journal.end and message.entries:\n"
            "    self._out.append(journal.store([(message.epoch, journal.end)], message.count, message.entries))\n"
            "    return\n"
            "if first > journal.end or",
        ),
    ),
    _mutant(
        "waiting-for-what-has-passed",
        "who asks for a confirm after the high watermark has passed is never answered",
        ("core.replica.levels:Waiting.reached", "queue[count][0] <= end", "queue[count][0] == end"),
    ),
    _mutant(
        "install-over-what-is-committed",
        "a checkpoint takes the place of a journal that holds more",
        ("core.replica.streaming:Streaming.align", "if at is None or at < journal.start:", "if at is None or at <= journal.high_watermark:"),
        ("core.replica.follower:checked_install", "if message.end < journal.high_watermark:", "if message.end < 1:"),
        ("core.replica.follower:checked_install", "if message.end < journal.end and journal.last_epoch >= message.epoch:", "if message.end < 1:"),
    ),
)


class Caught(msgspec.Struct, frozen=True):
    """What came of a hunt; ``seed`` -1 = not caught."""

    name: str
    seed: int
    seeds: int
    invariant: str
    text: str
    seconds: float


def hunt(mutant: Mutant, *, first: int = 0, seeds_max: int = 4_000) -> Caught:
    """Runs seeds with the bug until one of them is not sound, and is without it."""
    began = time.perf_counter()
    for count, seed in enumerate(range(first, first + seeds_max), 1):
        with mutant.plant():
            result = run(seed)
        if result.invariant and not run(seed).invariant:
            return Caught(mutant.name, seed, count, result.invariant, result.text, time.perf_counter() - began)
    return Caught(mutant.name, -1, seeds_max, "", "", time.perf_counter() - began)

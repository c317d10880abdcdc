"""A replica that copies: promises epochs, brings its journal in line with the owner's, stores what the owner sends, acknowledges what is durable.

Owns its place in the owner's session. Knows no members and no other follower. Everything that a peer sends is checked before it is believed: what
does not fit is answered with ``Gap``, ``Fenced`` or ``Quarantined``, or not at all, and changes nothing.

F1 Nothing is answered to a ``NewEpoch`` before its epoch is durable; nothing of an older one is taken from the moment it is seen. F2 In a session
everything in the journal is the owner's, so an acknowledgement may cover all that is durable. F3 No entry below the own high watermark is ever
given up, but by an election that an operator has forced and recorded; no entry of the owner's own epoch is. F4 A cut is durable before anything is
acknowledged or stored after it.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

from headrace.core.replica.effects import Alarm, AnyEffect, Changed, Committed, Promise, Renew, Send, Stage, Stream, Transfer
from headrace.core.replica.epochs import EpochHistory, Run, sound
from headrace.core.replica.journal import Journal
from headrace.core.replica.messages import Ack, Align, Append, Fenced, Fetch, Fetched, Gap, Install, NewEpoch, Quarantined, State
from headrace.model.cluster import Assignment, BrokerId, Incarnation

FETCH_ENTRIES_MAX = 1024


class Phase(Enum):
    """Where a follower stands with its owner."""

    ALONE = "has not heard of an owner"
    ANSWERING = "makes its promise durable"
    READY = "has said what it holds"
    CUTTING = "cuts what the owner does not have"
    INSTALLING = "takes a checkpoint"
    FOLLOWING = "follows"
    RENEWING = "begins anew, as everything here was given up"
    QUARANTINED = "is quarantined"


class Follower:
    """See the module's head. ``out`` takes its effects."""

    def __init__(self, journal: Journal, out: list[AnyEffect], incarnation: Incarnation) -> None:
        self._journal = journal
        self._out = out
        self._incarnation = incarnation
        self.phase = Phase.ALONE
        self.owner = BrokerId("")
        self.epoch = journal.promised
        """The session's. Not above what is promised or on its way to be."""
        self.session = 0
        self.owner_end = 0
        """How far the owner is known to be: its high watermark, or the end of what it has sent."""
        self.reason = ""
        self._forced: Sequence[tuple[int, int]] = ()
        self._bases: Sequence[tuple[int, int, int]] = ()

    # ------------------------------------------------------------ documents

    def document(self, document: Assignment) -> None:
        """What an operator has permitted stands in the document; who owns the partition a follower learns from the owner itself."""
        self._forced = tuple((f.epoch, f.base + 1) for f in document.forced)
        self._bases = tuple((f.epoch, f.base, f.base_epoch) for f in document.forced)
        if self.phase is Phase.READY:
            self._begin_anew()

    # ------------------------------------------------------------ the epoch

    def new_epoch(self, sender: BrokerId, message: NewEpoch) -> bool:
        """Promises, and answers once that is durable. Says whether the epoch is newer than all that was known here."""
        journal = self._journal
        if message.epoch < journal.promising:
            self._out.append(Send(sender, Fenced(epoch=journal.promising)))
            return False
        newer = message.epoch > journal.promising
        if newer:
            if self.owner and self.owner != sender:
                self._out.append(Send(self.owner, Fenced(epoch=message.epoch)))
            self._promise(message.epoch)
            self._join(sender, message)
        elif not self.owner or self.epoch < message.epoch:
            self._join(sender, message)  # promised in an earlier life
        elif self.owner != sender:
            self._out.append(Alarm(f"{sender} and {self.owner} both say that they own epoch {message.epoch}"))
        elif message.session > self.session:
            self._join(sender, message)
        elif message.session == self.session and self.phase is Phase.READY:
            self._say()
        return newer

    def _promise(self, epoch: int) -> None:
        journal = self._journal
        journal.promising = epoch
        self._out.append(Promise(epoch, journal.generation, journal.version))

    def _join(self, sender: BrokerId, message: NewEpoch) -> None:
        self.owner, self.epoch, self.session = sender, message.epoch, message.session
        if self.phase is Phase.QUARANTINED:
            self._out.append(Send(sender, Quarantined(epoch=self.epoch, session=self.session, reason=self.reason)))
            return
        if self.phase is Phase.RENEWING:
            return
        self.phase = Phase.ANSWERING
        if not self._begin_anew():
            self.answer()

    def _begin_anew(self) -> bool:
        """Whether an operator has given up all that is here, what is not in the log any more too: then nothing of it can be kept."""
        journal = self._journal
        for epoch, base, base_epoch in self._bases:
            kept = journal.history.epoch_at(base) == base_epoch if base + 1 >= journal.start else False
            if journal.last_epoch < epoch <= self.epoch and not kept and journal.start > 1 and not journal.busy:
                self.phase = Phase.RENEWING
                self._out.append(Renew(f"an election that was forced has kept what lies up to index {base} of another history"))
                return True
        return False

    def answer(self) -> None:
        """Says what is held, once all of it and the promise are durable. Called after each completion."""
        if self.phase is Phase.ANSWERING and self._journal.settled:
            self.phase = Phase.READY
            self._say()

    def _say(self) -> None:
        journal = self._journal
        start, base, runs = journal.history.whole()
        self._out.append(
            Send(
                self.owner,
                State(
                    epoch=self.epoch,
                    session=self.session,
                    incarnation=self._incarnation,
                    start=journal.start,
                    end=journal.end,
                    high_watermark=journal.high_watermark,
                    history_start=start,
                    base_epoch=base,
                    runs=runs,
                    unclean=journal.unclean,
                    suspect=journal.suspect,
                ),
            )
        )

    # ------------------------------------------------------------ in line

    def _in_session(self, sender: BrokerId, epoch: int, session: int) -> bool:
        """Whether that is the session in which this replica is; an older epoch is told so."""
        if epoch < self._journal.promising:
            self._out.append(Send(sender, Fenced(epoch=self._journal.promising)))
            return False
        return sender == self.owner and epoch == self.epoch and session == self.session and epoch == self._journal.promised

    def align(self, sender: BrokerId, message: Align) -> None:
        if not self._in_session(sender, message.epoch, message.session) or self.phase is not Phase.READY:
            return
        journal, at = self._journal, message.at
        if message.end != journal.end or not 1 <= at <= journal.end:
            self._gap(f"asked to be cut at {at} of {message.end}, the journal ends at {journal.end}")
            return
        forced = False
        if at < journal.high_watermark:
            forced = self._permitted(at)
            if not forced or at < journal.start:
                self.quarantine(f"the owner of epoch {self.epoch} ends at {at}, but everything below {journal.high_watermark} was committed here")
                return
        if journal.history.epoch_at(at - 1) != message.previous_epoch or (at < journal.end and journal.history.epoch_at(at) >= self.epoch):
            self._gap(f"the entry before {at} is of epoch {journal.history.epoch_at(at - 1)} here, not of {message.previous_epoch}")
            return
        if at < journal.end:
            self.phase = Phase.CUTTING
            self._out.append(journal.cut(at, self.epoch, set_aside=forced))
        else:
            self._follow()

    def _permitted(self, at: int) -> bool:
        """Whether an election that was forced since permits to give up committed entries from ``at`` on."""
        last = self._journal.last_epoch
        return any(last < epoch <= self.epoch and base <= at for epoch, base in self._forced)

    def _follow(self) -> None:
        self.phase = Phase.FOLLOWING
        self.owner_end = max(self.owner_end, self._journal.end)
        self._acknowledge()

    def was_cut(self) -> None:
        """The cut is durable."""
        if self.phase is Phase.CUTTING:
            self._follow()

    def append(self, sender: BrokerId, message: Append) -> None:
        if not self._in_session(sender, message.epoch, message.session) or self.phase is not Phase.FOLLOWING:
            return
        journal = self._journal
        first, end = message.first, message.first + message.count
        if first > journal.end or message.count != len(message.entries) or not _fits(message.runs, first, end, message.epoch, message.previous_epoch):
            self._gap(f"entries [{first}, {end}) do not follow on {journal.end}")
            return
        if first == journal.end and message.previous_epoch != journal.last_epoch:
            self._gap(f"the entry before {first} is of epoch {journal.last_epoch} here, not of {message.previous_epoch}")
            return
        if end > journal.end:
            skip = journal.end - first
            if skip and EpochHistory(first, message.previous_epoch, message.runs).epoch_at(journal.end - 1) != journal.last_epoch:
                self._gap(f"the entry before {journal.end} is of another epoch here")
                return
            runs = EpochHistory(first, message.previous_epoch, message.runs).between(journal.end, end)
            self._out.append(journal.store(runs, end - journal.end, message.entries[skip:]))
        self.owner_end = max(self.owner_end, end, message.high_watermark)
        self._whole()
        if journal.commit(min(message.high_watermark, journal.end)):
            self._out.append(Committed(journal.high_watermark))

    def install(self, sender: BrokerId, message: Install) -> None:
        if not self._in_session(sender, message.epoch, message.session) or self.phase is not Phase.READY:
            return
        stage = checked_install(self._journal, message)
        if isinstance(stage, str):
            self._gap(stage)
            return
        self.phase = Phase.INSTALLING
        self._out.append(self._journal.stage(stage))

    def installed(self) -> None:
        """The install is durable and in the place of what was here."""
        if self.phase is Phase.INSTALLING:
            self.phase = Phase.READY
            self._say()

    # ------------------------------------------------------------ the disk

    def durable(self) -> None:
        """A flush has ended: one cumulative acknowledgement."""
        if self.phase is Phase.FOLLOWING:
            self._acknowledge()
            self._whole()

    def _whole(self) -> None:
        """Whatever an earlier life has lost: is it here again?"""
        journal = self._journal
        if (journal.unclean or journal.suspect) and journal.last_epoch == self.epoch and journal.durable_end >= self.owner_end:
            journal.unclean = journal.suspect = False

    def _acknowledge(self) -> None:
        self._out.append(Send(self.owner, Ack(epoch=self.epoch, session=self.session, end=self._journal.durable_end)))

    # ------------------------------------------------------------ serving a new owner

    def fetch(self, sender: BrokerId, message: Fetch) -> None:
        """Gives a new owner what it lacks."""
        if not self._in_session(sender, message.epoch, message.session) or self.phase is not Phase.READY:
            return
        journal, first = self._journal, message.first
        count = min(message.end, journal.durable_end, first + FETCH_ENTRIES_MAX) - first
        if first < journal.start:
            self._out.append(Transfer(sender, message.epoch, message.session, first))
        elif count <= 0 or journal.history.epoch_at(first - 1) != message.previous_epoch:
            self._gap(f"no entries from {first} on that follow on epoch {message.previous_epoch}")
        else:
            runs = journal.history.between(first, first + count)
            self._out.append(Stream(sender, Fetched(epoch=self.epoch, session=self.session, first=first, count=count, runs=runs)))

    # ------------------------------------------------------------ refusing

    def refuse(self, sender: BrokerId) -> None:
        """Tells whoever acts in an older epoch that it is over."""
        self._out.append(Send(sender, Fenced(epoch=self._journal.promising)))

    def _gap(self, reason: str) -> None:
        self._out.append(Send(self.owner, Gap(epoch=self.epoch, session=self.session, reason=reason)))

    def quarantine(self, reason: str) -> None:
        """Takes nothing more: going on would lose what is committed."""
        self.phase = Phase.QUARANTINED
        self.reason = reason
        self._out.append(Alarm(reason))
        self._out.append(Changed("quarantined", self.epoch, reason))
        if self.owner:
            self._out.append(Send(self.owner, Quarantined(epoch=self.epoch, session=self.session, reason=reason)))

    def step_down(self, epoch: int) -> None:
        """This broker was the owner, or becomes it: whoever it followed before is not followed any more."""
        if self.phase not in (Phase.QUARANTINED, Phase.RENEWING):
            self.phase = Phase.ALONE
        self.owner, self.session = BrokerId(""), 0
        self.epoch = max(self.epoch, epoch)
        self.owner_end = 0

    def view(self) -> dict[str, Any]:
        """What is shown: whom it follows and how far it has come."""
        return {
            "phase": self.phase.value,
            "owner": self.owner,
            "epoch": self.epoch,
            "behind": max(0, self.owner_end - self._journal.durable_end),
            "reason": self.reason,
        }


def checked_install(journal: Journal, message: Install) -> Stage | str:
    """What to stage; or why a checkpoint may not take the place of ``journal``."""
    runs = tuple(message.runs)
    if message.end < journal.high_watermark:
        return f"a checkpoint up to {message.end} would undo what is committed up to {journal.high_watermark}"
    if message.end < journal.end and journal.last_epoch >= message.epoch:
        return "a checkpoint would undo entries of the owner's own epoch"
    if not sound(runs, start=message.history_start, base_epoch=message.base_epoch, end=message.end):
        return "the epochs of the checkpoint contradict each other"
    if (runs[-1][0] if runs else message.base_epoch) > message.epoch:
        return "the checkpoint is of a later epoch than its sender"
    return Stage(message.end, message.history_start, message.base_epoch, runs, message.data)


def _fits(runs: Sequence[Run], first: int, end: int, epoch: int, previous_epoch: int) -> bool:
    """Whether ``runs`` can be those of entries ``[first, end)`` of an owner in ``epoch``."""
    return first >= 1 and end >= first and sound(runs, start=first, base_epoch=previous_epoch, end=end) and (not runs or runs[-1][0] <= epoch)

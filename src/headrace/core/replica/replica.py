"""What a broker keeps of one partition of which it has a copy: the journal's picture, and the part it plays, owner or follower.

Owns the way between the parts, and who gets which message. A plain object: verbs come in with ``now_ms``, effects are taken with ``take``. It
raises nothing for whatever a peer sends. Messages of a broker must come in the order of the connection, completions in the order of the log.

R1 At most one part at a time acts in an epoch; whoever sees a later one ends the owner. R2 An epoch is begun only by the life that it was given to,
and once. R3 Documents are obeyed forward only: an older (generation, version) than was obeyed when an epoch was begun is refused with an alarm.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from headrace.core.replica.change import Change, Wish, later
from headrace.core.replica.effects import Alarm, AnyEffect, Outcome, Refusal
from headrace.core.replica.follower import Follower, Phase
from headrace.core.replica.journal import Journal, Recovered
from headrace.core.replica.messages import (
    Ack,
    Align,
    AnyMessage,
    Append,
    Fenced,
    Fetch,
    Fetched,
    Gap,
    Install,
    NewEpoch,
    Quarantined,
    State,
)  # fmt: skip
from headrace.core.replica.opening import Part
from headrace.core.replica.owner import Owner
from headrace.core.replica.peer import Known, Pace
from headrace.model.cluster import Assignment, BrokerId, Incarnation


class Replica:
    """See the module's head. ``heard``: when a frame of each broker came last, ``sure``: when it surely ran last (None: the same), both kept up to
    date by the driver for all partitions together."""

    def __init__(
        self, me: BrokerId, incarnation: Incarnation, found: Recovered, heard: Mapping[BrokerId, int], *,
        sure: Mapping[BrokerId, int] | None = None, pace: Pace = Pace(),
    ) -> None:  # fmt: skip
        self.me = me
        self.incarnation = incarnation
        self.journal = Journal(found)
        self.document: Assignment | None = None
        self.owner: Owner | None = None
        self._out: list[AnyEffect] = []
        self.follower = Follower(self.journal, self._out, incarnation)
        self._heard = heard
        self._sure = heard if sure is None else sure
        self._pace = pace
        self._known = Known()
        self._wish: Wish | None = None
        self._activation: Change | None = None
        """The compare-and-swap by which this life takes a new epoch."""
        self._wanted = False
        self._numbers = [0]

    def take(self) -> list[AnyEffect]:
        """The effects since the last call, in the order in which they are to be done."""
        out = self._out[:]
        self._out.clear()
        return out

    # ------------------------------------------------------------ documents

    def assigned(self, document: Assignment, now_ms: int) -> None:
        """The coordinator's document, from a watch or an answer; late and repeated ones do no harm."""
        journal = self.journal
        if (document.generation, document.version) < (journal.generation, journal.version):
            if self.document is None:
                known = f"version {journal.version}, which was obeyed here"
                self._out.append(Alarm(f"version {document.version} of the assignment is older than {known}: it was restored"))
            return
        if self.document is not None and not later(document, self.document.version, self.document.generation):
            return
        self.document = document
        self.follower.document(document)
        if self.owner is not None:
            self.owner.recorded(document, now_ms)
            self._ended()
        if self._activation is not None and later(document, self._activation.expected, document.generation):
            self._activation = None
        self._activate(now_ms)

    def activate(self, now_ms: int) -> None:
        """This life wants to serve the partition, if it is its owner: the first append, lease or subscription is waiting."""
        self._wanted = True
        self._activate(now_ms)

    def _activate(self, now_ms: int) -> None:
        document = self.document
        if document is None or document.owner != self.me or self.owner is not None or self._activation is not None or self.journal.busy:
            return
        if self.follower.phase in (Phase.QUARANTINED, Phase.RENEWING):
            return
        if document.incarnation == self.incarnation and document.epoch > self.journal.promising:
            self.follower.step_down(document.epoch)
            self.owner = Owner(
                self.me, document, self.journal, self._heard, self._known, self._out, sure=self._sure, numbers=self._numbers, now_ms=now_ms
            )
            self.owner.pace = self._pace
            if self._wish is not None:
                self.owner.wish(self._wish)
        elif self._wanted and document.epoch >= self.journal.promising:
            reason = f"{self.me} has started again"
            wanted = replace(document, version=document.version + 1, epoch=document.epoch + 1, incarnation=self.incarnation, reason=reason)
            self._activation = Change(wanted, document.version)
            self._numbers[0] += 1
            self._out.append(self._activation.send(self._numbers[0], now_ms))

    def swapped(self, number: int, outcome: Outcome, document: Assignment | None, now_ms: int) -> None:
        """What became of a ``Swap``: ``document`` is what is recorded, if that is known (with APPLIED it need not be given)."""
        change = self._activation
        if change is not None and change.concerns(number):
            known = change.answered(outcome, document, now_ms)
            if known is not None:
                self._activation = None
                self.assigned(known, now_ms)
        elif self.owner is not None:
            self.owner.swapped(number, outcome, document, now_ms)
            if self.document is None or later(self.owner.document, self.document.version, self.document.generation):
                self.document = self.owner.document
            self._ended()
        if document is not None:
            self.assigned(document, now_ms)

    def wish(self, wish: Wish, now_ms: int) -> None:
        """What the settings of the queue or stream ask for: its owner writes it into the assignment."""
        self._wish = wish
        if self.owner is not None:
            self.owner.wish(wish)

    # ------------------------------------------------------------ the disk

    def promised(self, epoch: int, now_ms: int) -> None:
        """A promise is durable."""
        self.journal.promised = max(self.journal.promised, min(epoch, self.journal.promising))
        if self.owner is not None:
            self.owner.promised(now_ms)
        self.follower.answer()

    def durable(self, end: int, now_ms: int) -> None:
        """A flush has ended: entries below ``end`` are durable. Once a flush."""
        self.journal.durable(end)
        self._written(now_ms)
        if self.owner is None:
            self.follower.durable()

    def cut(self, at: int, now_ms: int) -> None:
        """A ``Cut`` is durable."""
        if self.journal.was_cut(at):
            self.follower.was_cut()
            self._written(now_ms)

    def installed(self, end: int, now_ms: int) -> None:
        """A ``Stage`` is durable and has taken the place of what was there."""
        if self.journal.installed(end):
            self.follower.installed()
            self._written(now_ms)

    def _written(self, now_ms: int) -> None:
        self.follower.answer()
        if self.owner is not None:
            self.owner.durable(now_ms)
        elif self.document is not None:
            self._activate(now_ms)

    def trimmed(self, start: int) -> None:
        """Entries below ``start`` are not in the log any more: what they did is in a checkpoint."""
        self.journal.trim(start)

    # ------------------------------------------------------------ brokers

    def connected(self, broker: BrokerId, incarnation: Incarnation, now_ms: int) -> None:
        """There is a connection to that life of a broker; messages go over it from now on."""
        self._known.links[broker] = incarnation
        self._known.dead.pop(broker, None)
        if self.owner is not None:
            self.owner.connected(broker, incarnation, now_ms)

    def disconnected(self, broker: BrokerId, now_ms: int) -> None:
        """It broke."""
        self._known.links.pop(broker, None)
        if self.owner is not None:
            self.owner.disconnected(broker, now_ms)

    def dead(self, broker: BrokerId) -> None:
        """That broker is proven dead, until it is connected again."""
        self._known.dead[broker] = True
        if self.owner is not None and broker in self.owner.peers:
            self.owner.peers[broker].dead = True
            self.owner.stirred = True

    def draining(self, broker: BrokerId, draining: bool) -> None:
        """That broker is going to stop: it is not taken in."""
        if draining:
            self._known.draining[broker] = True
        else:
            self._known.draining.pop(broker, None)
        if self.owner is not None and broker in self.owner.peers:
            self.owner.peers[broker].draining = draining

    def received(self, sender: BrokerId, message: AnyMessage, now_ms: int) -> None:
        """A message of another broker. What does not belong to what goes on here is ignored or refused."""
        owner, follower = self.owner, self.follower
        if isinstance(message, NewEpoch):
            if owner is not None and message.epoch == owner.epoch:
                self._out.append(Alarm(f"{sender} says that it owns epoch {message.epoch}, which was given to {self.me}"))
                return
            if follower.new_epoch(sender, message):
                self._fence(message.epoch)
        elif isinstance(message, Fenced):
            if message.epoch > self.journal.promising:
                self._fence(message.epoch)
        elif isinstance(message, (Append, Align, Install, Fetch)):
            if owner is not None:
                if message.epoch < owner.epoch:
                    follower.refuse(sender)
                elif isinstance(message, Install) and message.epoch == owner.epoch:
                    owner.take_install(sender, message)
            elif isinstance(message, Append):
                follower.append(sender, message)
            elif isinstance(message, Align):
                follower.align(sender, message)
            elif isinstance(message, Install):
                follower.install(sender, message)
            else:
                follower.fetch(sender, message)
        elif owner is not None and message.epoch == owner.epoch and sender in owner.peers:
            self._to_owner(owner, sender, message, now_ms)

    def _to_owner(self, owner: Owner, sender: BrokerId, message: Ack | State | Gap | Fetched | Quarantined, now_ms: int) -> None:
        peer = owner.peers[sender]
        if isinstance(message, Ack):
            owner.acknowledged(peer, message.session, message.end, now_ms)
        elif isinstance(message, State):
            owner.state(sender, message, now_ms)
        elif message.session != peer.session:
            return
        elif isinstance(message, Fetched):
            owner.fetched(sender, message, now_ms)
        elif isinstance(message, Gap):
            owner.gap(sender, message.reason, now_ms)
        else:
            owner.quarantined(sender, message.reason, now_ms)

    def _fence(self, epoch: int) -> None:
        """A later epoch was seen: what this broker owns of the partition it owns no more."""
        if self.owner is not None and epoch > self.owner.epoch:
            self.owner.stop(f"epoch {epoch} has begun elsewhere")
            self._ended()

    def _ended(self) -> None:
        if self.owner is not None and self.owner.part is Part.STOPPED:
            epoch, self.owner = self.owner.epoch, None
            if self.follower.epoch <= epoch:
                self.follower.step_down(epoch)

    # ------------------------------------------------------------ each turn

    def refusal(self, level: int, now_ms: int) -> Refusal | None:
        """Why nothing may be appended now at that level, asked before anything is."""
        return Refusal.NOT_OWNER if self.owner is None else self.owner.refusal(level, now_ms)

    def delivers(self, now_ms: int) -> Refusal | None:
        """Why nothing may be delivered, leased or assigned now."""
        owner = self.owner
        if owner is None:
            return Refusal.NOT_OWNER
        if owner.part is not Part.SERVING:
            return Refusal.MOVING if owner.part is Part.SEALED else Refusal.STARTING
        return None if owner.delivers(now_ms) else Refusal.ISOLATED

    def step(self, now_ms: int) -> None:
        """To be called each turn in which something came in, and at the deadline."""
        if self._activation is not None and now_ms >= self._activation.due_ms:
            self._numbers[0] += 1
            self._out.append(self._activation.send(self._numbers[0], now_ms))
        if self.owner is not None:
            self.owner.step(now_ms)

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When ``step`` must be called at the latest, None: only when something comes in. An idle partition has no deadline."""
        due = self.owner.next_deadline_ms(now_ms) if self.owner is not None else None
        if self._activation is not None:
            due = self._activation.due_ms if due is None else min(due, self._activation.due_ms)
        return due

    def check(self) -> None:
        """Asserts the invariants."""
        self.journal.check()
        if self.owner is not None:
            assert self.owner.epoch >= self.journal.promised
            self.owner.check()

    def snapshot(self) -> Recovered:
        """What must be found again at the next start; all of it is in the log or the small state already."""
        journal = self.journal
        return Recovered(
            start=journal.start,
            end=journal.durable_end,
            high_watermark=min(journal.high_watermark, journal.durable_end),
            promised=journal.promised,
            generation=journal.generation,
            version=journal.version,
            base_epoch=journal.history.base_epoch,
            runs=tuple(run for run in journal.history.runs if run[1] < journal.durable_end),
            unclean=journal.unclean,
            suspect=journal.suspect,
        )

    def view(self) -> dict[str, Any]:
        """What is shown of it."""
        journal, owner = self.journal, self.owner
        shown: dict[str, Any] = {
            "start": journal.start,
            "end": journal.end,
            "durable_end": journal.durable_end,
            "high_watermark": journal.high_watermark,
            "promised": journal.promised,
        }
        if owner is None:
            return {**shown, "part": "follower", **self.follower.view()}
        peers = {
            p.broker: {"link": p.link.value, "held": p.held, "behind": max(0, journal.end - p.held), "failures": p.failures, "why": p.why}
            for p in owner.peers.values()
        }
        part = {"part": owner.part.value, "epoch": owner.epoch, "reason": owner.reason}
        return {**shown, **part, "change_in_flight": owner.change is not None, "peers": peers}

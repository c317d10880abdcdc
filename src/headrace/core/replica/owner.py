"""The owner of a partition in one epoch: from the promise of the epoch to its end.

Owns the phases of its term, the sessions with the other copies, what is sent to whom, and the high watermark. ``term`` chooses what the epoch
begins with, ``insync`` the members, ``streaming`` the frames; this module calls them at the right time. Knows no disk, no clock and no coordinator.

O1 Its epoch is durable here before anybody hears of it. O2 Nothing is committed before the entry that starts its epoch is; then an entry is
committed once k members of the recorded configuration, and of the one in flight, hold it durably. O3 From before a change of the document is sent
until its outcome is known both count. O4 The high watermark moves for nothing while the partition is below its floor. O5 Whoever sees a later epoch
stops: what waits has an unknown outcome.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec.structs import replace

from headrace.core.replica import insync, term
from headrace.core.replica.change import Change, Wish, later
from headrace.core.replica.configuration import Configuration, committed, configuration, majority, recorded
from headrace.core.replica.effects import Alarm, AnyEffect, Begin, Changed, Committed, Confirmed, Outcome, Promise, Refusal, Unknown
from headrace.core.replica.journal import Journal
from headrace.core.replica.levels import Waiting
from headrace.core.replica.messages import State
from headrace.core.replica.peer import ISOLATION_MS, RETRY_MS, RETRY_MS_MAX, Link, Peer
from headrace.core.replica.streaming import Streaming
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.wire.frames import Level

HANDOVER_MS = 5_000
FAILURES_TOLD = 5
"""Failures of a follower in a row of which somebody is told."""


class Part(Enum):
    """The phases of a term, in their order."""

    PROMISING = "makes its epoch durable"
    COLLECTING = "waits for answers"
    FETCHING = "fetches what it lacks"
    STARTING = "waits until the start of its epoch is committed"
    SERVING = "serves"
    SEALED = "is handing over"
    STOPPED = "has stopped"


class Owner(Streaming):
    """See the module's head. ``out`` takes its effects; ``heard`` says when the last frame of each broker came, of whatever partition."""

    def __init__(
        self, me: BrokerId, document: Assignment, journal: Journal, heard: Mapping[BrokerId, int], links: Mapping[BrokerId, Incarnation],
        out: list[AnyEffect], *, numbers: list[int], now_ms: int,
    ) -> None:  # fmt: skip
        super().__init__(me, document.epoch, journal, out)
        self.document = document
        self.part = Part.PROMISING
        self.reason = ""
        self.change: Change | None = None
        """The change of the document that is in flight."""
        self.waiting = Waiting()
        self.started_ms = now_ms
        self.begun_at = 0
        """Index of the entry that starts this epoch, 0 = not appended yet."""
        self._heard = heard
        self._links = links
        self._numbers = numbers
        self._configurations: tuple[Configuration, ...] = (configuration(document),)
        self._view = insync.View(document, me, self.peers, heard)
        self._waited = False
        self._target: BrokerId | None = None
        self._sealed_ms = 0
        self._look_for_peers()
        journal.promising = document.epoch
        journal.generation, journal.version = document.generation, document.version
        out.append(Promise(document.epoch, document.generation, document.version))

    # ------------------------------------------------------------ the start of the epoch

    def promised(self, now_ms: int) -> None:
        """The epoch is durable here: now the others may hear of it."""
        if self.part is Part.PROMISING and self._journal.promised == self.epoch:
            self.part = Part.COLLECTING
            self.started_ms = now_ms
            for peer in self.peers.values():
                if peer.up:
                    self.ask(peer, now_ms)

    def _collect(self, now_ms: int) -> None:
        """Chooses what the epoch begins with, once there are enough answers."""
        journal = self._journal
        if not journal.settled:
            return
        self._waited = self._waited or now_ms >= self.started_ms + term.TAKEOVER_WAIT_MS
        if not term.enough(self.document, self.me, journal, self.peers, waited=self._waited):
            self.reason = f"waits for {', '.join(term.missing(self.document, self.me, self.peers)) or 'more replicas'}"
            return
        best = term.choose(self.document, self.me, journal, self.peers)
        if isinstance(best, str):
            if self.reason != best:
                self._out.append(Alarm(best))
            self.reason = best
            return
        if best.source == self.me:
            self._begin(best.high_watermark, now_ms)
            return
        self.part = Part.FETCHING
        self.reason = f"fetches from {best.source}"
        self.fetch_from(best)
        if 0 < best.at < journal.end:
            self._out.append(journal.cut(best.at, self.epoch))
        else:
            self.fetch(now_ms)

    def _fetched(self, now_ms: int) -> None:
        """Everything that the best answer named is durable here."""
        source = self.source
        if source is not None and self._journal.settled and self._journal.end >= source.end:
            self.source = None
            self._begin(source.high_watermark, now_ms)

    def _begin(self, high_watermark: int, now_ms: int) -> None:
        journal = self._journal
        if journal.commit(min(high_watermark, journal.end)):
            self._out.append(Committed(journal.high_watermark))
        self.part = Part.STARTING
        self.reason = ""
        self.begun_at = journal.end
        self._out.append(Begin(self.epoch, self.begun_at))
        self.appended(1, now_ms)
        for peer in self.peers.values():
            if peer.link is Link.KNOWN:
                self.align(peer, now_ms)

    # ------------------------------------------------------------ appending and waiting

    def refusal(self, level: int, now_ms: int) -> Refusal | None:
        """Why nothing may be appended at that level now; asked before anything is."""
        if self.part is Part.SEALED:
            return Refusal.MOVING
        if self.part is not Part.SERVING:
            return Refusal.NOT_OWNER if self.part is Part.STOPPED else Refusal.STARTING
        if level >= Level.MAJORITY and self.in_sync_count() < self.document.floor:
            return Refusal.BELOW_FLOOR
        return None

    def in_sync_count(self) -> int:
        """How many replicas are in sync: the isr, or those that follow where there is none."""
        document = self.document
        if document.level == "replica_durable":
            return len(document.isr) if not document.elr else min(len(document.isr), document.floor - 1)
        return 1 + sum(b != self.me and self.peers[b].link is Link.STREAMING for b in document.replicas)

    def appended(self, count: int, now_ms: int) -> None:
        """``count`` entries of this epoch are in the buffer of the log, at the end of the journal."""
        assert self.begun_at and self.part is not Part.STOPPED
        self._journal.appended(self.epoch, count)
        for peer in self.peers.values():
            if peer.owes_ms is None:
                peer.owes_ms = now_ms
        self.stirred = True

    def wait(self, level: int, end: int, token: int) -> None:
        """``token`` is to be confirmed once everything below ``end`` has reached ``level``."""
        self.waiting.add(level, end, token)
        self.stirred = True

    def ends(self) -> dict[int, int]:
        """How far each level has come, as exclusive ends. A level names what it promises, whatever the partition's own is."""
        journal, document = self._journal, self.document
        if self.part is Part.STOPPED:
            return dict.fromkeys(Level, 0)
        watermark = journal.high_watermark if self.part in (Part.SERVING, Part.SEALED) else 0
        replicas = replica = majority(document, self._held)
        if document.level == "replica_durable":
            replica = watermark
        elif document.level == "majority_durable":
            replicas = min(replicas, watermark)
            replica = min(self._held(b) for b in document.replicas)
        return {
            Level.NONE: journal.end,
            Level.ACCEPTED: journal.end,
            Level.LOCAL: journal.durable_end,
            Level.MAJORITY: replicas,
            Level.REPLICA: replica,
            Level.QUEUE: watermark,
        }

    # ------------------------------------------------------------ what comes in

    def durable(self, now_ms: int) -> None:
        """A flush has ended, or a cut or an install is durable."""
        self.stirred = True
        if self.part is Part.FETCHING:
            self.fetch(now_ms)

    def state(self, sender: BrokerId, message: State, now_ms: int) -> None:
        """A replica has promised the epoch and says what it holds."""
        peer = self.peers.get(sender)
        if peer is None or not self.answered(peer, message):
            return
        self.stirred = True
        if message.suspect or (sender in recorded(self.document) and message.end < peer.held):
            peer.suspect = True
        if self.begun_at:
            self.align(peer, now_ms)

    def connected(self, broker: BrokerId, incarnation: Incarnation, now_ms: int) -> None:
        """There is a new connection to that life of a broker."""
        peer = self.peers.get(broker)
        if peer is None:
            return
        if peer.up:
            self.disconnected(broker, now_ms)
        peer.up, peer.dead = True, False
        if self.part is not Part.PROMISING:
            self.ask(peer, now_ms)

    def disconnected(self, broker: BrokerId, now_ms: int) -> None:
        """Its connection broke: whatever was sent may be lost."""
        peer = self.peers.get(broker)
        if peer is None or not peer.up:
            return
        peer.up = False
        peer.reset = True
        peer.ended("its connection broke")
        self.stirred = True
        self._lost_source(broker)

    def _lost_source(self, broker: BrokerId) -> None:
        if self.source is not None and self.source.source == broker:
            self.source = None
            if self.part is Part.FETCHING:
                self.part = Part.COLLECTING

    def gap(self, sender: BrokerId, reason: str, now_ms: int) -> None:
        """What was sent does not follow on what it has: a new session."""
        peer = self.peers[sender]
        if peer.link in (Link.ABSENT, Link.ASKED):
            return
        peer.reset = peer.reset or peer.failures > 0
        peer.ended(reason)
        self._lost_source(sender)
        if peer.failures < 2:
            self.ask(peer, now_ms)
        else:  # not in a circle at the speed of the network
            peer.retry_at_ms = now_ms + min(RETRY_MS * peer.failures, RETRY_MS_MAX)
        if peer.failures == FAILURES_TOLD:
            self._out.append(Alarm(f"{sender} has failed {peer.failures} times in a row to follow: {reason}"))

    def quarantined(self, sender: BrokerId, reason: str, now_ms: int) -> None:
        """It takes nothing until it is repaired: it is asked now and then."""
        peer = self.peers[sender]
        peer.ended(reason)
        peer.link = Link.QUARANTINED
        peer.retry_at_ms = now_ms + RETRY_MS_MAX
        self.stirred = True
        self._lost_source(sender)

    # ------------------------------------------------------------ the document

    def recorded(self, document: Assignment, now_ms: int) -> None:
        """What is recorded now, from an answer or a watch."""
        mine = self.document
        if not later(document, mine.version, mine.generation):
            return
        if document.epoch != self.epoch or document.owner != self.me:
            self.stop(f"epoch {document.epoch} was given to {document.owner}: {document.reason}")
            return
        known = self._configurations
        self.document, self.change = document, None
        self._configurations = (configuration(document),)
        if self._configurations[0] not in known:
            # somebody else has changed the members: what was committed meanwhile under the old ones may be nowhere among the new ones
            self.stop("its members were changed by another")
            self._out.append(Alarm(f"the members of epoch {self.epoch} were changed by another, to version {document.version}"))
            return
        self._view.document = document
        self._look_for_peers()
        self.stirred = True
        for peer in self.peers.values():
            if peer.up and peer.link is Link.ABSENT and self.part is not Part.PROMISING:
                self.ask(peer, now_ms)
        if document.level != "local_durable" and self.in_sync_count() < document.floor:
            self._unknown(self.waiting.give_up(above=Level.LOCAL), Refusal.BELOW_FLOOR.value)
        self._out.append(Changed(self.part.value, self.epoch, document.reason))

    def _look_for_peers(self) -> None:
        wanted = [b for b in self.document.copies if b != self.me]
        for broker in wanted:
            if broker not in self.peers:
                self.peers[broker] = Peer(broker)
                self.peers[broker].up = broker in self._links
        for broker in [b for b in self.peers if b not in wanted]:
            del self.peers[broker]

    def swapped(self, number: int, outcome: Outcome, document: Assignment | None, now_ms: int) -> None:
        """What became of a change."""
        change = self.change
        if change is None or not change.concerns(number):
            if document is not None:
                self.recorded(document, now_ms)
            return
        known = change.answered(outcome, document, now_ms)
        if known is not None:
            self.recorded(known, now_ms)

    def _propose(self, document: Assignment, now_ms: int) -> None:
        self.change = Change(document, self.document.version)
        self._configurations = (configuration(self.document), configuration(document))
        self._out.append(self.change.send(self._number(), now_ms))

    def _number(self) -> int:
        self._numbers[0] += 1
        return self._numbers[0]

    def wish(self, wish: Wish) -> None:
        """What the settings ask for now."""
        self._view.wish = wish
        self.stirred = True

    # ------------------------------------------------------------ handing over

    def hand_over(self, target: BrokerId, now_ms: int) -> bool:
        """Begins to give the partition to a follower: nothing more is appended; once the follower holds everything and everything is committed it
        is made the owner of the next epoch. Whether that is possible."""
        peer = self.peers.get(target)
        document = self.document
        able = target in (document.isr if document.level == "replica_durable" else document.replicas) and document.level != "local_durable"
        if self.part is not Part.SERVING or peer is None or not able or peer.link is not Link.STREAMING or peer.draining or peer.suspect:
            return False
        self.part, self._target, self._sealed_ms = Part.SEALED, target, now_ms
        self.stirred = True
        return True

    def _hand_over(self, now_ms: int) -> None:
        target = self._target
        assert target is not None
        if self.change is not None:
            return
        peer, journal, document = self.peers.get(target), self._journal, self.document
        if peer is None or not peer.up or peer.link is not Link.STREAMING or now_ms >= self._sealed_ms + HANDOVER_MS:
            self.part, self._target = Part.SERVING, None
            self._out.append(Changed(self.part.value, self.epoch, f"{target} could not take it over"))
        elif peer.held == journal.end == journal.high_watermark and self._view_now().in_sync(target):
            reason = f"handed over by {self.me}"
            given = replace(
                document, version=document.version + 1, epoch=document.epoch + 1, owner=target, incarnation=peer.incarnation, reason=reason
            )
            self._propose(given, now_ms)

    # ------------------------------------------------------------ each turn

    def step(self, now_ms: int) -> None:
        """Does what time and what came in since make possible."""
        if self.part is Part.STOPPED or self.part is Part.PROMISING:
            return
        if self.part is Part.COLLECTING:
            self._collect(now_ms)
        if self.part is Part.FETCHING:
            self._fetched(now_ms)
            self.fetch_again(now_ms)
        self.ask_again(now_ms)
        if not self.begun_at:
            return
        if self.change is not None and now_ms >= self.change.due_ms:
            self._out.append(self.change.send(self._number(), now_ms))
        self._commit()
        self._trust_again()
        if self.change is None:
            wanted = insync.proposal(self._view_now(), now_ms)
            if wanted is not None:
                self._propose(wanted, now_ms)
        if self.part is Part.SEALED:
            self._hand_over(now_ms)
        self.stream(now_ms)
        if len(self.waiting):
            done = self.waiting.reached(self.ends())
            if done:
                self._out.append(Confirmed(done))
        self.stirred = False

    def _commit(self) -> None:
        """Moves the high watermark as far as everything that must hold it does."""
        end = committed(self._configurations, self._held)
        if end <= self.begun_at:
            return
        if self._journal.commit(end):
            self._out.append(Committed(self._journal.high_watermark))
        if self.part is Part.STARTING:
            self.part = Part.SERVING
            self._journal.unclean = self._journal.suspect = False
            self._out.append(Changed(self.part.value, self.epoch, f"its epoch is committed at {self.begun_at}"))

    def _trust_again(self) -> None:
        """Who had lost something and is no member any more may come in again, once it holds everything."""
        for broker, peer in self.peers.items():
            if peer.suspect and peer.link is Link.STREAMING and peer.held >= self._bar():
                peer.suspect = self.document.level == "replica_durable" and broker in recorded(self.document)

    def _held(self, broker: BrokerId) -> int:
        if broker == self.me:
            return self._journal.durable_end
        peer = self.peers.get(broker)
        return peer.held if peer is not None else 0

    def _bar(self) -> int:
        return max(self._journal.high_watermark, self.begun_at + 1)

    def _view_now(self) -> insync.View:
        view = self._view
        view.end, view.held_here, view.bar = self._journal.end, self._journal.durable_end, self._bar()
        return view

    def missed(self, now_ms: int) -> list[BrokerId]:
        """The members that have not been heard for a second, in its own epoch, if without them no quorum is left; [] otherwise. While there are some
        nothing is delivered, leased or assigned."""
        members, k = self.document.members, self.document.k
        silent = [b for b in members if b != self.me and not self._hears(self.peers[b], now_ms)]
        return silent if len(members) - len(silent) < k else []

    def _hears(self, peer: Peer, now_ms: int) -> bool:
        return bool(peer.incarnation) and now_ms - self._heard.get(peer.broker, -ISOLATION_MS) < ISOLATION_MS

    # ------------------------------------------------------------ the end

    def stop(self, reason: str) -> None:
        """The epoch is over for this owner."""
        if self.part is Part.STOPPED:
            return
        self.part, self.reason = Part.STOPPED, reason
        self.change = None
        self._unknown(self.waiting.give_up(above=-1), reason)
        self._out.append(Changed(self.part.value, self.epoch, reason))

    def _unknown(self, tokens: list[int], reason: str) -> None:
        if tokens:
            self._out.append(Unknown(tokens, reason))

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When ``step`` must be called at the latest."""
        due: list[int] = []
        if self.part in (Part.PROMISING, Part.STOPPED):
            return None
        if self.part is Part.COLLECTING and not self._waited:
            due.append(self.started_ms + term.TAKEOVER_WAIT_MS)
        retry = self.retry_deadline_ms()
        if retry is not None:
            due.append(retry)
        if self.begun_at:
            if self.change is not None:
                due.append(self.change.due_ms)
            else:
                at = insync.deadline_ms(self._view_now(), now_ms)
                if at is not None:
                    due.append(at)
            if self.part is Part.SEALED:
                due.append(max(self._sealed_ms + HANDOVER_MS, now_ms + RETRY_MS))
        return min(due) if due else None

    def check(self) -> None:
        """Asserts the invariants."""
        journal = self._journal
        journal.check()
        if self.part is Part.STOPPED:
            return
        assert self.part is Part.PROMISING or self.epoch <= journal.promised
        assert self.change is None or len(self._configurations) == 2
        assert not self.begun_at or self.begun_at < journal.end
        assert self.part not in (Part.SERVING, Part.SEALED) or journal.high_watermark > self.begun_at
        for peer in self.peers.values():
            assert peer.held <= journal.end

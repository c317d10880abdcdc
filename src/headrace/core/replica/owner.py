"""The owner of a partition in one epoch: from the promise of the epoch to its end.

Owns the phases of its term, the sessions with the other copies, what is sent to whom, and the high watermark. ``term`` chooses what the epoch
begins with, ``insync`` the members, ``streaming`` the frames; this module calls them at the right time. Knows no disk, no clock and no coordinator.

O1 Its epoch is durable here before anybody hears of it. O2 Nothing is committed before the entry that starts its epoch is; then an entry is
committed once k members of the recorded configuration, and of the one in flight, hold it durably. O3 From before a change of the document is sent
until its outcome is known both count. O4 The high watermark moves for nothing while the partition is below its floor. O5 Whoever sees a later epoch
stops: what waits has an unknown outcome.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from headrace.core.replica import insync, term
from headrace.core.replica.change import Change, Wish, later
from headrace.core.replica.configuration import Configuration, committed, configuration, majority, recorded
from headrace.core.replica.effects import Alarm, AnyEffect, Changed, Committed, Confirmed, Outcome, Promise, Refusal, Unknown
from headrace.core.replica.journal import Journal
from headrace.core.replica.levels import Waiting
from headrace.core.replica.opening import Opening, Part
from headrace.core.replica.peer import ISOLATION_MS, RETRY_MS, Known, Link, Peer
from headrace.model.cluster import Assignment, BrokerId
from headrace.wire.frames import Level

HANDOVER_MS = 5_000
LOOK_MS = 50
"""So often at most a busy owner looks whether silence has put somebody out of sync."""


class Owner(Opening):
    """See the module's head. ``out`` takes its effects; ``heard`` says when the last frame of each broker came, of whatever partition, ``sure`` when
    it certainly ran: what had lain in a buffer while this broker stood still does not count there."""

    def __init__(
        self, me: BrokerId, document: Assignment, journal: Journal, heard: Mapping[BrokerId, int], known: Known,
        out: list[AnyEffect], *, sure: Mapping[BrokerId, int], numbers: list[int], now_ms: int,
    ) -> None:  # fmt: skip
        super().__init__(me, document, journal, known, out, now_ms=now_ms)
        self.change: Change | None = None
        """The change of the document that is in flight."""
        self.waiting = Waiting()
        self._sure = sure
        self._numbers = numbers
        self._configurations: tuple[Configuration, ...] = (configuration(document),)
        self._view = insync.View(document, me, self.peers, heard)
        self._look_ms = 0
        self._target: BrokerId | None = None
        self._sealed_ms = 0
        journal.promising = document.epoch
        journal.generation, journal.version = document.generation, document.version
        out.append(Promise(document.epoch, document.generation, document.version))

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
        self._view.needed = False
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
        if self.part is not Part.STOPPED:
            self._tell_slow(now_ms)
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
        if self.change is None and (now_ms >= self._look_ms or self._unsettled()):
            self._look_ms = now_ms + LOOK_MS
            self._trust_again()
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

    def _unsettled(self) -> bool:
        """Whether members may change for other reasons than time."""
        document, wish = self.document, self._view.wish
        if document.learners or document.leaving or document.elr:
            return True
        if document.level == "replica_durable" and len(document.isr) < len(document.replicas):
            return True
        if wish is not None and (wish.level, wish.floor) != (document.level, document.floor):
            return True
        return any(peer.reset or peer.suspect or peer.dead or peer.link is Link.QUARANTINED for peer in self.peers.values())

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

    def delivers(self, now_ms: int) -> bool:
        """Whether enough members are heard to deliver, lease and assign; asked when there is something to. Who is not heard then is taken out of the
        isr, though it owes nothing: what waits for it would wait for ever."""
        self._view.needed = bool(self.missed(now_ms))
        return not self._view.needed

    @property
    def withheld(self) -> bool:
        """Whether something waits to be delivered that must not be before enough members are heard, or leave the isr."""
        return self._view.needed

    def _hears(self, peer: Peer, now_ms: int) -> bool:
        return bool(peer.incarnation) and now_ms - self._sure.get(peer.broker, -ISOLATION_MS) < ISOLATION_MS

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
        if self.part is Part.STOPPED:
            return None
        due: list[int] = [self._slow_at_ms] if self._slow_at_ms is not None and not self.begun_at else []
        if self.part is Part.PROMISING:
            return due[0] if due else None
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
                    due.append(max(at, self._look_ms))
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

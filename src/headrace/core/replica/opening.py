"""An owner until its epoch has begun: it promises, hears what the others hold, fetches what it lacks, appends the start of the epoch; and who comes
and goes.

Owns the phases up to there and the beginnings and ends of sessions. ``term`` chooses the journal to go on with. Knows nothing of commits.
"""

from enum import Enum

from headrace.core.replica import term
from headrace.core.replica.configuration import recorded
from headrace.core.replica.effects import Alarm, AnyEffect, Begin, Committed
from headrace.core.replica.journal import Journal
from headrace.core.replica.messages import State
from headrace.core.replica.peer import RETRY_MS, RETRY_MS_MAX, Known, Link, Peer
from headrace.core.replica.streaming import Streaming
from headrace.model.cluster import Assignment, BrokerId, Incarnation

SLOW_MS = 10_000
"""After so long somebody is told that an epoch has not begun."""


class Part(Enum):
    """The phases of a term, in their order."""

    PROMISING = "makes its epoch durable"
    COLLECTING = "waits for answers"
    FETCHING = "fetches what it lacks"
    STARTING = "waits until the start of its epoch is committed"
    SERVING = "serves"
    SEALED = "is handing over"
    STOPPED = "has stopped"


class Opening(Streaming):
    """See the module's head."""

    def __init__(self, me: BrokerId, document: Assignment, journal: Journal, known: Known, out: list[AnyEffect], *, now_ms: int) -> None:
        super().__init__(me, document.epoch, journal, out)
        self.document = document
        self.part = Part.PROMISING
        self.reason = ""
        self.started_ms = now_ms
        self.begun_at = 0
        """Index of the entry that starts this epoch, 0 = not appended yet."""
        self._known = known
        self._waited = False
        self._slow_at_ms: int | None = now_ms + SLOW_MS
        """When somebody is told that the epoch has not begun; None: it has, or that was told."""
        self._look_for_peers()

    def _look_for_peers(self) -> None:
        wanted = [b for b in self.document.copies if b != self.me]
        for broker in wanted:
            if broker not in self.peers:
                peer = self.peers[broker] = Peer(broker)
                peer.up = broker in self._known.links
                peer.dead, peer.draining = broker in self._known.dead, broker in self._known.draining
        for broker in [b for b in self.peers if b not in wanted]:
            del self.peers[broker]

    # ------------------------------------------------------------ the start of the epoch

    def _tell_slow(self, now_ms: int) -> None:
        """Says once what an epoch that does not begin waits for."""
        if self._slow_at_ms is None or now_ms < self._slow_at_ms:
            return
        self._slow_at_ms = None
        if not self.begun_at:
            links = ", ".join(f"{peer.broker} {peer.link.value}" for peer in self.peers.values())
            why = f" ({self.reason})" if self.reason else ""
            text = f"epoch {self.epoch} has not begun for {SLOW_MS // 1000} s: its owner {self.part.value}{why}; {links or 'there is no other copy'}"
            self._out.append(Alarm(text, mends=True))

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
        """Everything that the best answer named is durable here. If it has to be installed first, what is here is of another history."""
        source = self.source
        if source is not None and source.at and self._journal.settled and self._journal.end >= source.end:
            self.source = None
            self._begin(source.high_watermark, now_ms)

    def _begin(self, high_watermark: int, now_ms: int) -> None:
        journal = self._journal
        if journal.commit(min(max(high_watermark, self._decreed()), journal.end)):
            self._out.append(Committed(journal.high_watermark))
        self.part = Part.STARTING
        self.reason = ""
        self.begun_at = journal.end
        self._out.append(Begin(self.epoch, self.begun_at))
        self.appended(1, now_ms)
        for peer in self.peers.values():
            if peer.link is Link.KNOWN:
                self.align(peer, now_ms)

    def _decreed(self) -> int:
        """Exclusive end of what the last forced election has kept: an operator's word commits it, whatever the floor; 0 = there was none."""
        last, journal = self.document.forced[-1] if self.document.forced else None, self._journal
        if last is None or last.epoch > self.epoch or last.base >= journal.end or journal.history.epoch_at(last.base) != last.base_epoch:
            return 0
        return last.base + 1

    def appended(self, count: int, now_ms: int) -> None:
        """``count`` entries of this epoch are in the buffer of the log, at the end of the journal."""
        assert self.begun_at and self.part is not Part.STOPPED
        self._journal.appended(self.epoch, count)
        for peer in self.peers.values():
            if peer.owes_ms is None:
                peer.owes_ms = now_ms
        self.stirred = True

    # ------------------------------------------------------------ who comes and goes

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
        self.failed(peer, "its connection broke")
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
        self.failed(peer, reason)
        self._lost_source(sender)
        if peer.failures < 2:
            self.ask(peer, now_ms)
        else:  # not in a circle at the speed of the network
            peer.retry_at_ms = now_ms + min(RETRY_MS * peer.failures, RETRY_MS_MAX)

    def quarantined(self, sender: BrokerId, reason: str, now_ms: int) -> None:
        """It takes nothing until it is repaired: it is asked now and then."""
        peer = self.peers[sender]
        peer.ended(reason)
        peer.link = Link.QUARANTINED
        peer.retry_at_ms = now_ms + RETRY_MS_MAX
        self.stirred = True
        self._lost_source(sender)

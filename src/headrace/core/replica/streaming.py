"""An owner's sessions with the other copies: asking, aligning, sending entries as soon as they are appended, fetching what the owner lacks itself.

Owns what was sent to whom and the numbers of the sessions. Knows no members: learners are served as in-sync replicas are. Sends ranges; the driver
adds the entries.

S1 What a replica says counts only in the session that it answers. S2 Nothing is sent before the replica has said what it holds and agreed where it
follows on. S3 At most a window of entries is sent and not acknowledged. S4 A replica that ends below the start of the journal gets a checkpoint.
"""

from headrace.core.replica.effects import Alarm, AnyEffect, Send, Stream, Transfer
from headrace.core.replica.epochs import sound
from headrace.core.replica.follower import checked_install
from headrace.core.replica.journal import Journal
from headrace.core.replica.messages import Align, Append, Fetch, Fetched, Install, NewEpoch, State
from headrace.core.replica.peer import RETRY_MS, RETRY_MS_MAX, SILENCE_MS, Link, Pace, Peer
from headrace.core.replica.term import Best, history_of
from headrace.model.cluster import BrokerId

FETCH_MS = 1_000
FAILURES_TOLD = 5
"""Failures of a follower in a row of which somebody is told."""


class Streaming:
    """See the module's head. The part of an owner that talks."""

    def __init__(self, me: BrokerId, epoch: int, journal: Journal, out: list[AnyEffect]) -> None:
        self.me = me
        self.epoch = epoch
        self.peers: dict[BrokerId, Peer] = {}
        self.source: Best | None = None
        """Whom the owner fetches from."""
        self.pace = Pace()
        self.stirred = False
        """Something came in since the last ``step``."""
        self._journal = journal
        self._out = out
        self._sessions = 0
        self._fetch_at_ms = 0
        self._fetch_first = 0

    # ------------------------------------------------------------ beginning a session

    def ask(self, peer: Peer, now_ms: int) -> None:
        """Begins a session, or asks again in the one that was begun."""
        if peer.link is not Link.ASKED:
            self._sessions += 1  # never one that a broker was in before it left the copies
            peer.session = self._sessions
            peer.retry_ms = RETRY_MS
            peer.link = Link.ASKED
        peer.retry_at_ms = now_ms + peer.retry_ms
        peer.retry_ms = min(2 * peer.retry_ms, RETRY_MS_MAX)
        self._out.append(Send(peer.broker, NewEpoch(epoch=self.epoch, session=peer.session)))

    def failed(self, peer: Peer, why: str) -> None:
        """The session with it is over; after some in a row that ended before it followed somebody is told."""
        before = peer.failures
        peer.ended(why)
        if before < peer.failures == FAILURES_TOLD:
            self._out.append(Alarm(f"{peer.broker} has failed {peer.failures} times in a row to follow: {why}", mends=True))

    def ask_again(self, now_ms: int) -> None:
        """Repeats what was not answered in time: messages may be lost on a connection that stands."""
        for peer in self.peers.values():
            if peer.retry_at_ms is not None and now_ms >= peer.retry_at_ms and peer.up:
                if peer.link not in (Link.ASKED, Link.ABSENT, Link.QUARANTINED):
                    self.failed(peer, "it does not answer")
                self.ask(peer, now_ms)

    def answered(self, peer: Peer, message: State) -> bool:
        """Whether the answer is one that is waited for, and can be believed."""
        if message.session != peer.session or peer.link not in (Link.ASKED, Link.INSTALLING):
            return False
        if peer.answer is not None and message.end <= peer.answer.end:
            return False  # said before the install
        whole = message.history_start >= message.start and message.start <= message.high_watermark <= message.end
        if not whole or not sound(message.runs, start=message.history_start, base_epoch=message.base_epoch, end=message.end):
            self._out.append(Alarm(f"{peer.broker} says what cannot be: it holds [{message.start}, {message.end})"))
            return False
        if (message.runs[-1][0] if message.runs else message.base_epoch) > self.epoch:
            self._out.append(Alarm(f"{peer.broker} holds entries of an epoch after {self.epoch}"))
            return False
        peer.answer = message
        peer.incarnation = message.incarnation  # type: ignore[assignment]
        peer.link = Link.KNOWN
        peer.retry_at_ms = None
        return True

    def align(self, peer: Peer, now_ms: int) -> None:
        """Says where the follower's journal and this one part, or sends a checkpoint."""
        answer, journal = peer.answer, self._journal
        assert answer is not None
        at = journal.history.divergence(journal.end, history_of(answer), answer.end)
        if at is None or at < journal.start:
            peer.link = Link.INSTALLING
            peer.retry_at_ms = now_ms + RETRY_MS_MAX
            self._out.append(Transfer(peer.broker, self.epoch, peer.session, answer.high_watermark - 1))
            return
        peer.held = at  # all that it has said is durable there, and only this epoch may cut it now
        peer.sent_end = at
        peer.told_watermark = 0
        peer.owes_ms = now_ms
        align = Align(epoch=self.epoch, session=peer.session, at=at, end=answer.end, previous_epoch=journal.history.epoch_at(at - 1))
        self._out.append(Send(peer.broker, align))
        peer.link = Link.ALIGNING if at < answer.end else Link.STREAMING
        peer.retry_at_ms = now_ms + RETRY_MS_MAX

    # ------------------------------------------------------------ sending

    def acknowledged(self, peer: Peer, session: int, end: int, now_ms: int) -> None:
        """One cumulative acknowledgement: everything below ``end`` is durable there."""
        if session != peer.session or peer.link not in (Link.ALIGNING, Link.STREAMING) or end > peer.sent_end:
            return
        peer.link = Link.STREAMING
        peer.reset = False
        peer.failures = 0
        peer.why = ""
        peer.acknowledged(end, self._journal.end, now_ms)
        peer.retry_at_ms = None if end >= peer.sent_end else now_ms + RETRY_MS_MAX
        self.stirred = True

    def stream(self, now_ms: int) -> None:
        """Sends to each follower what it has not been sent, as far as its window goes, or the high watermark alone."""
        journal = self._journal
        end, watermark = journal.end, journal.high_watermark
        for peer in self.peers.values():
            if peer.link is not Link.STREAMING or not peer.up or (peer.sent_end == end and peer.told_watermark == watermark):
                continue
            if peer.sent_end < journal.start:
                self.failed(peer, "it lags behind the start of the journal")
                self.ask(peer, now_ms)
                continue
            limit = min(end, peer.held + self.pace.window)
            if peer.retry_at_ms is None and peer.held < limit:
                peer.retry_at_ms = now_ms + RETRY_MS_MAX
            while peer.sent_end < limit or peer.told_watermark < watermark:
                first, stop = peer.sent_end, min(limit, peer.sent_end + self.pace.append)
                peer.sent_end = max(first, stop)
                peer.told_watermark = watermark
                self._out.append(Stream(peer.broker, self._append(first, peer)))

    def _append(self, first: int, peer: Peer) -> Append:
        history, end = self._journal.history, peer.sent_end
        return Append(
            epoch=self.epoch,
            session=peer.session,
            first=first,
            count=end - first,
            previous_epoch=history.epoch_at(first - 1),
            runs=history.between(first, end),
            high_watermark=self._journal.high_watermark,
        )

    def sent_less(self, broker: BrokerId, session: int, end: int) -> None:
        """The driver could send only what lies below ``end`` of the last range."""
        peer = self.peers.get(broker)
        if peer is not None and peer.session == session and end < peer.sent_end:
            peer.sent_end = max(end, peer.held)
            self.stirred = True

    # ------------------------------------------------------------ fetching

    def fetch_from(self, best: Best) -> None:
        self.source = best
        self._fetch_first = 0

    def fetch(self, now_ms: int) -> None:
        """Asks the source for what comes next."""
        best, journal = self.source, self._journal
        if best is None or journal.busy or (best.at and journal.end >= best.end):
            return
        first = journal.end if best.at else 1
        if first == self._fetch_first and now_ms < self._fetch_at_ms:
            return
        self._fetch_at_ms, self._fetch_first = now_ms + FETCH_MS, first
        self._out.append(
            Send(
                best.source,
                Fetch(
                    epoch=self.epoch,
                    session=self.peers[best.source].session,
                    first=first,
                    end=best.end,
                    previous_epoch=journal.history.epoch_at(first - 1),
                ),
            )
        )

    def fetch_again(self, now_ms: int) -> None:
        """The answer may be lost."""
        if self.source is not None and now_ms >= self._fetch_at_ms:
            self.fetch(now_ms)

    def _from_source(self, sender: BrokerId, session: int) -> Best | None:
        best = self.source
        if best is None or best.source != sender or self.peers[sender].session != session or self._journal.busy:
            return None
        return best

    def fetched(self, sender: BrokerId, message: Fetched, now_ms: int) -> None:
        """Some of what was asked for."""
        best, journal = self._from_source(sender, message.session), self._journal
        if best is None or not best.at or message.first != journal.end or message.count != len(message.entries) or message.count < 1:
            return
        end = message.first + message.count
        fits = sound(message.runs, start=message.first, base_epoch=journal.last_epoch, end=end)
        if end > best.end or not fits or message.runs[-1][0] >= self.epoch:
            return
        self._out.append(journal.store(message.runs, message.count, message.entries))
        self.fetch(now_ms)

    def offered(self, sender: BrokerId, session: int, end: int) -> bool:
        """The source does not have in its log any more what comes next, and offers a checkpoint up to ``end``: whether it is taken."""
        best = self._from_source(sender, session)
        if best is not None and best.at and end > self._journal.end:  # it has moved on since it said what it holds
            best = self.source = Best(best.source, best.end, 0, best.high_watermark)
        return best is not None and not best.at

    def take_install(self, sender: BrokerId, message: Install) -> None:
        """A checkpoint, as the source's journal starts above the end of this one."""
        best = self._from_source(sender, message.session)
        if best is None or best.at:
            return
        stage = checked_install(self._journal, message)
        if isinstance(stage, str):
            self._out.append(Alarm(stage))
        else:
            self.source = Best(best.source, best.end, stage.end, best.high_watermark)
            self._out.append(self._journal.stage(stage))

    def retry_deadline_ms(self) -> int | None:
        """When something must be repeated."""
        due = [peer.retry_at_ms for peer in self.peers.values() if peer.retry_at_ms is not None and peer.up]
        if self.source is not None:
            due.append(self._fetch_at_ms)
        return min(due) if due else None


assert SILENCE_MS > RETRY_MS

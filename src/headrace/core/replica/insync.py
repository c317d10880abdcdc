"""Which change of members the owner wants next: out with who does not keep up, in with who holds everything, what the controller and the settings
ask for.

Owns the choice, as a function of what is recorded and what the peers hold. Sends nothing. One change at a time.

N1 A change of members is proposed only once k' of the new members hold durably everything below the high watermark and the start of this epoch
(what lies below that may have been committed in an earlier one). Taking members out of an isr needs no proof: those that stay hold all that is
committed. N2 Only a replica that follows in this session, in its current life, not draining and not suspect, comes in. N3 The owner stays a member.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from headrace.core.replica.change import Wish
from headrace.core.replica.configuration import configuration, only_fewer
from headrace.core.replica.peer import REPLICA_LAG_TIME_MS, SILENCE_MS, Link, Peer
from headrace.model.cluster import Assignment, BrokerId, contradictions, with_isr, with_learner_promoted, without_replica


class View:
    """What a choice is made from."""

    __slots__ = ("bar", "document", "end", "heard", "held_here", "me", "needed", "peers", "wish")

    def __init__(self, document: Assignment, me: BrokerId, peers: Mapping[BrokerId, Peer], heard: Mapping[BrokerId, int]) -> None:
        self.document = document
        self.me = me
        self.peers = peers
        self.heard = heard
        self.wish: Wish | None = None
        self.needed = False
        """Something waits that may not be delivered before enough members were heard."""
        self.end = self.held_here = 0
        """The owner's own end, and what of it is durable."""
        self.bar = 0
        """Exclusive end of what a new member must hold: the high watermark, or the end of the epoch's start, if that is higher."""

    def held(self, broker: BrokerId) -> int:
        if broker == self.me:
            return self.held_here
        peer = self.peers.get(broker)
        return peer.held if peer is not None else 0

    def in_sync(self, broker: BrokerId) -> bool:
        """Whether a replica may come in (N2)."""
        if broker == self.me:
            return self.held_here >= self.bar
        peer = self.peers.get(broker)
        return peer is not None and peer.link is Link.STREAMING and peer.up and not (peer.draining or peer.suspect) and peer.held >= self.bar


def proposal(view: View, now_ms: int) -> Assignment | None:
    """The next change; None if nothing is to be changed, or not yet."""
    for wanted in (_without_laggards(view, now_ms), _without_leaving(view), _grown(view), _altered(view)):
        if wanted is not None and provable(view, wanted) and not contradictions(wanted):
            return wanted
    return None


def provable(view: View, wanted: Assignment) -> bool:
    """N1."""
    return only_fewer(view.document, wanted) or configuration(wanted).held(view.held) >= view.bar


def _next(document: Assignment, reason: str) -> Assignment:
    return replace(document, version=document.version + 1, reason=reason[:1000])


def _without_laggards(view: View, now_ms: int) -> Assignment | None:
    document = view.document
    if document.level != "replica_durable":
        return None
    gone = {b: why for b in document.isr if b != view.me and (why := laggard(view, view.peers[b], now_ms))}
    lost = {b: "has lost what it acknowledged" for b in document.elr if b != view.me and view.peers[b].suspect}
    if not gone and not lost:
        return None
    fewer = with_isr(document, [b for b in document.isr if b not in gone])
    fewer = replace(fewer, elr=tuple(b for b in fewer.elr if not view.peers[b].suspect))  # who has lost something may not be elected
    return _next(fewer, "out of the isr and the elr: " + "; ".join(f"{b} {why}" for b, why in {**gone, **lost}.items()))


def laggard(view: View, peer: Peer, now_ms: int) -> str:
    """Why a member of the isr must leave it, "" if it need not."""
    if peer.suspect:
        return "has lost what it acknowledged, or was cut off by damage"
    if peer.link is Link.QUARANTINED:
        return "is quarantined"
    if peer.measure(view.end, now_ms):
        return "answers but lags"
    owes = peer.owes_ms is not None or peer.held < view.end
    if not owes and not view.needed:
        return ""  # an idle partition costs nothing
    if peer.dead:
        return "is dead"
    what = "owes an acknowledgement" if owes else "is needed for a delivery"
    if owes and peer.reset:
        return f"{what} and its session is over ({peer.why})"
    silent = now_ms - max(peer.owes_ms or 0, view.heard.get(peer.broker, 0))
    return f"{what} and was not heard for {silent} ms" if silent >= SILENCE_MS else ""


def _without_leaving(view: View) -> Assignment | None:
    document = view.document
    if document.learners:
        return None  # who is to take their place comes in first
    for broker in document.leaving:
        if broker != view.me and broker not in document.elr:
            wanted = without_replica(document, broker)
            left = wanted.isr if document.level == "replica_durable" else wanted.replicas
            if len(left) >= document.floor and provable(view, wanted):
                return _next(wanted, f"{broker} leaves, as planned")
    return None


def _grown(view: View) -> Assignment | None:
    document = view.document
    for broker in document.learners:
        if view.in_sync(broker):
            return _next(with_learner_promoted(document, broker), f"{broker} holds everything and becomes a replica")
    if document.level != "replica_durable":
        return None
    back = [b for b in document.replicas if b not in document.isr and view.in_sync(b) and (b not in document.leaving or document.below_floor)]
    return _next(with_isr(document, [*document.isr, *back]), f"in sync again: {', '.join(back)}") if back else None


def _altered(view: View) -> Assignment | None:
    document, wish = view.document, view.wish
    if wish is None or (wish.level, wish.floor) == (document.level, document.floor):
        return None
    if wish.level == document.level:
        altered = replace(document, floor=wish.floor)
        return _next(with_isr(altered, document.isr) if wish.level == "replica_durable" else altered, f"the floor is {wish.floor} now")
    if wish.level == "replica_durable":
        isr = tuple(b for b in document.replicas if view.in_sync(b))
        if view.me not in isr:
            return None
        altered = replace(document, level="replica_durable", floor=wish.floor, isr=isr, elr=())
    elif wish.level == "majority_durable":
        altered = replace(document, level="majority_durable", floor=wish.floor, isr=(), elr=())
    else:
        altered = replace(document, level="local_durable", floor=wish.floor, isr=(), elr=())
    return _next(altered, f"the level is {wish.level} now")


def deadline_ms(view: View, now_ms: int) -> int | None:
    """When time alone may make a change necessary."""
    document = view.document
    if document.level != "replica_durable":
        return None
    due: int | None = None
    for broker in document.isr:
        peer = view.peers.get(broker)
        if peer is not None and broker != view.me and (peer.owes_ms is not None or peer.held < view.end):
            at = max(peer.owes_ms or 0, view.heard.get(broker, 0)) + SILENCE_MS
            if peer.goal and at <= now_ms:
                at = peer.goal_ms + REPLICA_LAG_TIME_MS
            due = at if due is None or at < due else due
    return None if due is None else max(due, now_ms + 1)

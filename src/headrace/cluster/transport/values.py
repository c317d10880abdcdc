"""What goes into the transport and comes out of it: who this broker is, whom it knows, what happened, what it looks like."""

from typing import Literal, Protocol

import msgspec

from headrace.cluster.transport.counters import Counters
from headrace.cluster.transport.link import Lost
from headrace.cluster.transport.remote import Remote
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.wire.peer import Introduction


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """This broker, as it introduces itself."""

    broker: BrokerId
    incarnation: Incarnation
    cluster: str = ""
    release: str = ""


class Known(msgspec.Struct, frozen=True):
    """Another broker of the cluster, as registered."""

    address: Address
    incarnation: Incarnation = Incarnation("")


class Watcher(Protocol):
    """Who is told of connections. Called from within the loop, never from within ``send``."""

    def connected(self, peer: BrokerId, who: Introduction) -> None: ...

    def lost(self, peer: BrokerId, why: Lost) -> None: ...

    def full(self, peer: BrokerId) -> None:
        """Batches to it are refused until ``drained``."""

    def drained(self, peer: BrokerId) -> None: ...


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at an address. ``outcome``: "answered" (``who`` has proven itself), "refused" (the machine is there, nobody listens), "rejected"
    (somebody listens and will not be spoken with, or is not who was meant), "silent"."""

    outcome: Literal["answered", "refused", "rejected", "silent"]
    who: Introduction | None = None
    keys: frozenset[bytes] = frozenset()
    """Ids of the secrets that the two sides use now."""
    text: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One peer, for status and metrics; milliseconds ago, -1 = never."""

    broker: BrokerId
    address: str
    connected: bool
    incarnation: Incarnation
    release: str
    heard_ago_ms: int
    answered_ago_ms: int
    round_trip_ms: int
    queued_bytes: int
    requests_waiting: int
    full: bool
    trouble: str
    counters: Counters


def view(remote: Remote, now_ms: int) -> View:
    """``remote`` as it is now."""
    link = remote.link
    return View(
        broker=remote.id,
        address=str(remote.address or ""),
        connected=link is not None,
        incarnation=remote.incarnation,
        release="" if remote.who is None else remote.who.release,
        heard_ago_ms=now_ms - remote.heard_ms if remote.heard_ms else -1,
        answered_ago_ms=now_ms - remote.answered_ms if remote.answered_ms else -1,
        round_trip_ms=0 if link is None else link.round_trip_ms,
        queued_bytes=0 if link is None else link.queued_bytes,
        requests_waiting=len(remote.calls),
        full=link is not None and link.full,
        trouble=remote.trouble,
        counters=remote.counters,
    )

"""Visits: connections between brokers that may be of no cluster yet, or of two, for what they have to say about that.

A peer's connection is one a pair, between ids, within one cluster. Who forms a cluster has names and addresses only, so whoever has something to say
pays a visit to an address: authenticated like every connection, naming no cluster, with frames of one service (``Service.FORMATION``) both ways.

Owns which visits are open, and their bound. Does not know what is said.

I1 ``ended`` follows every visit that ``Transport.visit`` gave or ``came`` told of, once. I2 a visit never becomes a peer's connection, nor stands in
the way of one.
"""

from __future__ import annotations

from typing import Final, Protocol

from headrace.cluster.transport.link import Link, Lost
from headrace.model import limits
from headrace.model.errors import Draining, LimitExceeded, Malformed, NotFound
from headrace.wire.peer import PeerOp, Service

VISITS_MAX: Final = 2 * limits.PEERS_MAX


class Visit:
    """One that is open, or was."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def dialed(self) -> bool:
        """By this broker."""
        return self._link.dialing

    @property
    def address(self) -> str:
        """Of the other end, as the system sees it."""
        return self._link.address

    def send(self, *parts: bytes) -> bool:
        """One frame, out at the end of this turn. False: it has ended, or too much waits to be sent on it."""
        if self._link.lost is not None or self._link.full:
            return False
        self._link.send(PeerOp.BATCH, parts, service=Service.FORMATION)
        return True

    def close(self) -> None:
        self._link.close(Draining("the visit is over"), Lost("closed", "the visit is over"))


class Host(Protocol):
    """Who takes visits. Called from within the loop, never from within ``Visit.send``."""

    def came(self, visit: Visit) -> None:
        """Another broker pays one."""

    def said(self, visit: Visit, body: bytes) -> None:
        """``Malformed`` ends it."""

    def ended(self, visit: Visit, why: Lost) -> None: ...


class Visits:
    """See the module's head."""

    def __init__(self) -> None:
        self.host: Host | None = None
        self._open: dict[Link, Visit] = {}

    def __contains__(self, link: Link) -> bool:
        return link in self._open

    def admit(self) -> None:
        """Raises if another one is too many, or nobody takes any."""
        if self.host is None:
            raise NotFound("this broker takes no visits", hint='it is not of a declared cluster: set coordination.mode = "coordinated"')
        if len(self._open) >= VISITS_MAX:
            raise LimitExceeded(f"{len(self._open)} visits are open at this broker, the most it takes")

    def opened(self, link: Link) -> Visit:
        visit = self._open[link] = Visit(link)
        link.attached = True
        if not link.dialing and self.host is not None:
            self.host.came(visit)
        return visit

    def of(self, link: Link) -> Visit:
        return self._open[link]

    def take(self, link: Link, op: PeerOp, service: int, body: bytes) -> None:
        if op != PeerOp.BATCH or service != Service.FORMATION:
            raise Malformed("a visit is for batches about the formation of clusters, nothing else")
        assert self.host is not None
        self.host.said(self._open[link], body)

    def lost(self, link: Link, why: Lost) -> bool:
        """Whether it was one."""
        visit = self._open.pop(link, None)
        if visit is not None and self.host is not None:
            self.host.ended(visit, why)
        return visit is not None

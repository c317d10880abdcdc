"""Who is reachable, in which life, and how he stands; when to greet whom.

Owns the table of peers. A life (``boot``) is believed to be the present one only after it has echoed a sequence that was sent after it was first
heard of, and one that another life has replaced never comes back: so nothing is ever decided on what a late or doubled message of a dead life says.
Until then that life is the one whose words are echoed; it is given up as dead once the present one answers to something sent later.
Knows no rule of formation.
"""

import hashlib
from collections.abc import Mapping

from headrace.core.formation.messages import Hello

GREET_MS = 1_000
GREET_MS_MAX = 5_000
GREET_AGAIN_MS = 200
"""An answer that was asked for is given no more often than that."""
SILENT_MS = 4_000
PAST_LIVES_MAX = 64
PEERS_MAX = 1_024


class Peer:
    """One name."""

    __slots__ = ("address", "candidate", "failures", "greet_ms", "greeted_ms", "heard_ms", "hello", "noticed", "past", "since_ms", "speaks")

    def __init__(self, now_ms: int) -> None:
        self.hello: Hello | None = None
        """The newest of its present life."""
        self.heard_ms: int | None = None
        self.candidate: Hello | None = None
        """The newest of a life that has not answered yet."""
        self.noticed = 0
        """Own sequence when the candidate was first heard."""
        self.past: list[str] = []
        self.address = ""
        self.greet_ms = now_ms
        self.greeted_ms: int | None = None
        self.failures = 0
        self.since_ms = now_ms
        """Since when it has been reachable, or not."""
        self.speaks = False
        """It was believed reachable when last looked at."""


class Peers:
    """See the module's head."""

    def __init__(self, name: str, boot: str) -> None:
        self._name = name
        self.boot = boot
        self.sequence = 0
        self._peers: dict[str, Peer] = {}
        self._greeted: dict[str, str] = {}

    def listed(self, listed: Mapping[str, str], now_ms: int) -> None:
        """Those who are greeted without being asked, with their addresses."""
        self._greeted = {name: address for name, address in listed.items() if name != self._name}
        for name, address in self._greeted.items():
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = Peer(now_ms)
            peer.address = address

    def heard(self, sender: str, hello: Hello, now_ms: int) -> bool:
        """Takes a greeting; says whether it is of a life that is believed to be the present one and newer than what was known."""
        peer = self._peers.get(sender)
        if peer is None:
            if len(self._peers) >= PEERS_MAX:
                self._forget(now_ms)
                if len(self._peers) >= PEERS_MAX:
                    return False
            peer = self._peers[sender] = Peer(now_ms)
        if not peer.address:
            peer.address = hello.address
        if hello.asks:
            peer.greet_ms = min(peer.greet_ms, now_ms if peer.greeted_ms is None else max(now_ms, peer.greeted_ms + GREET_AGAIN_MS))
        if peer.hello is not None and hello.boot == peer.hello.boot:
            if hello.sequence <= peer.hello.sequence:
                return False
            if hello.echo_boot == self.boot:
                peer.heard_ms = now_ms
                peer.failures = 0
                if peer.candidate is not None and hello.echo > peer.noticed:
                    self._bury(peer, peer.candidate.boot)  # this life has answered since: what spoke then was late
                    peer.candidate = None
            peer.hello = hello
            return True
        if hello.boot in peer.past:
            return False
        if peer.candidate is None or peer.candidate.boot != hello.boot:
            peer.candidate, peer.noticed = hello, self.sequence
        elif hello.sequence > peer.candidate.sequence:
            peer.candidate = hello
        if hello.echo_boot == self.boot and hello.echo > peer.noticed:
            if peer.hello is not None:
                self._bury(peer, peer.hello.boot)
            peer.hello, peer.candidate, peer.heard_ms, peer.failures = hello, None, now_ms, 0
            return True
        peer.greet_ms = min(peer.greet_ms, now_ms if peer.greeted_ms is None else max(now_ms, peer.greeted_ms + GREET_AGAIN_MS))
        return False

    def _bury(self, peer: Peer, boot: str) -> None:
        peer.past = [*peer.past[-PAST_LIVES_MAX + 1 :], boot]

    def _forget(self, now_ms: int) -> None:
        for name in [n for n, p in self._peers.items() if n not in self._greeted and (p.heard_ms is None or now_ms - p.heard_ms > SILENT_MS)]:
            del self._peers[name]

    def lost(self, name: str, now_ms: int) -> None:
        """The connection to it broke."""
        peer = self._peers.get(name)
        if peer is not None and peer.heard_ms is not None:
            peer.heard_ms = min(peer.heard_ms, now_ms - SILENT_MS)

    def reachable(self, name: str, now_ms: int) -> Hello | None:
        """Its standing, if it was heard not long ago."""
        peer = self._peers.get(name)
        if peer is None or peer.hello is None or peer.heard_ms is None or now_ms - peer.heard_ms >= SILENT_MS:
            return None
        return peer.hello

    def known(self, name: str) -> Hello | None:
        """Its standing when it was last heard in this life of ours."""
        peer = self._peers.get(name)
        return peer.hello if peer is not None else None

    def names(self) -> tuple[str, ...]:
        return tuple(self._peers)

    def address(self, name: str) -> str:
        peer = self._peers.get(name)
        return peer.address if peer is not None else ""

    def contact(self, name: str, now_ms: int) -> tuple[bool, int]:
        """Whether it is reachable, and since when that is so."""
        peer = self._peers.get(name)
        if peer is None:
            return False, now_ms
        speaks = self.reachable(name, now_ms) is not None
        if speaks != peer.speaks:
            peer.speaks, peer.since_ms = speaks, now_ms
        return speaks, peer.since_ms

    def due(self, now_ms: int) -> list[str]:
        """Those who are to be greeted now; an unlisted one only if it was heard lately."""
        found = []
        for name, peer in self._peers.items():
            if peer.greet_ms <= now_ms and (name in self._greeted or self._asks(peer, now_ms)):
                found.append(name)
        return found

    def _asks(self, peer: Peer, now_ms: int) -> bool:
        return peer.candidate is not None or (peer.heard_ms is not None and now_ms - peer.heard_ms < SILENT_MS)

    def greeting(self, name: str, now_ms: int) -> tuple[int, str, int, bool]:
        """A new sequence for a greeting to ``name`` with boot and sequence to echo, and whether to ask for an answer at once."""
        peer = self._peers[name]
        self.sequence += 1
        known = peer.candidate or peer.hello
        asks = self.reachable(name, now_ms) is None or peer.candidate is not None
        peer.greeted_ms = now_ms
        peer.greet_ms = now_ms + self._pause(name, peer, asks)
        if asks:
            peer.failures += 1
        return self.sequence, known.boot if known else "", known.sequence if known else 0, asks

    def _pause(self, name: str, peer: Peer, silent: bool) -> int:
        """Retry after 0.5 to 5 s, spread so that brokers do not speak all at once."""
        pause = GREET_MS if not silent else min(GREET_MS_MAX, 500 << min(peer.failures, 4))
        spread = hashlib.blake2b(f"{self.boot}/{name}/{self.sequence}".encode(), digest_size=2).digest()
        return max(500, pause * (75 + int.from_bytes(spread, "big") % 50) // 100)

    def soon(self, name: str, now_ms: int) -> None:
        """Something changed that it should know."""
        peer = self._peers.get(name)
        if peer is not None and peer.greeted_ms is not None:
            peer.greet_ms = min(peer.greet_ms, max(now_ms, peer.greeted_ms + GREET_AGAIN_MS))

    def next_ms(self, now_ms: int) -> int | None:
        """When the next greeting is due, or a peer falls silent."""
        moments = [p.greet_ms for n, p in self._peers.items() if n in self._greeted or self._asks(p, now_ms)]
        moments += [p.heard_ms + SILENT_MS for p in self._peers.values() if p.heard_ms is not None and p.heard_ms + SILENT_MS > now_ms]
        return min(moments, default=None)

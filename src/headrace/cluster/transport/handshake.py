"""The opening of a connection between brokers, as two machines without I/O: the one who dials, the one who answers.

Owns what is proven, in which order, and every reason to refuse. Does not know sockets, time or randomness: nonces are passed in.

A code is an HMAC-SHA256 with a key made of a cluster secret for this purpose only, over the role of who proves, the channel's binding, and a hash of
the preamble and of both introductions as they travelled: ids, incarnations, cluster, versions, features and both nonces. So no code fits another
connection, another direction, or an opening that somebody on the way has altered. Each side proves with the secret it uses and takes a proof made
with any it accepts, which lets secrets be exchanged one broker after another.

I1 the dialer proves first: who listens gives a code only to somebody who has a secret. I2 nothing is taken from a side before its proof is verified.
I3 a broker never speaks with itself. I4 a refusal says what is wrong and what to do, never anything about a secret but its id.

What follows the opening is as safe as the channel: ``binding`` ties the proof to it (TLS: its exporter; plain TCP: nothing).
"""

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

from headrace.cluster.secret import Secret, Secrets
from headrace.model.errors import Conflict, Elsewhere, HeadraceError, Malformed, Unauthorized, UnsupportedVersion, WrongProtocol
from headrace.wire import peer as wire
from headrace.wire.frames import HEADER
from headrace.wire.peer import PREAMBLE, Introduction, PeerOp, Proof

PURPOSE: Final = "proof between brokers 1"


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The other side, proven."""

    who: Introduction
    version: int
    features: frozenset[str]
    keys: frozenset[bytes]
    """Ids of the secrets that either side has proven with."""


class Opening:
    """One side of it; see ``Dialing`` and ``Answering``. Given whole frames, gives bytes to send; done once ``opened`` is there."""

    def __init__(self, me: Introduction, secrets: Secrets, *, binding: bytes = b"") -> None:
        self.me = me
        self.opened: Opened | None = None
        self._secrets = secrets
        self._binding = binding
        self._other: Introduction | None = None
        self._transcript = sha256(PREAMBLE)

    def begin(self) -> bytes:
        """The first bytes of the connection from this side."""
        return b""

    def receive(self, op: int, frame: bytes) -> bytes:
        """What to answer to a whole frame. Raises what is wrong, which ends the opening."""
        raise NotImplementedError

    def _code(self, secret: Secret, role: bytes) -> bytes:
        key = secret.key(PURPOSE)
        return hmac.digest(key, role + sha256(self._binding).digest() + self._transcript.digest(), "sha256")

    def _prove(self, role: bytes) -> tuple[Secret, Proof]:
        secret = self._secrets.used
        return secret, Proof(secret.id, self._code(secret, role))

    def _verify(self, proof: Proof, role: bytes) -> Secret:
        secret = self._secrets.find(proof.key)
        if secret is None or not hmac.compare_digest(self._code(secret, role), proof.code):
            what = "is not accepted" if secret is None else "is accepted, yet its proof is wrong,"
            hint = "give every broker of a cluster the same secret; a new one is added everywhere before it is used anywhere"
            raise Unauthorized(f"the secret {proof.key.hex()} of broker {self._them.broker} {what} at broker {self.me.broker}", hint=hint)
        return secret

    @property
    def _them(self) -> Introduction:
        assert self._other is not None
        return self._other

    def _introduced(self, frame: bytes) -> Introduction:
        """The other's introduction, if it can be spoken with."""
        who = wire.parse_introduction(frame[HEADER.size :])
        self._other = who
        if who.cluster and self.me.cluster and who.cluster != self.me.cluster:
            raise Conflict(
                f"broker {who.broker} belongs to cluster {who.cluster}, broker {self.me.broker} to {self.me.cluster}",
                hint="correct membership.seeds and listen.peer_advertise; a data directory never moves from one cluster to another",
            )
        if who.broker == self.me.broker:
            raise Conflict(
                f"both sides are broker {who.broker}",
                hint="an address of this broker was dialed, or two run on copies of one data directory: stop one and start it on an empty directory",
            )
        if min(who.versions[1], self.me.versions[1]) < max(who.versions[0], self.me.versions[0]):
            ours = f"{self.me.versions[0]} to {self.me.versions[1]}"
            raise UnsupportedVersion(f"broker {who.broker} speaks versions {who.versions[0]} to {who.versions[1]} between brokers, this one {ours}")
        return who

    def _done(self, proven: Secret, shown: Secret) -> None:
        who = self._them
        self.opened = Opened(
            who=who,
            version=min(who.versions[1], self.me.versions[1]),
            features=frozenset(who.features) & frozenset(self.me.features),
            keys=frozenset((proven.id, shown.id)),
        )


class Dialing(Opening):
    """Who dials."""

    def __init__(self, me: Introduction, secrets: Secrets, *, binding: bytes = b"") -> None:
        super().__init__(me, secrets, binding=binding)
        self._shown: Secret | None = None

    def begin(self) -> bytes:
        hello = wire.introduction(PeerOp.HELLO, self.me)
        self._transcript.update(hello)
        return PREAMBLE + hello

    def receive(self, op: int, frame: bytes) -> bytes:
        if op == PeerOp.REFUSAL:
            raise wire.parse_failure(frame[HEADER.size :])
        if op == PeerOp.CHALLENGE and self._other is None:
            who = self._introduced(frame)
            if self.me.expects and who.broker != self.me.expects:
                raise Elsewhere(
                    f"broker {who.broker} answers where {self.me.expects} was expected", hint="look at the advertised peer addresses of both brokers"
                )
            self._transcript.update(frame)
            self._shown, proof = self._prove(b"dialer")
            return wire.proof(PeerOp.PROOF, proof)
        if op == PeerOp.WELCOME and self._shown is not None and self.opened is None:
            self._done(self._verify(wire.parse_proof(frame[HEADER.size :]), b"answerer"), self._shown)
            return b""
        raise Malformed(f"opcode {op:#04x} is not expected here while a connection between brokers opens")


class Answering(Opening):
    """Who is dialed. ``admit`` may refuse somebody who has proven to belong here, by raising; it is asked before WELCOME is sent."""

    def __init__(self, me: Introduction, secrets: Secrets, admit: Callable[[Introduction], None], *, binding: bytes = b"") -> None:
        super().__init__(me, secrets, binding=binding)
        self._admit = admit

    def receive(self, op: int, frame: bytes) -> bytes:
        if op == PeerOp.HELLO and self._other is None:
            who = self._introduced(frame)
            if who.expects and who.expects != self.me.broker:
                raise Elsewhere(f"this is broker {self.me.broker}, not {who.expects}", hint="look at the advertised peer addresses of both brokers")
            challenge = wire.introduction(PeerOp.CHALLENGE, self.me)
            self._transcript.update(frame)
            self._transcript.update(challenge)
            return challenge
        if op == PeerOp.PROOF and self._other is not None and self.opened is None:
            proven = self._verify(wire.parse_proof(frame[HEADER.size :]), b"dialer")
            self._admit(self._other)
            shown, proof = self._prove(b"answerer")
            self._done(proven, shown)
            return wire.proof(PeerOp.WELCOME, proof)
        raise Malformed(f"opcode {op:#04x} is not expected here while a connection between brokers opens")


def check_preamble(data: bytes) -> None:
    """The first 8 bytes of a connection; ``WrongProtocol`` if they are not those of a broker."""
    if data == PREAMBLE:
        return
    hint = "the address of the native or admin listener is another one: `headrace config show` lists them"
    for begin, name in ((b"HDRACE", "a Headrace client"), (b"GET ", "HTTP"), (b"POST", "HTTP"), (b"\x16\x03", "TLS")):
        if data.startswith(begin):
            raise WrongProtocol(f"{name} spoke on the port for brokers", hint=hint)
    raise WrongProtocol("something else spoke on the port for brokers", hint=hint)


def refusal(error: HeadraceError) -> bytes:
    """What the other side is told before the connection ends."""
    return wire.failure(PeerOp.REFUSAL, error)

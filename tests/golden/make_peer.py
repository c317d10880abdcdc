"""Makes the byte vectors of the frames between brokers: ``python -m tests.golden.make_peer`` shows what would change, with ``--write`` it writes
them.

A vector that changes means that brokers of an older release are not understood any more: look twice before writing. New vectors are harmless.
"""

import json
import sys
from pathlib import Path

from headrace.cluster.secret import Secrets
from headrace.cluster.transport.handshake import Answering, Dialing
from headrace.model.errors import Draining, NotFound
from headrace.wire import peer
from headrace.wire.peer import Introduction, PeerFlag, PeerOp, Proof, Service

FILE = Path(__file__).parent / "wire" / "peer.json"
SECRET = b"0123456789abcdef0123456789abcdef"
DIALER = Introduction(
    broker="alpha", incarnation="a1", nonce=bytes(range(32)), cluster="c1", features=("lz4",), release="0.1.0", expects="beta", purpose="peer"
)
ANSWERER = Introduction(broker="beta", incarnation="b1", nonce=bytes(range(32, 64)), cluster="c1", features=("lz4",), release="0.1.0")
LEAST = Introduction(broker="x", incarnation="y", nonce=bytes(32))
REPEATED = b"replication " * 100


def opening() -> dict[str, bytes]:
    """A whole opening, every byte of it given by the secret and the introductions."""
    dialer, answerer = Dialing(DIALER, Secrets([SECRET])), Answering(ANSWERER, Secrets([SECRET]), lambda who: None)
    hello = dialer.begin()
    frame = hello[len(peer.PREAMBLE) :]
    challenge = answerer.receive(PeerOp.HELLO, frame)
    proof = dialer.receive(PeerOp.CHALLENGE, challenge)
    welcome = answerer.receive(PeerOp.PROOF, proof)
    assert dialer.receive(PeerOp.WELCOME, welcome) == b""
    assert dialer.opened is not None
    assert answerer.opened is not None
    return {"preamble": peer.PREAMBLE, "hello.opening": frame, "challenge.opening": challenge, "proof.opening": proof, "welcome.opening": welcome}


def vectors() -> dict[str, bytes]:
    """Name to bytes."""
    compressed = peer.compressed([REPEATED])
    assert compressed is not None
    return opening() | {
        "hello.least": peer.introduction(PeerOp.HELLO, LEAST),
        "hello.probe": peer.introduction(PeerOp.HELLO, Introduction(broker="x", incarnation="y", nonce=bytes(32), purpose="probe")),
        "hello.visit": peer.introduction(PeerOp.HELLO, Introduction(broker="x", incarnation="y", nonce=bytes(32), purpose="visit")),
        "proof.shape": peer.proof(PeerOp.PROOF, Proof(bytes(range(8)), bytes(range(32)))),
        "refusal": peer.failure(PeerOp.REFUSAL, NotFound("no", hint="do")),
        "ping": peer.ping(7),
        "pong": peer.pong(7),
        "request": peer.head(PeerOp.REQUEST, 8, service=Service.VERBS, correlation=9) + peer.request_head(1500) + b"body",
        "reply": peer.head(PeerOp.REPLY, 4, correlation=9) + b"body",
        "error": peer.failure(PeerOp.ERROR, NotFound("no such thing", hint="declare it"), 9),
        "batch": peer.head(PeerOp.BATCH, 4, service=Service.REPLICAS) + b"body",
        "batch.compressed": peer.head(PeerOp.BATCH, len(compressed), flags=PeerFlag.LZ4, service=Service.COPIES) + compressed,
        "goodbye": peer.failure(PeerOp.GOODBYE, Draining("this broker stops")),
    }


def main() -> int:
    made = {name: data.hex() for name, data in vectors().items()}
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sorted({*made, *known}):
        if made.get(name) != known.get(name):
            print(f"{name}: {'new' if name not in known else 'gone' if name not in made else 'CHANGED'}")
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

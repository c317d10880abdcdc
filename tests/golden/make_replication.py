"""Makes the byte vectors of what replicas say to each other: ``python -m tests.golden.make_replication`` shows what would change, with ``--write`` it
writes them.

A vector that changes means that brokers of an older release are not understood any more: look twice before writing. New vectors are harmless.
"""

import json
import sys
from pathlib import Path

from crc32c import crc32c

from headrace.cluster.replication.heads import pack
from headrace.cluster.replication.messages import AnyInstall, Offer, Part, Want
from headrace.core.replica.messages import (
    Ack,
    Align,
    AnyMessage,
    Append,
    Fenced,
    Fetch,
    Fetched,
    Gap,
    Install,
    NewEpoch,
    Quarantined,
    State,
)
from headrace.wire import replication as wire
from headrace.wire.journal import Kind

FILE = Path(__file__).parent / "wire" / "replication.json"
MESSAGES: dict[str, AnyMessage | AnyInstall] = {
    "new_epoch": NewEpoch(epoch=7, session=2),
    "state": State(
        epoch=7, session=2, incarnation="b1", start=3, end=90, high_watermark=80, history_start=3, base_epoch=1, runs=((2, 3), (5, 60)), unclean=True
    ),
    "align": Align(epoch=7, session=2, at=88, end=90, previous_epoch=5),
    "append": Append(epoch=7, session=2, first=88, count=2, previous_epoch=5, runs=((7, 88),), high_watermark=81),
    "ack": Ack(epoch=7, session=2, end=90),
    "gap": Gap(epoch=7, session=2, reason="no"),
    "fenced": Fenced(epoch=8),
    "fetch": Fetch(epoch=7, session=2, first=88, end=95, previous_epoch=5),
    "fetched": Fetched(epoch=7, session=2, first=88, count=1, runs=((6, 88),)),
    "install": Install(epoch=7, session=2, end=88, history_start=3, base_epoch=1, runs=((2, 3),)),
    "quarantined": Quarantined(epoch=7, session=2, reason="damage"),
    "offer": Offer(
        epoch=7, session=2, number=3, end=88, base_epoch=5, first_offset=40, end_offset=160, checkpoint_bytes=700, checkpoint_crc=0x1234
    ),
    "want": Want(epoch=7, session=2, number=3, end=88, offset=60, at=0),
    "part": Part(epoch=7, session=2, number=3, end=88, offset=60, at=0, next_offset=90),
}


def entry(epoch: int, index: int, payload: bytes, kind: Kind = Kind.SETTLEMENT) -> bytes:
    raw = wire.ENTRY.pack(len(payload), 0, 9, epoch, index, kind, 0) + payload
    return raw[:4] + crc32c(raw[8:]).to_bytes(4, "big") + raw[8:]


def vectors() -> dict[str, bytes]:
    """Name to bytes."""
    made = {name: pack(message) for name, message in MESSAGES.items()}
    made["entry"] = entry(7, 88, b"one")
    made["frame.empty"] = b"".join(wire.encode([], []))
    items = [wire.Item(9, made["append"], (entry(7, 88, b"one"), entry(7, 89, b"two"))), wire.Item(10, made["new_epoch"])]
    made["frame"] = b"".join(wire.encode([(9, 7, 2, 90), (11, 1, 1, 5)], items))
    return made


def main() -> None:
    known: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}
    made = {name: data.hex() for name, data in vectors().items()}
    for name in sorted({*known, *made}):
        if known.get(name) != made.get(name):
            print(f"{name}: {known.get(name)} -> {made.get(name)}")
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

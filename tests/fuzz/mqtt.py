"""Fuzzes the parser of MQTT: ``python -m tests.fuzz.mqtt --count 1000000 --seed 1``.

An input is a stream of packets, valid or with bits flipped, cut, doubled or noise, fed whole and in pieces. Nothing may be raised, nothing kept
beyond the bound, and pieces must give what the whole gives. Equal seeds make equal inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish

GOLDEN = [bytes.fromhex(d) for d in json.loads((Path(__file__).parents[1] / "golden" / "wire" / "mqtt.json").read_text()).values() if len(d) < 1000]
BYTES_MAX = 512


def made(rng: random.Random) -> bytes:
    """One stream."""
    stream = b"".join(rng.choice(GOLDEN) for _ in range(rng.randrange(1, 5)))
    what = rng.randrange(6)
    data = bytearray(stream)
    if what == 0:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == 1:
        del data[rng.randrange(len(data)) :]
    elif what == 2:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif what == 3:
        del data[rng.randrange(len(data))]
    elif what == 4:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(data)


def shown(packets: list[object]) -> list[object]:
    return [p.frame if isinstance(p, Publish) else p for p in packets]


def one(rng: random.Random) -> int:
    """Whether the input was a fault."""
    version = rng.choice((0, 4, 5))
    data = made(rng)
    whole, pieces = Parser(BYTES_MAX, version=version), Parser(BYTES_MAX, version=version)
    found = shown(whole.feed(data))
    again: list[object] = []
    at = 0
    while at < len(data):
        step = rng.choice((1, 2, 3, 50))
        again += shown(pieces.feed(data[at : at + step]))
        at += step
        assert pieces.buffered <= BYTES_MAX
    assert again == found, data.hex()
    assert (whole.fault and whole.fault.reason) == (pieces.fault and pieces.fault.reason), data.hex()
    return whole.fault is not None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mqtt")
    parser.add_argument("--count", type=int, default=200_000, help="inputs")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    began = time.monotonic()
    faults = sum(one(rng) for _ in range(asked.count))
    seconds = time.monotonic() - began
    print(f"inputs={asked.count} faults={faults} seed={asked.seed} seconds={seconds:.1f} inputs_per_s={asked.count / seconds:.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

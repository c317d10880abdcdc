"""Fuzzes the parser and the connection machine of MQTT: ``python -m tests.fuzz.mqtt --count 1000000 --seed 1``.

An input is a stream of packets, valid or with bits flipped, cut, doubled or noise, fed whole and in pieces. Nothing may be raised, nothing kept
beyond the bound, and pieces must give what the whole gives. Every fourth input is a conversation of several connections with one router and a journal
that is durable now and then, cut by takeovers and restarts; its books must hold and what is written must be packets. Equal seeds make equal inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Connect, Filter, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish
from tests.unit.core.mqtt.wires import Wire, World

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


TOPICS = ("a", "a/b", "c", "$SYS/x", "", "$queue/q", "$queue/q/$ack", "$stream/")
FILTERS = ("a", "a/#", "+", "#", "$share/g/a", "$share/g/#", "no/x", "$queue/q", "a/#/b")


def said(rng: random.Random, version: int) -> bytes:
    """Something that a client may say, in order or not."""
    what, id = rng.randrange(12), rng.randrange(1, 6)
    five = version == 5
    if what < 4:
        qos = rng.randrange(3)
        asked = {0x23: rng.randrange(1, 5)} if five and rng.random() < 0.3 else {0x02: rng.randrange(3)} if five and rng.random() < 0.3 else None
        topic, payload = rng.choice(TOPICS), rng.randbytes(rng.choice((0, 5, 50)))
        retain, dup = rng.random() < 0.3, qos > 0 and rng.random() < 0.2
        return encoding.publish(version, topic, payload, qos=qos, packet_id=id if qos else 0, retain=retain, dup=dup, properties=asked)
    if what < 7:
        return encoding.ack(rng.choice((0x40, 0x50, 0x62, 0x70)), id, 0x80 if five and rng.random() < 0.05 else 0, version)
    if what < 9:
        return encoding.subscribe(version, id, [Filter(rng.choice(FILTERS[:7] if rng.random() < 0.9 else FILTERS), rng.randrange(3))])
    if what == 9:
        return encoding.unsubscribe(version, id, [rng.choice(FILTERS)])
    if what == 10:
        return made(rng) if rng.random() < 0.3 else encoding.PINGREQ
    return encoding.disconnect(version) if rng.random() < 0.3 else encoding.PINGREQ


def talk(rng: random.Random) -> int:
    """One conversation; how many connections it took."""
    world = World(prompt=False)
    lines: list[Wire] = []
    count = 0
    for _ in range(rng.randrange(5, 60)):
        what = rng.randrange(20)
        if not lines or what == 0:
            line, version = world.wire(), rng.choice((4, 5))
            line.version = line.parser.version = version
            asked = {0x11: rng.choice((1, 100)), 0x21: rng.randrange(1, 4), 0x22: rng.randrange(3)} if version == 5 and rng.random() < 0.7 else {}
            will = Will(rng.choice(TOPICS[:3]), b"gone", rng.randrange(3), rng.random() < 0.5) if rng.random() < 0.4 else None
            line.machine.feed(encoding.connect(Connect(rng.choice("xyz"), version, rng.random() < 0.5, 0, will, properties=asked)))
            lines.append(line)
            count += 1
            continue
        line = rng.choice(lines)
        if what < 14:
            data = b"".join(said(rng, line.version) for _ in range(rng.randrange(1, 5)))
            line.machine.feed(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)
        elif what < 16:
            world.sync()
        elif what < 18:
            line.read()
        elif what == 18:
            line.machine.lost()
            line.machine.closed = True
            lines.remove(line)
        else:
            world.net.wall_ms += rng.choice((10, 1000, 5000))
            world.router.tick(world.net.wall_ms)
            if rng.random() < 0.2:
                world.restart()
                lines.clear()
        world.router.check()
    world.sync()
    for line in lines:
        line.read()
    world.sync()
    world.net.replayed()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mqtt")
    parser.add_argument("--count", type=int, default=200_000, help="inputs")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    began = time.monotonic()
    faults = connections = 0
    for i in range(asked.count):
        if i % 4 == 3:
            connections += talk(rng)
        else:
            faults += one(rng)
    seconds = time.monotonic() - began
    told = f"inputs={asked.count} faults={faults} connections={connections} seed={asked.seed}"
    print(f"{told} seconds={seconds:.1f} inputs_per_s={asked.count / seconds:.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

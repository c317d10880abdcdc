"""Fuzzes the parser and the connection machine of MQTT 3.1.1 and 5.0: ``python -m tests.fuzz.mqtt --count 20000000`` (``make fuzz``).

An input is one run of bytes as a connection gets it: packets of the golden vectors and of a client's talk, as they are or with bits flipped, cut,
doubled, glued or with lengths that lie, and noise. There are three kinds. A stream goes to the parser, whole and in pieces, which must come to the
same. A beginning goes to a connection that has had no CONNECT, likewise. A conversation is many inputs to several connections with one router and a
journal that is durable now and then, cut by takeovers and restarts: its books must hold and what is written must be packets.

Nothing may be raised, and nothing kept beyond its bound; what a process has grown by is looked at too. Inputs are made in chunks, on all cores. A
failure shows what was fed and which chunk made it: ``--chunk`` runs it again. Equal seeds make equal inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import msgspec

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Auth, Connect, Filter, Will
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish
from tests.unit.core.mqtt.routers import BOUNDS
from tests.unit.core.mqtt.wires import TERMS, Wire, World

GOLDEN = [bytes.fromhex(d) for d in json.loads((Path(__file__).parents[1] / "golden" / "wire" / "mqtt.json").read_text()).values() if len(d) < 1000]
CONNECTS = [packet for packet in GOLDEN if packet[0] == 0x10]
BYTES_MAX = 512
CHUNK = 20_000
GROWTH_BYTES_MAX = 48 << 20
"""What a process may have more at its end than after its first chunk."""
FAILURES_MAX = 10


class Totals(msgspec.Struct):
    """What some inputs did. ``faults``: streams and beginnings that were found bad; ``ended``: connections of
    conversations that ended with what they said."""

    inputs: int = 0
    nbytes: int = 0
    streams: int = 0
    beginnings: int = 0
    connections: int = 0
    faults: int = 0
    ended: int = 0
    written: int = 0

    def add(self, more: Totals) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(more, name))


# ---------------------------------------------------------------- bytes


def mutated(rng: random.Random, stream: bytes) -> bytes:
    """``stream`` as it is, or with one thing wrong."""
    what = rng.randrange(9)
    data = bytearray(stream)
    at = rng.randrange(len(data)) if data else 0
    if what == 0 and data:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == 1:
        del data[at:]
    elif what == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif what == 3:
        del data[at : at + 1]
    elif what == 4 and data:
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif what == 5:
        data += rng.choice((b"\x30", b"\x10", b"\xf0", bytes([rng.randrange(256)]))) + rng.choice(LYING) + rng.randbytes(rng.randrange(40))
    elif what == 6 and rng.random() < 0.2:
        return rng.randbytes(rng.randrange(60))
    return bytes(data)


LYING = tuple(bytes.fromhex(length) for length in ("ffffff7f", "ffffffff01", "80808001", "8000", "ffffff", "8004", "fc03", "a08d06"))
"""Remaining lengths: too large, too long, longer than they need to be, or of more than follows."""


def made(rng: random.Random) -> bytes:
    """Some packets of the golden vectors."""
    return mutated(rng, b"".join(rng.choice(GOLDEN) for _ in range(rng.randrange(1, 5))))


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        step = rng.choice((1, 2, 3, 50))
        found.append(data[at : at + step])
        at += step
    return found


# ---------------------------------------------------------------- streams: the parser


def shown(packets: list[object]) -> list[object]:
    return [p.frame if isinstance(p, Publish) else p for p in packets]


def stream(rng: random.Random, totals: Totals, fed: list[tuple[int, bytes]]) -> None:
    """One stream, read as a broker or (with a version from the start) as a client reads."""
    version = rng.choice((0, 4, 5))
    data = made(rng)
    fed.append((version, data))
    whole, parts = Parser(BYTES_MAX, version=version), Parser(BYTES_MAX, version=version)
    found = shown(whole.feed(data))
    again: list[object] = []
    for piece in pieces(rng, data):
        again += shown(parts.feed(piece))
        assert parts.buffered <= BYTES_MAX, "P1"
    assert again == found, "pieces come to something else"
    assert (whole.fault and whole.fault.reason) == (parts.fault and parts.fault.reason), "pieces have another fault"
    totals.inputs += 1
    totals.nbytes += len(data)
    totals.streams += 1
    totals.faults += whole.fault is not None


# ---------------------------------------------------------------- beginnings: a connection without a CONNECT


def beginning(rng: random.Random, totals: Totals, fed: list[tuple[int, bytes]]) -> None:
    """What may come first, and something after it."""
    what = rng.randrange(6)
    if what == 0:
        data = made(rng)
    elif what == 1:
        data = rng.randbytes(rng.randrange(1, 80))
    elif what == 2:
        data = b"\x10" + rng.choice(LYING) + rng.randbytes(rng.randrange(200))
    else:
        version = rng.choice((3, 4, 5, 6)) if what == 3 else rng.choice((4, 5))
        first = rng.choice(CONNECTS) if rng.random() < 0.5 else hello(rng, version)
        data = mutated(rng, first)
        if rng.random() < 0.7:
            data += b"".join(said(rng, version) for _ in range(rng.randrange(3)))
    fed.append((0, data))
    ends = []
    for parts in ([data], pieces(rng, data)):
        line = World().wire()
        for part in parts:
            line.write(part)
            bounded(line)
        line.version = line.parser.version = 5 if line.machine.version >= 5 else 4
        told = line.read()
        assert line.machine.version or line.machine.closed or not told, "something was said to who has said nothing"
        totals.written += len(told)
        ends.append((line.machine.closed, line.machine.version))
        line.world.router.check()
    assert ends[0] == ends[1], f"pieces end otherwise: {ends}"
    totals.inputs += 1
    totals.nbytes += len(data)
    totals.beginnings += 1
    totals.faults += ends[0][0]


def bounded(line: Wire) -> None:
    """What a connection may keep."""
    machine = line.machine
    assert machine.parser.buffered <= (TERMS.packet_bytes_max if machine.version else TERMS.connect_bytes_max), "P1"
    assert len(machine._aliases) <= TERMS.topic_alias_maximum
    session = machine.session
    if session is None:
        return
    assert sum(not delivery.released for delivery in session.in_flight.values()) <= session.receive_maximum, "S1"
    assert len(session.subscriptions) <= BOUNDS.subscriptions_max
    assert len(session.inbox) <= BOUNDS.inbox_messages_max + len(session.in_flight), "S4"
    assert machine.version == 4 or len(session.received) - len(machine._carried) <= TERMS.receive_maximum


# ---------------------------------------------------------------- conversations

TOPICS = ("a", "a/b", "c", "$SYS/x", "", "$queue/q", "$queue/q/$ack", "$stream/")
FILTERS = ("a", "a/#", "+", "#", "$share/g/a", "$share/g/#", "no/x", "$queue/q", "a/#/b")


def hello(rng: random.Random, version: int) -> bytes:
    asked = {0x11: rng.choice((1, 100)), 0x21: rng.randrange(1, 4), 0x22: rng.randrange(3)} if version == 5 and rng.random() < 0.7 else {}
    if asked and rng.random() < 0.1:
        asked[0x27] = rng.choice((1, 5, 20, 60))
    will = Will(rng.choice(TOPICS[:3]), b"gone", rng.randrange(3), rng.random() < 0.5) if rng.random() < 0.4 else None
    return encoding.connect(Connect(rng.choice("xyz"), version, rng.random() < 0.5, 0, will, properties=asked))


def said(rng: random.Random, version: int) -> bytes:
    """Something that a client may say, in order or not."""
    what, id = rng.randrange(13), rng.randrange(1, 6)
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
        asked = {0x0B: [rng.randrange(1, 4)]} if five and rng.random() < 0.3 else {}
        more = (rng.random() < 0.2, rng.random() < 0.3, rng.randrange(3)) if five else ()
        filters = [Filter(rng.choice(FILTERS[:7] if rng.random() < 0.9 else FILTERS), rng.randrange(3), *more) for _ in range(rng.randrange(1, 3))]
        return encoding.subscribe(version, id, filters, asked)
    if what == 9:
        return encoding.unsubscribe(version, id, [rng.choice(FILTERS)])
    if what == 10:
        return made(rng) if rng.random() < 0.3 else encoding.PINGREQ
    if what == 11:
        return mutated(rng, said(rng, version)) if rng.random() < 0.5 else encoding.PINGREQ
    if five and rng.random() < 0.1:
        return encoding.control(Auth(0x18, {0x15: "x"}), 5)
    return encoding.disconnect(version) if rng.random() < 0.3 else encoding.PINGREQ


def talk(rng: random.Random, totals: Totals, fed: list[tuple[int, bytes]]) -> None:
    """One conversation."""
    world = World(prompt=False)
    lines: list[tuple[int, Wire]] = []
    for _ in range(rng.randrange(5, 60)):
        what = rng.randrange(20)
        if not lines or what == 0:
            line, version = world.wire(), rng.choice((4, 5))
            line.version = line.parser.version = version
            totals.connections += 1
            lines.append((totals.connections, line))
            data = hello(rng, version)
            feed(totals, fed, totals.connections, line, data)
            continue
        number, line = rng.choice(lines)
        if what < 14:
            data = b"".join(said(rng, line.version) for _ in range(rng.randrange(1, 5)))
            feed(totals, fed, number, line, data[: rng.randrange(len(data) + 1)] if rng.random() < 0.05 else data)
            if line.machine.closed and rng.random() < 0.5:
                lines.remove((number, line))
        elif what < 16:
            world.sync()
        elif what < 18:
            totals.written += len(line.read())
        elif what == 18:
            line.machine.lost()
            line.machine.closed = True
            lines.remove((number, line))
        else:
            world.net.wall_ms += rng.choice((10, 1000, 5000))
            world.router.tick(world.net.wall_ms)
            if rng.random() < 0.2:
                world.restart()
                lines.clear()
        world.router.check()
    world.sync()
    for _, line in lines:
        totals.written += len(line.read())
    world.sync()
    world.net.replayed()


def feed(totals: Totals, fed: list[tuple[int, bytes]], number: int, line: Wire, data: bytes) -> None:
    fed.append((number, data))
    totals.inputs += 1
    totals.nbytes += len(data)
    open_before = not line.machine.closed
    line.machine.feed(data)
    totals.ended += open_before and line.machine.closed
    bounded(line)


# ---------------------------------------------------------------- the campaign


def chunk(seed: int, number: int, count: int = CHUNK) -> Totals:
    """About ``count`` inputs, half of them in conversations. Raises with a note that shows what was fed."""
    rng = random.Random(f"{seed} {number}")
    totals = Totals()
    while totals.inputs < count:
        fed: list[tuple[int, bytes]] = []
        try:
            talk(rng, totals, fed)
            for _ in range(len(fed)):
                fed.clear()
                (stream if rng.random() < 0.7 else beginning)(rng, totals, fed)
        except Exception as error:
            error.add_note(f"seed {seed} chunk {number}, fed (connection or version, bytes):")
            error.add_note("\n".join(f"  {n} {data.hex()}" for n, data in fed))
            raise
    return totals


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Result(msgspec.Struct):
    """Of one chunk: ``resident`` bytes of its process after it, and after the first chunk of that process; ``failure`` in words, or nothing."""

    totals: Totals
    resident: int
    resident_first: int
    failure: str = ""


_resident_first = 0


def work(asked: tuple[int, int, int]) -> Result:
    """``chunk``, in a process that does many."""
    global _resident_first
    try:
        totals, failure = chunk(*asked), ""
    except Exception:
        totals, failure = Totals(), traceback.format_exc()
    now = resident()
    _resident_first = _resident_first or now
    return Result(totals, now, _resident_first, failure)


def campaign(seed: int, numbers: range, count: int, jobs: int) -> int:
    """The chunks ``numbers`` of ``count`` inputs each, in ``jobs`` processes; 0, or 1 if anything failed."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return summed(pool.imap_unordered(work, [(seed, number, count) for number in numbers]), f"seed={seed} jobs={jobs}")


def summed(results: Iterable[Result], how: str, every_s: float = 30.0) -> int:
    """Adds up what ``work`` returns, tells how it goes and the totals; 0, or 1 if anything failed."""
    totals = Totals()
    failures = peak = growth = 0
    began = said_at = time.monotonic()
    for result in results:
        totals.add(result.totals)
        peak, growth = max(peak, result.resident), max(growth, result.resident - result.resident_first)
        if result.failure:
            failures += 1
            print(result.failure, flush=True)
            if failures >= FAILURES_MAX:
                break
        if time.monotonic() - said_at >= every_s:
            said_at = time.monotonic()
            rate = totals.inputs / (said_at - began)
            print(f"{totals.inputs:,} inputs, {rate:,.0f}/s, {failures} failures, {peak >> 20} MiB a process", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    if growth > GROWTH_BYTES_MAX:
        print(f"a process grew by {growth >> 20} MiB after its first chunk; {GROWTH_BYTES_MAX >> 20} are allowed")
    counted = " ".join(f"{name}={getattr(totals, name)}" for name in totals.__struct_fields__)
    print(f"{counted} failures={failures} peak_mib={peak >> 20} grown_mib={growth >> 20} {how}", end=" ")
    print(f"seconds={seconds:.0f} inputs_per_s={totals.inputs / seconds:.0f}")
    return 1 if failures or growth > GROWTH_BYTES_MAX else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.mqtt", description="hostile bytes to the parser and the connections of MQTT")
    parser.add_argument("--count", type=int, default=200_000, help="inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--chunk", type=int, help="only this one, here, as a failure names it")
    asked = parser.parse_args(arguments)
    if asked.chunk is not None:
        print(chunk(asked.seed, asked.chunk))
        return 0
    size = min(CHUNK, asked.count)
    return campaign(asked.seed, range(-(-asked.count // size)), size, asked.jobs)


if __name__ == "__main__":
    raise SystemExit(main())

"""Fuzzes the broker's side of the native protocol: hostile conversations straight into ``NativeConnection.data_received`` of a real broker in memory.

``python -m tests.fuzz.native --count 1000000 --seed 1``. An input is one frame or run of bytes as a connection gets it: a valid frame, one with bits
flipped, cut, doubled or out of order, a control message with hostile values, or noise; fed whole, glued to its neighbours or in pieces. Equal seeds
make equal inputs. Anything but a clean close is an exception: raised, logged as an error, or left to the loop. At the end a healthy client must be
served. Everything runs in one thread; nothing is patched.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, get_args, get_type_hints

import msgspec
from crc32c import crc32c

from headrace.broker.broker import Broker
from headrace.broker.verbs import Verbs
from headrace.gateways.native.connection import NativeConnection
from headrace.gateways.native.server import NativeServer
from headrace.model.config import KIB, Config, Limits
from headrace.model.config import Broker as BrokerSection
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire import control, egress
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import DELIVER, HEADER, PREAMBLE, Op, frame

QUEUES = ("plain", "keyed", "bounded")
STREAMS = ("durable", "early")
NAMES = (*QUEUES, *STREAMS, "dead", "nobody")
BUFFERED_MAX = 2 * 16 * 1024 * 1024
"""A connection may hold one frame of the largest size and what came with it."""


class Wire(asyncio.Transport):
    """The transport of a connection whose peer reads everything."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, keep: bool = False) -> None:
        super().__init__()
        self._loop = loop
        self.protocol: NativeConnection | None = None
        self.closed = False
        self.reading = True
        self.written = 0
        self.kept: list[bytes] | None = [] if keep else None
        self.delivered: tuple[int, int, int, int] | None = None
        """(channel, partition, first offset, count) of what was delivered last, so that it can be settled."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._loop.call_soon(self.close)

    def write(self, data: Any) -> None:
        self.written += len(data)
        if len(data) >= DELIVER.size and data[4] == Op.DELIVER:
            _, _, _, channel, count, partition, _, _, _, first, _ = DELIVER.unpack_from(data)
            self.delivered = channel, partition, first, count
        if self.kept is not None:
            self.kept.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._lost)

    def abort(self) -> None:
        self.close()

    def _lost(self) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(None)


class Watch(logging.Handler):
    """Collects what must not happen: errors in the log and exceptions that reach the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.ERROR)
        self.found: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._loop = loop
        logging.getLogger("headrace").addHandler(self)
        loop.set_exception_handler(lambda _, context: self.note(context.get("exception"), str(context.get("message"))))

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.exc_info[1] if record.exc_info else None, record.getMessage())

    def note(self, error: BaseException | None, message: str, hint: str = "") -> None:
        where = ""
        if error is not None and error.__traceback__ is not None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f" at {last.filename.rpartition('/')[2]}:{last.lineno}"
        key = f"{message}: {type(error).__name__}{where}" if error is not None else message
        self.found[key] += 1
        if key not in self.first:
            self.first[key] = hint + ("".join(traceback.format_exception(error)) if error is not None else message)

    @property
    def total(self) -> int:
        return self.found.total()

    def close(self) -> None:
        logging.getLogger("headrace").removeHandler(self)
        self._loop.set_exception_handler(None)
        super().close()


class Rig:
    """A broker in memory with a few queues and streams, and the connections of a test."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        config = Config(broker=BrokerSection(storage="memory"), limits=Limits(connections_max=1_000_000, write_buffer_bytes_low=16 * KIB))
        self.watch = Watch(self.loop)
        self.broker = Broker(config)
        self.server = NativeServer(self.broker, Verbs(self.broker, lambda grace_ms, message: None))
        self._next = 1

    async def __aenter__(self) -> Rig:
        await self.broker.start()
        await self.declare()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in list(self.broker.sinks.values()):
            connection.close(None)
        await self.turn(3)
        await self.broker.stop()
        self.watch.close()

    async def declare(self) -> None:
        """The names that conversations are about; again after something deleted or altered them."""
        declared = self.broker.catalogue
        for name, spec in (
            ("dead", QueueSpec(max_messages=1000, overflow="drop_oldest")),
            ("plain", QueueSpec(partitions=2, max_deliveries=3, dead_letter="dead", max_messages=5000, overflow="drop_oldest")),
            ("keyed", QueueSpec(ordered_by_key=True, max_deliveries=3, max_messages=1000, overflow="drop_oldest", lease_ms=200)),
            ("bounded", QueueSpec(max_messages=100, max_bytes=100_000, ttl_ms=1000)),
            ("durable", StreamSpec(partitions=2, retention_records=5000)),
            ("early", StreamSpec(tier="speculative", retention_records=5000)),
        ):
            found = declared.find(name)
            if found is not None and found.kind != ("queue" if isinstance(spec, QueueSpec) else "stream"):
                await self.server.verbs.call(control.Delete(name=name))
                found = None
            if found is None:
                await declared.declare(name, spec)

    async def turn(self, count: int = 1) -> None:
        """Lets the broker do what is due."""
        for _ in range(count):
            await asyncio.sleep(0)

    def connect(self, *, keep: bool = False) -> tuple[NativeConnection, Wire]:
        """A connection that has said nothing yet."""
        connection, wire = NativeConnection(self.server, self._next), Wire(self.loop, keep=keep)
        self._next += 1
        wire.protocol = connection
        connection.connection_made(wire)
        return connection, wire

    def feed(self, connection: NativeConnection, wire: Wire, data: bytes, hint: str = "") -> bool:
        """Gives ``data`` to the connection unless it is closed; whether it still takes more."""
        if wire.closed or connection._closing:
            return False
        try:
            connection.data_received(data)
        except Exception as e:
            self.watch.note(e, "data_received", f"{hint}: {data[:200].hex()}\n")
            wire.close()
        if connection._have > BUFFERED_MAX:
            self.watch.note(None, f"{connection._have} bytes are buffered")
        return not wire.closed

    async def healthy(self) -> None:
        """A well-behaved client publishes, consumes and acks; raises if the broker does not serve it."""
        await self.declare()
        connection, wire = self.connect(keep=True)
        name = f"healthy-{self._next}"
        await self.broker.catalogue.declare(name, QueueSpec())
        hello = request(1, control.Hello())
        opened = request(2, control.OpenPublisher(channel=1, name=name)) + request(3, control.Subscribe(channel=1, name=name))
        self.feed(connection, wire, PREAMBLE + hello)
        await self.turn(10)
        self.feed(connection, wire, opened)
        await self.turn(20)
        self.feed(connection, wire, publish(1, 1, b"well"))
        await self.turn(20)
        assert wire.kept is not None
        ops = [op for op, _ in frames(b"".join(wire.kept))]
        assert ops.count(Op.REPLY) == 3, ops
        assert ops.count(Op.CONFIRM) == 1, ops
        assert ops.count(Op.DELIVER) == 1, ops
        wire.kept.clear()
        self.feed(connection, wire, egress.settle(1, [(0, 1)], partition=0, flags=4, correlation=9))
        await self.turn(20)
        assert [op for op, _ in frames(b"".join(wire.kept))] == [Op.SETTLED]
        self.feed(connection, wire, request(4, control.Delete(name=name)))
        await self.turn(20)
        wire.close()
        await self.turn(3)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """What a broker wrote: (opcode, whole frame) each."""
    found, pos = [], 0
    while pos < len(data):
        stop = pos + 4 + int.from_bytes(data[pos : pos + 4], "big")
        found.append((data[pos + 4], data[pos:stop]))
        pos = stop
    return found


# ---------------------------------------------------------------- valid frames


def request(correlation: int, message: control.Message) -> bytes:
    return frame(Op.REQUEST, control.encode(message), correlation=correlation)


def publish(
    channel: int, correlation: int, value: bytes, *, key: bytes | None = None, sequence: int = -1, producer: int = -1, flags: int = 7
) -> bytes:
    batch = encode_batch(
        [Record(key=key, value=value, headers=(("h", b"1"),), timestamp_ms=1, offset_delta=0)],
        base_timestamp_ms=1,
        producer_id=producer,
        producer_epoch=0 if producer >= 0 else -1,
        base_sequence=sequence,
    )
    return encode_publish(batch, channel=channel, correlation=correlation, flags=flags)


def recrc(data: bytes) -> bytes:
    """A PUBLISH frame with the checksum that its bytes have now: damage behind it reaches the records."""
    return data[:49] + Struct(">I").pack(crc32c(data[53:])) + data[53:] if len(data) > 60 else data


HELLO = request(1, control.Hello(client="fuzz", push=("catalogue",)))
OPENING = (
    request(2, control.OpenPublisher(channel=1, name="plain")),
    request(3, control.OpenPublisher(channel=2, name="keyed", producer_id=7)),
    request(4, control.OpenPublisher(channel=3, name="durable", partition=1)),
    request(5, control.OpenPublisher(channel=4, name="bounded")),
    request(12, control.OpenPublisher(channel=5, name="keyed")),
    request(6, control.Subscribe(channel=1, name="plain", token=11, prefetch=50)),
    request(7, control.Subscribe(channel=2, name="keyed", pull=True, token=12)),
    request(8, control.Subscribe(channel=3, name="plain", filter=control.Filter(op="exists", header="h"), prefetch=20)),
    request(9, control.SubscribeStream(channel=4, name="durable", start="last:20", cursor="c", token=13)),
    request(10, control.SubscribeStream(channel=5, name="early", start="last:20", group="g", cursor="g", strategy="cooperative", token=14)),
    request(11, control.Subscribe(channel=6, name="bounded", cohort="c", member="m", auto_ack=True)),
)
"""What a client asks for that uses everything."""

INTS = (
    *(0, 1, -1, 2, 7, 100, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1),
)
TEXTS = (
    *(*NAMES, "", "c", "g", "m", "$x", "a\x00b", "x" * 300, "\u00e9" * 100, "[", "*" * 50, "0" * 32, "a" * 32, "queue", "stream", "drop_oldest"),
    *("earliest", "latest", "cursor", "offset:5", "last:3", "offset:" + "9" * 30, "timestamp:1", "sticky", "cooperative", "range", "catalogue"),
    *("exists", "eq", "and", "not", "ready", "any", "lease_ms", "ttl_ms"),
)


def _hostile(rng: random.Random, kind: Any, depth: int = 0) -> Any:
    """A value that fits the type more often than not, at its edges."""
    if rng.random() < 0.03:
        kind = rng.choice((int, str, bytes, bool, float, None, list))
    if kind is int:
        return rng.choice(INTS) if rng.random() < 0.5 else rng.randrange(20)
    if kind is str:
        return rng.choice(TEXTS)
    if kind is bytes:
        return rng.randbytes(rng.randrange(20))
    if kind is bool:
        return rng.random() < 0.5
    if kind is float:
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
    if kind is None or kind is type(None):
        return None
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _fields(rng, kind, depth + 1)
    arguments = get_args(kind)
    if not arguments or depth > 6:
        return []
    origin = getattr(kind, "__origin__", None)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return [_hostile(rng, arguments[0], depth + 1) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 40)))]
        return [_hostile(rng, a, depth + 1) for a in arguments]
    if origin is list:
        return [_hostile(rng, arguments[0], depth + 1) for _ in range(rng.randrange(4))]
    if origin is dict:
        value = rng.choice((int, str, bool)) if arguments[1] is Any else arguments[1]
        keys: Sequence[int | str] = INTS if (arguments[0] is int) != (rng.random() < 0.05) else TEXTS
        return {rng.choice(keys): _hostile(rng, value, depth + 1) for _ in range(rng.randrange(3))}
    if origin is not None and not arguments:
        return []
    return _hostile(rng, rng.choice(arguments), depth + 1)


def _fields(rng: random.Random, kind: type[msgspec.Struct], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        if name == "name" and rng.random() < 0.9:
            found[name] = rng.choice(NAMES)
        elif name == "channel" and rng.random() < 0.9:
            found[name] = rng.randrange(1, 8)
        elif rng.random() < 0.4:
            found[name] = _hostile(rng, hint, depth)
    return found


_hints_cache: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    found = _hints_cache.get(kind)
    if found is None:
        found = _hints_cache[kind] = {k: v for k, v in get_type_hints(kind).items() if k in kind.__struct_fields__}  # type: ignore[attr-defined]
    return found


REQUESTS: tuple[type[msgspec.Struct], ...] = get_args(control.Request)


def hostile_request(rng: random.Random) -> bytes:
    """A control message of a random type whose fields are at their edges, or wrong."""
    kind = rng.choice(REQUESTS)
    if kind is control.Delete and rng.random() < 0.9:
        kind = control.Subscribe
    body = {"t": kind.__struct_config__.tag, **_fields(rng, kind, 0)}
    if kind is control.Drain:
        body["t"] = "status"
    try:
        data = msgspec.msgpack.encode(body)
    except (OverflowError, TypeError, msgspec.MsgspecError):
        data = b"\xc1"
    return frame(Op.REQUEST, data, correlation=rng.getrandbits(16))


_RANGE = Struct(">QI")
_FIELDS = Struct(">III")


def hostile_hot(rng: random.Random) -> bytes:
    """SETTLE, EXTEND, CREDIT or FETCH with values at their edges."""
    channel = rng.randrange(8)
    kind = rng.randrange(4)
    firsts = (0, 1, 5, rng.randrange(50), rng.randrange(2000), rng.randrange(2000), (1 << 62) if rng.random() < 0.9 else (1 << 64) - 1)
    ranges = b"".join([_RANGE.pack(rng.choice(firsts), rng.choice((0, 1, 2, 50, (1 << 32) - 1))) for _ in range(rng.choice((0, 1, 1, 2, 5)))])
    word = rng.choice((0, 1, 200, (1 << 32) - 1))
    fields = _FIELDS.pack(rng.choice((0, 0, 0, 1, 2, (1 << 32) - 1)), rng.choice((0, 0, 1, 2, (1 << 32) - 1)), word)
    if kind == 0:
        flags = rng.choice((0, 4, 1, 5, 17, 2, 6, 34, 8, 12)) if rng.random() < 0.9 else rng.getrandbits(8)
        return HEADER.pack(20 + len(ranges), Op.SETTLE, flags, channel, 5) + fields + ranges
    if kind == 1:
        return HEADER.pack(20 + len(ranges), Op.EXTEND, 0, channel, 6) + fields + ranges
    if kind == 2:
        edges = (0, 1, -1, 100, -(1 << 31), (1 << 31) - 1)
        return egress.credit(channel, rng.choice(edges), rng.choice(edges))
    return egress.fetch(channel, 7, messages=rng.choice((0, 1, 10, (1 << 32) - 1)), nbytes=word, wait_ms=rng.choice((0, 1, (1 << 32) - 1)))


def settling(rng: random.Random, channel: int, partition: int, first: int, count: int) -> bytes:
    """SETTLE or EXTEND of what was delivered, or of a part of it."""
    if count > 1 and rng.random() < 0.5:
        first += rng.randrange(count)
        count = 1 + rng.randrange(count)
    if rng.random() < 0.1:
        return egress.extend(channel, [(first, count)], partition=partition, lease_ms=rng.randrange(1000), correlation=8)
    flags = rng.choice((0, 0, 4, 1, 5, 17, 2, 6, 34, 8, 12))
    return egress.settle(channel, [(first, count)], partition=partition, flags=flags, delay_ms=rng.randrange(50), correlation=8)


def _publishes() -> list[bytes]:
    made = [publish(channel, i, b"x" * (i % 40), key=b"k%d" % (i % 5)) for channel in (1, 3, 4, 9) for i in range(12)]
    made += [publish(2, i, b"y", key=b"k%d" % (i % 3), producer=7, sequence=i) for i in range(12)]
    made += [publish(5, i, b"y", key=b"k%d" % (i % 3)) for i in range(12)]
    made += [publish(1, 1, b"z", flags=flags) for flags in (0, 1, 2, 3, 0x87)]
    return made


PUBLISHES = _publishes()
SMALL = (frame(Op.PING, correlation=3), frame(Op.PONG), frame(Op.CONFIRM), frame(0xEE), frame(Op.REPLY, b"\x80"), frame(Op.REQUEST, b""))


def one(rng: random.Random) -> bytes:
    """A frame that is valid or nearly so."""
    pick = rng.random()
    if pick < 0.45:
        return PUBLISHES[int(rng.random() * len(PUBLISHES))]
    if pick < 0.80:
        return hostile_hot(rng)
    if pick < 0.92:
        return hostile_request(rng)
    if pick < 0.98:
        return SMALL[0]
    return rng.choice(SMALL)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """``data`` with damage: flipped bits, a cut, a doubled or overwritten part."""
    pick = rng.random()
    if pick < 0.35:  # behind the header only: the framing stands
        changed = bytearray(data)
        for _ in range(1 + int(rng.random() * 3)):
            if len(changed) > 12:
                changed[12 + int(rng.random() * (len(changed) - 12))] ^= 1 << int(rng.random() * 8)
        return bytes(changed)
    if pick < 0.60 and data[4:5] == b"\x01":  # in the records, with a checksum that fits
        changed = bytearray(data)
        for _ in range(1 + int(rng.random() * 3)):
            changed[-1 - int(rng.random() * min(len(changed) - 1, 40))] ^= 1 << int(rng.random() * 8)
        return recrc(bytes(changed))
    if pick < 0.80:
        changed = bytearray(data)
        changed[int(rng.random() * len(changed))] = int(rng.random() * 256)
        return bytes(changed)
    if pick < 0.87:
        return data[: int(rng.random() * len(data))]
    if pick < 0.94:
        return data + data
    return rng.randbytes(int(rng.random() * 60))


# ---------------------------------------------------------------- the campaign


class Totals:
    """What a campaign did. The last four say how deep it came: what the broker stored, delivered, settled and refused of it."""

    def __init__(self) -> None:
        self.inputs = self.nbytes = self.connections = self.closes = 0
        self.published = self.delivered = self.settled = self.refused = 0


async def campaign(count: int, seed: int, *, progress: Callable[[str], None] = lambda line: None) -> tuple[Totals, Watch]:
    """``count`` inputs made from ``seed``."""
    rng = random.Random(seed)
    totals = Totals()
    async with Rig() as rig:
        watch = rig.watch
        living: list[tuple[NativeConnection, Wire]] = []
        began = said = time.monotonic()
        while totals.inputs < count:
            living = [pair for pair in living if not pair[1].closed and not pair[0]._closing]
            while len(living) < 16:
                connection, wire = rig.connect()
                totals.connections += 1
                pick = rng.random()
                if pick < 0.9:
                    rig.feed(connection, wire, PREAMBLE + HELLO)
                    await rig.turn(3)
                    if pick < 0.75:
                        rig.feed(connection, wire, b"".join(OPENING) if pick < 0.55 else b"".join(rng.sample(OPENING, 4)))
                        await rig.turn(3)
                elif pick < 0.96:
                    rig.feed(connection, wire, mutated(rng, PREAMBLE + HELLO))
                living.append((connection, wire))
            for connection, wire in living:
                for _ in range(1 + int(rng.random() * 60)):
                    if wire.delivered is not None and rng.random() < 0.2:
                        data = settling(rng, *wire.delivered)
                        wire.delivered = None
                    else:
                        data = one(rng)
                    if rng.random() < 0.25:
                        data = mutated(rng, data)
                    totals.inputs += 1
                    totals.nbytes += len(data)
                    if rng.random() < 0.1 and len(data) > 1:
                        cut = 1 + int(rng.random() * (len(data) - 1))
                        alive = rig.feed(connection, wire, data[:cut], f"seed {seed} input {totals.inputs}")
                        data = data[cut:]
                        alive = alive and rig.feed(connection, wire, data, f"seed {seed} input {totals.inputs}")
                    else:
                        alive = rig.feed(connection, wire, data, f"seed {seed} input {totals.inputs}")
                    if not alive:
                        totals.closes += 1
                        break
                # one that waits for the rest of a frame whose length was damaged would swallow all that follows
                if rng.random() < (0.3 if connection._have else 0.01):
                    wire.close()
            await rig.turn(2)
            if rng.random() < 0.1:
                await rig.declare()
                await rig.broker.catalogue.pause("plain", False)
            now = time.monotonic()
            if now - said > 5:
                said = now
                progress(f"{totals.inputs:,} inputs, {totals.inputs / (now - began):,.0f}/s, {totals.closes:,} closes, {watch.total} exceptions")
        for connection, wire in living:
            wire.close()
            assert connection._have <= BUFFERED_MAX
        await rig.turn(5)
        try:
            await asyncio.wait_for(rig.healthy(), 10)
        except (AssertionError, TimeoutError) as e:
            watch.note(e, "a healthy client is not served afterwards")
        for name in ("published", "delivered", "settled", "refused"):
            setattr(totals, name, getattr(rig.broker.counters, name))
    return totals, watch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.native", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=200_000, help="inputs")
    parser.add_argument("--seed", type=int, default=1, help="where the random numbers begin")
    asked = parser.parse_args(arguments)
    logging.getLogger("headrace").setLevel(logging.ERROR)
    logging.getLogger("headrace").propagate = False
    began = time.monotonic()

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)

    totals, watch = asyncio.run(campaign(asked.count, asked.seed, progress=progress))
    seconds = time.monotonic() - began
    for key, times in watch.found.most_common(20):
        print(f"--- {times} times: {key}\n{watch.first[key]}")
    print(
        f"inputs={totals.inputs} bytes={totals.nbytes} connections={totals.connections} closes={totals.closes} published={totals.published} "
        f"delivered={totals.delivered} settled={totals.settled} refused={totals.refused} exceptions={watch.total} "
        f"seed={asked.seed} seconds={seconds:.1f} inputs_per_s={totals.inputs / seconds:.0f}"
    )
    return 1 if watch.total else 0


if __name__ == "__main__":
    raise SystemExit(main())

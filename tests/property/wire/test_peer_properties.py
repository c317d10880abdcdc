"""Frames between brokers: there and back; arbitrary bytes; byte by byte as at once."""

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.secret import Secrets
from headrace.cluster.transport.handshake import Answering, Dialing, Opened, Opening
from headrace.cluster.transport.link import Link, Lost
from headrace.cluster.transport.settings import Settings
from headrace.model.errors import BY_CODE, HeadraceError, Malformed, from_wire
from headrace.wire import peer
from headrace.wire.frames import HEADER
from headrace.wire.peer import PREAMBLE, Introduction, PeerFlag, PeerOp, Proof, Service
from tests.property.effort import effort

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)
nonces = st.binary(min_size=32, max_size=32)
introductions = st.builds(
    Introduction,
    broker=ids, incarnation=ids, nonce=nonces, cluster=ids | st.just(""), versions=st.tuples(st.integers(1, 9), st.integers(9, 65_535)),
    features=st.lists(ids, max_size=4).map(tuple), release=ids, expects=ids, purpose=st.sampled_from(["peer", "probe", "visit"]),
)  # fmt: skip
u32 = st.integers(0, (1 << 32) - 1)
SECRET = b"a secret that is long enough"
SMALL = Settings(frame_bytes_max=4096, queue_bytes_max=16_384, compression="lz4", compress_bytes_min=64)


@given(introductions, st.sampled_from([PeerOp.HELLO, PeerOp.CHALLENGE]))
def test_introductions(who: Introduction, op: Any) -> None:
    data = peer.introduction(op, who)
    length, found, *_ = HEADER.unpack_from(data)
    assert (length, found) == (len(data) - 4, op)
    assert peer.parse_introduction(data[12:]) == who


@given(introductions)
def test_unknown_fields_of_an_introduction_are_ignored(who: Introduction) -> None:
    fields = msgspec.msgpack.decode(peer.introduction(PeerOp.HELLO, who)[12:]) | {"later": [1, {"x": b"y"}]}
    assert peer.parse_introduction(msgspec.msgpack.encode(fields)) == who


@given(st.binary(min_size=8, max_size=8), nonces)
def test_proofs(key: bytes, code: bytes) -> None:
    assert peer.parse_proof(peer.proof(PeerOp.PROOF, Proof(key, code))[12:]) == Proof(key, code)


@given(st.sampled_from(sorted(BY_CODE)), ids, ids, u32)
def test_failures(code: int, message: str, hint: str, correlation: int) -> None:
    data = peer.failure(PeerOp.ERROR, from_wire(code, message, hint), correlation)
    error = peer.parse_failure(data[12:])
    assert (type(error), str(error), error.hint, HEADER.unpack_from(data)[4]) == (BY_CODE[code], message, hint, correlation)


@given(u32, st.binary(max_size=50))
def test_requests(timeout_ms: int, body: bytes) -> None:
    assert peer.parse_request(peer.request_head(timeout_ms) + body) == (timeout_ms, body)


@given(st.lists(st.binary(max_size=30).map(lambda b: b * 20), max_size=5))
def test_compressed_bodies(parts: list[bytes]) -> None:
    made, whole = peer.compressed(parts), b"".join(parts)
    if made is not None:
        assert len(made) < len(whole)
        assert peer.expanded(made, len(whole)) == whole
        with suppress(Malformed):
            assert peer.expanded(made, len(whole) - 1) is None


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_arbitrary_bodies(data: bytes, bytes_max: int) -> None:
    for parse in (peer.parse_introduction, peer.parse_proof, peer.parse_failure, peer.parse_request):
        with suppress(Malformed):
            parse(data)
    with suppress(Malformed):
        assert len(peer.expanded(data, bytes_max)) <= bytes_max


# ---------------------------------------------------------------- a whole connection, without any I/O


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = False

    def write(self, data: Any) -> None:
        if not self.ended:
            self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("somewhere", 1)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class End:
    """The owner of one link: what it was given, in order."""

    settings = SMALL

    def __init__(self, who: Introduction, *, dialing: bool) -> None:
        self.who = who
        self.taken: list[tuple[PeerOp, int, int, bytes]] = []
        self.lost: Lost | None = None
        self.wire = Wire()
        self.link = Link(self, dialing=dialing)
        self.link.connection_made(self.wire)

    def now_ms(self) -> int:
        return 1

    def begin_opening(self, link: Link, transport: asyncio.BaseTransport) -> Opening:
        secrets = Secrets([SECRET])
        return Dialing(self.who, secrets) if link.dialing else Answering(self.who, secrets, lambda who: None)

    def is_open(self, link: Link, opened: Opened) -> None:
        link.attached = True

    def is_lost(self, link: Link, why: Lost) -> None:
        assert self.lost is None
        self.lost = why

    def is_gone(self, link: Link) -> None:
        pass

    def flush_soon(self, link: Link) -> None:
        pass

    def breathe(self, link: Link) -> None:
        pass

    def take(self, link: Link, op: PeerOp, service: int, correlation: int, body: bytes) -> None:
        if op == PeerOp.BATCH and service == 0:
            raise Malformed("no such service")
        self.taken.append((op, service, correlation, body))

    def filled(self, link: Link) -> None:
        pass

    def drained(self, link: Link) -> None:
        pass


def introduced(name: str, nonce: int) -> Introduction:
    return Introduction(broker=name, incarnation="1", nonce=bytes([nonce]) * 32, features=("lz4",))


async def opened_by(chunk: int) -> tuple[End, End]:
    """Two ends that have opened, bytes handed over in pieces of that size."""
    a, b = End(introduced("a", 1), dialing=True), End(introduced("b", 2), dialing=False)
    for _ in range(6):
        hand_over(a, b, chunk)
        hand_over(b, a, chunk)
    assert a.link.opened is not None
    assert b.link.opened is not None
    return a, b


def hand_over(source: End, target: End, chunk: int) -> None:
    data, source.wire.written = bytes(source.wire.written), bytearray()
    for at in range(0, len(data), chunk):
        target.link.data_received(data[at : at + chunk])


frames = st.lists(
    st.tuples(
        st.sampled_from([PeerOp.BATCH, PeerOp.REQUEST, PeerOp.REPLY, PeerOp.ERROR]),
        st.sampled_from(list(Service)), u32, st.binary(max_size=60) | st.binary(min_size=1, max_size=9).map(lambda b: b * 100),
    ),
    max_size=8,
)  # fmt: skip


@given(frames, st.integers(1, 400))
def test_byte_at_a_time_is_as_at_once(sent: list[tuple[PeerOp, Service, int, bytes]], chunk: int) -> None:
    async def run(size: int) -> list[Any]:
        a, b = await opened_by(size)
        for op, service, correlation, body in sent:
            a.link.send(op, (body[:3], body[3:]), service=service, correlation=correlation)
            if correlation % 3 == 0:
                a.link.flush()
        a.link.beat()
        a.link.flush()
        hand_over(a, b, size)
        b.link.flush()
        hand_over(b, a, size)
        assert (a.lost, b.lost) == (None, None)
        assert a.link.answered_ms == 1
        return b.taken

    expected = [(op, int(service), correlation, body) for op, service, correlation, body in sent]
    assert asyncio.run(run(1)) == expected
    assert asyncio.run(run(chunk)) == expected
    assert asyncio.run(run(1 << 20)) == expected


@given(st.lists(st.binary(max_size=80), max_size=10), st.booleans(), st.booleans())
@effort(200)
def test_arbitrary_bytes_end_a_connection_or_nothing(chunks: list[bytes], proper: bool, opened: bool) -> None:
    async def run() -> None:
        if opened:
            _, b = await opened_by(1 << 20)
        else:
            b = End(introduced("b", 2), dialing=False)
            if proper:
                b.link.data_received(PREAMBLE)
        for data in chunks:
            b.link.data_received(data)
        if not opened:
            assert b.link.opened is None
            assert not b.taken
        if b.lost is not None:
            assert b.lost.kind in ("refused", "broken")
            assert b.link.error is not None

    asyncio.run(run())


@given(st.data(), st.sampled_from(list(PeerOp)), st.binary(max_size=100), st.integers(0, 255))
def test_any_frame_on_an_open_connection(data: st.DataObject, op: PeerOp, body: bytes, flags: int) -> None:
    async def run() -> None:
        _, b = await opened_by(1 << 20)
        b.link.data_received(peer.head(op, len(body), flags=flags, service=1, correlation=2) + body)
        usual = op in (PeerOp.PING, PeerOp.PONG) or (op in (PeerOp.BATCH, PeerOp.REPLY, PeerOp.REQUEST, PeerOp.ERROR) and not flags & PeerFlag.LZ4)
        if usual:
            assert b.lost is None
        elif b.lost is not None:
            assert isinstance(b.link.error, HeadraceError)

    asyncio.run(run())

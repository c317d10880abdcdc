"""Brokers' connections over real sockets: who is let in, what is bounded, what is noticed, and that all comes back by itself."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import uvloop

from headrace.cluster.secret import Secret, Secrets
from headrace.cluster.transport import Known, Settings
from headrace.cluster.transport.handshake import Answering, Dialing
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import ConnectionLost, Elsewhere, Invalid, LimitExceeded, Malformed, NotConnected, NotFound, TooLarge, UnknownOutcome
from headrace.wire import peer as wire
from headrace.wire.frames import HEADER, PREAMBLE
from headrace.wire.peer import Introduction, PeerOp, Service
from tests.integration.transport.ends import OTHER, SECRET, A, B, C, End, introduce, meet

QUICK = Settings(beat_ms=20, silent_beats_max=10, opening_ms=400, retry_ms_min=10, retry_ms_max=100)
SMALL = Settings(beat_ms=50, frame_bytes_max=64 * 1024, queue_bytes_max=256 * 1024, retry_ms_min=10, retry_ms_max=100)

Make = Callable[..., End]


@pytest.fixture
async def end() -> AsyncIterator[Make]:
    """Makes ends that are stopped after the test."""
    made: list[End] = []

    def make(id: str, **options: object) -> End:
        made.append(End(id, **({"settings": QUICK} | options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        await one.transport.stop()


async def echo(peer: BrokerId, body: bytes) -> bytes:
    return peer.encode() + b":" + body


async def hang(peer: BrokerId, body: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


# ---------------------------------------------------------------- saying something


async def test_both_ways_on_one_connection(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    a.serve(echo)
    b.serve(echo)
    await meet(a, b)
    assert await a.transport.request(B, Service.VERBS, b"1", timeout_ms=5000) == b"a:1"
    assert await b.transport.request(A, Service.VERBS, b"2", timeout_ms=5000) == b"b:2"
    assert a.transport.send(B, Service.REPLICAS, b"to ", b"b")
    assert b.transport.send(A, Service.REPLICAS, b"to a")
    await a.seen.until(lambda: a.seen.batches)
    await b.seen.until(lambda: b.seen.batches)
    assert (a.seen.batches, b.seen.batches) == ([(B, b"to a")], [(A, b"to b")])
    assert [e for e in a.seen.events if e[0] == "connected"] == [("connected", "b")]
    (view,) = a.transport.view()
    assert (view.broker, view.connected, view.incarnation, view.release) == ("b", True, "b-1", "test")


async def test_all_of_a_turn_goes_out_in_one_write(end: Make) -> None:
    a, b = await end("a", settings=Settings(beat_ms=5000)).start(), await end("b").start()
    await meet(a, b)
    counters = a.transport.view()[0].counters
    await asyncio.sleep(0)
    before = counters.writes_out
    for i in range(500):
        assert a.transport.send(B, Service.REPLICAS, b"%d" % i)
    assert counters.writes_out == before
    a.transport.flush()
    assert counters.writes_out == before + 1
    await b.seen.until(lambda: len(b.seen.batches) == 500)
    assert [body for _, body in b.seen.batches] == [b"%d" % i for i in range(500)]


async def test_five_brokers_all_know_each_other(end: Make) -> None:
    ends = [await end(id).start() for id in "abcde"]
    for one in ends:
        one.serve(echo)
    await meet(*ends)
    for one in ends:
        for other in ends:
            if other is not one:
                assert await one.transport.request(other.id, Service.VERBS, b"x", timeout_ms=5000) == one.id.encode() + b":x"


async def test_errors_of_a_peer_are_told_as_they_are(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()

    async def refuse(peer: BrokerId, body: bytes) -> bytes:
        raise Invalid("not so", hint="so")

    b.serve(refuse)
    await meet(a, b)
    with pytest.raises(Invalid, match="not so") as refused:
        await a.transport.request(B, Service.VERBS, b"", timeout_ms=5000)
    assert refused.value.hint == "so"
    with pytest.raises(NotFound, match="no service 2"):
        await a.transport.request(B, Service.COPIES, b"", timeout_ms=5000)


async def test_a_request_without_a_connection_is_definite(end: Make) -> None:
    a = await end("a").start()
    with pytest.raises(NotConnected):
        await a.transport.request(B, Service.VERBS, b"", timeout_ms=5000)
    assert not a.transport.send(B, Service.REPLICAS, b"x")


async def test_a_deadline_and_a_lost_connection_leave_the_outcome_unknown(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    b.serve(hang)
    await meet(a, b)
    with pytest.raises(UnknownOutcome, match="within 50 ms"):
        await a.transport.request(B, Service.VERBS, b"", timeout_ms=50)
    asking = asyncio.create_task(a.transport.request(B, Service.VERBS, b"", timeout_ms=60_000))
    await a.seen.until(lambda: a.transport.view()[0].counters.requests_out == 2)
    await b.seen.until(lambda: b.transport.view()[0].counters.requests_in == 2)
    await b.transport.stop()
    with pytest.raises(ConnectionLost):
        await asking


async def test_requests_are_bounded_on_both_sides(end: Make) -> None:
    a = await end("a", settings=Settings(requests_max=3)).start()
    b = await end("b", settings=Settings(requests_max=2)).start()
    b.serve(hang)
    await meet(a, b)
    asked = [asyncio.create_task(a.transport.request(B, Service.VERBS, b"", timeout_ms=60_000)) for _ in range(3)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=5)
    for task in done:
        with pytest.raises(LimitExceeded, match="are being carried out"):
            await task
    asked.append(asyncio.create_task(a.transport.request(B, Service.VERBS, b"", timeout_ms=60_000)))
    await a.seen.until(lambda: asked[-1].done())
    with pytest.raises(LimitExceeded):
        await asked[-1]
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_big_frames_are_compressed_if_both_can(end: Make) -> None:
    able = Settings(compression="lz4", compress_bytes_min=1000)
    a, b, c = await end("a", settings=able).start(), await end("b", settings=able).start(), await end("c").start()
    await meet(a, b, c)
    for peer in (B, C):
        assert a.transport.send(peer, Service.REPLICAS, b"again and " * 5000)
    await b.seen.until(lambda: b.seen.batches)
    await c.seen.until(lambda: c.seen.batches)
    assert b.seen.batches == c.seen.batches == [(A, b"again and " * 5000)]
    saved = {view.broker: view.counters.compressed_bytes_saved for view in a.transport.view()}
    assert saved[B] > 40_000
    assert saved[C] == 0


# ---------------------------------------------------------------- who is let in


async def never_connects(*ends: End) -> None:
    """They try several times, in vain."""
    introduce(*ends)
    dialer, other = ends
    await dialer.seen.until(lambda: next(v for v in dialer.transport.view() if v.broker == other.id).counters.dials_failed >= 3)
    assert ("connected", other.id) not in dialer.seen.events
    assert not other.seen.events


async def test_a_wrong_secret(end: Make) -> None:
    a, b = await end("a").start(), await end("b", secret=OTHER).start()
    await never_connects(a, b)
    (view,) = a.transport.view()
    assert "not accepted at broker b" in view.trouble
    assert "secret" not in view.trouble.replace("the secret", "")
    assert b.transport.anonymous.refused >= 3
    assert (await a.transport.probe(b.address, timeout_ms=2000)).outcome == "rejected"


async def test_a_wrong_cluster(end: Make) -> None:
    a, b = await end("a").start(), await end("b", cluster="two").start()
    await never_connects(a, b)
    assert "broker a belongs to cluster one, broker b to two" in a.transport.view()[0].trouble


async def test_who_joins_a_cluster_later_is_connected_anew(end: Make) -> None:
    a, b = await end("a", cluster="").start(), await end("b", cluster="").start()
    await meet(a, b)
    a.transport.join_cluster("one")
    b.transport.join_cluster("one")
    await a.seen.until(lambda: (who := a.transport.peer(B)) and who.who and who.who.cluster == "one" and a.transport.connected(B))
    other = await end("c", cluster="two").start()
    await never_connects(a, other)


async def test_an_address_of_somebody_else(end: Make) -> None:
    a, c = await end("a").start(), await end("c").start()
    a.transport.know({B: Known(c.address)})
    await a.seen.until(lambda: a.transport.view()[0].counters.dials_failed >= 2)
    assert "broker c" in a.transport.view()[0].trouble or "not b" in a.transport.view()[0].trouble


async def test_its_own_address(end: Make) -> None:
    a = await end("a").start()
    a.transport.know({B: Known(a.address)})
    await a.seen.until(lambda: a.transport.view()[0].counters.dials_failed >= 2)
    assert "both sides are broker a" in a.transport.view()[0].trouble


async def test_a_secret_is_exchanged_while_all_goes_on(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    await meet(a, b)
    for one in (a, b):
        one.transport.secrets.add(OTHER)
    for one in (a, b):
        one.transport.secrets.use(Secret(OTHER).id)
    assert a.transport.connected(B)
    for one in (a, b):
        one.transport.remove_secret(Secret(SECRET).id)
    await a.seen.until(lambda: [e[0] for e in a.seen.events].count("connected") >= 2 and a.transport.connected(B))
    remote = a.transport.peer(B)
    assert remote is not None
    assert remote.link is not None
    assert remote.link.opened is not None
    assert remote.link.opened.keys == {Secret(OTHER).id}
    late = await end("0").start()
    late.transport.know({A: Known(a.address)})
    await late.seen.until(lambda: late.transport.view()[0].counters.dials_failed >= 2)
    assert "not accepted" in late.transport.view()[0].trouble


async def test_an_older_life_does_not_come_back(end: Make) -> None:
    a, old = await end("b").start(), end("a", life="old")
    await old.start()
    old.transport.know({B: Known(a.address)})
    await old.seen.until(lambda: old.transport.connected(B))
    new = await end("a", life="new").start()
    new.transport.know({B: Known(a.address)})
    await new.seen.until(lambda: new.transport.connected(B))
    await old.seen.until(lambda: "started again since (as a-new)" in old.transport.view()[0].trouble)
    assert new.transport.connected(B)
    assert not old.transport.connected(B)
    assert [e for e in a.seen.events if e[0] in ("connected", "lost")] == [("connected", "a"), ("lost", "a"), ("connected", "a")]
    assert a.seen.losses[0].kind == "replaced"


# ---------------------------------------------------------------- strangers


async def talk(at: Address, *data: bytes) -> bytes:
    """What comes back until the end."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    with suppress(OSError):
        for piece in data:
            writer.write(piece)
            await writer.drain()
    answer = b""
    with suppress(OSError):
        async with asyncio.timeout(10):
            while piece := await reader.read(65_536):
                answer += piece
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return answer


def told(answer: bytes) -> str:
    assert answer[4] == PeerOp.REFUSAL, answer
    return str(wire.parse_failure(answer[12:]))


async def test_garbage_and_other_protocols_are_told_and_closed(end: Make) -> None:
    b = await end("b").start()
    assert "something else" in told(await talk(b.address, b"\x00garbage" * 100))
    assert "HTTP" in told(await talk(b.address, b"GET / HTTP/1.1\r\n\r\n"))
    assert "Headrace client" in told(await talk(b.address, PREAMBLE))
    assert "frame" in told(await talk(b.address, wire.PREAMBLE, b"\xff" * 12))
    assert "cannot be read" in told(await talk(b.address, wire.PREAMBLE, HEADER.pack(8 + 3, PeerOp.HELLO, 0, 0, 0) + b"abc"))
    assert "0x6d is not expected" in told(await talk(b.address, wire.PREAMBLE, HEADER.pack(8 + 3, PeerOp.BATCH, 0, 1, 0) + b"abc"))
    assert b.transport.anonymous.refused == 6
    assert not b.seen.events


async def test_before_the_proof_a_frame_is_small(end: Make) -> None:
    b = await end("b").start()
    assert "4096" in told(await talk(b.address, wire.PREAMBLE, HEADER.pack(5000, PeerOp.HELLO, 0, 0, 0)))


async def test_who_says_nothing_is_closed(end: Make) -> None:
    b = await end("b").start()
    assert await talk(b.address, wire.PREAMBLE) == b""
    assert b.transport.anonymous.timed_out == 1


async def test_many_who_say_nothing_do_not_keep_others_out_for_long(end: Make) -> None:
    b = await end("b", settings=Settings(openings_max=8, opening_ms=400, beat_ms=20)).start()
    strangers = [asyncio.create_task(talk(b.address)) for _ in range(30)]
    await b.seen.until(lambda: b.transport.anonymous.crowded_out >= 22)
    a = await end("a").start()
    await meet(a, b)
    await asyncio.gather(*strangers)


async def raw(b: End, name: str = "a", secret: bytes = SECRET) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An opened connection whose owner may then do as it likes."""
    reader, writer = await asyncio.open_connection(b.address.host, b.address.port)
    me = Introduction(broker=name, incarnation="raw", nonce=bytes(32), cluster="one")
    opening = Dialing(me, Secrets([secret]))
    writer.write(opening.begin())
    try:
        while opening.opened is None:
            head = await reader.readexactly(12)
            frame = head + await reader.readexactly(HEADER.unpack(head)[0] - 8)
            writer.write(opening.receive(frame[4], frame))
    except BaseException:
        await close(writer)
        raise
    await b.seen.until(lambda: b.transport.connected(BrokerId(name)))
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    data = b""
    with suppress(OSError):
        async with asyncio.timeout(10):
            while piece := await reader.read(65_536):
                data += piece
    return data


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (HEADER.pack(64 * 1024 + 9, PeerOp.BATCH, 0, 1, 0), "a frame's length"),
        (HEADER.pack(3, PeerOp.BATCH, 0, 1, 0), "a frame's length"),
        (HEADER.pack(8, 0x01, 0, 1, 0), "opcode 0x01"),
        (HEADER.pack(8, PeerOp.HELLO, 0, 1, 0), "opcode 0x60"),
        (HEADER.pack(8, PeerOp.BATCH, 0, 77, 0), "no service 77"),
        (HEADER.pack(8 + 8, PeerOp.BATCH, 1, 1, 0) + b"\x00\xff\xff\xffabcd", "expands to"),
        (HEADER.pack(8, PeerOp.REQUEST, 0, 3, 0), "a request has"),
    ],
)
async def test_a_proven_peer_that_breaks_the_rules_is_told_and_closed(end: Make, sent: bytes, text: str) -> None:
    b = await end("b", settings=SMALL).start()
    reader, writer = await raw(b)
    writer.write(sent)
    answer = await rest(reader)
    at, goodbyes = 0, []
    while at < len(answer):
        length, op, *_ = HEADER.unpack_from(answer, at)
        if op == PeerOp.GOODBYE:
            goodbyes.append(str(wire.parse_failure(answer[at + 12 : at + 4 + length])))
        at += 4 + length
    assert len(goodbyes) == 1
    assert text in goodbyes[0]
    assert b.seen.losses[0].kind == "broken"
    await close(writer)


async def test_a_bug_in_a_handler_ends_the_connection_and_no_more(end: Make, caplog: pytest.LogCaptureFixture) -> None:
    a, b = await end("a").start(), await end("b").start()

    def fail(peer: BrokerId, body: bytes) -> None:
        raise ZeroDivisionError("a bug")

    b.transport.on_batch(Service.COPIES, fail)
    await meet(a, b)
    assert a.transport.send(B, Service.COPIES, b"x")
    await b.seen.until(lambda: b.seen.losses)
    await a.seen.until(lambda: [e[0] for e in a.seen.events].count("connected") == 2)
    assert "ZeroDivisionError" in a.seen.losses[0].text or a.seen.losses[0].kind in ("goodbye", "reset")
    assert "could not be handled" in caplog.text


# ---------------------------------------------------------------- floods


async def test_a_slow_peer_fills_its_queue_and_nothing_else(end: Make) -> None:
    a, b, c = [await end(id, settings=SMALL).start() for id in "abc"]
    b.serve(echo)
    await meet(a, b, c)
    b.transport.hold(A)
    sent = 0
    for _ in range(100_000):
        if a.transport.send(B, Service.REPLICAS, b"%08d" % sent + bytes(8000)):
            sent += 1
        elif ("full", "b") in a.seen.events:
            break
        if sent % 16 == 0:
            await asyncio.sleep(0)
    view = next(v for v in a.transport.view() if v.broker == B)
    assert view.full
    assert view.queued_bytes <= SMALL.queue_bytes_max + 8008 + 24
    assert not a.transport.send(B, Service.REPLICAS, b"x")
    with pytest.raises(LimitExceeded, match="wait to be sent"):
        await a.transport.request(B, Service.VERBS, b"", timeout_ms=1000)
    assert a.transport.send(C, Service.REPLICAS, b"to another")
    await c.seen.until(lambda: c.seen.batches)
    async with asyncio.timeout(5):
        await asyncio.sleep(SMALL.beat_ms / 1000 * (SMALL.silent_beats_max + 3))  # longer than silence is borne
    assert a.transport.connected(B)
    assert b.transport.connected(A)
    b.transport.release(A)
    await a.seen.until(lambda: ("drained", "b") in a.seen.events)
    await b.seen.until(lambda: len(b.seen.batches) == sent)
    assert [int(body[:8]) for _, body in b.seen.batches] == list(range(sent))
    assert await a.transport.request(B, Service.VERBS, b"1", timeout_ms=5000) == b"a:1"


async def test_two_full_sides_do_not_block_each_other(end: Make) -> None:
    a, b = [await end(id, settings=SMALL).start() for id in "ab"]
    await meet(a, b)
    got = {A: 0, B: 0}
    for one, other in ((a, b), (b, a)):

        def count(peer: BrokerId, body: bytes, one: End = one) -> None:
            got[one.id] += 1

        one.transport.on_batch(Service.COPIES, count)
        del other
    sent = {A: 0, B: 0}
    while min(got.values()) < 300:
        for one, other in ((a, b), (b, a)):
            while sent[one.id] < 400 and one.transport.send(other.id, Service.COPIES, bytes(50_000)):
                sent[one.id] += 1
        await asyncio.sleep(0)
    assert a.seen.losses == b.seen.losses == []
    assert ("full", "b") in a.seen.events
    assert ("full", "a") in b.seen.events


async def test_beats_go_before_what_waits(end: Make) -> None:
    a, b = [await end(id, settings=Settings(beat_ms=20, silent_beats_max=1000, queue_bytes_max=256 * 1024 * 1024)).start() for id in "ab"]
    await meet(a, b)
    for _ in range(1500):
        assert a.transport.send(B, Service.REPLICAS, bytes(100_000))
    answered = set()
    while len(b.seen.batches) < 1500:
        assert not a.seen.losses
        answered.add(a.transport.answered_ms(B))
        await asyncio.sleep(0.01)
    assert len(answered) > 2, "again and again while others still waited"


async def test_who_asks_and_never_reads_is_closed(end: Make) -> None:
    b = await end("b", settings=SMALL).start()

    async def much(peer: BrokerId, body: bytes) -> bytes:
        return bytes(50_000)

    b.serve(much)
    _, writer = await raw(b)
    request = HEADER.pack(8 + 4, PeerOp.REQUEST, 0, Service.VERBS, 1) + wire.request_head(60_000)
    with suppress(OSError):
        for _ in range(100_000):
            writer.write(request * 50)
            await writer.drain()
            if b.seen.losses:
                break
    await b.seen.until(lambda: b.seen.losses)
    assert b.seen.losses[0].kind == "broken"
    assert "does not read" in b.seen.losses[0].text
    await close(writer)


async def test_a_frame_too_large_is_the_senders_mistake(end: Make) -> None:
    a, b = [await end(id, settings=SMALL).start() for id in "ab"]
    await meet(a, b)
    with pytest.raises(TooLarge, match="at most 65528 fit"):
        a.transport.send(B, Service.REPLICAS, bytes(70_000))
    assert a.transport.send(B, Service.REPLICAS, bytes(64 * 1024 - 8))
    await b.seen.until(lambda: b.seen.batches)


# ---------------------------------------------------------------- losing and finding each other


class Proxy:
    """Between two brokers: may stop carrying bytes in either direction without a word, as a broken network does."""

    def __init__(self, to: Address) -> None:
        self.to = to
        self.there = self.back = True
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self.to.host, self.to.port)
        for source, target, name in ((reader, there_writer, "there"), (there_reader, writer, "back")):
            task = asyncio.create_task(self._copy(source, target, name))
            self._tasks.add(task)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, name: str) -> None:
        try:
            with suppress(OSError):
                while True:
                    data = await source.read(65_536)
                    if not getattr(self, name):
                        await asyncio.Event().wait()
                    if not data:
                        break
                    target.write(data)
                    await target.drain()
        finally:
            target.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("cut", [("there", "back"), ("there",), ("back",)])
async def test_a_half_open_link_is_found(end: Make, cut: tuple[str, ...]) -> None:
    a, b = [await end(id, settings=Settings()).start() for id in "ab"]
    proxy = await Proxy(b.address).start()
    a.transport.know({B: Known(Address("127.0.0.1", proxy.port))})
    await a.seen.until(lambda: a.transport.connected(B) and b.transport.connected(A))
    began = asyncio.get_running_loop().time()
    for name in cut:
        setattr(proxy, name, False)
    await a.seen.until(lambda: a.seen.losses and b.seen.losses)
    assert asyncio.get_running_loop().time() - began > 1.5  # within three seconds, on a machine that is not busy: on virtual time that is tested
    assert "silent" in {loss.kind for loss in (a.seen.losses[0], b.seen.losses[0])}
    assert a.transport.now_ms() - a.transport.answered_ms(B) > 1500
    for name in cut:
        setattr(proxy, name, True)
    await a.seen.until(lambda: a.transport.connected(B) and b.transport.connected(A))
    await proxy.stop()


async def test_a_restarted_peer_is_found_again(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    await meet(a, b)
    assert a.transport.heard_ms(B)
    port = b.transport.port
    await b.transport.stop()
    await a.seen.until(lambda: not a.transport.connected(B))
    assert a.seen.losses[0].kind == "goodbye"
    await a.seen.until(lambda: len(a.transport.peer(B).refused_ms) >= 2)  # type: ignore[union-attr]
    again = await end("b", life="2").start(port=port)
    await a.seen.until(lambda: a.transport.connected(B))
    remote = a.transport.peer(B)
    assert remote is not None
    assert remote.incarnation == "b-2"
    assert again.transport.connected(A) or not again.seen.events


async def test_an_abrupt_end_is_a_reset(end: Make) -> None:
    b = await end("b").start()
    _, writer = await raw(b)
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
    await b.seen.until(lambda: b.seen.losses)
    assert b.seen.losses[0].kind == "reset"


async def test_news_of_a_peer_are_dialed_at_once(end: Make) -> None:
    slow = Settings(retry_ms_min=60_000, retry_ms_max=60_000)
    a, b = await end("a", settings=slow).start(), await end("b").start()
    a.transport.know({B: Known(Address("127.0.0.1", 1))})
    await a.seen.until(lambda: a.transport.view()[0].counters.dials_failed == 1)
    a.transport.know({B: Known(b.address, Incarnation("b-1"))})
    await a.seen.until(lambda: a.transport.connected(B))


async def test_who_is_named_no_more_is_disconnected(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    await meet(a, b)
    b.transport.know({})
    a.transport.know({})
    await a.seen.until(lambda: not a.transport.connected(B) and not b.transport.connected(A))
    assert a.transport.view() == b.transport.view() == []


async def test_probes(end: Make) -> None:
    a, b = await end("a").start(), await end("b").start()
    found = await b.transport.probe(a.address, timeout_ms=2000, expects=A)
    assert (found.outcome, found.who and found.who.incarnation) == ("answered", "a-1")
    assert (await b.transport.probe(a.address, timeout_ms=2000, expects=C)).outcome == "rejected"
    assert not a.seen.events
    assert not b.seen.events
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        nobody = Address("127.0.0.1", deaf.getsockname()[1])
        assert (await a.transport.probe(nobody, timeout_ms=2000)).outcome == "refused"
        deaf.listen()
        assert (await a.transport.probe(nobody, timeout_ms=100)).outcome == "silent"
    port = a.transport.port
    await a.transport.stop()
    assert (await b.transport.probe(Address("localhost", port), timeout_ms=2000)).outcome == "refused"


async def test_names_and_ipv6(end: Make) -> None:
    try:
        b = await end("b").start(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    a, c = await end("a").start(), await end("c").start(host="localhost")
    a.transport.know({B: Known(b.address), C: Known(Address("localhost", c.transport.port))})
    await a.seen.until(lambda: a.transport.connected(B) and a.transport.connected(C))


async def test_the_greater_id_does_not_dial(end: Make) -> None:
    a = await end("a").start()
    with pytest.raises((asyncio.IncompleteReadError, Malformed)):
        await raw(a, "b")
    assert not a.seen.events


def test_elsewhere_says_where_to_look() -> None:
    opening = Answering(Introduction(broker="a", incarnation="1", nonce=bytes(32)), Secrets([SECRET]), lambda who: None)
    hello = wire.introduction(PeerOp.HELLO, Introduction(broker="b", incarnation="1", nonce=bytes(32), expects="c"))
    with pytest.raises(Elsewhere) as refused:
        opening.receive(PeerOp.HELLO, hello)
    assert "advertised peer addresses" in refused.value.hint


def test_on_the_loop_of_a_real_broker() -> None:
    async def scenario() -> None:
        a, b = await End("a", settings=SMALL).start(), await End("b", settings=SMALL).start()
        b.serve(echo)
        await meet(a, b)
        assert await a.transport.request(B, Service.VERBS, b"1", timeout_ms=5000) == b"a:1"
        b.transport.hold(A)
        sent = 0
        for _ in range(100_000):
            if a.transport.send(B, Service.REPLICAS, b"%08d" % sent + bytes(20_000)):
                sent += 1
            elif ("full", "b") in a.seen.events:
                break
            if sent % 16 == 0:
                await asyncio.sleep(0)
        b.transport.release(A)
        await b.seen.until(lambda: len(b.seen.batches) == sent)
        assert [int(body[:8]) for _, body in b.seen.batches] == list(range(sent))
        await a.seen.until(lambda: ("drained", "b") in a.seen.events)
        assert (await a.transport.probe(b.address, timeout_ms=2000)).outcome == "answered"
        assert "something else" in told(await talk(b.address, b"garbage!"))
        port = b.transport.port
        await b.transport.stop()
        await a.seen.until(lambda: not a.transport.connected(B))
        assert a.seen.losses[0].kind == "goodbye"
        assert (await a.transport.probe(Address("127.0.0.1", port), timeout_ms=2000)).outcome == "refused"
        await a.transport.stop()

    uvloop.run(scenario())

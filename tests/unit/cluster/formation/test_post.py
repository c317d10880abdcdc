"""Envelopes over visits: to the right name, past wrong addresses, and without waiting for those who are silent."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.formation.post import ENVELOPE_BYTES_MAX, Envelope, Post, parse_envelope
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Me, Settings, Transport
from headrace.core.formation.messages import AnyMessage, Hello
from headrace.core.formation.records import Directory
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import HeadraceError, Malformed

SECRET = b"a secret of sixteen bytes or more"
QUICK = Settings(beat_ms=20, silent_beats_max=10, opening_ms=400)


def hello(sequence: int = 1) -> Hello:
    return Hello(boot="b", sequence=sequence, incarnation=Directory("i"), condition="fresh")


class Desk:
    def __init__(self, name: str, id: str, secret: bytes) -> None:
        self.transport = Transport(Me(broker=BrokerId(id), incarnation=Incarnation("1")), Secrets([secret]), QUICK)
        self.heard: list[tuple[str, AnyMessage]] = []
        self.lost: list[str] = []
        self.post = Post(name, self.transport, lambda sender, message: self.heard.append((sender, message)), self.lost.append)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.transport.port}"


Make = Callable[..., "asyncio.Future[Desk]"]


@pytest.fixture
async def desks() -> AsyncIterator[Callable[..., object]]:
    made: list[Desk] = []

    async def make(name: str, *, id: str = "", secret: bytes = SECRET) -> Desk:
        desk = Desk(name, id or f"id of {name}", secret)
        made.append(desk)
        await desk.transport.start(Address("127.0.0.1", 0))
        return desk

    yield make
    for desk in made:
        await desk.post.stop()
        await desk.transport.stop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


async def test_whoever_is_at_an_address_says_his_name(desks: Make) -> None:
    a, b = await desks("a"), await desks("b")
    assert await a.post.who(Address("127.0.0.1", b.transport.port)) == "b"
    assert await a.post.who(Address("127.0.0.1", a.transport.port)) == "a", "its own too"
    assert a.heard == b.heard == [], "that is no message"
    other = await desks("c", secret=b"another secret of sixteen bytes")
    with pytest.raises(HeadraceError):
        await a.post.who(Address("127.0.0.1", other.transport.port))
    await b.transport.stop()
    with pytest.raises((OSError, HeadraceError)):
        await a.post.who(Address("127.0.0.1", b.transport.port))
    assert not a.post._asked


async def test_there_and_back_on_one_visit(desks: Make) -> None:
    a, b = await desks("a"), await desks("b")
    a.post.send("b", b.address, hello(1))
    a.post.send("b", b.address, hello(2))
    await until(lambda: len(b.heard) == 2)
    assert b.heard == [("a", hello(1)), ("a", hello(2))]
    b.post.send("a", "", hello(3))
    await until(lambda: a.heard)
    assert a.heard == [("b", hello(3))]
    assert (a.transport.anonymous.accepted, b.transport.anonymous.accepted) == (0, 1)
    assert a.post.troubles() == b.post.troubles() == {}


async def test_without_an_address_nothing_is_dialed(desks: Make) -> None:
    a = await desks("a")
    a.post.send("b", "", hello())
    await asyncio.sleep(0.05)
    assert a.post.troubles() == {}


async def test_an_address_of_another_name_is_told_on_this_side(desks: Make) -> None:
    a, c = await desks("a"), await desks("c")
    a.post.send("b", c.address, hello())
    await until(lambda: "b" in a.post.troubles())
    assert "this is c, not b" in a.post.troubles()["b"]
    assert c.heard == []


async def test_two_of_one_name(desks: Make) -> None:
    a, twin = await desks("a"), await desks("a", id="another")
    a.post.send("a", twin.address, hello())
    await until(lambda: "a" in a.post.troubles())
    assert "another broker is called a too" in a.post.troubles()["a"]


async def test_who_dies_is_lost_and_found_again_at_another_address(desks: Make) -> None:
    a, b = await desks("a"), await desks("b")
    a.post.send("b", b.address, hello())
    await until(lambda: b.heard)
    await b.post.stop()
    await b.transport.stop()
    await until(lambda: a.lost == ["b"])
    a.post.send("b", b.address, hello())
    await until(lambda: "Connect" in a.post.troubles().get("b", ""))
    again = await desks("b", id="again")
    a.post.send("b", again.address, hello(5))
    await until(lambda: again.heard == [("a", hello(5))])
    assert a.post.troubles() == {}


async def test_another_address_is_used_at_once(desks: Make) -> None:
    a, b, other = await desks("a"), await desks("b"), await desks("b", id="other")
    a.post.send("b", b.address, hello(1))
    await until(lambda: b.heard)
    a.post.send("b", other.address, hello(2))
    await until(lambda: other.heard)
    assert a.lost == []


async def test_a_stranger_s_secret(desks: Make) -> None:
    a, b = await desks("a"), await desks("b", secret=b"quite another secret than that")
    a.post.send("b", b.address, hello())
    await until(lambda: "secret" in a.post.troubles().get("b", ""))
    assert b.heard == []


async def test_a_silent_one_holds_up_nobody(desks: Make) -> None:
    a, b = await desks("a"), await desks("b")
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1", 0)
    at = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    try:
        for n in range(100):
            a.post.send("silent", at, hello(n))
        a.post.send("b", b.address, hello())
        await until(lambda: b.heard)
        await until(lambda: a.post.troubles().get("silent"))
    finally:
        silent.close()
        for writer in writers:
            writer.close()


@given(
    st.binary(max_size=200) | st.builds(lambda t, s, b: msgspec.msgpack.encode((t, s, b)), st.text(max_size=70), st.text(max_size=70), st.binary())
)
def test_arbitrary_bytes_are_an_envelope_or_malformed(data: bytes) -> None:
    try:
        envelope = parse_envelope(data)
    except Malformed:
        return
    assert isinstance(envelope, Envelope)
    assert len(envelope.to) <= 63
    assert 1 <= len(envelope.sender) <= 63


def test_an_envelope_is_bounded() -> None:
    with pytest.raises(Malformed, match="at most"):
        parse_envelope(bytes(ENVELOPE_BYTES_MAX + 1))

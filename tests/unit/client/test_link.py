import asyncio
from typing import Any

import pytest

from headrace.client.link import Link
from headrace.model.errors import HeadraceError, Malformed, QueueFull, WrongProtocol
from headrace.wire import control, egress
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import PREAMBLE, Op, frame


class Owner:
    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.channels: dict[int, Any] = {4: self}

    def answered(self, correlation: int, body: bytes, is_error: bool) -> None:
        self.heard.append(("answered", correlation, body, is_error))

    def event(self, body: bytes) -> None:
        self.heard.append(("event", control.decode_event(body)))

    def link_lost(self, link: Link, error: HeadraceError) -> None:
        self.heard.append(("lost", type(error)))

    def link_writable(self) -> None:
        self.heard.append("writable")

    def confirmed(self, *args: Any) -> None:
        self.heard.append(("confirmed", *args))

    def refused(self, first: int, count: int, error: HeadraceError) -> None:
        self.heard.append(("refused", first, count, type(error), str(error)))

    def delivered(self, *args: Any) -> None:
        self.heard.append(("delivered", *args))

    def settled(self, *args: Any) -> None:
        self.heard.append(("settled", *args))

    def fetch_ended(self, *args: Any) -> None:
        self.heard.append(("fetch ended", *args))


class Pipe(asyncio.Transport):
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


BLOB = encode_publish(encode_batch([Record(key=None, value=b"hello")], base_timestamp_ms=0), channel=1, correlation=0, flags=7)
GOING = control.GoingAway(grace_ms=5, message="bye")
SCRIPT = b"".join(
    [
        frame(Op.REPLY, b"abc", correlation=9),
        egress.failure(10, QueueFull("full")),
        egress.confirm(4, 1, 2, 3, 77, True),
        egress.confirm(5, 1, 2, 3, 77),
        egress.publish_error(4, 6, 1, QueueFull("no room")),
        egress.deliver_header(4, 1, partition=2, epoch=8, attempt=1, first_offset=5, base_offset=5, blob_bytes=len(BLOB), flags=1) + BLOB,
        egress.settled(4, 3, 9, [(1, 2)]),
        egress.fetch_end(4, 12, 0),
        frame(Op.EVENT, control.encode(GOING)),
        frame(Op.PING),
        frame(Op.PONG),
    ]
)
HEARD = [
    ("answered", 9, b"abc", False),
    ("confirmed", 1, 2, 77, 3, True),
    ("refused", 6, 1, QueueFull, "no room"),
    ("delivered", 2, 8, 1, 5, 1, 5, BLOB, 1),
    ("settled", 3, 9, [(1, 2)]),
    ("fetch ended", 12, 0),
    ("event", GOING),
]


def made() -> tuple[Link, Owner, Pipe]:
    owner, pipe = Owner(), Pipe()
    link = Link(owner, asyncio.get_running_loop())
    link.connection_made(pipe)
    assert pipe.written == PREAMBLE
    pipe.written = b""
    return link, owner, pipe


@pytest.mark.parametrize("size", [1, 2, 7, 13, 64, len(SCRIPT)])
async def test_however_the_bytes_are_cut_the_frames_are_the_same(size: int) -> None:
    link, owner, pipe = made()
    for at in range(0, len(SCRIPT), size):
        link.data_received(SCRIPT[at : at + size])
    heard = [h for h in owner.heard if h[:2] != ("answered", 10)]
    assert heard == HEARD
    assert pipe.written == frame(Op.PONG)


async def test_another_protocol_is_recognised() -> None:
    link, owner, pipe = made()
    link.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    assert owner.heard == [("lost", WrongProtocol)]
    assert pipe.aborted


async def test_a_frame_that_is_too_large_is_not_waited_for() -> None:
    link, owner, _ = made()
    link.data_received(frame(Op.PONG))
    link.data_received((1 << 30).to_bytes(4, "big"))
    assert owner.heard == [("lost", Malformed)]


async def test_a_truncated_body_ends_the_link() -> None:
    link, owner, _ = made()
    link.data_received(frame(Op.PONG) + frame(Op.CONFIRM, b"xx", channel=4))
    assert owner.heard[-1] == ("lost", Malformed)


async def test_the_owner_hears_of_the_end_once() -> None:
    link, owner, _ = made()
    link.connection_lost(None)
    link.connection_lost(OSError("again"))
    link.data_received(SCRIPT)
    assert len([h for h in owner.heard if h[0] == "lost"]) == 1

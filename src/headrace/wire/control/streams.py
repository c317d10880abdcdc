"""Positions in a stream: offsets by time, trimming, and durable cursors."""

import msgspec

from headrace.wire.control.message import Message


class OffsetForTime(Message, tag="stream.offset_for_time"):
    """First offset whose append time is at or after ``timestamp_ms``, per partition: ``Offsets``."""

    name: str
    timestamp_ms: int


class Offsets(Message, tag="offsets"):
    offsets: dict[int, int]


class Trim(Message, tag="stream.trim"):
    """Gives up everything below ``offset`` (of one partition) or older than ``before_ms``."""

    name: str
    partition: int = -1
    offset: int = -1
    before_ms: int = -1


class CursorsList(Message, tag="cursors.list"):
    name: str


class CursorInfo(msgspec.Struct, frozen=True, kw_only=True):
    cursor: str
    partition: int
    offset: int
    """Next offset to read."""
    lag: int
    updated_ms: int


class Cursors(Message, tag="cursors"):
    cursors: tuple[CursorInfo, ...]


class CursorSet(Message, tag="cursors.set"):
    """Sets a cursor: ``to`` as ``SubscribeStream.start`` (reset: "earliest")."""

    name: str
    cursor: str
    partition: int = -1
    to: str = "earliest"


class CursorDelete(Message, tag="cursors.delete"):
    name: str
    cursor: str

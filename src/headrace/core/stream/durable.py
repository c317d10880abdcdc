"""The bytes of a stream machine's durable state: rows of cursors for the journal and the snapshot, and the start of the log.

A CURSOR payload is a list of ``CursorEntry``, a CONFIG payload of this machine {"start": offset}, a snapshot (bounds, entries). What does not
decode is ``Damaged``.
"""

import msgspec

from headrace.model.errors import Damaged, Malformed
from headrace.wire.journal import CursorEntry, pack_cursors, unpack_cursors

Bounds = tuple[int, int, int, int, int]
"""start offset, high watermark, bytes, epoch, latest wall time in ms."""

RANGES_PER_ENTRY_MAX = 16_384
"""Rows are spread over journal entries so that no entry has many more ranges than this."""

_encode = msgspec.msgpack.Encoder().encode
_snapshot = msgspec.msgpack.Decoder(tuple[Bounds, list[CursorEntry]]).decode
_config = msgspec.msgpack.Decoder(dict[str, object]).decode


def encode_rows(rows: list[CursorEntry]) -> list[bytes]:
    """CURSOR payloads, usually one."""
    payloads: list[bytes] = []
    batch: list[CursorEntry] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.acked_above) + 8
        if size >= RANGES_PER_ENTRY_MAX:
            payloads.append(pack_cursors(batch))
            batch, size = [], 0
    if batch:
        payloads.append(pack_cursors(batch))
    return payloads


def decode_rows(payload: bytes) -> list[CursorEntry]:
    """The rows of a CURSOR payload."""
    try:
        rows = unpack_cursors(payload)
    except (Malformed, UnicodeDecodeError) as e:
        raise Damaged(f"a cursor entry does not decode: {e}") from e
    _sane(rows)
    return rows


def encode_start(offset: int) -> bytes:
    return _encode({"start": offset})


def start_in(payload: bytes) -> int | None:
    """The start of the log that a CONFIG payload tells, if it is one of this machine's."""
    try:
        start = _config(payload).get("start")
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise Damaged(f"a config entry does not decode: {e}") from e
    return start if isinstance(start, int) and start >= 0 else None


def encode_snapshot(bounds: Bounds, rows: list[CursorEntry]) -> bytes:
    return _encode((bounds, rows))


def decode_snapshot(data: bytes) -> tuple[Bounds, list[CursorEntry]]:
    try:
        bounds, rows = _snapshot(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise Damaged(f"a stream's snapshot does not decode: {e}") from e
    if min(bounds) < 0 or bounds[0] > bounds[1]:
        raise Damaged("a stream's snapshot has bounds that contradict one another")
    _sane(rows)
    return bounds, rows


def _sane(rows: list[CursorEntry]) -> None:
    for row in rows:
        if not row.name or row.next_offset < -1 or any(first < row.next_offset or count <= 0 for first, count in row.acked_above):
            raise Damaged(f"the row of cursor {row.name[:40]!r} contradicts itself")

"""What an application's values are on the wire: bytes as they are, text as UTF-8, anything else as JSON, said by the header ``content-type``.

Pure. Headers are text to the application and UTF-8 bytes on the wire.
"""

from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import Any

import msgspec

from headrace.model import limits
from headrace.model.errors import Invalid, Malformed

CONTENT_TYPE = "content-type"
RESERVED = "headrace."

Headers = tuple[tuple[str, bytes], ...]
Duration = float | timedelta
"""Seconds, or a timedelta."""

JSON: Headers = ((CONTENT_TYPE, b"application/json"),)
TEXT: Headers = ((CONTENT_TYPE, b"text/plain; charset=utf-8"),)
NONE: Headers = ()

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


def encode_value(value: Any) -> tuple[bytes | None, Headers]:
    """The bytes of a value and the header that says how to read them. ``None`` is a null value (a tombstone in a compacted stream)."""
    if type(value) is bytes:
        return value, NONE
    if isinstance(value, str):
        return value.encode(), TEXT
    if value is None:
        return None, NONE
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value), NONE
    try:
        return _encode_json(value), JSON
    except (TypeError, ValueError, msgspec.MsgspecError) as e:
        raise Invalid(
            f"a value of type {type(value).__name__} cannot be written as JSON: {e}", hint="pass bytes, text, or something made of JSON types"
        ) from None


def encode_headers(headers: Mapping[str, str | bytes]) -> Headers:
    """Application headers on the wire; raises ``Invalid`` for reserved names."""
    out = []
    for name, value in headers.items():
        if name.startswith(RESERVED):
            raise Invalid(f"the header {name!r} is reserved: headers named headrace.* are stamped by the broker", hint="choose another name")
        out.append((name, value if isinstance(value, bytes) else str(value).encode()))
    return tuple(out)


def encode_key(key: str | bytes | None) -> bytes | None:
    return key.encode() if isinstance(key, str) else key


def decode_headers(headers: Headers) -> dict[str, str]:
    """Headers as text; the last of equal names counts, bytes that are no UTF-8 are replaced."""
    return {name: value.decode("utf-8", "replace") for name, value in headers}


def decode_json(value: bytes | None) -> Any:
    """The JSON in a message; raises ``Malformed`` if it is none."""
    try:
        return _decode_json(value or b"null")
    except msgspec.DecodeError as e:
        raise Malformed(f"this message is not JSON: {e}", hint="read .value (bytes) or .text instead") from None


def milliseconds(duration: Duration | None, *, what: str, most: int = limits.DELAY_MS_MAX) -> int:
    """A duration in whole milliseconds, rounded up; 0 for None."""
    if duration is None:
        return 0
    ms = ceil((duration.total_seconds() if isinstance(duration, timedelta) else duration) * 1000)
    if not 0 <= ms <= most:
        raise Invalid(f"{what} is {ms} ms; it must lie in 0..{most} ms")
    return ms

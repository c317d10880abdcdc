"""How control messages look in JSON: the one shape that the admin HTTP and ``--json`` of the CLI share.

Every field is there, also at its default; the wire's tag ``t`` is not.
Bytes become ``{"base64": ..., "text": ...}``, ``text`` null where they are not UTF-8.
"""

from base64 import b64encode
from typing import Any

import msgspec


def shown(value: Any) -> Any:
    """``value`` as JSON builtins."""
    if isinstance(value, msgspec.Struct):
        return {field: shown(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(k): shown(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(v) for v in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        return {"base64": b64encode(raw).decode(), "text": text_of(raw)}
    return value


def text_of(raw: bytes | None) -> str | None:
    """``raw`` as text, None if it is not UTF-8 (or nothing)."""
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None

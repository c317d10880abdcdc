"""The text in which a reader says where it wants to start: cursor, earliest, latest, offset:N, timestamp:MS or last:N."""

from collections.abc import Callable

from headrace.model.errors import Invalid

_PLAIN = ("cursor", "earliest", "latest")
_NUMBERED = ("offset", "timestamp", "last")
_VALUE_MAX = 1 << 63


def parse_start(text: str) -> tuple[str, int]:
    """The kind of start and its number (0 where there is none); raises ``Invalid``."""
    if text in _PLAIN:
        return text, 0
    kind, _, digits = text[:64].partition(":")
    if kind not in _NUMBERED:
        raise Invalid(f"start must be cursor, earliest, latest, offset:N, timestamp:MS or last:N, is {text[:64]!r}")
    if not (digits.isascii() and digits.isdigit()) or int(digits) >= _VALUE_MAX:
        raise Invalid(f"start = {kind}:N needs a whole number below 2^63, not {digits!r}")
    return kind, int(digits)


def resolve(start: str, *, first: int, end: int, cursor_offset: int | None, lookup: Callable[[int], int] | None) -> int:
    """The offset in [first, end] that ``start`` means in such a partition (``cursor_offset`` None: no cursor named); raises ``Invalid``."""
    kind, value = parse_start(start)
    if kind == "cursor":
        if cursor_offset is None:
            raise Invalid("start = cursor needs the name of a cursor")
        found = cursor_offset
    elif kind == "earliest":
        found = first
    elif kind == "latest":
        found = end
    elif kind == "last":
        found = end - value
    elif kind == "timestamp":
        if lookup is None:
            raise Invalid("start = timestamp cannot be looked up here; use an offset")
        found = lookup(value)
    else:
        if value > end:
            raise Invalid(f"offset {value} is beyond the end: the next record will be {end}", hint="use latest to wait for new records")
        found = value
    return max(first, min(found, end))

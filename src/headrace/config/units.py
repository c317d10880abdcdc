"""Sizes and durations as people write them: ``64MiB``, ``1m30s``. Integers of bytes and milliseconds inside."""

import re
from typing import Final

_SIZES: Final[dict[str, int]] = {"": 1, "b": 1}
for _i, _letter in enumerate("kmgt", 1):
    _SIZES.update({_letter: 1024**_i, f"{_letter}ib": 1024**_i, f"{_letter}b": 1000**_i})
_TIMES: Final = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
_SPAN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*")


def parse_bytes(text: str) -> int:
    """Bytes in ``4096``, ``64KiB``, ``64K`` (both 1024s) or ``64KB`` (1000s); ``ValueError`` saying how to write it."""
    match = _SIZE.fullmatch(text.strip().lower().replace("_", ""))
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{text!r} is no size: write a number of bytes, or for instance 64KiB, 16MiB, 2GiB")
    return round(float(match[1]) * _SIZES[match[2]]) if "." in match[1] else int(match[1]) * _SIZES[match[2]]


def parse_duration_ms(text: str) -> int:
    """Milliseconds in ``1500`` (milliseconds), ``250ms``, ``5s``, ``1m30s``, ``2h``, ``7d``; ``ValueError`` saying how to write it."""
    plain = text.strip().lower().replace("_", "")
    if plain.isascii() and plain.isdigit():
        return int(plain)
    total, position = 0.0, 0
    while match := _SPAN.match(plain, position):
        if match[2] not in _TIMES:
            break
        total += float(match[1]) * _TIMES[match[2]]
        position = match.end()
    if not plain or position != len(plain):
        raise ValueError(f"{text!r} is no duration: write milliseconds, or for instance 250ms, 5s, 1m30s, 2h, 7d")
    return round(total)


def bytes_text(n: int) -> str:
    """The shortest exact way to write a size that ``parse_bytes`` reads back."""
    for letter in "TGMK":
        unit = _SIZES[letter.lower()]
        if n and n % unit == 0:
            return f"{n // unit}{letter}iB"
    return str(n)


def duration_text(ms: int) -> str:
    """The shortest exact way to write a duration that ``parse_duration_ms`` reads back (one unit)."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _TIMES[unit] == 0:
            return f"{ms // _TIMES[unit]}{unit}"
    return f"{ms}ms"


def unit_of(field: str) -> str:
    """``ms``, ``bytes`` or "": the unit that a setting's name ends in or holds."""
    if field.endswith("_ms"):
        return "ms"
    return "bytes" if "bytes" in field.split("_") else ""

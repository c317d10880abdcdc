"""What happened in a run: a hash over all of it, and its last rows for people.

Every effect that a machine has on another or on a disk is noted: bytes that arrive, files that are written, brokers that die, what clients saw. Two
runs of a seed have the same hash or the simulator (or the broker) depends on something that the seed does not make.
"""

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, NamedTuple

GATHER_BYTES: Final = 64 * 1024
"""So much is hashed at once."""


class Row(NamedTuple):
    """One thing that happened: virtual seconds, machine, what, and its particulars."""

    at: float
    machine: str
    what: str
    text: str


class Trace:
    """Owns the hash and the rows. ``rows_max`` 0 keeps none (sweeps), None keeps all (one seed, shown)."""

    def __init__(self, now: Callable[[], float], *, rows_max: int | None = 200) -> None:
        self._now = now
        self._hash = blake2b(digest_size=16)
        self._gathered = bytearray()
        self._keeps = rows_max != 0
        self.rows: deque[Row] = deque(maxlen=rows_max)
        self.count = 0

    def note(self, machine: str, what: str, text: str = "", data: bytes = b"") -> None:
        """``data`` counts in the hash and is not shown."""
        at = self._now()
        self.count += 1
        gathered = self._gathered
        gathered += f"{at:.9f}|{machine}|{what}|{text}|{len(data)}|".encode()
        gathered += data
        if len(gathered) > GATHER_BYTES:
            self._hash.update(gathered)
            gathered.clear()
        if self._keeps:
            self.rows.append(Row(at, machine, what, text))

    def remark(self, machine: str, what: str, text: str = "") -> None:
        """A row that does not count in the hash: what people say, which may hold addresses of objects and other things that differ."""
        if self._keeps:
            self.rows.append(Row(self._now(), machine, what, text))

    def digest(self) -> str:
        self._hash.update(self._gathered)
        self._gathered.clear()
        return self._hash.hexdigest()

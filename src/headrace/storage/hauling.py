"""What the mover takes out of the log for many partitions at once: read in the log's order, in large pieces, every entry verified.

Owns the order of reading and nothing else. Blocks; from any thread. One of the hot modules: what stands here costs once per entry that is moved. A
piece is small enough that the loop does not notice, where it has to wait while one is looked at.
"""

from collections.abc import Callable
from typing import Final

from crc32c import crc32c

from headrace.storage.walformat import ENTRY, ENTRY_BYTES

_POSITION_BITS: Final = 32  # of a place (``index``)
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
_PIECE_BYTES: Final = 128 * 1024
"""Read at a time, with what of others lies between: some hundred small entries."""
_DONE: Final = 1 << 62
_entry: Final = ENTRY.unpack_from
_sum: Final = crc32c
_HEAD: Final[int] = ENTRY_BYTES

Pread = Callable[[int, int, int], bytes]
"""(file id, position, length): the bytes, fewer where the file ends. ``OSError``: they cannot be read."""


class Share:
    """One partition's entries that are wanted, and what came of them."""

    __slots__ = ("_at", "_next", "_upto", "found", "pid", "rows")

    def __init__(self, pid: int, rows: list[tuple[int, int, int]]) -> None:
        """``rows``: place, size and index of each entry, ascending."""
        self.pid = pid
        self.rows = rows
        self.found: list[bytes | None] = []
        """Each entry whole, header included; None: it is not what was written."""
        self._at: int = 0
        self._upto: int = 0
        self._next: int = rows[0][0] if rows else _DONE


def haul(shares: list[Share], pread: Pread) -> None:
    """Fills ``found`` of all shares. ``NotFound`` if a log file is gone."""
    waiting = [share for share in shares if share._next != _DONE]
    while waiting:
        first: int = _DONE
        for share in waiting:
            if share._next < first:
                first = share._next
        limit: int = min(first + _PIECE_BYTES, ((first >> _POSITION_BITS) + 1) << _POSITION_BITS)
        stop: int = first
        over: bool = False
        touched: list[Share] = []
        for share in waiting:
            if share._next < limit:
                rows, at = share.rows, share._at
                while True:
                    place, size, _ = rows[at]
                    if not first <= place < limit:
                        share._next = place
                        break
                    stop = max(stop, place + size)
                    at += 1
                    if at == len(rows):
                        share._next = _DONE
                        over = True
                        break
                share._upto = at
                touched.append(share)
        try:
            data = pread(first >> _POSITION_BITS, first & _POSITION_MASK, stop - first)
        except OSError:
            data = b""
        for share in touched:
            _look_at(share, data, first, pread)
        if over:
            waiting = [share for share in waiting if share._next != _DONE]


def _look_at(share: Share, data: bytes, first: int, pread: Pread) -> None:
    """Verifies the share's entries that lie in ``data``, which begins at the place ``first``; what is not in it is read by itself."""
    pid, rows, found = share.pid, share.rows, share.found
    for k in range(share._at, share._upto):
        place, size, index = rows[k]
        begin: int = place - first
        end: int = begin + size
        if end <= len(data):
            found.append(_sound(data, begin, end, pid, index))
        else:
            try:
                alone = pread(place >> _POSITION_BITS, place & _POSITION_MASK, size)
            except OSError:
                alone = b""
            found.append(_sound(alone, 0, size, pid, index) if len(alone) == size else None)
    share._at = share._upto


def _sound(data: bytes, begin: int, end: int, pid: int, index: int) -> bytes | None:
    """The entry between two positions, if it is that of ``pid`` and ``index`` and matches its checksum."""
    if end - begin < _HEAD:
        return None
    length, crc, of, _epoch, number, _kind, _flags = _entry(data, begin)
    if of != pid or number != index or length != end - begin - _HEAD or _sum(data[begin + 8 : end]) != crc:
        return None
    return data[begin:end]

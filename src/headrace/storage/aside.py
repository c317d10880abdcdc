"""What is taken out of service without being proven useless is kept for people to look at: raw entries in files of their own.

Owns the directory ``set-aside`` and its names. What it writes is synced when it returns; nothing of it is ever read or removed by a broker.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from headrace.model.errors import NotFound
from headrace.storage.ground import Ground, log
from headrace.storage.index import POSITION_BITS, POSITION_MASK, Part

_WRITE_BYTES = 1024 * 1024


async def rows(ground: Ground, part: Part, first_index: int) -> str:
    """Copies what the log has of a partition from an index on, as it lies there, sound or not; the file's path, "" = there was nothing.
    ``OSError``."""
    taken = [(index, place, size) for place, size, index in part.rows_from(max(0, first_index - part.first_index))]
    return await ground.on(ground.io, partial(copy, ground, part.pid, taken, first_index))


def copy(ground: Ground, pid: int, taken: Sequence[tuple[int, int, int]], first_index: int) -> str:
    """As ``rows``, of entries given as (index, place, size). Blocks."""
    return write(ground, f"partition-{pid}-log-from-{first_index}", _read(ground, pid, taken)) if taken else ""


def _read(ground: Ground, pid: int, taken: Sequence[tuple[int, int, int]]) -> Iterator[bytes]:
    for index, place, size in taken:
        try:
            yield ground.wal.pread(place >> POSITION_BITS, place & POSITION_MASK, size)
        except (OSError, NotFound) as e:
            log.warning("partition %d: entry %d cannot be set aside: %s", pid, index, e)


def write(ground: Ground, name: str, pieces: Iterable[bytes]) -> str:
    """A new file with these bytes; its path. Blocks. ``OSError``."""
    files, directory = ground.files, ground.aside_directory
    files.make_dir(directory)
    number = 0
    while files.exists(path := f"{directory}/{name}-{number}.entries"):
        number += 1
    handle = files.create(path)
    try:
        gathered, nbytes, at = list[bytes](), 0, 0
        for piece in pieces:
            gathered.append(piece)
            nbytes += len(piece)
            if nbytes >= _WRITE_BYTES:
                files.pwrite(handle, b"".join(gathered), at)
                gathered, nbytes, at = [], 0, at + nbytes
        files.pwrite(handle, b"".join(gathered), at)
        files.fsync(handle)
    finally:
        files.close(handle)
    files.fsync_dir(directory)
    return path

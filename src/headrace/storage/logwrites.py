"""How a flush of the log is written and synced off the loop: by the kernel's own workers where it can be, else by the flusher thread.

Owns the choice for each write. One write is under way at a time (the log's I1). Knows nothing of what is written.

I1 ``done`` of each write is called exactly once, on the loop, never before ``write`` has returned. I2 A write that failed is not tried again: only
one that the ring did not take, or whose kind it does not know, goes to the thread, when nothing of it was written.
"""

import asyncio
import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from headrace.log import get_logger
from headrace.model.config import LogWriting
from headrace.storage.files import Buffer, Files, Handle, advanced
from headrace.storage.flusher import Done, Lane
from headrace.storage.ring import BUFFER_BYTES, Ring

UNKNOWN: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EAGAIN)
"""Answers before anything was written: the file system does not know such a write, or there is no worker for it."""

_log = get_logger("storage")


class LogWrites(Protocol):
    """Durable writes of one log."""

    def write(self, handle: Handle, pieces: Sequence[Buffer], offset: int, done: Done) -> None:
        """Everything is written and synced when ``done(None, None)`` is called; ``done(None, error)`` says that this is not known."""

    def after(self, done: Callable[[], None]) -> None:
        """Calls ``done`` once no write is under way; nothing is written after it."""

    def close(self) -> None:
        """Gives up what it holds, unless a write is still under way."""


class LaneWrites:
    """By a lane, whose work is nothing else."""

    def __init__(self, files: Files, lane: Lane) -> None:
        self._files = files
        self._lane = lane

    def write(self, handle: Handle, pieces: Sequence[Buffer], offset: int, done: Done) -> None:
        write = self._files.pwritev_durable
        self._lane.submit(lambda: write(handle, pieces, offset), done)

    def after(self, done: Callable[[], None]) -> None:
        self._lane.submit(lambda: None, lambda _result, _error: done())

    def close(self) -> None:
        """The lane is closed by who made it."""


class RingWrites:
    """By the kernel, up to ``BUFFER_BYTES``; larger ones by ``other``, and all once the kernel did not want to."""

    def __init__(self, ring: Ring, other: LogWrites) -> None:
        self._ring: Ring | None = ring
        self._other = other
        self._last: Callable[[], None] | None = None
        """Who waits for the write that is under way."""

    def write(self, handle: Handle, pieces: Sequence[Buffer], offset: int, done: Done) -> None:
        ring = self._ring
        if ring is not None:
            nbytes = sum(map(len, pieces))
            if nbytes <= BUFFER_BYTES:
                if ring.start(handle, pieces, nbytes, offset, partial(self._ended, handle, pieces, nbytes, offset, done)):
                    return
                self._give_up("the kernel took no write")
        self._other.write(handle, pieces, offset, done)

    def after(self, done: Callable[[], None]) -> None:
        if self._ring is not None and self._ring.busy:
            self._last = done
        else:
            self._other.after(done)

    def close(self) -> None:
        if self._ring is not None and not self._ring.busy:
            self._give_up()
        self._other.close()

    def _ended(self, handle: Handle, pieces: Sequence[Buffer], nbytes: int, offset: int, done: Done, result: int) -> None:
        if -result in UNKNOWN:
            self._give_up(f"the kernel cannot write to this file system beside the loop (error {-result})")
            self._other.write(handle, pieces, offset, done)
        elif result == nbytes:
            done(None, None)
        elif result > 0:  # as a write may: the rest follows
            self._other.write(handle, advanced(list(pieces), result), offset + result, done)
        else:
            done(None, OSError(-result or errno.EIO, "the disk took no bytes" if not result else ""))
        if self._last is not None:
            last, self._last = self._last, None
            self._other.after(last)

    def _give_up(self, why: str = "") -> None:
        ring, self._ring = self._ring, None
        if why:
            _log.warning("%s: a thread writes the log from now on", why)
        if ring is not None:
            ring.close()


def log_writes(loop: asyncio.AbstractEventLoop, files: Files, lane: Lane, how: LogWriting) -> LogWrites:
    """``how`` (``storage.log_writes``): "auto", or "thread" where nothing but the thread is wanted."""
    by_thread = LaneWrites(files, lane)
    if how == "thread":
        return by_thread
    try:
        return RingWrites(Ring(loop), by_thread)
    except OSError as e:
        _log.debug("a thread writes the log: %s", e)
        return by_thread

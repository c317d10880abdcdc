"""Durable writes that the kernel carries out beside the loop: one io_uring with one request in flight, without a thread of Python.

Owns the ring, the buffer that its writes are copied to and the descriptor that says when one has ended. Knows nothing of the log, and decides nothing
about what follows from an error. A thread that writes needs the interpreter's lock to begin and to say that it has ended, for which it waits
while the loop runs compiled code: 0.5 to 1 ms each under load (docs/decisions/021). The kernel's worker needs none.

I1 One write at a time; what ``done`` is told of is synced, on the loop. I2 ``start`` says whether the kernel took it: if not, nothing was written.
The calls and their numbers are the kernel's interface (io_uring_setup(2), io_uring_enter(2)), the same on all processors."""

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from headrace.storage.files import Buffer

BUFFER_BYTES: Final = 2 * 1024 * 1024
"""Of the largest write it takes: what is larger gains nothing, since the copy costs more than the waiting."""

_SETUP: Final = 425
_ENTER: Final = 426
_REGISTER: Final = 427
_COOPERATE: Final = 1 << 8
"""IORING_SETUP_COOP_TASKRUN: a loop that is busy is not interrupted."""
_SINGLE_MAP: Final = 1
_SQES_AT: Final = 0x1000_0000
_REGISTER_EVENTFD: Final = 4
_OP_WRITE: Final = 23
_ASYNC: Final = 1 << 4
"""IOSQE_ASYNC: a worker of the kernel's from the beginning, the caller never waits for the disk."""
_RWF_DSYNC: Final = 2
_ENTRIES: Final = 2
_PARAMETERS: Final = struct.Struct("=10I10I10I")
_ENTRY: Final = struct.Struct("=BBHiQQIIQ24x")
"""opcode, flags, priority, descriptor, offset, address, length, flags of the write, user data."""
_COMPLETION: Final = struct.Struct("=QiI")
_U32: Final = struct.Struct("=I")
assert _PARAMETERS.size == 120 and _ENTRY.size == 64 and _COMPLETION.size == 16


class Ring:
    """See the module's head. ``OSError`` where the system has no io_uring, or does not let us."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform != "linux" or not hasattr(os, "eventfd"):
            raise OSError(errno.ENOSYS, "io_uring is Linux's")
        self._loop = loop
        self._call = ctypes.PyDLL(None, use_errno=True).syscall  # it keeps the interpreter's lock: no call waits
        self._call.restype = ctypes.c_long
        self._done: Callable[[int], object] | None = None
        with contextlib.ExitStack() as made:
            parameters = ctypes.create_string_buffer(_PARAMETERS.size)
            _U32.pack_into(parameters, 8, _COOPERATE)
            self._fd = self._asked(_SETUP, ctypes.c_uint(_ENTRIES), parameters)
            made.callback(os.close, self._fd)
            (entries, completions, _, _, _, features, *_), submit, complete = _thirds(parameters.raw)
            if not features & _SINGLE_MAP:
                raise OSError(errno.ENOSYS, "this kernel's io_uring is too old")
            _head, self._tail_at, submit_mask, _, _, _, self._array_at = submit[:7]
            self._first_at, self._last_at, complete_mask, _, _, self._completions_at = complete[:6]
            size = max(self._array_at + 4 * entries, self._completions_at + _COMPLETION.size * completions)
            self._ring = made.enter_context(mmap.mmap(self._fd, size, offset=0))
            self._entries = made.enter_context(mmap.mmap(self._fd, entries * _ENTRY.size, offset=_SQES_AT))
            self._mask, self._completions_mask = self._number(submit_mask), self._number(complete_mask)
            self._buffer = mmap.mmap(-1, BUFFER_BYTES)  # given up with its last view
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
            self._view = memoryview(self._buffer)
            self._ended = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            made.callback(os.close, self._ended)
            self._asked(_REGISTER, self._fd, _REGISTER_EVENTFD, ctypes.byref(ctypes.c_int(self._ended)), 1)
            loop.add_reader(self._ended, self._reap)
            made.callback(loop.remove_reader, self._ended)
            self._made = made.pop_all()

    def start(self, fd: int, pieces: Sequence[Buffer], nbytes: int, offset: int, done: Callable[[int], object]) -> bool:
        """Begins to write ``nbytes`` (at most ``BUFFER_BYTES``); ``done`` is told the bytes that are written and synced, or minus an errno."""
        assert self._done is None, "one at a time"
        view, at = self._view, 0
        for piece in pieces:
            after = at + len(piece)
            view[at:after] = piece
            at = after
        tail = self._number(self._tail_at)
        slot = tail & self._mask
        _ENTRY.pack_into(self._entries, slot * _ENTRY.size, _OP_WRITE, _ASYNC, 0, fd, offset, self._address, nbytes, _RWF_DSYNC, 0)
        _U32.pack_into(self._ring, self._array_at + 4 * slot, slot)
        _U32.pack_into(self._ring, self._tail_at, (tail + 1) & 0xFFFF_FFFF)
        self._done = done
        if self._call(_ENTER, self._fd, 1, 0, 0, None, 0) == 1:
            return True
        self._done = None
        _U32.pack_into(self._ring, self._tail_at, tail)
        return False

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._done is not None

    def close(self) -> None:
        """Not while a write is under way: its bytes would be taken from under it."""
        assert self._done is None
        self._made.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._ended)
        first = self._number(self._first_at)
        if first == self._number(self._last_at):
            return
        _, result, _ = _COMPLETION.unpack_from(self._ring, self._completions_at + _COMPLETION.size * (first & self._completions_mask))
        _U32.pack_into(self._ring, self._first_at, (first + 1) & 0xFFFF_FFFF)
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _number(self, at: int) -> int:
        number: int = _U32.unpack_from(self._ring, at)[0]
        return number

    def _asked(self, *call: object) -> int:
        found: int = self._call(*call)
        if found < 0:
            raise OSError(ctypes.get_errno(), "io_uring: " + os.strerror(ctypes.get_errno()))
        return found


def _thirds(raw: bytes) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What the kernel says of a new ring: of itself, of what is submitted, of what has ended."""
    numbers = _PARAMETERS.unpack(raw)
    return numbers[:10], numbers[10:20], numbers[20:]

"""Long work of the mover in a process of its own, so that it does not take the interpreter's lock from the loop.

Owns that process: its start, what it is asked and answers, its end. What it does is ``moving``'s; what its files count for is the mover's. Both
sides are here. The one that asks blocks and is used from one thread.

I1 The process writes only files with the numbers it was given, which nobody else takes. I2 It ends with the broker, whatever ends that: by a signal
of the kernel's, by the end of its input; and it holds the directory's lock as long as it lives, so that no other broker opens what it writes to. I3
Where it fails, other than by an error of the disk, what it wrote is removed and ``Gone`` says so: the same can then be done in the broker."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.model.errors import NotFound
from headrace.storage.files import Handle, OsFiles
from headrace.storage.index import Rows
from headrace.storage.keys import FileMeta, SegmentRef
from headrace.storage.moving import Job, Moves, Writing
from headrace.storage.segments import path_of
from headrace.storage.system import SYSTEM_PID
from headrace.storage.walfiles import name_of

ROWS_MIN: Final = 20_000
BYTES_MIN: Final = 32 * 1024 * 1024
"""What has fewer rows and fewer bytes is done in the broker, which takes no longer than asking."""
REST_NS: Final = 10_000_000_000
"""Without work for so long the process is ended: it holds 30 to 70 MiB."""
NICER: Final = 5
"""The loop goes first where all processors are busy, but the log must get shorter then, too."""
_END_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_LENGTH_BYTES: Final = 8


class Gone(Exception):
    """The process did not answer, or could not be started."""


class _Job(msgspec.Struct, array_like=True, frozen=True):
    pid: int
    first_index: int
    columns: tuple[bytes, bytes, bytes, bytes, bytes]
    after: int
    floor: int
    last_index: int
    end_offset: int
    checkpoint: bytes


class Task(msgspec.Struct, array_like=True, frozen=True):
    """What is to be moved, with everything that is needed for it."""

    wal_directory: str
    segment_directory: str
    first_number: int
    numbers: int
    own_bytes_min: int
    file_bytes: int
    wall_ms: int
    jobs: list[_Job]


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    files: dict[int, FileMeta] = {}
    refs: dict[int, list[SegmentRef]] = {}
    checkpoints: dict[int, tuple[int, int]] = {}
    bad: dict[int, list[int]] = {}
    moved_bytes: int = 0
    errno: int = 0
    error: str = ""


_encode = msgspec.msgpack.Encoder().encode
_task = msgspec.msgpack.Decoder(Task)
_answer = msgspec.msgpack.Decoder(_Answer)


def worth_it(jobs: Sequence[Job]) -> bool:
    """Whether so much is to be moved that a process of its own is worth the asking. What the system's partition has is hardly ever copied."""
    copied = [job for job in jobs if job.pid != SYSTEM_PID]
    return sum(job.rows for job in copied) >= ROWS_MIN or _bytes_of(copied) >= BYTES_MIN


def numbers_for(jobs: Sequence[Job], file_bytes: int) -> int:
    """How many files these may need at most."""
    return 2 + len(jobs) + _bytes_of(jobs) // file_bytes


def _bytes_of(jobs: Sequence[Job]) -> int:
    return sum(sum(job.copied.columns[1]) for job in jobs)


class Apart:
    """The process, as the broker sees it. ``lock``: the handle that keeps other brokers out of the data directory."""

    def __init__(self, lock: Handle) -> None:
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def move(
        self, jobs: Sequence[Job], wal_directory: str, segment_directory: str, first_number: int, numbers: int, own_bytes_min: int, file_bytes: int,
        wall_ms: int,
    ) -> Moves:  # fmt: skip
        """As ``Writing.move``: ``OSError`` as it has it, ``Gone`` if there is no telling; nothing is left of what was written then."""
        told = list(map(_told, jobs))
        task = Task(wal_directory, segment_directory, first_number, numbers, own_bytes_min, file_bytes, wall_ms, told)
        try:
            answer = self._ask(_encode(task))
        except (OSError, EOFError, msgspec.MsgspecError) as e:
            self.close(at_once=True)
            for number in range(first_number, first_number + numbers):
                with contextlib.suppress(OSError):
                    os.unlink(path_of(segment_directory, number))
            raise Gone(f"{type(e).__name__}: {e}") from e
        if answer.errno:
            raise OSError(answer.errno, answer.error)
        if answer.error:
            raise Gone(answer.error)
        moves = Moves()
        moves.files, moves.refs, moves.checkpoints, moves.bad = answer.files, answer.refs, answer.checkpoints, answer.bad
        moves.moved_bytes = answer.moved_bytes
        return moves

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        if at_once:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _ask(self, task: bytes) -> _Answer:
        process = self._process
        if process is None or process.poll() is not None:
            self.close(at_once=True)
            process = self._process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(len(task).to_bytes(_LENGTH_BYTES, "big"))
        process.stdin.write(task)
        process.stdin.flush()
        return _answer.decode(_take(process.stdout.fileno()))

    def _started(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-m", "headrace.storage.apart", str(os.getpid())]
        path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._lock,), env={**os.environ, **path})


def _told(job: Job) -> _Job:
    places, sizes, bases, counts, walls = job.copied.columns
    columns = (places.tobytes(), sizes.tobytes(), bases.tobytes(), counts.tobytes(), walls.tobytes())
    return _Job(job.pid, job.copied.first_index, columns, job.after, job.floor, job.last_index, job.end_offset, job.checkpoint)


def _take(fd: int) -> bytes:
    """One message; ``EOFError`` if the other side is gone."""
    return _exactly(fd, int.from_bytes(_exactly(fd, _LENGTH_BYTES), "big"))


def _exactly(fd: int, nbytes: int) -> bytes:
    parts: list[bytes] = []
    while nbytes:
        part = os.read(fd, min(nbytes, 1 << 20))
        if not part:
            raise EOFError("the mover's process has ended")
        parts.append(part)
        nbytes -= len(part)
    return b"".join(parts)


# ------------------------------------------------------------ in the process


class _LogFiles:
    """The log's files, read by their numbers."""

    def __init__(self, files: OsFiles, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._open: dict[int, Handle] = {}

    def pread(self, file_id: int, position: int, length: int) -> bytes:
        handle = self._open.get(file_id)
        if handle is None:
            try:
                handle = self._open[file_id] = self._files.open(f"{self._directory}/{name_of(file_id)}")
            except OSError as e:
                raise NotFound(f"the log file {file_id} cannot be opened: {e}") from e  # which says nothing of what is in it
        return self._files.pread(handle, length, position)

    def close(self) -> None:
        for handle in self._open.values():
            self._files.close(handle)


def _moved(task: Task) -> _Answer:
    files, numbers = OsFiles(), iter(range(task.first_number, task.first_number + task.numbers))
    log = _LogFiles(files, task.wal_directory)
    into = Writing(
        files, task.segment_directory, lambda: next(numbers), own_bytes_min=task.own_bytes_min, file_bytes=task.file_bytes, wall_ms=task.wall_ms
    )
    jobs = [
        Job(j.pid, _rows(j), after=j.after, floor=j.floor, last_index=j.last_index, end_offset=j.end_offset, checkpoint=j.checkpoint)
        for j in task.jobs
    ]
    try:
        moves = into.move(log, jobs)
    except OSError as e:
        return _Answer(errno=e.errno or 5, error=str(e))
    except Exception as e:
        return _Answer(error=f"{type(e).__name__}: {e}")
    finally:
        log.close()
    return _Answer(moves.files, moves.refs, moves.checkpoints, moves.bad, moves.moved_bytes)


def _rows(job: _Job) -> Rows:
    places, sizes, bases, counts, walls = (array("q", raw) for raw in job.columns)
    return Rows(job.first_index, (places, sizes, bases, counts, walls))


def main(parent: int) -> None:
    """Answers until its input ends, or the broker does."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # they are meant for the broker, which ends this
        signal.signal(ignored, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.nice(NICER)
    out = os.dup(1)
    os.dup2(2, 1)  # what anything prints is not an answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            answer = _encode(_moved(_task.decode(_take(0))))
            whole = memoryview(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
            while whole:
                whole = whole[os.write(out, whole) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))

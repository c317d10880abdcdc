"""Runs of the log with crashes at any write, torn at any byte, and restarts: what was confirmed is there, and nothing that was not appended."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.storage.files import MemoryFiles
from headrace.storage.wal import FlushResult
from headrace.storage.walformat import PROMISE, TRUNCATE
from tests.unit.storage.rig import Collected, Rig, Value

PIDS = st.integers(1, 6)
OPS = st.one_of(
    st.tuples(st.just("add"), PIDS, st.sampled_from((0, 10, 400, 3000))),
    st.tuples(st.just("cut"), PIDS, st.integers(0, 3)),
    st.tuples(st.just("promise"), PIDS, st.integers(1, 9)),
    st.tuples(st.just("flush"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("idle"), st.just(0), st.just(0)),
    st.tuples(st.just("retire"), st.just(0), st.just(0)),
    st.tuples(st.just("roll"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("crash"), st.integers(1, 6), st.integers(0, 9000)),
    st.tuples(st.just("stop"), st.just(0), st.just(0)),
)
Op = tuple[int, int, int, bytes]
"""index, epoch, kind, payload."""


class Run:
    """A log, all that was appended to each partition in order, and how much of it was confirmed."""

    def __init__(self) -> None:
        self.files = MemoryFiles()
        self.rig = Rig(self.files, eager=False)
        self.rig.on_flushed = self.flushed
        self.appended: dict[int, list[Op]] = {}
        self.confirmed: dict[int, int] = {}
        self.retired = False

    def add(self, pid: int, payload: bytes, *, epoch: int, kind: int = 1, index: int | None = None) -> None:
        at = self.rig.add(pid, payload, epoch=epoch, kind=kind, index=index)
        self.appended.setdefault(pid, []).append((at, epoch, kind, payload))

    def flushed(self, result: FlushResult) -> None:
        for pid in result.located.pids:
            self.confirmed[pid] = self.confirmed.get(pid, 0) + 1

    def settle(self) -> None:
        while self.rig.step():
            pass

    def crash(self, operations: int, nbytes: int) -> None:
        """Power is lost in one of the next changes of the disk, a write in the middle."""

        def fault(operation: str, path: str, length: int) -> int | None:
            nonlocal operations
            operations -= 1
            if operations > 0:
                return None
            if operation == "pwritev_durable":
                return min(nbytes, max(0, length - 1))
            raise OSError(5, "power")

        self.files.fault = fault
        self.rig.wal.flush()
        self.settle()
        self.rig.run_timers()
        self.settle()
        self.files.fault = None
        self.rig.kill()
        self.files.crash()
        self.restart()

    def stop(self) -> None:
        self.rig.stop()
        assert self.rig.wal.error is None
        assert self.confirmed == {pid: len(ops) for pid, ops in self.appended.items()}
        self.restart()

    def restart(self) -> None:
        found = Collected(self.files)
        log = found.log
        assert not log.unknown_damage
        assert not log.damaged()
        for pid, ops in self.appended.items():
            have = {index: value for (of, index), value in found.entries.items() if of == pid}
            promised = log.partitions[pid].promised if pid in log.partitions else 0
            states = [state(ops[:n]) for n in range(self.confirmed.get(pid, 0), len(ops) + 1)]
            if self.retired:
                first = min(have, default=1 << 63)
                assert any({i: v for i, v in entries.items() if i >= first} == have for entries, _ in states)
            else:
                assert (have, promised) in states
        assert {pid for pid, _ in found.entries} <= self.appended.keys()
        self.rig = Rig(self.files, after=log.after, eager=False, seed=self.rig.random.getrandbits(32))
        self.rig.on_flushed = self.flushed
        self.rig.last = {pid: tail.last_index for pid, tail in log.partitions.items() if tail.last_index > 0}
        self.appended = {pid: [(0, tail.promised, PROMISE, b"")] for pid, tail in log.partitions.items()}
        for (pid, index), (epoch, kind, payload) in sorted(found.entries.items()):
            self.appended[pid].append((index, epoch, kind, payload))
        self.confirmed = {pid: len(ops) for pid, ops in self.appended.items()}


def state(ops: list[Op]) -> tuple[dict[int, Value], int]:
    """What a partition's journal holds after these, and the highest epoch promised."""
    entries: dict[int, Value] = {}
    promised = 0
    for index, epoch, kind, payload in ops:
        if kind == PROMISE:
            promised = max(promised, epoch)
            continue
        entries = {i: v for i, v in entries.items() if i < index}
        if kind != TRUNCATE:
            entries[index] = (epoch, kind, payload)
    return entries, promised


@settings(max_examples=200, deadline=None)
@given(st.lists(OPS, max_size=60))
def test_confirmed_is_recovered(ops: list[tuple[str, int, int]]) -> None:
    run = Run()
    for number, (op, a, b) in enumerate(ops):
        epoch = 1 + number // 20
        match op:
            case "add":
                run.add(a, b"%d/" % number + bytes(b), epoch=epoch)
            case "cut":
                run.add(a, b"", kind=TRUNCATE, index=max(1, run.rig.last.get(a, 0) + 1 - b), epoch=epoch)
            case "promise":
                run.add(a, b"", kind=PROMISE, index=0, epoch=b)
            case "flush":
                run.rig.wal.flush()
                for _ in range(a):
                    run.rig.step()
            case "idle":
                run.settle()
                run.rig.run_timers()
            case "retire":
                if len(run.rig.wal.files()) > 2:
                    run.rig.wal.retire(run.rig.wal.files()[0].file_id)
                    run.retired = True
            case "roll":
                run.rig.wal.roll()
                for _ in range(a):
                    run.rig.step()
            case "crash":
                run.crash(a, b)
            case _:
                run.stop()
    run.stop()

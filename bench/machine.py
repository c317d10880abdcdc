"""What the machine is, how fast it is at the moment, and what a process tree uses of it."""

import contextlib
import mmap
import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pids: Iterable[int]) -> set[int]:
    """The processes and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    seen: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in seen:
            seen.add(pid)
            todo += children.get(pid, [])
    return seen


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time that the processes have used so far."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def memory_mib(pids: Iterable[int], field: str = "VmHWM") -> float:
    """Resident memory of the processes: its peak (VmHWM) or now (VmRSS)."""
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            kib += sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field))
    return kib / 1024


def busy_s() -> float:
    """CPU seconds that the whole machine has spent on anything but waiting."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def speed() -> int:
    """Rounds a second of a fixed mix of interpreter work and system calls on one core: shared hosts vary by up to a factor of two."""
    reading, writing = os.pipe()
    began = time.perf_counter()
    for _ in range(20_000):
        os.write(writing, b"x" * 128)
        os.read(reading, 128)
        for _ in range(40):
            pass
    took = time.perf_counter() - began
    os.close(reading)
    os.close(writing)
    return round(20_000 / took)


def sync_ms(folder: Path, count: int = 300) -> tuple[float, float]:
    """(p50, p99) of what a lone durable write of 512 bytes costs here, into a file whose blocks are there: the floor of any confirm."""
    path = folder / "sync-probe"
    block = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, b"\0" * 1024 * 1024, 0)
        os.fsync(fd)
        took = []
        for i in range(count):
            began = time.perf_counter_ns()
            os.pwritev(fd, [memoryview(block)[:512]], i * 512, os.RWF_DSYNC)
            took.append((time.perf_counter_ns() - began) / 1e6)
            time.sleep(0.001)
        return statistics.median(took), statistics.quantiles(took, n=100)[98]
    finally:
        os.close(fd)
        path.unlink()


def description() -> str:
    """One line for the head of a table."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"

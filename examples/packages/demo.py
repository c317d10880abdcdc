"""Real work through a queue while the broker is killed: `make demo`, or python demo.py [--count N] [--kills N].

A broker, a publisher, three workers and a reader run as processes of their own. In the middle the broker is killed with -9 and started again on the
same data; nobody is told. At the end the reader must have counted exactly the published ids, each once.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import headrace

HERE = Path(__file__).resolve().parent
WORKERS = 3
LIMIT_S = 300.0


class Broker:
    """`headrace start` on one data directory and, after the first start, one port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listen = "127.0.0.1:0"
        self.url = ""
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it and waits until it serves."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [str(Path(sys.executable).with_name("headrace")), "start", "--data-dir", str(self.folder / "data"), "--listen", self.listen]
        with (self.folder / "broker.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, "--admin", "off", "--ready-file", str(ready), stdout=log, stderr=log)
        while not ready.exists():
            if self.process.returncode is not None:
                raise SystemExit(f"the broker did not start: {(self.folder / 'broker.log').read_text()[-1000:]}")
            await asyncio.sleep(0.02)
        self.url = json.loads(ready.read_text())["url"]
        self.listen = self.url.rpartition("/")[2]

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Asks it to stop."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), 20)
                return
            self.process.kill()
            await self.process.wait()


class Show:
    """Where everybody is, as bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self.bars = Progress(TextColumn("{task.description:10}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
        self.tasks: dict[str, TaskID] = {name: self.bars.add_task(name, total=None) for name in ("published", "handled", "counted")}
        self.total = 0
        self.values: dict[tuple[str, int], int] = {}
        self.changed = asyncio.Condition()

    async def set(self, what: str, who: int, value: int) -> None:
        """One process is as far as ``value`` with ``what``."""
        self.values[what, who] = value
        self.bars.update(self.tasks[what], completed=self.sum(what))
        async with self.changed:
            self.changed.notify_all()

    def sum(self, what: str) -> int:
        """All processes together."""
        return sum(value for (name, _), value in self.values.items() if name == what)

    async def until(self, what: str, fraction: float) -> None:
        """Waits until ``what`` has come so far."""
        async with self.changed:
            await self.changed.wait_for(lambda: bool(self.total) and self.sum(what) >= fraction * self.total)


async def program(folder: Path, name: str, *arguments: str) -> asyncio.subprocess.Process:
    """Starts one of the example's programs; what it complains of goes to a file."""
    with (folder / "programs.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(sys.executable, str(HERE / name), *arguments, stdout=asyncio.subprocess.PIPE, stderr=log)


async def follow(process: asyncio.subprocess.Process, who: int, show: Show, found: dict[str, Any]) -> None:
    """Takes what a program says about its progress; other things that it says go to ``found``."""
    assert process.stdout is not None
    async for line in process.stdout:
        said = json.loads(line)
        for what in ("published", "handled", "counted"):
            if what in said:
                await show.set(what, who, said.pop(what))
        found |= said
        if "total" in said:
            show.total = said["total"]
            for task in show.tasks.values():
                show.bars.update(task, total=show.total)


async def run(count: int, kills: int, folder: Path, console: Console) -> dict[str, Any]:
    """The whole demonstration; raises AssertionError if a record was lost or counted twice."""
    broker = Broker(folder)
    began = time.monotonic()
    processes: list[asyncio.subprocess.Process] = []
    tasks: list[asyncio.Task[None]] = []
    show = Show(console)
    sent: dict[str, Any] = {}
    counted: dict[str, Any] = {}
    await broker.start()
    try:
        async with headrace.connect(broker.url) as client:
            await client.declare_queue("packages")
            await client.declare_stream("package-figures")
        with show.bars:
            publisher = await program(folder, "publisher.py", broker.url, str(count))
            processes.append(publisher)
            publishing = asyncio.create_task(follow(publisher, 0, show, sent))
            for who in range(WORKERS):
                worker = await program(folder, "worker.py", broker.url)
                processes.append(worker)
                tasks.append(asyncio.create_task(follow(worker, who, show, {})))
            await show.until("published", 0.0)
            reader = await program(folder, "reader.py", broker.url, str(show.total))
            processes.append(reader)
            reading = asyncio.create_task(follow(reader, 0, show, counted))
            for kill in range(kills):
                await show.until("published", (kill + 1) / (kills + 1))
                await broker.kill()
                state = f"{show.sum('published'):,} published, {show.sum('counted'):,} counted"
                console.print(f"broker killed with -9 after {time.monotonic() - began:.1f} s: {state}")
                again = time.monotonic()
                await broker.start()
                console.print(f"broker back after {time.monotonic() - again:.1f} s")
            await asyncio.wait_for(asyncio.gather(publishing, reading), LIMIT_S)
            await asyncio.gather(publisher.wait(), reader.wait())
            if any(process.returncode for process in processes):
                raise SystemExit(f"a program failed: {(folder / 'programs.log').read_text()[-4000:]}")
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*(process.wait() for process in processes))
        await asyncio.gather(*tasks)
        await broker.stop()
    result: dict[str, Any] = counted.get("result", {})
    assert result, "the reader ended early"
    assert result["counted"] == sent["total"], f"published {sent['total']:,}, counted {result['counted']:,}"
    assert result["fingerprint"] == sent["fingerprint"], "the counted ids are not the published ones"
    return result | {"seconds": round(time.monotonic() - began, 1), "kills": kills, "handled": show.sum("handled")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="records at most (default: all of the index)")
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        result = asyncio.run(run(options.count, options.kills, Path(folder), console))
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"\n{'section':14}{'packages':>10}{'installed MiB':>16}")
    for name, packages, kib in result["sections"]:
        print(f"{name:14}{packages:>10,}{kib / 1024:>16,.0f}")
    print(
        f"\n{result['counted']:,} records ({result['bytes'] / 1e6:.0f} MB) published, handled and counted once each in {result['seconds']} s,"
        f" the broker killed {result['kills']} times; figures that came again and were left out: {result['again']:,}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""kill -9 of a real broker at random moments under load, over and over; then the history is checked.

python -m tests.chaos.kill --kills 200 [--seed N] [--write docs/reliability.md]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from headrace.cli.perf_link import Link
from headrace.model.errors import HeadraceError
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire import control
from tests.chaos.history import Broken, History
from tests.chaos.load import Consuming, Publishing, Reading, Worker

START_S = 30.0
DRAIN_S = 60.0
TIGHT = {
    "limits.frame_bytes_max": "256KiB", "limits.message_bytes_max": "128KiB", "storage.flush_bytes_max": "512KiB",
    "storage.wal_file_bytes": "1MiB", "storage.wal_bytes_max": "6MiB", "storage.segment_own_bytes_min": "64KiB",
    "storage.segment_file_bytes": "1MiB", "storage.tail_cache_bytes": "1MiB", "storage.idle_unload_ms": "1s",
}  # fmt: skip
"""So little of everything that moving, recycling, compacting and reading from disk never rest: what a kill has to hit."""
BEGIN, END = "<!-- kills: begin (written by `make chaos`) -->", "<!-- kills: end -->"


class Broker:
    """One data directory and the process that serves it at the moment."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.serving = threading.Condition()
        self.over = False

    def spawn(self) -> None:
        """Starts the broker, every second time with tight settings; ``wait`` until it serves."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [str(Path(sys.executable).with_name("headrace")), "start", "--data-dir", str(self.folder / "data"), "--ready-file", str(ready)]
        command += ["--listen", "127.0.0.1:0", "--admin", "off"]
        if self.chance.random() < 0.5:
            command += [part for name, value in TIGHT.items() for part in ("--set", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> float:
        """Seconds until it served."""
        assert self.process is not None
        began = time.monotonic()
        while True:
            try:
                url = json.loads((self.folder / "ready.json").read_text())["url"]
                break
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() - began > START_S:
                    raise Broken(f"the broker did not start again:\n{(self.folder / 'log').read_text()[-3000:]}") from None
                time.sleep(0.01)
        with self.serving:
            self.url = url
            self.serving.notify_all()
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        with self.serving:
            self.url = ""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def address(self) -> str:
        """Where it serves, as soon as it does; "" when the test is over."""
        with self.serving:
            self.serving.wait_for(lambda: self.url or self.over)
            return "" if self.over else self.url

    def end(self) -> None:
        """Lets waiting workers go and stops the process."""
        with self.serving:
            self.over = True
            self.serving.notify_all()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def run(kills: int, *, seed: int, folder: Path, report: Callable[[str], None] = lambda _: None) -> dict[str, float]:
    """Kills the broker ``kills`` times under load; raises ``Broken`` when a promise was not kept, else returns totals."""
    chance = random.Random(seed)
    broker = Broker(folder, chance)
    broker.spawn()
    starts = [broker.wait()]
    admin = Link(broker.url)
    admin.call(control.DeclareQueue(name="work", spec=QueueSpec(partitions=2)), control.Message)
    admin.call(control.DeclareStream(name="log", spec=StreamSpec()), control.Message)
    admin.close()
    queue, stream = History("work"), History("log")

    def waiting(history: History) -> Callable[[], int]:
        return lambda: sum(history.published.values()) - sum(map(len, history.seen.values()))

    publishers = [Publishing("work", p, queue, broker.address, chance.getrandbits(32), batch=1, ahead=waiting(queue)) for p in (0, 1)]
    publishers.append(Publishing("log", 0, stream, broker.address, chance.getrandbits(32), batch=10, ahead=waiting(stream)))
    takers: list[Worker] = [Consuming("work", queue, broker.address, chance.getrandbits(32)) for _ in range(2)]
    takers.append(Reading("log", stream, broker.address, chance.getrandbits(32)))
    workers = [*publishers, *takers]
    for worker in workers:
        worker.start()
    try:
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(0.1, 1.0))
            check(workers)
            broker.kill()
            broker.spawn()
            while chance.random() < 0.15:  # killed again while it recovers
                time.sleep(chance.uniform(0.05, 0.6))
                broker.kill()
                broker.spawn()
            starts.append(broker.wait())
            report(f"kill {number} of {kills}: {queue.totals()['confirmed'] + stream.totals()['confirmed']:,} confirmed")
        for publisher in publishers:
            publisher.stopping.set()
        settle(broker, workers, publishers, queue, stream)
    finally:
        for worker in workers:
            worker.stopping.set()
        broker.end()
        for worker in workers:
            worker.join(10)
    check(workers)
    queue.finish()
    stream.finish()
    both = {f"queue_{k}": v for k, v in queue.totals().items()} | {f"stream_{k}": v for k, v in stream.totals().items()}
    return {"kills": kills, "seed": seed, "start_s_max": round(max(starts), 2), "lost": 0, **both}


def settle(broker: Broker, workers: list[Worker], publishers: list[Publishing], queue: History, stream: History) -> None:
    """Waits until all that was sent is confirmed, delivered and settled, and the broker's own counts agree."""
    end = time.monotonic() + DRAIN_S
    info = None
    while time.monotonic() < end:
        check(workers)
        time.sleep(0.1)
        if any(not p.done() for p in publishers):
            continue
        try:
            admin = Link(broker.url)
            info = admin.call(control.Describe(name="work"), control.Info)
            admin.close()
        except (OSError, HeadraceError):
            continue
        read = len(stream.seen[0]) >= sum(map(len, stream.confirmed.values()))
        if info.ready == info.leased == info.delayed == 0 and read:
            if info.settled != queue.totals()["confirmed"]:
                raise Broken(f"the broker counts {info.settled} settled messages of {queue.totals()['confirmed']} confirmed ones")
            return
    raise Broken(f"not done after {DRAIN_S:.0f} s: {info}; queue {queue.totals()}, stream {stream.totals()}")


def check(workers: list[Worker]) -> None:
    """Raises what ended a worker."""
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure


def write(document: Path, totals: dict[str, float]) -> None:
    """Puts the totals between their marks."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    command = f"make chaos KILLS={totals['kills']}"
    lines = [
        f"{time.strftime('%Y-%m-%d')}, `{command}` (seed {totals['seed']}): **{totals['kills']} kills, 0 lost**.",
        "",
        "| | queue, 2 partitions | stream |",
        "|---|--:|--:|",
    ]
    for key in ("published", "confirmed", "delivered", "delivered_again", "settled", "stale"):
        lines.append(f"| {key.replace('_', ' ')} | {totals[f'queue_{key}']:,} | {totals[f'stream_{key}']:,} |")
    lines.append(f"\nSlowest start after a kill: {totals['start_s_max']} s (interpreter and imports included).")
    document.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("HEADRACE_KILLS", "5")))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-kill-", dir=os.environ.get("HEADRACE_CHAOS_DIR")) as folder:
        try:
            totals = run(
                options.kills, seed=options.seed, folder=Path(folder), report=lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)
            )
        except Broken as broken:
            print(f"\nseed {options.seed}: {broken}", file=sys.stderr)
            return 1
    print(f"\n{json.dumps(totals)}")
    if options.write:
        write(options.write, totals)
    return 0


if __name__ == "__main__":
    sys.exit(main())

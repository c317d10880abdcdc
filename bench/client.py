"""What one process with the Python client does: python -m bench.client [--messages N] [--rounds N], medians go to docs/performance.md.

Client and broker share the machine; each message has 100 bytes and is confirmed after a synced write.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import headrace
from bench import machine, table
from bench.targets import ROOT, Headrace
from headrace.broker.verbs import compiled

BEGIN, END = "<!-- client: begin (written by `make bench-client`) -->", "<!-- client: end -->"
VALUE: Final = b"x" * 100
Work = Callable[[headrace.Client, int], Awaitable[object]]


async def post_with_receipts(client: headrace.Client, count: int) -> None:
    """A future a message, all awaited."""
    async with client.publisher("q") as publisher:
        for _ in range(count // 1000):
            await asyncio.gather(*[publisher.post(VALUE) for _ in range(1000)])


async def post(client: headrace.Client, count: int) -> None:
    """No future a message; ``flush`` says that all are confirmed."""
    async with client.publisher("q") as publisher:
        for _ in range(count):
            if publisher.full:
                await publisher.room()
            publisher.post(VALUE, receipt=False)
        await publisher.flush()


async def consume(client: headrace.Client, count: int) -> None:
    """Each message is acked when the loop goes on to the next."""
    async with client.consume("q", prefetch=1000) as messages:
        for _ in range(count):
            async with await anext(messages):
                pass


async def workers(client: headrace.Client, count: int) -> None:
    """100 tasks of one worker, each message acked when its handler returns."""
    left = count

    @client.worker("q", concurrency=100)
    async def handle(message: headrace.Message) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            client.stop_workers()

    await client.run_workers()


WORK: Final[tuple[tuple[str, Work], ...]] = (
    ("`post()`, a receipt each", post_with_receipts),
    ("consume and ack, one loop", consume),
    ("`post(receipt=False)` and `flush()`", post),
    ("a worker with 100 tasks", workers),
)
"""In this order: what was published is consumed."""


async def measure(url: str, count: int) -> list[float]:
    """Messages a second of each kind of work."""
    found = []
    for _, work in WORK:
        async with headrace.connect(url) as client:
            await client.declare_queue("q")
            began = time.monotonic()
            await work(client, count)
            found.append(count / (time.monotonic() - began))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.client", description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    broker = Headrace("client")
    try:
        broker.start(fresh=True)
        rounds = [asyncio.run(measure(broker.url, options.messages)) for _ in range(options.rounds)]
    finally:
        broker.stop()
        broker.remove()
    command = f"python -m bench.client {' '.join(sys.argv[1:])}".strip()
    kind = "compiled" if compiled() else "pure Python"
    text = f"{time.strftime('%Y-%m-%d')}, {machine.description()}, {kind}; medians of {options.rounds} rounds; `{command}`\n\n"
    text += "| one process, one connection, 100 B | messages/s |\n|---|--:|\n"
    for number, (name, _) in enumerate(WORK):
        text += f"| {name} | {statistics.median(found[number] for found in rounds):,.0f} |\n"
    print(text)
    if not options.dry:
        table.insert(Path(__file__).resolve().parent.parent / "docs" / "performance.md", text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())

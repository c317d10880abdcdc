"""Many brokers of one cluster on this machine: they form, share a thousand partitions out, and survive kills. python -m bench.many

What is checked: everything confirmed before and between the kills is consumed afterwards, every partition is served again, and nobody owns
much more than others. What is said: times and memory.
"""

import argparse
import asyncio
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import headrace
from bench import machine, table
from bench.members import Members
from bench.targets import ROOT
from headrace.client.client import Client

BEGIN, END = "<!-- many: begin (written by `python -m bench.many`) -->", "<!-- many: end -->"
LOOK_S = 0.25
SETTLE_S = 600.0
CONFIRM_S = 120.0
Rows = list[tuple[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    parser.add_argument("--brokers", type=int, default=21)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--queues", type=int, default=20, help="over which the partitions are spread")
    parser.add_argument("--used", type=int, default=10, help="queues that get a message in every partition")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--etcd", default="", help="which etcd, if not the first on the PATH")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    ROOT.mkdir(parents=True, exist_ok=True)
    members = Members(options.brokers, etcd=options.etcd)
    rows: Rows = []
    try:
        rows.append((f"{options.brokers} brokers, 3 of them voters: formed and serving", f"{members.start():.1f} s"))
        _say(rows)
        asyncio.run(work(members, options.queues, options.partitions // options.queues, options.used, options.kills, rows))
    finally:
        members.stop()
    command = f"python -m bench.many {' '.join(sys.argv[1:])}".strip()
    text = f"{time.strftime('%Y-%m-%d')}, {machine.description()}; `{command}`\n\n| what | measured |\n|---|--:|\n"
    text += "".join(f"| {what} | {value} |\n" for what, value in rows)
    print(text)
    if not options.dry:
        table.insert(Path(__file__).resolve().parent.parent / "docs" / "performance.md", text, BEGIN, END)
    return 0


async def work(members: Members, queues: int, partitions: int, used: int, kills: int, rows: Rows) -> None:
    """Declares, uses, kills and counts; raises what went wrong."""
    names = [f"many-{number:03d}" for number in range(queues)]
    total = queues * partitions
    rows.append(("memory of a broker with nothing, median / most", _memory(members)))
    async with headrace.connect(members.url, wait=120.0, confirm_timeout=CONFIRM_S) as client:
        began = time.monotonic()
        for name in names:
            await client.declare_queue(name, partitions=partitions)
        owners = await served(client, names, partitions, members)
        rows.append((f"{total:,} partitions of 3 copies declared and given out", f"{time.monotonic() - began:.1f} s"))
        rows.append(("partitions of an owner, fewest / most", f"{min(owners.values())} / {max(owners.values())}"))
        rows.append((f"memory of a broker with {total:,} idle partitions, median / most", _memory(members)))
        _say(rows)
        sent: Counter[str] = Counter()
        began = time.monotonic()
        await publish(client, names[:used], partitions, sent)
        rows.append((f"first message to each of {used * partitions:,} partitions", f"{time.monotonic() - began:.1f} s"))
        rows.append((f"memory of a broker with {used * partitions:,} partitions in use, median / most", _memory(members)))
        _say(rows)
        for number in range(kills):
            victim = members.running[-1 - number] if number % 2 == 0 else members.running[0]  # observers and voters in turn
            victim.kill()
            began = time.monotonic()
            await publish(client, names[:used], partitions, sent)
            rows.append((f"{victim.name} killed: a confirm of every partition in use after", f"{time.monotonic() - began:.1f} s"))
            await served(client, names, partitions, members)
            rows.append((f"{victim.name} killed: all partitions owned by living brokers after", f"{time.monotonic() - began:.1f} s"))
            _say(rows)
            began = time.monotonic()
            await asyncio.to_thread(members.start)
            rows.append((f"{victim.name} started again: serving after", f"{time.monotonic() - began:.1f} s"))
        began = time.monotonic()
        got = 0
        for name in names[:used]:
            got += await drain(client, name, sent[name])
        assert got == sum(sent.values()), f"{got} of {sum(sent.values())} confirmed messages were delivered"
        rows.append((f"all {got:,} confirmed messages delivered and acked", f"{time.monotonic() - began:.1f} s"))
        rows.append(("memory of a broker in the end, median / most", _memory(members)))
        etcd = machine.memory_mib(members.etcd_pids(), "VmRSS")
        rows.append(("memory of all brokers / of the etcds", f"{sum(members.memory_mib()):,.0f} / {etcd:,.0f} MiB"))


async def served(client: Client, names: list[str], partitions: int, members: Members) -> Counter[str]:
    """Partitions by owner, once every one has an owner that runs."""
    living = {m.url for m in members.running}
    end = time.monotonic() + SETTLE_S
    while True:
        owners: Counter[str] = Counter()
        for name in names:
            info = await client.topology(name)
            for row in info.partitions:
                owners.update(url for url in info.brokers.get(row.owner, ())[:1] if url in living)
        if owners.total() == len(names) * partitions:
            return owners
        assert time.monotonic() < end, f"{owners.total()} of {len(names) * partitions} partitions have an owner that runs"
        await asyncio.sleep(LOOK_S)


async def publish(client: Client, names: list[str], partitions: int, sent: Counter[str]) -> None:
    """One message to every partition, each confirmed."""
    for name in names:
        async with client.publisher(name, confirm_timeout=CONFIRM_S) as publisher:
            await asyncio.gather(*(publisher.send(b"%d" % sent[name], partition=number) for number in range(partitions)))
            sent[name] += partitions


async def drain(client: Client, name: str, count: int) -> int:
    """Takes so many different messages of a queue; how many came."""
    got: set[tuple[int, int]] = set()
    async with asyncio.timeout(SETTLE_S), client.consume(name) as consumer:
        async for message in consumer:
            await message.ack(confirmed=True)
            got.add((message.partition, message.offset))
            if len(got) == count:
                break
    return len(got)


def _memory(members: Members) -> str:
    found = members.memory_mib()
    return f"{statistics.median(found):.0f} / {max(found):.0f} MiB"


_said = 0


def _say(rows: Rows) -> None:
    global _said  # noqa: PLW0603
    for what, value in rows[_said:]:
        print(f"  {what}: {value}", flush=True)
    _said = len(rows)


if __name__ == "__main__":
    sys.exit(main())

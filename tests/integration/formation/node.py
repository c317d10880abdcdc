"""One broker's formation as a process of its own, driven by lines of JSON: ``python -m tests.integration.formation.node CONFIG``.

A line in is ``{"do": "status"}``, ``{"do": "feed", "config": {...}}`` or ``{"do": "plan", "config": {...}}``; a line out is its answer. The log goes
to standard error. ``HEADRACE_TEST_DIE_AT=Identity/before`` (or ``.../after``) ends the process as kill -9 does, before or after the first such record
is written, or such an effect is carried out.
"""

import asyncio
import json
import os
import signal
import sys
from typing import Any

from headrace.cluster.formation import driver
from headrace.cluster.formation.opening import Running, open_formation
from headrace.config import load
from headrace.core.formation.parsing import parse
from headrace.core.formation.records import Record
from headrace.log import configure
from headrace.storage.files import OsFiles


def die_at(point: str) -> None:
    """Plants the death; the product has no switch for it."""
    name, _, when = point.partition("/")

    def dies(what: object, now: str) -> None:
        if type(what).__name__ == name and when == now:
            os.kill(os.getpid(), signal.SIGKILL)

    write, do = driver.Slots.write, driver.Driver._do

    def written(self: driver.Slots, record: Record) -> None:
        dies(record, "before")
        write(self, record)
        dies(record, "after")

    async def done(self: driver.Driver, effect: driver.Work) -> None:
        dies(effect, "before")
        await do(self, effect)
        dies(effect, "after")

    driver.Slots.write = written  # type: ignore[method-assign]
    driver.Driver._do = done  # type: ignore[method-assign]


async def answer(running: Running, line: dict[str, Any]) -> Any:
    if line["do"] == "status":
        return running.status()
    parsed = parse(line["config"])
    if parsed.config is None:
        return [str(m) for m in parsed.mistakes]
    if line["do"] == "plan":
        return [step.text for step in running.driver.outlook(parsed.config).steps]
    got = await running.driver.feed(parsed.config)
    return {"verdict": got.verdict.value, "version": got.version, "reason": got.reason}


async def main(path: str) -> None:
    config = load(path, {}).config
    configure("info", "text")
    running = await open_formation(config, OsFiles())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    stopping = asyncio.ensure_future(stop.wait())
    while not stop.is_set():
        reading = asyncio.ensure_future(reader.readline())
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done() or not reading.result():
            reading.cancel()
            break
        print(json.dumps(await answer(running, json.loads(reading.result()))), flush=True)
    await running.stop()


if __name__ == "__main__":
    if os.environ.get("HEADRACE_TEST_DIE_AT"):
        die_at(os.environ["HEADRACE_TEST_DIE_AT"])
    asyncio.run(main(sys.argv[1]))

"""Adds up the figures in the stream, each id once, until it has all of them: python reader.py URL TOTAL. Prints what it found as its last line."""

import asyncio
import json
import sys

import headrace
from figures import Totals
from records import fingerprint


async def main(url: str, total: int) -> None:
    totals = Totals()
    async with headrace.connect(url, wait=30) as client:
        async with client.read("package-figures", start="earliest") as stream:
            while len(totals.counted) < total:
                for record in await stream.take(1000):
                    figures = record.json()
                    totals.add(figures.pop("id"), figures)
                print(json.dumps({"counted": len(totals.counted), "again": totals.again}), flush=True)
    sections = [(name, count, totals.installed_kib[name]) for name, count in totals.sections.most_common(10)]
    result = {
        "counted": len(totals.counted),
        "again": totals.again,
        "fingerprint": fingerprint(totals.counted),
        "bytes": totals.bytes,
        "depends": totals.depends,
        "sections": sections,
    }
    print(json.dumps({"result": result}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))

"""Publishes every package record with confirms: python publisher.py URL [COUNT]. Says on standard output how far it is, one JSON object a line."""

import asyncio
import json
import sys

import headrace
from records import fingerprint, records

BATCH = 500


async def main(url: str, count: int) -> None:
    work = list(records(count))
    say(total=len(work), fingerprint=fingerprint(name for name, _ in work))
    async with headrace.connect(url, wait=30) as client:
        # What was not confirmed when the broker died is sent again with its sequence number, so it is stored once.
        async with client.publisher("packages", confirm_timeout=60) as publisher:
            for at in range(0, len(work), BATCH):
                await publisher.send_many(headrace.Outgoing(record, headers={"id": name}) for name, record in work[at : at + BATCH])
                say(published=min(at + BATCH, len(work)))


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))

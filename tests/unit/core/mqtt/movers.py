"""Session partitions of a cluster that go from one owner to the next, and connections that go with them, as the broker with their socket sees it."""

from typing import Any

from headrace.core.mqtt.cluster_router import ClusterRouter
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.held import Held, first_packet
from headrace.core.mqtt.resuming import resume
from headrace.core.mqtt.shard import Shard
from headrace.wire.mqtt import properties as prop
from tests.unit.core.mqtt.routers import BOUNDS, SHARDS, Net
from tests.unit.core.mqtt.wires import Wire, World

KEPT: dict[str, Any] = {"clean_start": False, "properties": {prop.SESSION_EXPIRY_INTERVAL: 100}}


class Cluster(World):
    """One broker serves everything, then another one does."""

    def __init__(self, *, prompt: bool = True) -> None:
        super().__init__(prompt=prompt)
        self.epoch = 0
        self.far: ClusterRouter
        self._lead([Shard(number) for number in range(SHARDS)])

    def _lead(self, shards: list[Shard]) -> None:
        self.epoch += 1
        self.far = self.net.router = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        self.net.shards = shards
        for shard in shards:
            self.far.lead(shard, self.wall_ms, self.epoch)

    def die(self, *, journalled: bool = True) -> None:
        """The owner is gone; ``journalled``: with all that it had to journal in the journal."""
        self._leave()
        if journalled:
            self.net.write()
        self.waiting.clear()
        self._lead(self.net.replayed())

    def hand_over(self) -> None:
        """The owner gives everything away."""
        self.sync()
        self._leave()
        old = self.far
        shards = self.net.replayed()
        for number in range(SHARDS):
            old.drop(number)
        self._lead(shards)

    def _leave(self) -> None:
        for wire in self.wires:
            if isinstance(wire, Edge):
                wire.held.lost()

    def edge(self, client_id: str = "c", version: int = 5, **more: Any) -> "Edge":
        """A client that is connected, with a session that is kept."""
        edge = Edge(self)
        self.wires.append(edge)
        edge.connect(client_id, version, **(KEPT | more))
        assert edge.connack.reason == 0
        return edge


class Edge(Wire):
    """A client's end, and what the broker with its socket keeps."""

    def __init__(self, world: Cluster) -> None:
        super().__init__(world)
        self.cluster = world
        self.held = Held(b"")
        self.astray = 0
        self.machine.astray = self._astray

    def _astray(self) -> None:
        self.astray += 1
        self._progress()

    def _progress(self) -> None:
        machine = self.machine
        aliases, machine.answers.aliases = machine.answers.aliases, {}
        self.held.progress(machine.answers.heard, machine.sending.sent, list(machine.sending.skipped), aliases)
        if machine.session is not None:
            self.held.accepted(machine.session.client_id, machine.session.epoch, machine.sending.begun)

    def write(self, data: bytes) -> None:
        if not self.held.connect:
            self.held.connect = first_packet(data)
        self.held.read(data)
        super().write(data)

    def read(self) -> list[Any]:
        found = super().read()
        self._progress()
        return found

    def go_on(self) -> bool:
        """At whoever serves the session now; whether that was the right one."""
        self.machine = Connection(self.cluster, self.cluster.terms, self)
        self.machine.astray = self._astray
        if not resume(self.machine, self.held.moved()):
            return False
        for data, again in ((self.held.again(), True), (self.held.fresh(), False)):
            self.machine.again = again
            self.machine.feed(data)
        self.machine.again = False
        if self.cluster.prompt:
            self.cluster.sync()
        return True

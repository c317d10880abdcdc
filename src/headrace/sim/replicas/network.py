"""Connections between the brokers of the small world, and what happens to messages on them.

A direction of a connection keeps its order; messages are late, lost, repeated; one direction may be cut without anybody noticing; what was sent
before a connection broke may arrive after the next one stands.
"""

from msgspec.structs import replace

from headrace.core.replica.effects import Send, Stream, Transfer
from headrace.core.replica.messages import Ack, AnyMessage, Install, State
from headrace.model.cluster import BrokerId
from headrace.sim.replicas.disk import runs_of
from headrace.sim.replicas.ground import Connection, Ground, Node


class Network(Ground):
    """See the module's head."""

    def _connect(self, a: Node, b: Node) -> None:
        if not (a.up and b.up) or b.id in a.connections or self._cut.get((a.id, b.id)) or self._cut.get((b.id, a.id)):
            return
        connection = Connection((a, b))
        a.connections[b.id] = b.connections[a.id] = connection
        for one, other in ((a, b), (b, a)):
            assert one.replica is not None
            one.heard[other.id] = self.now_ms
            one.replica.connected(other.id, other.incarnation, self.now_ms)
        self.pump(a)
        self.pump(b)

    def _break(self, connection: Connection) -> None:
        """What is on its way may still arrive; both sides learn of it, one perhaps later."""
        if not connection.open:
            return
        connection.open = False
        a, b = connection.ends
        for one, other in ((a, b), (b, a)):
            if one.connections.get(other.id) is connection:
                self.at(self._net.randrange(1, 30) if self._net.happens(0.7) else 300, self._broken, one, one.life, other, connection)

    def _broken(self, node: Node, life: int, other: Node, connection: Connection) -> None:
        if node.connections.get(other.id) is not connection:
            return
        del node.connections[other.id]
        if node.life == life and node.replica is not None:
            node.replica.disconnected(other.id, self.now_ms)
            self.pump(node)
        self.at(self._net.randrange(5, 100), self._connect_again, node, other)

    def _connect_again(self, node: Node, other: Node) -> None:
        if node.id not in other.connections:
            self._connect(node, other)

    def _send(self, node: Node, effect: Send) -> None:
        message = effect.message
        if isinstance(message, (State, Ack)):
            self.checks.answers(node, message.epoch, message.end)
        self._transmit(node, effect.to, message)

    def _stream(self, node: Node, effect: Stream) -> None:
        message = effect.message
        first = message.first
        entries = tuple(node.memory[first - 1 : first - 1 + message.count])
        assert len(entries) == message.count and (not entries or first >= node.disk.start)
        self._transmit(node, effect.to, replace(message, entries=entries))

    def _transfer(self, node: Node, effect: Transfer) -> None:
        disk = node.disk
        end = disk.watermark
        if end <= effect.above:
            disk.watermark = end = max(end, min(node.checked_end, len(disk.entries) + 1))
        if end <= effect.above:
            return
        base = disk.entries[disk.start - 2][0] if disk.start > 1 else 0
        data = tuple(disk.entries[: end - 1])
        install = Install(
            epoch=effect.epoch, session=effect.session, end=end, history_start=disk.start, base_epoch=base, runs=runs_of(data, disk.start), data=data
        )
        self._transmit(node, effect.to, install)

    def _transmit(self, node: Node, to: BrokerId, message: AnyMessage) -> None:
        connection = node.connections.get(to)
        net, plan = self._net, self.plan
        if connection is None or not connection.open or to == node.id:
            return
        if self._cut.get((node.id, to)) or (not self.healing and net.happens(plan.loss)):
            return
        arrives = max(connection.last[to], self.now_ms + net.randrange(plan.delay_ms_max + 1))
        connection.last[to] = arrives
        other = self.nodes[to]
        self.at(arrives - self.now_ms, self._arrive, node.id, node.life, other, other.life, connection, message)
        if not self.healing and net.happens(plan.duplicated):
            self.at(arrives - self.now_ms + net.randrange(50), self._arrive, node.id, node.life, other, other.life, connection, message)

    def _arrive(self, sender: BrokerId, sent_in: int, node: Node, life: int, connection: Connection, message: AnyMessage) -> None:
        if node.life != life or node.replica is None:
            return
        if not connection.open and self._net.happens(0.5):
            return
        if self.nodes[sender].life == sent_in:
            node.heard[sender] = self.now_ms
        if self.trace is not None:
            self.say(f"{sender} -> {node.id}: {str(message)[:230]}")
        node.replica.received(sender, message, self.now_ms)
        self.pump(node)

    def _beat(self) -> None:
        """Heartbeats, each pair."""
        for node in self.nodes.values():
            for other in list(node.connections):
                connection = node.connections[other]
                if connection.open and node.up and not self._cut.get((node.id, other)):
                    self.nodes[other].heard[node.id] = self.now_ms
                elif connection.open and not self.healing and self._net.happens(0.1):
                    self._break(connection)
            for peer in self.nodes.values():
                if peer.id > node.id and peer.up and node.up and peer.id not in node.connections and node.id not in peer.connections:
                    self._connect(node, peer)
        self.at(200, self._beat)

"""Who is told of which names' owners: the pushes of ``event.topology`` to connections of a broker in a cluster.

Owns which connection asked about which name, and what each name's watchers were told last. Invariants: I1 a change is told once, at the latest
``GATHER_S`` after it, with others of that time together. I2 a connection watches at most ``WATCHED_MAX`` names; beyond, it learns from refusals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.gateways.native.connection import NativeConnection

WATCHED_MAX: Final = 4096
GATHER_S: Final = 0.02


class Watches:
    """See the module's head. A lone broker's is never told anything and costs nothing."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._watchers: dict[str, dict[int, NativeConnection]] = {}
        self._names: dict[int, set[str]] = {}
        self._told: dict[str, control.TopologyInfo] = {}
        self._due = False
        if broker.cluster is not None:
            broker.cluster.on_topology(self._changed)

    def add(self, connection: NativeConnection, names: tuple[str, ...]) -> None:
        """``connection`` is being told of ``names`` and is told of their changes from now on."""
        cluster = self._broker.cluster
        if cluster is None or "topology" not in connection.pushes:
            return
        watched = self._names.setdefault(connection.id, set())
        for name in names:
            if len(watched) >= WATCHED_MAX:
                return
            watched.add(name)
            self._watchers.setdefault(name, {})[connection.id] = connection
            if name not in self._told:
                self._told[name] = cluster.topology((name,), all_brokers=False)

    def drop(self, connection: NativeConnection) -> None:
        """It is gone."""
        for name in self._names.pop(connection.id, ()):
            watchers = self._watchers[name]
            del watchers[connection.id]
            if not watchers:
                del self._watchers[name], self._told[name]

    def _changed(self) -> None:
        if not self._due and self._watchers:
            self._due = True
            self._broker.loop.call_later(GATHER_S, self._tell)

    def _tell(self) -> None:
        self._due = False
        cluster = self._broker.cluster
        assert cluster is not None
        news: dict[int, list[str]] = {}
        for name, watchers in self._watchers.items():
            now = cluster.topology((name,), all_brokers=False)
            if now != self._told[name]:
                self._told[name] = now
                for id in watchers:
                    news.setdefault(id, []).append(name)
        for id, names in news.items():
            connection = self._watchers[names[0]][id]
            infos = [self._told[name] for name in names]
            brokers = {broker: where for info in infos for broker, where in info.brokers.items()}
            rows = tuple(row for info in infos for row in info.partitions)
            connection.event(control.TopologyChanged(names=tuple(names), brokers=brokers, partitions=rows))
            self._broker.touch(connection)

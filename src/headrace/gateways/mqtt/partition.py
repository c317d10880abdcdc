"""A session partition on the broker's log: a shard's changes as entries, its state as checkpoints.

Owns nothing of its own but that. It belongs to no queue or stream: its item stands in no catalogue, or in a cluster's under a
name of the brokers' own. Loaded at the start and for ever; in a cluster by the broker's copy, which says when it is served here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.broker.catalogue import MQTT, Item
from headrace.broker.lane import Meta
from headrace.broker.partition import Partition
from headrace.core.mqtt.shard import Shard
from headrace.model.errors import HeadraceError
from headrace.model.specs import StreamSpec
from headrace.wire.journal import Kind

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.subscription import Subscription



class SessionPartition(Partition):
    """See the module's head."""

    def __init__(self, broker: Broker, item: Item, number: int) -> None:
        """``item`` as ``item`` makes it, or as it stands in the catalogue of a cluster."""
        super().__init__(broker, item, number, item.partitions[number])
        self.shard = Shard(number)
        self.journalled: Callable[[int], None] = _nobody
        """Told of each time the shard's changes are taken."""
        self.served: Callable[[SessionPartition], None] = _unwatched
        """Told when a broker of a cluster begins to serve it."""
        self.unserved: Callable[[SessionPartition], None] = _unwatched
        """Told when that is over, before anybody who waits for it is."""
        self.subscriptions: dict[int, Subscription] = {}
        """None, ever."""
        self.settings_changed()

    def lead(self, epoch: int, index: int, now_ms: int, wall_ms: int) -> None:
        super().lead(epoch, index, now_ms, wall_ms)
        self.served(self)

    def taken_away(self, why: HeadraceError, unknown: HeadraceError) -> None:
        self.unserved(self)
        super().taken_away(why, unknown)

    def own_level(self) -> int:
        return self.level_here()

    def admit(self, count: int, nbytes: int, *, whole: bool = False) -> HeadraceError | None:
        return None

    def restore(self, state: dict[str, Any], now_ms: int, wall_ms: int) -> None:
        if "shard" in state:
            self.shard.restore(state["shard"])

    def snapshot(self) -> dict[str, Any]:
        return {"shard": self.shard.snapshot()}

    def replay(self, kind: Kind, payload: bytes, now_ms: int, wall_ms: int) -> None:
        self.shard.replay(payload)

    def recovered(self, now_ms: int, wall_ms: int) -> None:
        pass

    def appended(self, base: int, count: int, nbytes: int, wall_ms: int) -> None:
        pass

    def committed(self, base: int, count: int, nbytes: int, wall_ms: int, metas: Sequence[Meta] | None, now_ms: int) -> None:
        pass

    def serve(self, now_ms: int, wall_ms: int) -> None:
        pass

    def take_journal(self) -> Sequence[tuple[Kind, bytes]]:
        payloads = self.shard.take_journal()
        self.journalled(self.number)
        return [(Kind.SESSIONS, payload) for payload in payloads]

    def floor(self) -> int:
        return 0

    def wake_at_ms(self) -> int:
        return 0

    def oldest_ms(self) -> int:
        return 0

    def attached(self) -> int:
        return 1  # never unloaded

    def subscription_ids(self) -> Iterable[int]:
        return ()

    def configure(self, item: Item) -> None:
        self.item = item


def _nobody(_: int) -> None:
    pass


def _unwatched(_: SessionPartition) -> None:
    pass


def item(id: str, partitions: tuple[int, ...]) -> Item:
    """What the session partitions are to the broker's figures."""
    return Item(name=MQTT, kind="stream", id=id, partitions=partitions, stream=StreamSpec(partitions=len(partitions)))

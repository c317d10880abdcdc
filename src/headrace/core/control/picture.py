"""One picture of the cluster at one moment: all that the controller decides on.

Owns the shape of the inputs, nothing else. Whoever takes the picture (the driver, the simulator, a test) says what is in the coordinator and what
was seen of each broker; times are one monotonic clock's, the controller's. A picture is never changed, and the order of its lists means nothing.
"""

from typing import Literal

import msgspec

from headrace.model.cluster import Assignment, BrokerId, Incarnation, Placement, Registered
from headrace.model.ids import PartitionId
from headrace.model.specs import Durability, Spec, StreamSpec

Swim = Literal["unknown", "alive", "suspect", "dead", "left"]
"""What the members' gossip says; ``left`` is a goodbye by the broker itself."""


class Item(msgspec.Struct, frozen=True):
    """A queue or stream as far as placement is concerned."""

    id: str
    name: str
    partitions: tuple[PartitionId, ...]
    level: Durability
    floor: int = 1
    factor: int = 1


def item_of(id: str, name: str, partitions: tuple[PartitionId, ...], spec: Spec) -> Item:
    """What of a declared queue or stream matters here. An ephemeral stream has one copy, which is never served elsewhere."""
    if isinstance(spec, StreamSpec) and spec.tier == "ephemeral":
        return Item(id, name, partitions, "local_durable")
    return Item(id, name, partitions, spec.durability, spec.min_in_sync_replicas, spec.replication_factor)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A broker as last registered, with the evidence about that very incarnation. A newer incarnation starts with none."""

    registered: Registered
    present: bool = True
    """Whether the registration stands now."""
    since_ms: int = 0
    """When it appeared, or vanished."""
    returned: bool = False
    """It was registered before, in another life or in this one, and gone in between."""
    swim: Swim = "unknown"
    probe_failed: bool = False
    """The controller's own last probe got no answer."""
    reset_ms: int | None = None
    """When the controller's own connection to it was reset, None once there is another."""
    refused_ms: tuple[int, ...] = ()
    """When connections to it were refused (nobody listens; silence is no refusal), ascending."""
    frame_ms: int | None = None
    """When any other broker last got a frame of it."""
    doubted_ms: int | None = None
    """When anything last spoke against it, None = never."""
    unfit: frozenset[PartitionId] = frozenset()
    """Partitions whose copy it calls damaged or suspect itself."""

    @property
    def id(self) -> BrokerId:
        return self.registered.id

    @property
    def incarnation(self) -> Incarnation:
        return self.registered.incarnation


class Stored(msgspec.Struct, frozen=True):
    """An assignment with the version under which the coordinator keeps it (which a compare-and-swap compares)."""

    assignment: Assignment
    stored_version: int


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's head."""

    now_ms: int
    items: tuple[Item, ...] = ()
    brokers: tuple[Seen, ...] = ()
    stored: tuple[Stored, ...] = ()
    settings: Placement = Placement()
    deleted: frozenset[PartitionId] = frozenset()
    """Partitions whose deletion is recorded and newer than their assignment."""
    generation: int = 1
    began_ms: int = 0
    """Since when this controller watches: a broker it never saw has been gone since then, for all it knows."""
    recent_handovers_ms: tuple[int, ...] = ()
    """When owners were last handed to their preferred brokers."""

"""Events: what a broker says unasked, most of it about one channel."""

from typing import Any

from headrace.wire.control.cluster import PartitionOwner
from headrace.wire.control.message import Message


class GoingAway(Message, tag="event.going_away"):
    grace_ms: int
    message: str


class SubscriptionClosed(Message, tag="event.subscription_closed"):
    """A subscription ended on the broker's side: ``code`` as in ``model.errors``; 0 = by drain."""

    channel: int
    code: int
    message: str
    detail: dict[str, Any] = {}
    """As of ``Failure``."""


class PublisherClosed(Message, tag="event.publisher_closed"):
    """A publish channel takes nothing more before it is opened anew, there or where ``detail`` says: what comes on it is refused, so that nothing
    overtakes what was refused before it."""

    channel: int
    code: int
    message: str
    detail: dict[str, Any] = {}


class Assigned(Message, tag="event.assigned"):
    """A cohort's or reader group's partitions for this member changed."""

    channel: int
    generation: int
    partitions: tuple[int, ...]
    revoked: tuple[int, ...] = ()
    starts: dict[int, int] = {}


class Retracted(Message, tag="event.retracted"):
    """Speculative or ephemeral records from this offset on were taken back by a new epoch."""

    channel: int
    partition: int
    from_offset: int
    epoch: int


class CursorMoved(Message, tag="event.cursor_moved"):
    """Retention removed what the reader had not read: it goes on at ``to_offset``."""

    channel: int
    partition: int
    from_offset: int
    to_offset: int


class PartitionIsolated(Message, tag="event.partition_isolated"):
    """A reader of all partitions or of a group goes on without this one, which is damaged. After its repair the subscription ends as ``unavailable``
    and, opened again, has it."""

    channel: int
    partition: int
    message: str


class CatalogueChanged(Message, tag="event.catalogue"):
    name: str
    kind: str
    change: str
    """declared, altered or deleted."""


class TopologyChanged(Message, tag="event.topology"):
    """Who serves these names now, after a change; a name without partitions is there no more."""

    names: tuple[str, ...]
    brokers: dict[str, tuple[str, ...]]
    partitions: tuple[PartitionOwner, ...] = ()

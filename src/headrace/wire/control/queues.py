"""What is done to the messages of a queue: looking at them, dropping, holding back and moving them, and spreading them over other partitions."""

import msgspec

from headrace.wire.control.consuming import Filter
from headrace.wire.control.message import Message


class Inspect(Message, tag="queue.inspect"):
    """Peeks without leasing. ``state``: ready, leased, delayed or any."""

    name: str
    state: str = "ready"
    partition: int = -1
    """-1 = all."""
    after: int = -1
    limit: int = 20
    payload_bytes_max: int = 65_536
    filter: Filter | None = None


class Peeked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    partition: int
    offset: int
    state: str
    attempts: int = 0
    key: bytes | None = None
    value: bytes = b""
    size: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0
    priority: int = 0
    not_before_ms: int = 0
    expires_at_ms: int = 0
    lease_until_ms: int = 0


class Inspected(Message, tag="inspected"):
    messages: tuple[Peeked, ...]
    more: bool = False


class Purge(Message, tag="queue.purge"):
    """Drops ready (and delayed) messages; leased ones only with ``leased``."""

    name: str
    partition: int = -1
    leased: bool = False


class Repartition(Message, tag="queue.repartition"):
    """Gives a queue more or fewer partitions while it is used; answered by its ``Info`` once that is recorded. With ``force`` nothing waits for the
    order of keys, and what is left in partitions that are given up is moved."""

    name: str
    partitions: int
    force: bool = False


class Pause(Message, tag="queue.pause"):
    name: str
    paused: bool = True


class Move(Message, tag="queue.move"):
    """Moves ready messages to another queue or stream, each exactly once; ``limit`` 0 = all that are there now; ``rate`` per second, 0 = no limit."""

    name: str
    to: str
    filter: Filter | None = None
    limit: int = 0
    rate: int = 0


class Redrive(Message, tag="queue.redrive"):
    """Moves dead letters back to the queue each came from (or to ``to``)."""

    name: str
    to: str = ""
    filter: Filter | None = None
    limit: int = 0
    rate: int = 0


class Progress(Message, tag="progress"):
    """Where a long transfer stands: asked by ``TransferStatus``."""

    id: int
    done: int
    total: int
    state: str
    """running, finished, failed or cancelled."""
    why: str = ""


class TransferStatus(Message, tag="transfer.status"):
    id: int
    cancel: bool = False

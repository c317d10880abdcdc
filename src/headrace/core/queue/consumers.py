"""What a queue partition is told about its consumers and what it answers: plain values and the two mutable things that are shared, credit and
consumer."""

from typing import NamedTuple

import msgspec

from headrace.core.filters import Compiled
from headrace.wire.journal import Reason

Range = tuple[int, int]
"""(first offset, count)."""


class Credit:
    """How much more a subscription may be sent; shared by its consumers in all partitions. May go below zero by one message's bytes."""

    __slots__ = ("bytes", "messages")

    def __init__(self, messages: int, bytes: int = 1 << 62) -> None:
        self.messages = messages
        self.bytes = bytes


class Consumer:
    """One subscription's share in one partition.

    ``owner_token`` (u64) names it over reconnects and restarts: leases belong to the token. ``lease_ms`` 0 = the queue's. ``replenish``: a settled,
    returned or expired message gives its credit back (a prefetch window); False where credit is granted message by message (pull). Auto-acked
    messages never do.
    """

    __slots__ = ("auto_ack", "credit", "filter", "id", "lease_ms", "member", "owner_token", "replenish")

    def __init__(
        self,
        id: int,
        *,
        owner_token: int,
        credit: Credit,
        lease_ms: int = 0,
        auto_ack: bool = False,
        filter: Compiled | None = None,
        member: str = "",
        replenish: bool = True,
    ) -> None:
        self.id = id
        self.owner_token = owner_token
        self.credit = credit
        self.lease_ms = lease_ms
        self.auto_ack = auto_ack
        self.filter = filter
        self.member = member
        self.replenish = replenish


class Grant(msgspec.Struct, frozen=True):
    """Messages ``[first, first + count)`` go to a consumer, all for the ``attempt``-th time (1 = first)."""

    consumer_id: int
    first: int
    count: int
    attempt: int
    auto_ack: bool


class Settled(msgspec.Struct, frozen=True):
    """How many messages a settle or extend took effect on, and which ranges it came too late for (or never were the consumer's)."""

    count: int
    stale: list[Range]


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """Messages a transfer took, with their delivery count and the wall time of their first failure (0 = never failed)."""

    first: int
    count: int
    attempts: int
    first_failed_ms: int


class Transfer(msgspec.Struct, frozen=True):
    """Messages on their way to another queue or stream.

    ``number`` is dense over the messages this partition ever transferred: message i of the transfer (in the order of ``ranges``) is published under
    sequence ``number + i``, so a retry is stored once whatever way it is batched.
    """

    number: int
    target: str
    reason: Reason
    ranges: tuple[Taken, ...]
    wall_ms: int
    extra: dict[str, object]

    @property
    def count(self) -> int:
        """Messages in all ranges."""
        return sum(taken.count for taken in self.ranges)


class Peek(NamedTuple):
    """One message as an observer sees it. ``lease_until_ms`` and ``due_ms`` are 0 where they do not apply."""

    offset: int
    state: str
    attempts: int
    lease_until_ms: int
    due_ms: int

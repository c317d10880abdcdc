"""What a gateway's connection must be able to do for the broker: take confirms, deliveries and events.

The broker calls these per run or per range, never per message, and calls ``flush`` once a tick for each sink it wrote to.
"""

from collections.abc import Sequence
from typing import Protocol

from headrace.model.errors import HeadraceError
from headrace.wire.control import Event


class Written(Protocol):
    """What is flushed at the end of a tick in which it was touched."""

    dirty: bool
    """Owned by the broker: it is on this tick's list of sinks to flush."""

    def flush(self) -> None:
        """Hands everything gathered to the socket in one write."""


class Sink(Written, Protocol):
    """One client connection as the broker sees it."""

    blocked: bool
    """The socket's buffer is above its high mark: grant it nothing until ``Broker.unblocked``."""
    in_flight_bytes: int
    """Owned by the broker: published bytes that are not yet committed."""

    def confirmed(self, channel: int, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        """``count`` publish frames from correlation id ``first`` on are stored from ``base_offset`` on."""

    def confirmed_all(self, frames: bytes) -> None:
        """As ``confirmed``, for all that ``wire.confirms`` has written into ``frames``."""

    def refused(self, channel: int, first: int, count: int, error: HeadraceError) -> None:
        """``count`` publish frames from correlation id ``first`` on were not stored (or their outcome is unknown: see ``error.definite``)."""

    def deliver(
        self,
        channel: int,
        partition: int,
        epoch: int,
        first_offset: int,
        count: int,
        attempt: int,
        base_offset: int,
        blobs: Sequence[bytes | memoryview],
        nbytes: int,
        flags: int,
    ) -> None:
        """``count`` messages from ``first_offset`` on, contained in the stored frames ``blobs`` whose first record is ``base_offset``."""

    def settled(self, channel: int, correlation: int, count: int, stale: Sequence[tuple[int, int]]) -> None:
        """Answer to a settlement or lease extension."""

    def fetch_end(self, channel: int, correlation: int, count: int) -> None:
        """A pull request is complete after ``count`` messages."""

    def event(self, event: Event) -> None:
        """Something the client must be told unasked."""

    def close(self, error: HeadraceError | None) -> None:
        """Ends the connection, naming why."""

"""Who uses a channel of a connection: a publisher's lane, a subscription. What the connection asks of it, and tells it."""

from typing import Any, Protocol

from headrace.client.link import Channel
from headrace.model.errors import HeadraceError
from headrace.wire import control


class User(Channel, Protocol):
    """Who uses a channel."""

    channel: int
    """0 = none."""
    marked: bool
    """Owned by the connection."""

    def opening(self, *, resumed: bool) -> control.Message:
        """The request that opens the channel on the link that just came up."""

    def opened(self, reply: Any) -> None:
        """It is open: send what waits."""

    def open_failed(self, error: HeadraceError) -> bool:
        """It could not be opened; True = try again in a moment."""

    def lost(self) -> None:
        """The link is gone; ``opening`` will be asked again."""

    def closed_by_broker(self, error: HeadraceError | None) -> None:
        """The broker ended it; None = by a drain, it will be opened on the next link."""

    def event(self, event: control.Event) -> None:
        """An event that names this channel."""

    def flush(self, out: list[bytes], writable: bool) -> None:
        """Appends what is to be sent now."""

    def tick(self, now_ms: int) -> None:
        """About ten times a second."""

    def idle(self) -> bool:
        """It may lose its channel to another."""

    def owed(self) -> int | None:
        """A name of the oldest thing that it sent and that is not answered; None = there is nothing."""

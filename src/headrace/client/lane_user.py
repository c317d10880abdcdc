"""A lane's channel: opened where its partition is served, moved when that changes, and what goes out and comes back on it.

Belongs to the lanes of a publisher and knows them well; the lane knows no connection. Invariant: whenever the channel is opened anew, everything that
has no answer is sent first, in order.
"""

from typing import TYPE_CHECKING, Any, Final

from headrace.client.connection import Connection
from headrace.client.lane import BATCH_RECORDS_MAX, PASSING, QUEUE_BATCH_RECORDS_MAX, Lane
from headrace.model.errors import Draining, HeadraceError, NotFound, StaleRouting, Unavailable, UnknownOutcome
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.client.lanes import Lanes

AGAIN_S: Final = 0.2
"""After so long what has no answer is offered again."""
_FLUSH_BYTES: Final = 1024 * 1024


class LaneUser:
    """See the module's head."""

    __slots__ = ("_gone", "_lanes", "_open", "_told", "channel", "connection", "lane", "marked", "name", "partition")

    def __init__(self, lanes: "Lanes", lane: Lane) -> None:
        self._lanes = lanes
        self.connection = lanes.connection
        self.lane = lane
        self.name, self.partition = lanes.name, lane.partition
        self.channel = 0
        self.marked = False
        self._open = self._gone = False
        self._told: control.PublisherOpened | None = None

    @property
    def told(self) -> control.PublisherOpened | None:
        """What the broker said of the queue or stream when it opened the channel; None: it is not open."""
        return self._told if self._open else None

    def opening(self, *, resumed: bool) -> control.Message:
        self._open = False
        lane = self.lane
        lane.bind(self.channel)
        return control.OpenPublisher(
            channel=self.channel, name=self._lanes.name, partition=lane.partition, producer_id=lane.producer_id,
            routing_version=self._lanes.routing_version,
        )  # fmt: skip

    def opened(self, reply: Any) -> None:
        self._open, self._gone, self._told = True, False, reply
        self._lanes.router.sat_down(self)
        self.lane.records_max = BATCH_RECORDS_MAX if reply.kind == "stream" else QUEUE_BATCH_RECORDS_MAX
        self._lanes.learned(reply)
        if self.lane.sent or self.lane.gathered:
            again: list[bytes] = []
            self.lane.again(again)
            if again:
                self.connection.send(again)
            self.connection.mark(self)
        self._lanes.look_if_settled()

    def open_failed(self, error: HeadraceError) -> bool:
        if self._follows(error):
            return False
        if isinstance(error, Unavailable) and error.retriable:
            return True
        self.channel = 0
        if type(error) is StaleRouting:
            self.lane.forsake(error)
            self._lanes.outdated()
            return False
        self._lanes.refused_whole(self, error)
        return False

    def _follows(self, error: HeadraceError) -> bool:
        """Goes to who serves the partition, if ``error`` says that this is not who it was asked of."""
        router = self._lanes.router
        if not router.follows(self, error):
            return False
        self.lane.why = error
        self.connection.detach(self)
        router.moved(self, error)
        return True

    def renew(self) -> None:
        """The queue or stream behind its channel was deleted: nothing more is sent on it, and once all that was is answered it is given up, if need
        be for another channel: perhaps there is another one of that name."""
        self._gone, self._open = True, False
        self._renew()

    def _renew(self) -> None:
        lane = self.lane
        if self._gone and all(frame.again or frame.doubtful for frame in lane.sent.values()):
            self._gone = False
            self._lanes.router.leave(self)
            if lane.sent or lane.gathered:
                self._lanes.router.place(self)
            self._lanes.ask()

    def leave(self) -> None:
        """Everything that was sent is answered, and what was not is taken out: the channel is given up."""
        self._open = self._gone = False
        self._lanes.router.leave(self)

    def goodbye(self) -> control.Message:
        return control.ClosePublisher(channel=self.channel)

    def lost(self) -> None:
        self._open = False

    def closed_by_broker(self, error: HeadraceError | None) -> None:
        if type(error) is StaleRouting:  # what was sent is answered on this channel all the same
            self._lanes.outdated()
            return
        self._open = False
        if error is not None and not self._follows(error):
            self.connection.forget(self)
            self._lanes.refused_whole(self, error)

    def event(self, event: control.Event) -> None:
        pass

    def flush(self, out: list[bytes], writable: bool) -> None:
        if self._open and writable and not self.lane.stopped and self.lane.take(out, _FLUSH_BYTES) >= _FLUSH_BYTES:
            self.connection.mark(self)

    def tick(self, now_ms: int) -> None:
        if self.lane.count:
            self.lane.expire(now_ms)
            if self.lane.gathered:
                self.connection.mark(self)
        self._lanes.expire(now_ms)
        self._lanes.look_if_settled()

    def idle(self) -> bool:
        return not self.lane.count and not self._lanes.asking

    def owed(self) -> int | None:
        return next(iter(self.lane.sent), None)

    def confirmed(self, first: int, count: int, base_offset: int, level: int, duplicate: bool) -> None:
        self.lane.confirmed(first, count, base_offset, level, duplicate)
        if self._gone:
            self._renew()
        elif self.lane.gathered and not self.lane.stopped:
            self.connection.mark(self)
        if self.lane.stopped:
            self._lanes.look_if_settled()

    def refused(self, first: int, count: int, error: HeadraceError) -> None:
        self.lane.refused(first, count, error)
        if type(error) is StaleRouting:
            self._lanes.outdated()
        elif type(error) is NotFound:
            self._lanes.deleted()
        elif self._gone:
            self._renew()
        elif isinstance(error, Draining) or (type(error) in (UnknownOutcome, *PASSING) and self.lane.sent):
            self.connection.loop.call_later(AGAIN_S, self._once_more, self.connection, self.connection.connects, self.channel)
        elif self.lane.gathered and not self.lane.stopped:
            self.connection.mark(self)
        if self.lane.stopped:
            self._lanes.look_if_settled()

    def _once_more(self, connection: Connection, connects: int, channel: int) -> None:
        """The broker said it was going away, or did not know, or does not serve the partition now, but the channel lives on: offer again what has no
        answer. In a cluster on a new channel if it is for the last reason: on this one what follows may be taken before it."""
        if self.connection is connection and self.channel == channel and connection.connects == connects and connection.up and self._open:
            why = self.lane.why
            if why is not None and type(why) in PASSING and self._follows(why):
                return
            out: list[bytes] = []
            self.lane.returned(out)
            if out:
                connection.send(out)

    def delivered(self, partition: int, epoch: int, attempt: int, first_offset: int, count: int, base_offset: int, blob: bytes, flags: int) -> None:
        pass

    def settled(self, correlation: int, count: int, stale: list[tuple[int, int]]) -> None:
        pass

    def fetch_ended(self, correlation: int, count: int) -> None:
        pass

"""A publish channel, and the frames that arrive on a connection's publish channels.

Owns which partition a channel means. Judges runs only as far as everything is ordinary; the rest is ``Partition.publish``'s. One of the hot modules:
what stands here costs once per run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.broker.lane import Lane, lane_publish
from headrace.model.errors import HeadraceError, Refused, StaleRouting, Unavailable
from headrace.wire.ingress import Run, Shape, scan_alike, scan_run, shape_of

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.sink import Sink


class Publisher:
    """A publish channel bound to a partition and a producer. In a cluster: I1 once a run was refused because the partition is not served here, or not
    now, all that follow are, until the channel is opened anew: else they would overtake it."""

    __slots__ = ("broker", "channel", "follows", "lane", "partition", "producer_id", "routing", "stopped")

    def __init__(self, broker: Broker, channel: int, partition: Any, producer_id: int, routing: int = 0, *, follows: bool = False) -> None:
        """``partition``: a ``Partition``. ``routing``: the version under which what comes here was routed, 0 = the partition's. ``follows``: the
        client settles by itself what is late, else its channel is closed."""
        self.broker = broker
        self.channel = channel
        self.partition = partition
        self.lane: Lane = partition
        self.routing: int = routing or self.lane.routing
        self.follows = follows
        self.producer_id = producer_id
        self.stopped: HeadraceError | None = None
        partition.publishers += 1

    def publish(self, sink: Sink, run: Run, blob: bytes, now_ms: float) -> int:
        """One run of frames as it arrived. How many bytes are in flight that the sink has not been told of."""
        if run.producer_id != self.producer_id:
            error = Refused(f"the batch names producer {run.producer_id}, channel {self.channel} is bound to {self.producer_id}")
            sink.refused(self.channel, run.first_correlation, run.frame_count, error)
            self.broker.touch(sink)
            return 0
        if self.lane.quarantined:
            self._follow(sink)
        if self.routing != self.lane.routing:
            self._late(sink, run, blob, now_ms)
        elif self.stopped is not None:
            self.partition.refuse(sink, self.channel, run, run.flags & 7, self.stopped)
        elif lane_publish(self.lane, sink, self.channel, run.flags & 7, run, blob, now_ms):
            return len(blob)
        else:
            why = self.partition.publish(sink, self.channel, run.flags & 7, run, blob, now_ms)
            if why is not None:
                self._stop(sink, why)
        return 0

    def _late(self, sink: Sink, run: Run, blob: bytes, now_ms: float) -> None:
        """The queue has other partitions meanwhile: what is stored is confirmed, nothing is appended."""
        asked = run.flags & 7
        item = self.partition.item
        error = StaleRouting(
            f"{item.name!r} has routing version {self.lane.routing}, this was routed under {self.routing}; it is not stored",
            hint="open the publisher again, and route by the number of partitions that it names",
            detail={"routing_version": self.lane.routing, "partitions": item.routes},
        )
        self.partition.answer_late(sink, self.channel, asked, run, blob, error, now_ms)
        if self.stopped is None and (not self.follows or asked == 0):
            self._stop(sink, error)

    def _stop(self, sink: Sink, why: HeadraceError) -> None:
        self.stopped = why
        self.partition.close_channel(sink, self.channel, why)

    def _follow(self, sink: Sink) -> None:
        """After a repair, or when its epoch in a cluster has ended, the partition is another object."""
        current = self.broker.partitions.get(self.lane.pid)
        if current is not None and current is not self.partition:
            self.partition.publishers -= 1
            current.publishers += 1
            self.partition = current
            self.lane = current
            if current.copy is not None and self.stopped is None:
                self._stop(sink, current.barred or Unavailable(f"partition {current.number} of {current.item.name!r} has a new epoch"))

    def close(self) -> None:
        self.partition.publishers -= 1


def take_publishes(data: bytes, pos: int, end: int, message_bytes_max: int, publishers: dict[int, Publisher], sink: Sink, now_ms: float) -> int:
    """Takes the PUBLISH frames that stand at ``pos``, run by run, and says where it stopped: before the first frame that is of another kind, not
    whole, bad, or of a channel that is not open. A run ends where its entry would be larger than one gathers; what comes after it is another run."""
    shape: Shape | None = None
    taken: int = 0
    try:
        while end - pos >= 12 and data[pos + 4] == 1:
            stop = pos + 4 + ((data[pos] << 24) | (data[pos + 1] << 16) | (data[pos + 2] << 8) | data[pos + 3])
            if stop > end or stop - pos < 12:
                break
            publisher = publishers.get((data[pos + 6] << 8) | data[pos + 7])
            if publisher is None:
                break
            last = min(end, max(stop, pos + publisher.lane.turn.entry_bytes_max))
            run = scan_alike(shape, data, pos, last) if shape is not None else None
            if run is None:
                run = scan_run(data, pos, last, message_bytes_max)
                if run.error is not None:
                    break
                if run.next_pos < end:
                    shape = shape_of(data, pos, run)
            taken += publisher.publish(sink, run, data[pos : run.next_pos], now_ms)
            pos = run.next_pos
    finally:
        if taken:
            sink.in_flight_bytes += taken
    return pos

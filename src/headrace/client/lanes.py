"""Where the messages of one publisher go: to the partition of their key, the one that was named, or the one whose turn it is; a lane each.

Owns the lanes, what is known of the partitions, and what waits until they are known. What is unconfirmed belongs to the lanes.
Invariants: I1 messages of one publisher reach a partition in the order in which they were put. I2 when the queue is repartitioned nothing is routed
anew before all that was sent is answered by who it was sent to: what is stored there is confirmed, and the rest follows in order.
"""

from collections.abc import Callable
from typing import Final

from headrace.client.connection import Connection
from headrace.client.lane import BATCH_BYTES_MAX, Envelope, Frame, Lane, Waiter
from headrace.client.lane_user import LaneUser
from headrace.client.routing import Router
from headrace.core.partitioner import key_slot, partition_for
from headrace.model import limits
from headrace.model.errors import ConfirmTimeout, HeadraceError, NotFound
from headrace.model.ids import NO_PRODUCER
from headrace.wire import control
from headrace.wire.batch import Record
from headrace.wire.frames import Level

ANY: Final = -1
"""In the place of a partition: none was named."""
_NONE: Final = int(Level.NONE)
_Unrouted = tuple[Envelope, Record, int, Waiter | None, int, int]
"""As the arguments of ``put``."""


class Lanes:
    """See the module's head."""

    def __init__(
        self,
        connection: Connection,
        router: Router,
        name: str,
        *,
        producer_id: int,
        sticky: int,
        done: Callable[[Frame, HeadraceError | None], None],
    ) -> None:
        """``done`` is told of each frame that is answered. ``sticky``: where messages without key begin."""
        self.connection = connection
        """The client's own; each lane has its own way."""
        self.router = router
        self.name = name
        self.kind = ""
        self.partitions = 0
        """0 = not known (yet, or any more)."""
        self.routing_version = -1
        """Under which messages are routed to partitions, -1 = not known (yet, or while a repartition is followed)."""
        self.message_bytes_max = (connection.welcome.message_bytes_max if connection.welcome is not None else limits.MESSAGE_BYTES_MAX) - 128
        self.users: dict[tuple[int, bool], LaneUser] = {}
        """By partition, and whether it is confirmed."""
        self.sticky = sticky
        """Its remainder is the partition of messages without key; grows with every answer."""
        self.closed = False
        self._producer_id = producer_id
        self._done = done
        self._moving = False
        """The routing is out of date; what was sent is being settled."""
        self._unrouted: list[_Unrouted] = []

    # ------------------------------------------------------------ routing

    def put(self, envelope: Envelope, record: Record, nbytes: int, waiter: Waiter | None, deadline_ms: int, partition: int) -> None:
        """Takes one message of ``nbytes``, to ``partition`` or ``ANY``."""
        if self._moving:
            self._unrouted.append((envelope, record, nbytes, waiter, deadline_ms, partition))
            return
        if partition < 0:
            partitions = self.partitions
            if not partitions:
                self._unrouted.append((envelope, record, nbytes, waiter, deadline_ms, partition))
                told = self._lane(0, envelope.level != _NONE).told
                if told is not None:
                    self.learned(told)
                return
            key = record.key
            if key is None:
                partition = self.sticky % partitions
            else:
                partition = partition_for(key, partitions) if partitions > 1 else 0
                if self.kind == "queue":
                    # the slot is what a repartition holds back; frames are homogeneous in it
                    slot, codec = key_slot(key), envelope.codec
                    envelope = Envelope(envelope.level, envelope.not_before_ms, envelope.expires_at_ms, envelope.priority, slot, codec=codec)
        user = self._lane(partition, envelope.level != _NONE)
        user.lane.add(envelope, record, nbytes, waiter, deadline_ms)
        if not user.marked:
            user.connection.mark(user)

    def _lane(self, partition: int, confirmed: bool) -> LaneUser:
        user = self.users.get((partition, confirmed))
        if user is None:
            lane = Lane(partition, self._producer_id if confirmed else NO_PRODUCER, self._done, keeps=confirmed)
            lane.bytes_max = min(BATCH_BYTES_MAX, self.message_bytes_max)
            user = self.users[(partition, confirmed)] = LaneUser(self, lane)
        if not user.channel:
            self.router.place(user)
        return user

    def learned(self, reply: control.PublisherOpened) -> None:
        """A channel was opened: what waited for it to be known is routed."""
        if reply.message_bytes_max:
            self.message_bytes_max = reply.message_bytes_max
        if self.routing_version not in (-1, reply.routing_version):
            self.outdated()
        if self._moving:
            return
        self.kind, self.partitions, self.routing_version = reply.kind, reply.partitions, reply.routing_version
        waiting, self._unrouted = self._unrouted, []
        for one in waiting:
            self.put(*one)

    def ask(self) -> None:
        """Opens a channel, if none is open, for what waits to learn the partitions."""
        if self._unrouted and not self._moving:
            self._lane(0, self._unrouted[0][0].level != _NONE)

    @property
    def asking(self) -> bool:
        """Something waits to learn the partitions."""
        return bool(self._unrouted)

    # ------------------------------------------------------------ repartitions

    def outdated(self) -> None:
        """The queue has another routing version: nothing more is sent before all that was sent is settled, where it was sent to."""
        if not self._moving:
            self._moving, self.partitions = True, 0
            for user in self.users.values():
                user.lane.stopped = True
        self.look_if_settled()

    def look_if_settled(self) -> None:
        """Routes anew what is not stored, once there is an answer to everything that was sent."""
        if not self._moving or self.closed or any(user.lane.sent for user in self.users.values()):
            return
        again: list[_Unrouted] = []
        for user in self.users.values():
            number = user.lane.partition
            again += [(*left, number if left[0].pinned else ANY) for left in user.lane.leftovers()]
            user.leave()
        self._moving, self.routing_version = False, -1
        self._unrouted = again + self._unrouted
        self.ask()

    # ------------------------------------------------------------ what cannot be had

    def refused_whole(self, user: LaneUser, error: HeadraceError) -> None:
        """The channel could not be opened, or was closed: everything on it fails, and so does what waited to learn the partitions."""
        self._fail_unrouted(error)
        user.lane.fail(error)
        self.partitions = 0
        if type(error) is NotFound:
            self.deleted()
        self.look_if_settled()

    def deleted(self) -> None:
        """Something does not exist, perhaps the queue or stream any more: how many partitions another one of that name has is not known."""
        self.partitions = 0
        for user in self.users.values():
            if user.channel:
                user.renew()

    def _fail_unrouted(self, error: HeadraceError, until_ms: int = 1 << 62) -> None:
        """Fails what waits to be routed, and no longer than ``until_ms``."""
        waiting = [one for one in self._unrouted if one[4] <= until_ms]
        self._unrouted = [one for one in self._unrouted if one[4] > until_ms]
        if waiting:
            frame = Frame(waiting[0][0], 0)
            for _, _, nbytes, waiter, _, _ in waiting:
                frame.waiters.append(waiter)
                frame.nbytes += nbytes
                if waiter is not None and not waiter.done():
                    waiter.set_exception(type(error)(str(error), hint=error.hint))
            self._done(frame, error)

    def expire(self, now_ms: int) -> None:
        """Fails what has waited too long to be routed."""
        if any(one[4] <= now_ms for one in self._unrouted):
            whys = (u.lane.why or self.router.why(u) for u in self.users.values())
            why = next((str(why) for why in whys if why is not None), "the broker did not open the publisher")
            self._fail_unrouted(
                ConfirmTimeout(
                    f"messages to {self.name!r} could not be sent in time: {why}",
                    hint="they were not stored; publish again when the broker is back, or raise confirm_timeout",
                ),
                now_ms,
            )

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Gives the channels back; everything was answered."""
        self.closed = True
        for user in self.users.values():
            self.router.leave(user)
        self.users.clear()

    def fail(self, error: HeadraceError) -> None:
        """Answers everything that waits with ``error``."""
        self.closed = True
        for user in self.users.values():
            self.refused_whole(user, error)
            self.router.forget(user)


assert BATCH_BYTES_MAX < limits.MESSAGE_BYTES_MAX

"""Opening publishers and subscriptions for a session, whatever the gateway: checks, resumes, groups.

Owns the steps, not the state: that is in the session, its subscriptions and the partitions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from headrace.broker import holding
from headrace.broker.catalogue import Item
from headrace.broker.publisher import Publisher
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.session import Session
from headrace.broker.sink import Sink
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import Membership, QueueSubscription, StreamSubscription, Subscription
from headrace.core import filters
from headrace.model import limits
from headrace.model.errors import Conflict, Fenced, HeadraceError, Invalid, NotFound, Quarantined, Refused, StaleRouting, Unavailable
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

U64 = 1 << 64


class Attachments:
    """What one connection's client has attached to the broker."""

    def __init__(self, broker: Broker, session: Session, sink: Sink) -> None:
        self.broker = broker
        self.session = session
        self.sink = sink

    # ------------------------------------------------------------ publishers

    async def open_publisher(self, asked: control.OpenPublisher) -> tuple[Publisher, control.PublisherOpened]:
        broker = self.broker
        item = await broker.catalogue.use(asked.name, "")
        if asked.routing_version > item.routing_version and broker.cluster is None:
            raise StaleRouting(f"{item.name!r} has routing version {item.routing_version}: it was deleted and declared again")
        if asked.routing_version > item.routing_version:
            raise Unavailable(f"this broker has not heard of routing version {asked.routing_version} of {item.name!r} yet")
        late = 0 < asked.routing_version < item.routing_version
        if late and not 0 <= asked.partition < len(item.partitions):
            raise StaleRouting(f"partition {asked.partition} of {item.name!r} was given up with routing version {item.routing_version}")
        if not late and not 0 <= asked.partition < item.routes:
            raise NotFound(f"{item.name!r} has partitions 0..{item.routes - 1}, not {asked.partition}")
        await broker.loading.awake(item, (asked.partition,))
        partition = broker.loading.partition(item, asked.partition)
        if partition.quarantined:
            raise Quarantined(f"partition {asked.partition} of {item.name!r} is quarantined: {partition.quarantined}")
        last = partition.producers.last_sequence(asked.producer_id) if asked.producer_id >= 0 else -1
        item = partition.item
        routing = max(asked.routing_version, 0)
        return Publisher(broker, asked.channel, partition, asked.producer_id, routing, follows=asked.routing_version != 0), control.PublisherOpened(
            kind=item.kind,
            partitions=item.routes,
            routing_version=item.routing_version,
            level=partition.own_level(),
            epoch=partition.epoch,
            message_bytes_max=partition.message_bytes_max or broker.config.limits.message_bytes_max,
            last_sequence=last,
        )

    # ------------------------------------------------------------ queues

    async def subscribe(self, asked: control.Subscribe) -> control.Subscribed:
        """A consumer of a queue; with ``resume`` the one of that token goes on where it was."""
        broker = self.broker
        self._check(asked.channel, asked.token, asked.cohort, asked.member)
        _bound("prefetch", asked.prefetch, 1, broker.config.limits.prefetch_messages_max)
        _bound("prefetch_bytes", asked.prefetch_bytes, 1, 1 << 31)
        if asked.lease_ms:
            _bound("lease_ms", asked.lease_ms, limits.LEASE_MS_MIN, limits.LEASE_MS_MAX)
        if asked.cohort and asked.pull:
            raise Invalid("a cohort's members are pushed to; leave pull out")
        holding.check(broker, asked, asked.cohort)
        item = await broker.catalogue.use(asked.name, "queue")
        await broker.loading.awake(item, asked.partitions or None)
        self._check_current()
        assert item.queue is not None
        compiled = filters.compile(asked.filter) if asked.filter is not None else None
        served = [broker.loading.partition(item, n) for n in self._named(item, asked.partitions)] if asked.partitions else broker.loading.served(item)
        partitions = [p for p in served if isinstance(p, QueuePartition)]
        broker.groups.check_alone(item.id, asked.cohort)
        owner_token = self.session.owner_token(asked.token) if asked.token else self.broker.ambient.bits(64)
        for partition in partitions if asked.seat else ():
            holding.take(broker, partition, self.session, asked, asked.cohort, owner_token)
        if not asked.seat and any(s.group for p in partitions for s in p.subscriptions.values() if broker.cluster is not None):
            raise Conflict(f"{item.name!r} is consumed by a cohort, exclusively", hint="join that cohort, or wait until its members are gone")
        self._take_channel(asked.channel)
        old = self.session.subscriptions.get(asked.token) if asked.token else None
        if isinstance(old, QueueSubscription) and asked.resume and old.item.id == item.id:
            self._resume(old, asked)
            subscription = old
        else:
            if old is not None:
                broker.sessions.drop(old)
            subscription = QueueSubscription(self.broker.ambient.bits(63), self.session, self.sink, item, msgspec.structs.replace(asked, held=()))
            self._keep(subscription)
            held = {h.partition: h.ranges for h in asked.held}
            for partition in partitions:
                partition.attach(
                    subscription,
                    lease_ms=asked.lease_ms or item.queue.lease_ms,
                    auto_ack=asked.auto_ack,
                    filter=compiled,
                    owner_token=owner_token,
                )
                if asked.resume or asked.seat:  # a member that has not heard that it is open holds nothing of what it was granted
                    partition.machine.resume(subscription.id, held.get(partition.number, ()), broker.now_ms, broker.wall_ms)
        if asked.cohort and not asked.seat:
            try:
                broker.groups.join_cohort(subscription, broker.now_ms)
            except HeadraceError:
                broker.sessions.drop(subscription)
                raise
        if self.sink.blocked:
            subscription.block()
        assigned, generation = broker.groups.assignment(subscription)
        return control.Subscribed(
            partitions=len(item.partitions),
            assigned=asked.partitions or assigned,
            generation=asked.generation or generation,
            lease_ms=asked.lease_ms or item.queue.lease_ms,
            epochs={p.number: p.epoch for p in partitions},
        )

    def _resume(self, subscription: QueueSubscription, asked: control.Subscribe) -> None:
        broker = self.broker
        self._claim(subscription, asked.channel)
        if not asked.pull:
            subscription.add_credit(asked.prefetch - subscription.window, 0)  # what was said of it last may have been lost with its connection
        held = {h.partition: h.ranges for h in asked.held}
        for partition in subscription.partitions.values():
            partition.machine.resume(subscription.id, held.get(partition.number, ()), broker.now_ms, broker.wall_ms)
        subscription.wake()

    # ------------------------------------------------------------ streams

    async def subscribe_stream(self, asked: control.SubscribeStream) -> control.Subscribed:
        """A reader of a stream: of the partitions named, of all, or of those its group assigns."""
        broker = self.broker
        self._check(asked.channel, asked.token, asked.group, asked.member, asked.cursor)
        _bound("prefetch", asked.prefetch, 1, broker.config.limits.prefetch_messages_max)
        _bound("prefetch_bytes", asked.prefetch_bytes, 1, 1 << 31)
        holding.check(broker, asked, asked.group)
        if asked.group and not asked.cursor:
            raise Invalid("a group's members share a durable position: name a cursor (often the group's own name)")
        item = await broker.catalogue.use(asked.name, "stream")
        await broker.loading.awake(item, asked.partitions or None)
        self._check_current()
        assert item.stream is not None
        self._named(item, asked.partitions)
        for partition in [broker.loading.partition(item, n) for n in asked.partitions] if asked.seat else ():
            assert isinstance(partition, StreamPartition)
            holding.take(broker, partition, self.session, asked, asked.group, 0)
        if len(asked.starts) > len(item.partitions):
            raise Invalid(f"starts for {len(asked.starts)} partitions were given; {item.name!r} has {len(item.partitions)}")
        if asked.filter is not None:
            filters.compile(asked.filter)
        self._take_channel(asked.channel)
        old = self.session.subscriptions.get(asked.token) if asked.token else None
        if isinstance(old, StreamSubscription) and not asked.seat and old.group and old.group == asked.group and old.item.id == item.id:
            subscription = old
            subscription.asked = asked
            self._claim(subscription, asked.channel)
        else:
            if old is not None:
                broker.sessions.drop(old)
            subscription = StreamSubscription(self.broker.ambient.bits(63), self.session, self.sink, item, asked)
            subscription.generation = asked.generation
            self._keep(subscription)
        starts: dict[int, int] = {}
        if asked.group and not asked.seat:
            try:
                broker.groups.join_readers(subscription, broker.now_ms)
            except HeadraceError:
                broker.sessions.drop(subscription)
                raise
            assigned, subscription.generation = broker.groups.assignment(subscription)
            starts = {n: p.machine.position(subscription.id) for n, p in subscription.partitions.items()}
        else:
            assigned = asked.partitions or readable(broker, subscription)
            try:
                for number in assigned:
                    starts[number] = start_reading(broker, subscription, number)
            except HeadraceError:
                broker.sessions.drop(subscription)
                raise
        return control.Subscribed(
            partitions=len(item.partitions),
            assigned=assigned,
            generation=subscription.generation,
            starts=starts,
            epochs={n: p.epoch for n, p in subscription.partitions.items()},
            tier=item.stream.tier,
        )

    # ------------------------------------------------------------ groups of a cluster

    async def join(self, asked: control.Join) -> control.Subscribed:
        """A member of a group, where its home is served. What is assigned to it is told by ``Assigned`` once that is committed."""
        broker = self.broker
        self._check(asked.channel, asked.token, asked.group, asked.member)
        if broker.cluster is None:
            raise Refused("this broker is alone: name the cohort or group in the subscription instead")
        if not asked.group or not asked.token:
            raise Invalid("a member names its group, and a token that is not 0")
        item = await broker.catalogue.use(asked.name, "")
        number = item.home(asked.group)
        await broker.loading.awake(item, (number,))
        self._check_current()
        at = broker.loading.partition(item, number)
        if at.quarantined:
            raise Quarantined(f"partition {at.number} of {item.name!r}, the home of {asked.group!r}, is quarantined: {at.quarantined}")
        self._take_channel(asked.channel)
        old = self.session.subscriptions.get(asked.token)
        if isinstance(old, Membership) and old.item.id == item.id and old.group == asked.group:
            subscription = old
            subscription.asked = asked
            self._claim(subscription, asked.channel)
        else:
            if old is not None:
                broker.sessions.drop(old)
            subscription = Membership(broker.ambient.bits(63), self.session, self.sink, item, asked)
            self._keep(subscription)
        try:
            broker.groups.join(subscription, at, broker.now_ms)
        except HeadraceError:
            broker.sessions.drop(subscription)
            raise
        return control.Subscribed(partitions=len(item.partitions), assigned=())

    def released(self, asked: control.Released) -> control.Done:
        subscription = self.session.channels.get(asked.channel)
        if not isinstance(subscription, Membership):
            raise NotFound(f"channel {asked.channel} is no member of a group")
        self.broker.groups.released(subscription, asked.generation, self.broker.now_ms)
        return control.Done(count=1)

    # ------------------------------------------------------------ ends

    def unsubscribe(self, asked: control.Unsubscribe) -> control.Done:
        subscription = self.session.channels.get(asked.channel)
        if subscription is None:
            return control.Done(count=0)
        if isinstance(subscription, QueueSubscription):
            for held in asked.undelivered:
                partition = subscription.partitions.get(held.partition)
                if partition is not None:
                    partition.machine.take_back(subscription.id, held.ranges, self.broker.now_ms, self.broker.wall_ms)
        self.broker.sessions.drop(subscription)
        return control.Done(count=1)

    def connection_lost(self, sink: Sink) -> None:
        self.broker.sessions.lost(self.session, sink)

    def block(self) -> None:
        """The socket's buffer is full: its consumers are granted nothing until ``wake`` (readers look at the sink themselves)."""
        for subscription in self.session.channels.values():
            subscription.block()

    def wake(self) -> None:
        """The socket drained: its subscriptions may send again."""
        for subscription in self.session.channels.values():
            subscription.unblock()

    # ------------------------------------------------------------ inside

    def _check(self, channel: int, token: int, group: str, member: str, cursor: str = "") -> None:
        if not 1 <= channel <= 65_535:
            raise Invalid(f"a channel lies in 1..65535, this one is {channel}")
        if not 0 <= token < U64:
            raise Invalid("a subscription's token is an unsigned 64-bit number")
        for name, text in (("cohort or group", group), ("member", member), ("cursor", cursor)):
            if len(text.encode()) > limits.NAME_BYTES_MAX:
                raise Invalid(f"the name of a {name} has at most {limits.NAME_BYTES_MAX} bytes in UTF-8, this one has {len(text.encode())}")
        if len(self.session.channels) >= self.broker.config.limits.channels_max:
            raise Conflict(f"this connection has {len(self.session.channels)} subscriptions, the most that are allowed")

    @staticmethod
    def _named(item: Item, partitions: tuple[int, ...]) -> tuple[int, ...]:
        """Those that a subscription names; raises if they cannot be."""
        if len(set(partitions)) != len(partitions):
            raise Invalid("partitions are named once each")
        wrong = [n for n in partitions if not 0 <= n < len(item.partitions)]
        if wrong:
            raise NotFound(f"{item.name!r} has partitions 0..{len(item.partitions) - 1}, not {wrong[0]}")
        return partitions

    def _check_current(self) -> None:
        if self.session.sink is not self.sink:
            raise Fenced("this connection has ended or another one took its session over")

    def _take_channel(self, channel: int) -> None:
        old = self.session.channels.get(channel)
        if old is not None:
            self.broker.sessions.drop(old)

    def _claim(self, subscription: Subscription, channel: int) -> None:
        """A subscription of this session goes on, on ``channel`` alone."""
        channels = self.session.channels
        if channels.get(subscription.channel) is subscription:
            del channels[subscription.channel]
        subscription.sink, subscription.channel, subscription.unclaimed_ms = self.sink, channel, 0
        channels[channel] = subscription

    def _keep(self, subscription: Subscription) -> None:
        self.session.channels[subscription.channel] = subscription
        if subscription.token:
            self.session.subscriptions[subscription.token] = subscription


def readable(broker: Broker, subscription: StreamSubscription) -> tuple[int, ...]:
    """The stream's partitions but for those that are quarantined, of which it is told; all of them if none is left, so that opening says why."""
    numbers = range(len(subscription.item.partitions))
    isolated = [partition for number in numbers if (partition := broker.loading.partition(subscription.item, number)).quarantined]
    if len(isolated) == len(numbers):
        return tuple(numbers)
    for partition in isolated:
        subscription.isolated(partition.number, partition.quarantined)
    return tuple(sorted({*numbers} - {partition.number for partition in isolated}))


def start_reading(broker: Broker, subscription: StreamSubscription, number: int) -> int:
    """Opens the reader of one partition and says at which offset it starts; a position that was taken back is reported as ``Retracted``."""
    partition = broker.loading.partition(subscription.item, number)
    assert isinstance(partition, StreamPartition)
    if partition.quarantined:
        raise Quarantined(f"partition {number} of {subscription.item.name!r} is quarantined: {partition.quarantined}")
    asked = subscription.asked
    wanted = asked.starts.get(number)
    position = partition.start_at(asked.start, asked.cursor, broker.wall_ms) if wanted is None else wanted
    end = partition.machine.end if partition.spec.tier == "durable" else partition.next_offset
    if wanted is not None:
        end = min(end, partition.taken_back(position, asked.epochs.get(number, 0)))
    if position > end and wanted is not None:
        if subscription.sink is not None:
            subscription.sink.event(control.Retracted(channel=subscription.channel, partition=number, from_offset=end, epoch=partition.epoch))
        position = end
    if position < partition.machine.start_offset:
        if wanted is not None and subscription.sink is not None:
            subscription.sink.event(
                control.CursorMoved(channel=subscription.channel, partition=number, from_offset=position, to_offset=partition.machine.start_offset)
            )
        position = partition.machine.start_offset
    partition.open_reader(
        subscription,
        position=position,
        cursor=asked.cursor,
        auto_commit=asked.auto_commit,
        messages=asked.prefetch,
        nbytes=asked.prefetch_bytes,
        filter=filters.compile(asked.filter) if asked.filter is not None else None,
        generation=subscription.generation,
        resume=wanted is not None,
    )
    return position


def _bound(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise Invalid(f"{name} lies in {low}..{high}, this one is {value}")

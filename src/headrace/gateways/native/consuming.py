"""What consumers and readers of a connection say in frames: SETTLE, CREDIT, EXTEND and FETCH, each to the subscription of its channel.

Owns when a FETCH has waited long enough. A frame for a subscription that is not there any more is answered as if all it names were stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.broker.session import Session
from headrace.broker.sink import Sink
from headrace.broker.subscription import QueueSubscription, StreamSubscription
from headrace.model import limits
from headrace.model.errors import Malformed
from headrace.wire import egress
from headrace.wire.frames import Settle, SettleFlag

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

FETCH_READ_S = 0.002
"""A FETCH whose time is over, and whose messages are on their way from the disk, is looked at again after so long."""


class Consuming:
    """See the module's head. Its methods take a frame as it lies in ``data``."""

    def __init__(self, broker: Broker, session: Session, sink: Sink) -> None:
        self._broker = broker
        self._channels = session.channels
        self._sink = sink

    def settle(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        settle = egress.parse_settle(data, pos, stop)
        action = flags & SettleFlag.ACTION_MASK
        if action > Settle.REJECT:
            raise Malformed(f"settle action {action} is none; a settlement acks, retries or rejects")
        subscription = self._channels.get(channel)
        confirm = bool(flags & SettleFlag.CONFIRM)
        up_to = bool(flags & SettleFlag.UP_TO)
        if isinstance(subscription, QueueSubscription):
            partition = subscription.partitions.get(settle.partition)
            if partition is not None and (settle.epoch == partition.epoch or not settle.epoch):
                partition.settle(
                    subscription,
                    action,
                    settle.ranges,
                    up_to=up_to,
                    delay_ms=settle.delay_ms if flags & SettleFlag.DELAY else None,
                    drop=bool(flags & SettleFlag.DROP),
                    correlation=correlation,
                    confirm=confirm,
                )
                return
        elif isinstance(subscription, StreamSubscription):
            reader = subscription.partitions.get(settle.partition)
            if reader is not None:
                reader.ack(subscription, settle.ranges, up_to=up_to, epoch=settle.epoch, correlation=correlation, confirm=confirm)
                return
        self._sink.settled(channel, correlation, 0, settle.ranges)
        self._broker.touch(self._sink)

    def credit(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        credit = egress.parse_credit(data, pos, stop)
        subscription = self._channels.get(channel)
        if isinstance(subscription, QueueSubscription):
            subscription.add_credit(credit.messages, credit.nbytes)
        elif isinstance(subscription, StreamSubscription):
            for partition in subscription.partitions.values():
                partition.credit(subscription, credit.messages, credit.nbytes)

    def extend(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        extend = egress.parse_extend(data, pos, stop)
        subscription = self._channels.get(channel)
        partition = subscription.partitions.get(extend.partition) if isinstance(subscription, QueueSubscription) else None
        if partition is None or not isinstance(subscription, QueueSubscription) or extend.epoch not in (0, partition.epoch):
            self._sink.settled(channel, correlation, 0, extend.ranges)
            self._broker.touch(self._sink)
            return
        partition.extend(subscription, extend.ranges, min(max(extend.lease_ms, limits.LEASE_MS_MIN), limits.LEASE_MS_MAX), correlation)

    def fetch(self, data: bytes, pos: int, stop: int, flags: int, channel: int, correlation: int) -> None:
        fetch = egress.parse_fetch(data, pos, stop)
        subscription = self._channels.get(channel)
        if not isinstance(subscription, QueueSubscription) or not subscription.asked.pull or len(subscription.fetches) >= 64:
            self._sink.fetch_end(channel, correlation, 0)
            self._broker.touch(self._sink)
            return
        if not fetch.messages:
            self._sink.fetch_end(channel, correlation, 0)
            self._broker.touch(self._sink)
            return
        wait_ms = min(fetch.wait_ms, limits.FETCH_WAIT_MS_MAX)
        began = self._broker.counters.ticks
        entry = subscription.begin_fetch(
            correlation, min(fetch.messages, limits.PREFETCH_MESSAGES_MAX), min(fetch.nbytes or limits.PREFETCH_BYTES, limits.PREFETCH_BYTES)
        )

        def expire() -> None:
            if entry not in subscription.fetches or subscription.sink is not self._sink:
                return
            if self._broker.counters.ticks == began or any(p.sending_to(subscription.id) for p in subscription.partitions.values()):
                # no tick has looked at it yet, or it is granted and on its way from the disk
                entry.timer = self._broker.loop.call_later(FETCH_READ_S, expire)
                return
            subscription.end_fetch(entry)
            self._broker.touch(self._sink)

        entry.timer = self._broker.loop.call_later(max(wait_ms, 1) / 1000, expire)

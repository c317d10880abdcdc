"""MQTT publishes into queues and streams of a cluster: as ``appends``, to whichever broker serves each partition.

Owns what waits to be given to other brokers, one batch of a partition at a time.

Invariants: B1 the batches of a partition are given in their order, by this broker's producer there: however often one is given, it is stored once.
B2 while one waits, what comes after it for the same partition waits, too, whoever serves it by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.broker import forwarding
from headrace.gateways.mqtt.appends import Appends, Target
from headrace.model.errors import ConnectionLost, Elsewhere, HeadraceError, LimitExceeded, NotConnected, Unavailable, UnknownOutcome
from headrace.wire.batch import Record, encode_batch
from headrace.wire.ingress import Run

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item

WAIT_S = 4.0
AGAIN_S = 0.05
WAITING_MAX = 1_000
"""Batches for one partition."""
SEQUENCE_MAX = 1 << 30
"""Then another producer goes on."""
Done = Callable[[int, HeadraceError | None], None]


class FarPartition:
    """A partition that another broker serves; an ``appends.Target``."""

    def __init__(self, broker: Broker, item: Item, number: int) -> None:
        self.broker = broker
        self.item = item
        self.number = number
        self.pid = item.partitions[number]
        self.message_bytes_max = item.spec.max_message_bytes
        self.producer_id = int(broker.ambient.token(16)[:15], 16)
        self.sequence = 0
        self._waiting: deque[tuple[bytes, Done]] = deque()
        self._giving = False

    @property
    def busy(self) -> bool:
        return self._giving

    def append_own(self, run: Run, blob: bytes, done: Done) -> None:
        if len(self._waiting) >= WAITING_MAX:
            done(-1, LimitExceeded(f"too much waits for partition {self.number} of {self.item.name!r}"))
            return
        self._waiting.append((blob, done))
        if not self._giving:
            self._giving = True
            self.broker.spawn(self._give())

    async def _give(self) -> None:
        while self._waiting:
            blob, done = self._waiting.popleft()
            try:
                base = await self._given(forwarding.Given(name=self.item.name, partition=self.number, frames=blob))
            except HeadraceError as e:
                done(-1, e)
            else:
                self.broker.refresh()
                done(base, None)
        self._giving = False

    async def _given(self, given: forwarding.Given) -> int:
        until = self.broker.loop.time() + WAIT_S
        while True:
            try:
                return await forwarding.give(self.broker, self.item, given)
            except (Elsewhere, Unavailable, NotConnected, ConnectionLost, UnknownOutcome):
                if self.broker.loop.time() >= until:
                    raise
            await asyncio.sleep(AGAIN_S)


class ClusterAppends(Appends):
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self._far: dict[int, FarPartition] = {}

    def partition(self, item: Item, number: int) -> Target:
        pid = item.partitions[number]
        far = self._far.get(pid)
        if (far is None or not far.busy) and not forwarding.elsewhere(self.broker, item, number):
            try:
                return self.broker.loading.partition(item, number)
            except (Elsewhere, Unavailable):
                pass  # it is about to be served, here or elsewhere
        if far is None or far.sequence > SEQUENCE_MAX:
            far = self._far[pid] = FarPartition(self.broker, item, number)
        return far

    def encoded(self, partition: Target, records: list[Record]) -> bytes:
        if not isinstance(partition, FarPartition):
            return super().encoded(partition, records)
        at, partition.sequence = partition.sequence, partition.sequence + len(records)
        base_ms = records[0].timestamp_ms
        return encode_batch(records, base_timestamp_ms=base_ms, producer_id=partition.producer_id, producer_epoch=0, base_sequence=at)

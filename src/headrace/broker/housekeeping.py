"""What a broker does once a second: figures, sessions whose grace is over, deletions that found no room, retention, unloading what is idle."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from headrace.broker.partition import Partition
from headrace.broker.stream_partition import StreamPartition
from headrace.model.errors import DiskFull

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

EVERY_S: Final = 1.0
AT_A_TIME: Final = 64
"""Partitions between two turns of the loop."""


async def housekeep(broker: Broker) -> None:
    """Goes on until it is cancelled."""
    sampled_ms = broker.now_ms
    while True:
        await asyncio.sleep(EVERY_S)
        broker.refresh()
        seconds, sampled_ms = max(0.001, (broker.now_ms - sampled_ms) / 1000), broker.now_ms
        broker.counters.sample(broker.now_ms)
        broker.sessions.expire()
        broker.groups.tick(broker.now_ms)
        await broker.deletions.again()
        for i, partition in enumerate(list(broker.partitions.values()), 1):
            partition.sample(seconds)
            if isinstance(partition, StreamPartition):
                partition.housekeep(broker.wall_ms)
            if broker.cluster is None and partition.idle() and broker.now_ms - partition.used_ms >= broker.config.storage.idle_unload_ms:
                await _unload(broker, partition)
            if i % AT_A_TIME == 0:
                await asyncio.sleep(0)


async def _unload(broker: Broker, partition: Partition) -> None:
    """Takes an idle partition out of memory once its state is kept; a start or the next use finds it there."""
    if partition.quarantined or broker.store.pending_bytes or broker.store_error is not None:
        return
    checkpoint = partition.checkpoint()
    try:
        await broker.store.save_checkpoint(partition.pid, checkpoint)
    except DiskFull:
        return  # it stays in memory; the store tells when the disk is full
    if partition.idle() and partition.last_index == checkpoint.index:
        broker.loading.forget(partition)

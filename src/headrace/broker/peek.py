"""Looking into a queue without leasing: states from the machine, contents from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.broker.reading import unpacked
from headrace.core import filters
from headrace.model.errors import Invalid
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.queue_partition import QueuePartition

STATES = ("ready", "leased", "delayed", "any")
LIMIT_MAX = 1000
LOOKED_AT_MAX = 100_000


async def inspect(partitions: Sequence[QueuePartition], asked: control.Inspect) -> control.Inspected:
    """At most ``asked.limit`` messages of a state, in the order of their offsets, partition after partition."""
    if asked.state not in STATES:
        raise Invalid(f"state is one of {', '.join(STATES)}, not {asked.state!r}")
    if asked.after >= 0 and len(partitions) > 1:
        raise Invalid("after is an offset of one partition: name the partition")
    limit = min(max(1, asked.limit), LIMIT_MAX)
    compiled = filters.compile(asked.filter) if asked.filter is not None else None
    found: list[control.Peeked] = []
    for partition in partitions:
        after, looked_at = asked.after, 0
        while len(found) <= limit and looked_at < LOOKED_AT_MAX:
            states = {
                row[0]: row
                for row in partition.machine.peek(asked.state, after, limit + 1, now_ms=partition.broker.now_ms, wall_ms=partition.broker.wall_ms)
            }
            if not states:
                break
            looked_at += len(states)
            first, end = min(states), max(states) + 1
            after = end - 1
            at = first
            while at < end:
                entries = partition.reading.near(at, end) or await partition.store.read(partition.pid, at, 1 << 20, end)
                if not entries:
                    break
                for entry in entries:
                    for offset, record, envelope in unpacked(entry, at, end):
                        row = states.get(offset)
                        if row is None or (compiled is not None and not compiled.match(record.key, record.headers)):
                            continue
                        value = record.value or b""
                        found.append(
                            control.Peeked(
                                partition=partition.number,
                                offset=offset,
                                state=row[1],
                                attempts=row[2],
                                key=record.key,
                                value=value[: max(0, asked.payload_bytes_max)],
                                size=len(value),
                                headers=record.headers,
                                timestamp_ms=record.timestamp_ms,
                                priority=envelope.priority,
                                not_before_ms=row[4] or envelope.not_before_ms,
                                expires_at_ms=envelope.expires_at_ms,
                                lease_until_ms=row[3],
                            )
                        )
                last = entries[-1]
                at = last.base_offset + last.record_count
    return control.Inspected(messages=tuple(found[:limit]), more=len(found) > limit)

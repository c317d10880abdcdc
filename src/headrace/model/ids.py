"""Numbers that must not be mixed up, each its own type.

All of them are non-negative integers. Ranges of them are half-open: ``[first, end)``.
"""

from typing import NewType

PartitionId = NewType("PartitionId", int)
"""u64, allocated once by the catalogue, never reused; one queue or stream has one per partition."""

Offset = NewType("Offset", int)
"""u64, a record's position in its partition, dense from 0."""

Index = NewType("Index", int)
"""u64, an entry's position in its partition's journal, dense from 1."""

Epoch = NewType("Epoch", int)
"""u32, number of an ownership, grows by one whenever the owner changes or restarts."""

ConsumerId = NewType("ConsumerId", int)
"""u64, one attached subscription; unique within a broker's incarnation."""

NO_PRODUCER = -1
"""Producer id of a publish that is not idempotent (as in a Kafka RecordBatch)."""

SEQUENCE_MODULUS = 1 << 31
"""Producer sequences count records and wrap here (the batch header holds an i32)."""

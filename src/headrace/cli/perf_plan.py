"""What a measured run does, what comes of it, and the frames it sends.

Owns the values that pass between the command line, the generator's processes and the results; knows no socket.
"""

import os
from typing import Literal, cast

import msgspec

from headrace.model.errors import Invalid
from headrace.wire.batch import Record, encode_batch, encode_publish
from headrace.wire.frames import Level

RING_BYTES_MAX = 64 * 1024 * 1024
RING_FRAMES_MIN = 4096
STRIDE = 64
"""Frames in a row for one partition, as a client's batches would be."""

Codec = Literal["none", "lz4", "zstd", "gzip", "snappy"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one generator process does."""

    url: str
    kind: str = "queue"
    name: str
    queues: int = 1
    partitions: int = 1
    replication_factor: int = 0
    """Copies of each partition; 0 = what the broker takes for one that is declared without settings."""
    publish: bool = True
    consume: bool = False
    size: int = 100
    batch: int = 1
    codec: str = "none"
    level: int = int(Level.QUEUE)
    window: int = 1000
    """Unconfirmed messages of one connection."""
    connections: int = 1
    consumers: int = 1
    prefetch: int = 1000
    rate: float = 0.0
    """Messages a second in total, 0 = as fast as the window allows."""
    secs: float = 3.0
    warm_s: float = 0.5
    count: int = 0
    """Messages to publish (or to take, when only consuming); 0 = for ``secs``."""
    ahead: int = 5000
    """Publishing and consuming at once: messages that may wait between the two; 0 = no bound."""
    auto_ack: bool = False
    idle_s: float = 5.0
    """After so long without any answer the run is given up."""


class Result(msgspec.Struct, kw_only=True):
    """What came of it. ``lost``: published without a confirm, or confirmed and not delivered; ``dup``: confirmed or delivered twice."""

    sent: int = 0
    confirmed: int = 0
    refused: int = 0
    delivered: int = 0
    settled: int = 0
    lost: int = 0
    dup: int = 0
    misorder: int = 0
    gaps: int = 0
    redelivered: int = 0
    messages: int = 0
    """Counted in the measured time: deliveries where there are consumers, else confirms."""
    secs: float = 0.0
    bytes: int = 0
    generator_cpu: float = 0.0
    why: str = ""


class Ring:
    """Encoded PUBLISH frames of one size, back to back, ``stride`` in a row for each channel in turn; correlation ids count a channel's frames."""

    def __init__(self, plan: Plan, channels: int) -> None:
        self.channels = channels
        self.stride = 1 if plan.queues > 1 else STRIDE
        window = max(1, plan.window // plan.batch)
        filler = os.urandom(plan.size)
        self.frame_bytes = len(encode(plan, filler, 1, 0))
        most = RING_BYTES_MAX // self.frame_bytes
        rows = -(-max(min(RING_FRAMES_MIN, most), 2 * window) // (channels * self.stride))
        self.count = rows * channels * self.stride
        self.messages = plan.batch
        self.frames = rows * self.stride
        """Of one channel."""
        data = bytearray()
        for row in range(rows):
            for channel in range(1, channels + 1):
                for correlation in range(row * self.stride, (row + 1) * self.stride):
                    # equal frames compress to equal sizes; otherwise each value names its frame
                    value = (correlation.to_bytes(8, "big") + filler)[: plan.size] if plan.codec == "none" else filler
                    data += encode(plan, value, channel, correlation)
        if len(data) != self.count * self.frame_bytes:
            raise Invalid("compressed frames differ in size; the generator needs equal ones")
        self.data = memoryview(bytes(data))
        self.nbytes = len(data)

    def place(self, channel: int, correlation: int) -> int:
        """Where a frame stands in the ring."""
        row, column = divmod(correlation, self.stride)
        return (row * self.channels + channel - 1) * self.stride + column


def encode(plan: Plan, value: bytes, channel: int, correlation: int) -> bytes:
    """One PUBLISH frame of ``plan.batch`` records that all hold ``value``."""
    now_ms = 1_700_000_000_000  # only the shape matters: a frame of the ring is sent many times
    records = [Record(key=None, value=value, headers=(), timestamp_ms=now_ms, offset_delta=i) for i in range(plan.batch)]
    batch = encode_batch(records, base_timestamp_ms=now_ms, codec=cast(Codec, plan.codec))
    return encode_publish(batch, channel=channel, correlation=correlation, flags=plan.level)

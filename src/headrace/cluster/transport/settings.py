"""The bounds and times of the transport between brokers, with defaults from ``model.limits``."""

from typing import Literal

import msgspec

from headrace.model import limits


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    frame_bytes_max: int = limits.PEER_FRAME_BYTES_MAX
    queue_bytes_max: int = limits.PEER_QUEUE_BYTES_MAX
    """Bytes to one peer that wait to be sent; at the bound it is full and takes no batch. Exceeded by one frame at most."""
    beat_ms: int = limits.PEER_BEAT_MS
    """Every peer is sent something at least so often."""
    silent_beats_max: int = limits.PEER_SILENT_BEATS_MAX
    """Own beats without a byte from a peer after which its connection is given up."""
    opening_ms: int = limits.PEER_OPENING_MS
    """Time to connect, and again to prove who one is."""
    openings_max: int = limits.PEER_OPENINGS_MAX
    peers_max: int = limits.PEERS_MAX
    requests_max: int = limits.PEER_REQUESTS_MAX
    retry_ms_min: int = 50
    """First wait before a peer is dialed again; doubles up to ``retry_ms_max``, and is spread by half of itself either way."""
    retry_ms_max: int = 1_000
    compression: Literal["none", "lz4"] = "none"
    compress_bytes_min: int = 32 * 1024
    """Smaller bodies are not compressed."""

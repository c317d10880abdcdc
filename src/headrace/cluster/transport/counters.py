"""What is counted of each peer, for metrics and status."""

import msgspec


class Counters(msgspec.Struct):
    """Since the transport started; all grow only."""

    connects: int = 0
    losses: int = 0
    dials_failed: int = 0
    refusals: int = 0
    """Openings that ended by a refusal of either side."""
    silences: int = 0
    """Connections given up because nothing was heard."""
    frames_out: int = 0
    bytes_out: int = 0
    writes_out: int = 0
    frames_in: int = 0
    bytes_in: int = 0
    batches_refused: int = 0
    """Batches not taken: no connection, or the queue was full."""
    times_full: int = 0
    requests_out: int = 0
    requests_in: int = 0
    requests_timed_out: int = 0
    compressed_bytes_saved: int = 0


class Anonymous(msgspec.Struct):
    """Connections that never proved who they are."""

    accepted: int = 0
    refused: int = 0
    crowded_out: int = 0
    """Closed unread because too many others were opening."""
    timed_out: int = 0

"""What is counted of each peer, for metrics and status, and of those who are none; how often the log speaks of them."""

from typing import Final

import msgspec

from headrace.log import get_logger
from headrace.model.errors import HeadraceError

_log = get_logger("peers")
AGAIN_MS: Final = 60_000
HOSTS_MAX: Final = 64


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


class Refusals:
    """Tells the log of refused connections: each reason once a minute and host, so that who tries for ever (or scans) does not fill it."""

    def __init__(self) -> None:
        self._told_ms: dict[tuple[str, str], int] = {}

    def refused(self, address: str, error: HeadraceError, now_ms: int) -> None:
        told = address.rpartition(":")[0], type(error).__name__
        last_ms = self._told_ms.get(told)
        if last_ms is not None and now_ms - last_ms < AGAIN_MS:
            return
        if last_ms is None and len(self._told_ms) >= HOSTS_MAX:
            if now_ms - max(self._told_ms.values()) < AGAIN_MS // HOSTS_MAX:
                return
            self._told_ms.clear()
        self._told_ms[told] = now_ms
        _log.warning("a connection from %s was refused: %s%s", address, error, f"; {error.hint}" if error.hint else "")

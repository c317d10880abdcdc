"""Whether the peer of a connection still lives: when it was last heard, and how often it was asked for a sign of life since. No I/O, no clock.

A peer is lost once it leaves two PINGs unanswered or reads nothing of what it was sent. The PINGs count, not only the time: while this broker stood
still, or was busy answering a peer, nobody was asked.
"""

from typing import Final

BEATS: Final = 3
"""Heartbeats of silence that are allowed."""
PINGS: Final = 2


class Pulse:
    """See the module's head."""

    __slots__ = ("_asked", "_asked_ms", "_heard_bytes", "_heard_ms")

    def __init__(self, now_ms: int) -> None:
        self._heard_ms = now_ms
        self._heard_bytes = 0
        self._asked = self._asked_ms = 0
        """PINGs since something was heard, and when the last of them was sent."""

    def silent_ms(self, now_ms: int, bytes_in: int, *, excused: bool) -> int:
        """For how long nothing was heard of it. ``bytes_in``: of the whole connection; ``excused``: this broker does not listen now."""
        if bytes_in != self._heard_bytes or excused:
            self._heard_bytes, self._heard_ms, self._asked = bytes_in, now_ms, 0
        return now_ms - self._heard_ms

    def lost(self, silent_ms: int, heartbeat_ms: int, *, unread: bool) -> bool:
        """Whether it is to be given up. ``unread``: it does not read what it was sent, so PINGs do not reach it."""
        return silent_ms > BEATS * heartbeat_ms and (unread or self._asked >= PINGS)

    def due(self, now_ms: int, silent_ms: int, heartbeat_ms: int) -> bool:
        """Whether it is to be asked now."""
        return silent_ms >= heartbeat_ms and (not self._asked or now_ms - self._asked_ms >= heartbeat_ms)

    def asked(self, now_ms: int) -> None:
        """A PING was sent."""
        self._asked_ms = now_ms
        self._asked += 1

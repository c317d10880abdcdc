"""Sessions: a client's subscriptions, kept over a broken connection for ``reconnect_grace``.

Owns which subscriptions belong to which client and which sink they now have. A session without a sink is away: its consumers are suspended and keep
their leases.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from headrace.broker.sink import Sink

if TYPE_CHECKING:
    from headrace.broker.subscription import Subscription


class Session:
    """One client. ``token`` is the secret by which it returns."""

    __slots__ = ("away_since_ms", "channels", "name", "sink", "subscriptions", "token")

    def __init__(self, token: str, name: str, sink: Sink) -> None:
        self.token = token
        self.name = name
        self.sink: Sink | None = sink
        self.away_since_ms = 0
        self.channels: dict[int, Subscription] = {}
        self.subscriptions: dict[int, Subscription] = {}
        """By the client's own token of each; those without one (0) are not here and end with their connection."""

    def owner_token(self, subscription_token: int) -> int:
        """u64 that names a subscription's leases in the journal, the same after a restart of the broker."""
        digest = blake2b(f"{self.token}/{subscription_token}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

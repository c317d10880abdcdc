"""What a broker's MQTT may take at most, as its machines are told: no policy of their own, no default but those of the configuration."""

from typing import Literal

import msgspec

Overflow = Literal["drop_oldest", "drop_newest"]


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Units in the names; see ``model.config.Mqtt`` for each."""

    inbox_messages_max: int
    inbox_bytes_max: int
    inbox_overflow: Overflow
    subscriptions_max: int
    retained_messages_max: int
    retained_bytes_max: int
    session_expiry_s_max: int
    """0 = no bound."""

"""What a broker offers its MQTT clients, as the connection machine is told."""

import msgspec


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Units in the names; see ``model.config.Mqtt`` for each."""

    packet_bytes_max: int
    connect_bytes_max: int
    receive_maximum: int
    topic_alias_maximum: int
    """Also the most aliases that are given out to a client."""
    keep_alive_s_max: int
    """0 = as the client likes."""
    write_bytes_high: int = 1 << 20
    """Unsent bytes of a connection at which it is given nothing more."""
    refused_filters: tuple[str, ...] = ()
    """Filters to which nobody may subscribe."""
    server_reference: str = ""
    """Where clients are sent when this broker goes away; empty = nowhere."""
    back_ms: int = 0
    """So long a client that is sent away with a broker has to come back before its will is published; 0 = no other broker has its session."""

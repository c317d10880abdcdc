"""A PUBLISH as it arrived. Compiled (``hot``): one is made for each message.

Owns its fields and nothing else. ``frame`` is the whole packet, so that a message whose bytes may go on as they are is never encoded again.
"""

from headrace.wire.mqtt.properties import Properties


class Publish:
    """``properties`` is None where there are none. ``topic`` is empty only in 5.0, with an alias."""

    __slots__ = ("dup", "frame", "packet_id", "payload_at", "properties", "qos", "retain", "topic", "version")

    def __init__(
        self,
        frame: bytes,
        payload_at: int,
        topic: str,
        qos: int,
        retain: bool,
        dup: bool,
        packet_id: int,
        properties: Properties | None,
        version: int,
    ) -> None:
        self.frame = frame
        self.payload_at = payload_at
        self.topic = topic
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        """0 with QoS 0."""
        self.properties = properties
        self.version = version

    @property
    def payload(self) -> bytes:
        return self.frame[self.payload_at :]

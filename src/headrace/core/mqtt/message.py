"""One message on its way: what was published, and how it looks on the wire to each kind of receiver.

Owns the encodings of a message, made once for all receivers of one kind. Knows neither sessions nor why it is sent. ``properties`` holds only what
is passed on unaltered (and the expiry that was asked for): no alias, no subscription identifiers [MQTT-3.3.4-6].
"""

from headrace.core.mqtt.origins import Origin
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.properties import MESSAGE_EXPIRY_INTERVAL, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS, Properties


class Message:
    """Not changed after it was made."""

    __slots__ = (
        "_as_it_came", "_frames", "_parts", "_version", "epoch", "expires_ms", "origin", "payload", "properties", "publisher", "qos",
        "retain", "topic",
    )  # fmt: skip

    def __init__(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None = None, expires_ms: int = 0, publisher: str = ""
    ) -> None:
        """``expires_ms``: wall clock, 0 = never. ``publisher``: client id, for subscriptions that want nothing of their own."""
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expires_ms = expires_ms
        self.publisher = publisher
        self.origin: Origin | None = None
        """Of one that nobody takes twice, whoever gives it."""
        self.epoch = 0
        """Of one that is to be retained in a cluster: in which the session partition of its publisher was served; 0 = it is not known."""
        self._as_it_came = b""
        """The packet of QoS 0 for ``_version`` without RETAIN: as it came, or as it was made first."""
        self._version = 0
        self._frames: dict[int, bytes] | None = None
        self._parts: dict[int, tuple[bytes, bytes]] | None = None

    @property
    def nbytes(self) -> int:
        """What it counts for in an inbox."""
        return len(self.payload) + len(self.topic) + 64

    def unmarked(self) -> "Message":
        """The same for others than those who have taken its origin."""
        if self.origin is None:
            return self
        return Message(self.topic, self.payload, self.qos, self.retain, self.properties, self.expires_ms, self.publisher)

    def expired(self, wall_ms: int) -> bool:
        return 0 < self.expires_ms <= wall_ms

    def known_as(self, frame: bytes, version: int) -> None:
        """``frame`` is a PUBLISH of it of QoS 0 without RETAIN and without an expiry."""
        self._as_it_came = frame
        self._version = version

    def frame(self, version: int, retain: bool, ids: tuple[int, ...], wall_ms: int) -> bytes:
        """A PUBLISH of QoS 0."""
        if version == self._version and not ids and not retain:
            return self._as_it_came
        if ids or self.expires_ms:
            return encoding.publish(version, self.topic, self.payload, retain=retain, properties=self.properties_for(version, ids, wall_ms))
        if not retain and not self._version and (version == 4 or not self.properties):
            self.known_as(encoding.plain(version, self.topic, self.payload), version)
            return self._as_it_came
        kind = version << 1 | retain
        frames = self._frames
        if frames is None:
            frames = self._frames = {}
        frame = frames.get(kind)
        if frame is None:
            frame = frames[kind] = encoding.publish(version, self.topic, self.payload, retain=retain, properties=self.properties)
        return frame

    def parts(self, version: int, qos: int, retain: bool, dup: bool, ids: tuple[int, ...], wall_ms: int) -> tuple[bytes, bytes]:
        """A PUBLISH of QoS 1 or 2: what comes before and what comes after its packet identifier."""
        first = 0x30 | (8 if dup else 0) | qos << 1 | retain
        if ids or self.expires_ms:
            return encoding.publish_head(version, first, self.topic, self.payload, self.properties_for(version, ids, wall_ms))
        kind = version << 8 | first
        known = self._parts
        if known is None:
            known = self._parts = {}
        parts = known.get(kind)
        if parts is None:
            parts = known[kind] = encoding.publish_head(version, first, self.topic, self.payload, self.properties)
        return parts

    def aliased(
        self, version: int, qos: int, retain: bool, dup: bool, ids: tuple[int, ...], wall_ms: int, alias: int, named: bool, packet_id: int
    ) -> bytes:
        """A PUBLISH with a topic alias; ``named``: and with its topic, which makes the alias known."""
        properties = {TOPIC_ALIAS: alias, **(self.properties_for(version, ids, wall_ms) or {})}
        topic = self.topic if named else ""
        return encoding.publish(version, topic, self.payload, qos=qos, retain=retain, dup=dup, packet_id=packet_id, properties=properties)

    def properties_for(self, version: int, ids: tuple[int, ...], wall_ms: int) -> Properties | None:
        """With what is left of the expiry [MQTT-3.3.2-6] and the identifiers of the subscriptions that matched [MQTT-3.3.4-3]."""
        if version != 5:
            return None
        properties = dict(self.properties or {})
        if self.expires_ms:
            properties[MESSAGE_EXPIRY_INTERVAL] = max(1, -((wall_ms - self.expires_ms) // 1000))
        if ids:
            properties[SUBSCRIPTION_IDENTIFIER] = list(ids)
        return properties

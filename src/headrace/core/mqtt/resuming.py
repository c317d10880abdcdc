"""A connection that goes on at the next owner of its session: as ``held`` has it, and the session as it is replicated.

Owns how the machine of a connection is made anew. Nothing that was sent on the connection is sent again [MQTT-4.4.0-1]: it stays in flight. What the
last owner had not answered its client's broker gives again, after this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from headrace.core.mqtt.granted import Refusal
from headrace.core.mqtt.held import Moved
from headrace.core.mqtt.opening import grant
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Connect
from headrace.wire.mqtt.reasons import Reason

if TYPE_CHECKING:
    from headrace.core.mqtt.connection import Connection


def resume(connection: Connection, moved: Moved) -> bool:
    """Whether the session is served here. If it cannot go on, the connection fails with the reason."""
    router, host, sending = connection.router, connection.host, connection.sending
    if not router.serves(moved.client_id):
        return False
    (asked,) = connection.parser.feed(moved.connect)
    assert isinstance(asked, Connect)
    connection.version = sending.version = asked.version
    sending.packet_bytes_max = asked.properties.get(prop.MAXIMUM_PACKET_SIZE, 0)
    sending.accepted = True
    connection.from_place(moved.heard)
    granted = grant(replace(asked, client_id=moved.client_id), host, connection.terms)
    if isinstance(granted, Refusal):
        connection.fail(granted.reason, granted.why)
        return True
    session = router.rebind(moved, sending, receive_maximum=granted.receive_maximum, wall_ms=host.wall_ms)
    if session is None:
        other = router.shard(moved.client_id).sessions.get(moved.client_id)
        if other is not None and other.epoch > moved.epoch:
            connection.fail(Reason.SESSION_TAKEN_OVER)
        else:
            connection.fail(Reason.SERVER_BUSY, "its session is lost or was closed while nobody served it")
        return True
    connection.go_on(session, granted, moved.aliases)
    router.done(session, session.go_on(moved.begun, moved.sent, moved.skipped))
    sending.begun, sending.sent = moved.begun, moved.sent
    ready = session.next_sequence

    def durable() -> None:
        if connection.session is session:
            sending.begin([], ready, moved.begun)

    host.committed(durable)
    return True

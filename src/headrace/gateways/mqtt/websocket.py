"""MQTT in WebSocket frames: the library does the protocol, here is what MQTT wants of it.

Binary frames only [MQTT-6.0.0-1], in any pieces [MQTT-6.0.0-2], with the subprotocol ``mqtt`` [MQTT-6.0.0-3] [MQTT-6.0.0-4]. No extensions: a
compressed frame could expand beyond every bound.
"""

from typing import cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

CLOSE_UNSUPPORTED_DATA = 1003


class WebSocket:
    """The framing of one connection. ``open`` once the handshake is answered; ``ended`` once nothing more will come."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._protocol = ServerProtocol(subprotocols=[Subprotocol("mqtt")], max_size=frame_bytes_max, extensions=None)
        self.open = False
        self.ended = False

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """(bytes of MQTT, bytes to write) of what was read."""
        protocol = self._protocol
        protocol.receive_data(data)
        pieces: list[bytes] = []
        for event in protocol.events_received():
            if isinstance(event, Request):
                response = protocol.accept(event)
                if response.status_code == 101 and protocol.subprotocol != "mqtt":
                    response = protocol.reject(400, "This is MQTT: ask for the subprotocol mqtt.\n")
                protocol.send_response(response)
                self.open = response.status_code == 101
                self.ended = not self.open
                continue
            frame = cast(Frame, event)
            if frame.opcode in (Opcode.BINARY, Opcode.CONT):
                pieces.append(bytes(frame.data))
            elif frame.opcode is Opcode.TEXT:
                protocol.fail(CLOSE_UNSUPPORTED_DATA, "MQTT comes in binary frames")
            elif frame.opcode is Opcode.CLOSE:
                self.ended = True
        if protocol.close_expected():
            self.ended = True
        return b"".join(pieces), b"".join(protocol.data_to_send())

    def wrap(self, data: bytes) -> bytes:
        """A binary frame."""
        if self.ended or not self.open:
            return b""
        self._protocol.send_binary(data)
        return b"".join(self._protocol.data_to_send())

    def close(self) -> bytes:
        """The closing frame."""
        if self.ended or not self.open:
            return b""
        self.ended = True
        self._protocol.send_close(1000)
        return b"".join(self._protocol.data_to_send())

"""A blocking connection for commands that ask a broker something and end: control requests and their replies, nothing else.

No event loop and no client session, so that such a command takes no longer than its answer. Bounded: an answer past ``FRAME_BYTES_MAX`` is refused
before it is read, a broker that does not answer within the timeout is ``Unavailable``.
"""

import os
import socket
from types import TracebackType
from typing import Final, TypeVar

from headrace.model import limits
from headrace.model.errors import HeadraceError, Malformed, NotConnected, Unavailable, WrongProtocol, from_wire
from headrace.wire import control, frames
from headrace.wire.frames import Op

TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0
R = TypeVar("R", bound=control.Message)


class Asker:
    """One connection to the first of the URL's addresses that answers; a context manager."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        from headrace.client.target import parse_target

        target = parse_target(url)
        self.address = ""
        self._timeout_s = timeout_s
        self._correlation = 0
        self._socket = self._connect(target.addresses)
        self._unsent = frames.PREAMBLE
        hello = control.Hello(client="headrace-cli", name=target.name or f"headrace-cli-{os.getpid()}", user=target.user, password=target.password)
        try:
            self.welcome = self.ask(hello, control.Welcome)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, addresses: tuple[tuple[str, int], ...]) -> socket.socket:
        tried: list[str] = []
        for host, port in addresses:
            self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            try:
                connection = socket.create_connection((host, port), timeout=min(CONNECT_TIMEOUT_S, self._timeout_s))
            except OSError as error:
                tried.append(f"{self.address} ({error.strerror or error})")
                continue
            connection.settimeout(self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        raise NotConnected(f"no broker answers at {', '.join(tried)}")

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def ask(self, request: control.Message, expect: type[R]) -> R:
        """The broker's answer, or the error that it is."""
        self._correlation += 1
        try:
            self._socket.sendall(self._unsent + frames.frame(Op.REQUEST, control.encode(request), correlation=self._correlation))
            self._unsent = b""
            while True:
                op, correlation, body = self._frame()
                if op == Op.REPLY and correlation == self._correlation:
                    answer = control.decode_reply(body)
                    if not isinstance(answer, expect):
                        raise Malformed(f"the broker answered {type(request).__name__} with {type(answer).__name__}")
                    return answer
                if op == Op.ERROR and correlation in (0, self._correlation):
                    failure = control.decode_failure(body)
                    raise from_wire(failure.code, failure.message, failure.hint)
                if op == Op.PING:
                    self._socket.sendall(frames.frame(Op.PONG, correlation=correlation))
        except TimeoutError:
            hint = "look at its log; is it recovering, or stopped in a debugger?"
            raise Unavailable(f"the broker at {self.address} did not answer within {self._timeout_s:g} s", hint=hint) from None
        except OSError as error:
            raise NotConnected(f"the connection to {self.address} broke: {error.strerror or error}") from None

    def _frame(self) -> tuple[int, int, bytes]:
        head = self._exactly(frames.HEADER.size)
        if head.startswith((b"HTTP/", b"\x15\x03")):
            spoken, todo = ("HTTP", "that is the admin port; the native port is another") if head[0] == 0x48 else ("TLS", "use the port without TLS")
            raise WrongProtocol(f"what answers at {self.address} speaks {spoken}, not the Headrace protocol", hint=todo)
        length, op, _flags, _channel, correlation = frames.HEADER.unpack(head)
        if not 8 <= length <= limits.FRAME_BYTES_MAX:
            raise WrongProtocol(f"what answers at {self.address} does not speak the Headrace protocol")
        return op, correlation, self._exactly(length - 8)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(min(count - len(data), 1 << 20))
            if not part:
                raise NotConnected(f"the broker at {self.address} closed the connection")
            data += part
        return bytes(data)


def ask(url: str, request: control.Message, expect: type[R]) -> R:
    """One question on a connection of its own."""
    with Asker(url) as asker:
        return asker.ask(request, expect)


def names_for_completion(kind: str, incomplete: str) -> list[str]:
    """Names that begin with what was typed, for shell completion: quick, and silent if there is no broker."""
    try:
        with Asker(os.environ.get("HEADRACE_URL", "headrace://127.0.0.1:7580"), timeout_s=0.5) as asker:
            listing = asker.ask(control.List(kind=kind, pattern=f"{incomplete}*", limit=100), control.Listing)
            return [info.name for info in listing.items]
    except HeadraceError:
        return []

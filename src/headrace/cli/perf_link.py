"""A raw connection of the load generator: blocking while it sets up, then non-blocking bytes both ways.

Owns the socket, what was read but not parsed, and what was queued but not sent. Does not know what is measured. Speaks the native protocol with
``headrace.wire`` alone: no client library, no event loop, no object per message, so that the broker is what is measured.
"""

import socket
import time
from collections.abc import Iterator
from typing import Any, TypeVar

from headrace.client.target import Target, parse_target
from headrace.model.errors import HeadraceError, NotConnected, from_wire
from headrace.wire import control, frames
from headrace.wire.frames import Op

READ_BYTES = 1024 * 1024
BUFFER_BYTES = 2 * READ_BYTES
SOCKET_BYTES = 4 * 1024 * 1024
CALL_TIMEOUT_S = 30.0
PATIENCE_S, AGAIN_S = 30.0, 0.05
"""So long what is refused for now is asked again, so often: partitions of a cluster that have just been declared, or moved."""
BIG_FRAME_BYTES = 64 * 1024

R = TypeVar("R", bound=control.Message)


class Link:
    """One native connection. ``call`` during set-up; afterwards ``receive`` and ``frames`` for what comes, ``write`` for what goes.

    A DELIVER larger than the buffer is handed out by its head once the whole of it was received; its body is dropped as it comes.
    """

    def __init__(self, url: str, *, name: str = "headrace perf", session: str = "") -> None:
        target = parse_target(url)
        self.socket = _connected(target)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self.whole = False
        """Keep every DELIVER whole (it must fit the buffer), for those who read what is in it."""
        self.skip = 0
        self.head = b""
        """Head of the frame whose body is being skipped, b"" = none."""
        self.out = bytearray()
        self.correlation = 0
        self.bytes_in = 0
        self.closed = ""
        hello = control.Hello(
            client="headrace-perf",
            name=name,
            session=session,
            user=target.user,
            password=target.password,
            heartbeat_ms=60_000,
        )
        try:
            self.socket.sendall(frames.PREAMBLE)
            self.welcome = self.call(hello, control.Welcome)
        except BaseException:
            self.socket.close()
            raise

    def call(self, request: control.Message, expect: type[R]) -> R:
        """Sends one request and waits for its answer, skipping events; what follows the answer stays in the buffer."""
        self.correlation += 1
        self.socket.sendall(frames.frame(Op.REQUEST, control.encode(request), correlation=self.correlation))
        while True:
            for op, _flags, _channel, correlation, at, end in self.frames():
                if op == Op.ERROR and correlation in (0, self.correlation):
                    raise failure_of(self.view[at:end])
                if op == Op.REPLY and correlation == self.correlation:
                    answer = control.decode_reply(self.view[at:end])
                    if not isinstance(answer, expect):
                        raise HeadraceError(f"the broker answered {type(request).__name__} with {type(answer).__name__}")
                    return answer
                self.unasked(op, at, end)
            if not self.receive():
                raise NotConnected(f"no answer: the connection {self.closed if self.closed == 'timed out' else 'was closed ' + self.closed}")

    def unasked(self, op: int, at: int, end: int) -> None:
        """Answers a ping, raises what the broker says to the connection as a whole, ignores events."""
        if op == Op.PING:
            self.write(frames.frame(Op.PONG))
        elif op == Op.ERROR:
            raise failure_of(self.view[at:end])

    def receive(self) -> bool:
        """Takes what has arrived (waits for it while blocking); False: the broker has closed."""
        if self.skip or self.start == self.end:
            self.start = self.end = 0
        elif self.end > READ_BYTES // 2:
            rest = self.end - self.start
            self.buffer[0:rest] = self.buffer[self.start : self.end]
            self.start, self.end = 0, rest
        try:
            got = self.socket.recv_into(self.view[self.end : self.end + READ_BYTES])
        except BlockingIOError:
            return True
        except OSError as error:
            self.closed = str(error)
            return False
        if not got:
            self.closed = "by the broker"
            return False
        self.end += got
        self.bytes_in += got
        return True

    def frames(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """(opcode, flags, channel, correlation, body start, body end) of each whole frame in the buffer, valid until the next is asked for."""
        unpack, view = frames.HEADER.unpack_from, self.view
        while True:
            if self.skip:
                n = min(self.skip, self.end - self.start)
                self.skip -= n
                self.start += n
                if self.skip:
                    return
                head, self.head = self.head, b""
                _length, op, flags, channel, correlation = unpack(head)
                rest = bytes(view[self.start : self.end])
                view[: len(head)] = head
                view[len(head) : len(head) + len(rest)] = rest
                self.start, self.end = len(head), len(head) + len(rest)
                yield op, flags, channel, correlation, 12, len(head)
                continue
            left = self.end - self.start
            if left < 12:
                return
            length, op, flags, channel, correlation = unpack(view, self.start)
            if left < length + 4:
                if length > BIG_FRAME_BYTES and op == Op.DELIVER and not self.whole and left >= frames.DELIVER.size + frames.PUBLISH_MIN:
                    self.head = bytes(view[self.start : self.start + frames.DELIVER.size + frames.PUBLISH_MIN])
                    self.start += len(self.head)
                    self.skip = length + 4 - len(self.head)
                    continue
                return
            at = self.start
            self.start += length + 4
            yield op, flags, channel, correlation, at + 12, at + 4 + length

    def write(self, data: bytes) -> None:
        """Queues bytes and sends what the socket takes."""
        self.out += data
        self.flush()

    def flush(self) -> bool:
        """Sends what was queued; False: some is left until the socket is writable."""
        if not self.out:
            return True
        try:
            sent = self.socket.send(self.out)
        except BlockingIOError:
            return False
        except OSError as error:
            self.closed = str(error)
            return True
        del self.out[:sent]
        return not self.out

    def begin(self) -> None:
        """Ends the set-up: from here on nothing blocks."""
        self.socket.setblocking(False)

    def drain_calls(self, requests: list[control.Message], expect: type[R], *, most: int = 200) -> list[R]:
        """Many requests, at most ``most`` under way at a time: for thousands of declarations. What is refused for now is asked again for a while."""
        answers: list[R] = []
        until = time.monotonic() + PATIENCE_S
        todo = requests
        while todo:
            part, todo = todo[:most], todo[most:]
            first = self.correlation + 1
            self.socket.sendall(b"".join(frames.frame(Op.REQUEST, control.encode(request), correlation=first + i) for i, request in enumerate(part)))
            self.correlation += len(part)
            waiting, refused = len(part), []
            while waiting:
                for op, _flags, _channel, correlation, begin, end in self.frames():
                    if op == Op.ERROR:
                        failure = failure_of(self.view[begin:end])
                        if correlation < first or not failure.retriable or time.monotonic() > until:
                            raise failure
                        refused.append(part[correlation - first])
                        waiting -= 1
                    if op == Op.REPLY:
                        answer: Any = control.decode_reply(self.view[begin:end])
                        assert isinstance(answer, expect)
                        answers.append(answer)
                        waiting -= 1
                if waiting and not self.receive():
                    raise NotConnected(f"no answer: the connection {self.closed if self.closed == 'timed out' else 'was closed ' + self.closed}")
            if refused:
                todo = refused + todo
                time.sleep(AGAIN_S)
        return answers

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()


def _connected(target: Target) -> socket.socket:
    """To the first of its addresses that answers."""
    errors = []
    for host, port in target.addresses:
        try:
            return socket.create_connection((host, port), timeout=CALL_TIMEOUT_S)
        except OSError as error:
            errors.append(f"{host}:{port}: {error}")
    raise NotConnected(f"no broker answers at {', '.join(errors)}")


def failure_of(body: memoryview) -> HeadraceError:
    """The error that the body of an ERROR frame stands for."""
    failure = control.decode_failure(body)
    return from_wire(failure.code, failure.message, failure.hint)

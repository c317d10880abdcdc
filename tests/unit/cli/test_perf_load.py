"""The load generator against a scripted broker: it takes what is right, and notices what is lost, doubled or out of order."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from headrace.cli.perf_load import run
from headrace.cli.perf_plan import Plan
from headrace.wire import control, frames
from headrace.wire.frames import Op

Fault = Callable[[int, bytes], list[bytes]]
"""(number of the answer, the answer) to what is sent instead."""


class ScriptedBroker:
    """Answers requests, confirms each publish, and delivers to subscribers what was published; ``fault`` changes confirms and deliveries."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.answers = 0
        self.end = 0
        self.log: list[tuple[int, bytes]] = []
        self.subscribers: list[tuple[socket.socket, int]] = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"headrace://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.speak, args=(connection,), daemon=True).start()

    def speak(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        assert stream.read(8) == frames.PREAMBLE
        while head := stream.read(12):
            length, op, _flags, channel, correlation = frames.HEADER.unpack(head)
            body = stream.read(length - 8)
            with self.lock:
                if op == Op.PUBLISH:
                    base, self.end = self.end, self.end + 1
                    self.log.append((base, head + body))
                    confirm = frames.CONFIRM.pack(frames.CONFIRM.size - 4, Op.CONFIRM, 0, channel, correlation, 1, 2, 0, 0, base)
                    self.say(connection, confirm)
                    for subscriber, number in self.subscribers:
                        self.deliver(subscriber, number, base, head + body)
                elif op == Op.REQUEST:
                    self.answer(connection, control.decode_request(body), correlation)
        connection.close()

    def say(self, connection: socket.socket, answer: bytes) -> None:
        self.answers += 1
        for piece in self.fault(self.answers, answer):
            connection.sendall(piece)

    def deliver(self, connection: socket.socket, channel: int, base: int, frame: bytes) -> None:
        self.say(connection, frames.DELIVER.pack(frames.DELIVER.size - 4 + len(frame), Op.DELIVER, 0, channel, 1, 0, 1, 1, 0, base, base) + frame)

    def answer(self, connection: socket.socket, request: control.Message, correlation: int) -> None:
        reply: control.Message = control.Done()
        if isinstance(request, control.Hello):
            bounds = {"frame_bytes_max": 1, "message_bytes_max": 1, "channels_max": 1, "heartbeat_ms": 1, "reconnect_grace_ms": 1}
            reply = control.Welcome(version=1, features=(), broker="b", incarnation="i", session="s", resumed=False, **bounds)
        elif isinstance(request, control.OpenPublisher):
            reply = control.PublisherOpened(kind="queue", partitions=1, routing_version=1, level=2)
        elif isinstance(request, control.Subscribe):
            reply = control.Subscribed(partitions=1, assigned=(0,))
        elif isinstance(request, control.Describe):
            reply = control.Info(name=request.name, kind="queue", id="1", spec={})
        elif isinstance(request, control.Status):
            texts = dict.fromkeys(("broker", "incarnation", "release", "state", "mode", "storage"), "")
            counts = dict.fromkeys((f for f in control.BrokerStatus.__struct_fields__ if f not in (*texts, "listeners", "compiled", "attention")), 0)
            reply = control.BrokerStatus(compiled=False, listeners={}, **texts, **counts)  # type: ignore[arg-type]
        connection.sendall(frames.frame(Op.REPLY, control.encode(reply), correlation=correlation))
        if isinstance(request, control.Subscribe):
            self.subscribers.append((connection, request.channel))
            for base, frame in self.log:
                self.deliver(connection, request.channel, base, frame)


@contextmanager
def scripted(fault: Fault) -> Iterator[str]:
    broker = ScriptedBroker(fault)
    thread = threading.Thread(target=broker.serve, daemon=True)
    thread.start()
    try:
        yield broker.url
    finally:
        broker.listener.shutdown(socket.SHUT_RDWR)
        broker.listener.close()
        thread.join(5)


def kept(_number: int, answer: bytes) -> list[bytes]:
    return [answer]


def doubled(number: int, answer: bytes) -> list[bytes]:
    return [answer, answer] if number == 50 else [answer]


def dropped(number: int, answer: bytes) -> list[bytes]:
    return [] if number == 50 else [answer]


def misplaced(number: int, answer: bytes) -> list[bytes]:
    return [answer[:-8] + bytes(8)] if number == 50 else [answer]


@pytest.mark.parametrize("size", [8, 100, 70_000])
def test_publishing_counts_every_confirm(size: int) -> None:
    with scripted(kept) as url:
        figures = run(Plan(url=url, name="q", count=300, size=size, window=40))
    assert (figures["sent"], figures["confirmed"], figures["lost"], figures["dup"], figures["misorder"], figures["gaps"]) == (300, 300, 0, 0, 0, 0)
    assert figures["latency"]["latency_count"] == 300


@pytest.mark.parametrize("size", [100, 70_000])
def test_publishing_and_consuming_covers_every_offset(size: int) -> None:
    with scripted(kept) as url:
        figures = run(Plan(url=url, name="q", count=200, size=size, window=40, consume=True))
    assert (figures["delivered"], figures["lost"], figures["dup"], figures["gaps"], figures["misorder"]) == (200, 0, 0, 0, 0)
    assert figures["delivery"]["latency_count"] == 200


def test_many_queues_share_one_connection() -> None:
    with scripted(kept) as url:
        figures = run(Plan(url=url, name="q", count=300, queues=7, window=40, connections=2))
    assert (figures["confirmed"], figures["lost"], figures["misorder"]) == (300, 0, 0)


@pytest.mark.parametrize(("fault", "noticed"), [(doubled, "dup"), (misplaced, "dup")])
def test_a_confirm_that_is_wrong_is_noticed(fault: Fault, noticed: str) -> None:
    with scripted(fault) as url:
        figures = run(Plan(url=url, name="q", count=300, window=1))
    assert figures[noticed] > 0


def test_a_confirm_that_never_comes_is_noticed() -> None:
    with scripted(dropped) as url:
        figures = run(Plan(url=url, name="q", count=300, window=10, idle_s=0.5))
    assert figures["lost"] > 0
    assert figures["why"]

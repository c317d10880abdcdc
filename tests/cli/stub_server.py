"""The native handshake and control requests over a ``StubBroker``, on a loop in a thread: enough of a broker for commands that only ask."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.model.errors import HeadraceError
from headrace.wire import control, frames
from headrace.wire.frames import Op
from tests.integration.admin_stub import StubBroker


async def _serve(broker: StubBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        assert await reader.readexactly(8) == frames.PREAMBLE
        while True:
            length, op, _flags, _channel, correlation = frames.HEADER.unpack(await reader.readexactly(12))
            body = await reader.readexactly(length - 8)
            assert op == Op.REQUEST
            request = control.decode_request(body)
            if isinstance(request, control.Hello):
                writer.write(frames.frame(Op.PING))  # a broker may ping at any time
                reply: control.Reply = control.Welcome(
                    version=1, features=(), broker="b1", incarnation="i", session="s", resumed=False, heartbeat_ms=10_000, reconnect_grace_ms=5000,
                    frame_bytes_max=1 << 24, message_bytes_max=1 << 23, channels_max=64,
                )  # fmt: skip
                assert request.client == "headrace-cli"
                writer.write(frames.frame(Op.REPLY, control.encode(reply), correlation=correlation))
                pong = await reader.readexactly(12)
                assert frames.HEADER.unpack(pong)[1] == Op.PONG
                continue
            try:
                reply = await broker.call(request)
                writer.write(frames.frame(Op.REPLY, control.encode(reply), correlation=correlation))
            except HeadraceError as error:
                failure = control.Failure(code=error.code, message=str(error), hint=error.hint)
                writer.write(frames.frame(Op.ERROR, control.encode(failure), correlation=correlation))
    writer.close()


@contextmanager
def served(broker: StubBroker) -> Iterator[str]:
    """Serves ``broker`` while the context is open: its URL."""
    started = threading.Event()
    found: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []

    async def main() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(lambda r, w: _serve(broker, r, w), "127.0.0.1", 0)
        found.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)
    loop, stop, port = found[0]
    try:
        yield f"headrace://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)

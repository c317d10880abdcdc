"""What MQTT acknowledged is there after kill -9 of a real broker process: sessions with what waits for them, retained messages."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.packets import Ack, Connect, Filter
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.publish import Publish

WAIT_S = 50


async def start(directory: Path) -> tuple[Process, int]:
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    flags = ["-d", str(directory / "data"), "--listen", "127.0.0.1:0", "--admin", "off", "--mqtt", "127.0.0.1:0", "--ready-file", str(ready), "-q"]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "headrace.cli", "start", *flags)
    while not ready.exists():
        assert process.returncode is None
        await asyncio.sleep(0.05)
    return process, int(json.loads(ready.read_text())["mqtt"].rpartition(":")[2])


class Line:
    """A client of 3.1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.parser = Parser(1 << 20, version=4)
        self.waiting: list[Any] = []

    async def next(self) -> Any:
        while not self.waiting:
            try:
                data = await self.reader.read(1 << 16)
            except ConnectionResetError:  # what it had not read is lost with it
                data = b""
            if not data:
                return None
            self.waiting += self.parser.feed(data)
        return self.waiting.pop(0)


async def connect(port: int, client_id: str) -> Line:
    line = Line(*await asyncio.open_connection("127.0.0.1", port))
    line.writer.write(encoding.connect(Connect(client_id, 4, False)))
    assert (await line.next()).reason == 0
    return line


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    async with asyncio.timeout(WAIT_S):
        process, port = await start(tmp_path)
        try:
            reads = await connect(port, "reads")
            reads.writer.write(encoding.subscribe(4, 1, [Filter("t", 1)]))
            await reads.next()
            writes = await connect(port, "writes")
            acked = 0
            for i in range(2000):
                writes.writer.write(encoding.publish(4, "t", b"%d" % i, qos=1, packet_id=i + 1, retain=True))
            while acked < 300:
                assert await writes.next() == Ack(4, acked + 1)
                acked += 1
            process.send_signal(signal.SIGKILL)
            await process.wait()
            while (ack := await writes.next()) is not None:
                assert ack == Ack(4, acked + 1)
                acked += 1
            seen = 0
            while (publish := await reads.next()) is not None:
                assert publish.payload == b"%d" % seen
                seen += 1
            for line in (reads, writes):
                line.writer.close()
            process, port = await start(tmp_path)
            again = await connect(port, "reads")
            got: list[int] = []
            while not got or got[-1] < acked - 1:
                publish = await again.next()
                assert isinstance(publish, Publish)
                assert publish.dup
                got.append(int(publish.payload))
            assert got[: max(acked, seen)] == list(range(max(acked, seen)))[: len(got)]
            new = await connect(port, "new")
            new.writer.write(encoding.subscribe(4, 1, [Filter("t", 0)]))
            assert (await new.next()).reasons == (0,)
            kept = await new.next()
            assert kept.retain
            assert int(kept.payload) >= acked - 1
            for line in (again, new):
                line.writer.close()
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await process.wait()

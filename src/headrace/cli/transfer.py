"""Messages through the command line: what ``publish``, ``consume`` and ``tail`` do, on the asyncio client.

Invariants: a message is acked only after it was written out (or its command has succeeded), so a broken pipe loses none; what is read from a file is
bounded by what is unconfirmed; Ctrl-C and SIGTERM return what was not settled.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, BinaryIO, Final

import msgspec

import headrace
from headrace.cli.messages import Consuming, Publishing, Tailing
from headrace.cli.output import count
from headrace.config.units import parse_duration_ms
from headrace.model import limits
from headrace.model.errors import Invalid, NotFound, TooLarge
from headrace.wire import control
from headrace.wire.shown import shown

FETCH: Final = 100
FETCH_WAIT_MS: Final = 5_000
READ_BYTES: Final = 1 << 16
REPORT_S: Final = 0.1
INTERRUPTED: Final = 130
TERMINATED: Final = 143


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command; SIGTERM ends it as Ctrl-C does: what was taken and not settled goes back."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            runner.run(_interruptible(work))
        except asyncio.CancelledError:
            raise SystemExit(TERMINATED) from None
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None


async def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


# ---------------------------------------------------------------- publish


class Outgoing(msgspec.Struct, forbid_unknown_fields=True):
    """A line of jsonl input: an object with these fields, as ``consume --format json`` prints them."""

    value: Any = None
    key: str | dict[str, Any] | None = None
    headers: dict[str, str] | list[tuple[str, dict[str, Any]]] = {}
    delay: str | None = None
    ttl: str | None = None
    priority: int | None = None


async def publish(url: str, plan: Publishing, *, as_json: bool) -> None:
    """Publishes everything, then says how many were confirmed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begin = time.monotonic()
    sent = 0
    last: Any = None
    lone = plan.value is not None and plan.count == 1
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with headrace.connect(url, name="headrace-cli") as client:
        publisher = client.publisher(plan.name, confirm=plan.confirm, compression=plan.codec)
        total = plan.count if plan.value is not None else None
        with Progress(*columns, transient=True, disable=as_json or lone or not sys.stderr.isatty()) as progress:
            task = progress.add_task("publishing", total=total)
            shown_at = begin
            async with publisher:
                async for options in _outgoing(plan):
                    if lone:
                        last = await publisher.send(**options)
                    else:
                        await publisher.room()
                        publisher.post(**options, receipt=False)
                    sent += 1
                    if time.monotonic() - shown_at > REPORT_S:
                        shown_at = time.monotonic()
                        progress.update(task, completed=sent)
                await publisher.flush()
            progress.update(task, completed=sent)
    seconds = time.monotonic() - begin
    if as_json:
        result: dict[str, Any] = {"published": sent, "name": plan.name, "seconds": round(seconds, 3)}
        if last is not None:
            result |= {"partition": last.partition, "offset": last.offset, "level": last.level.name.lower(), "duplicate": last.duplicate}
        print(json.dumps(result))
    elif last is not None:
        print(f"published to {plan.name}, partition {last.partition}, offset {last.offset} ({last.level.name.lower()})")
    else:
        print(f"{count(sent)} messages published to {plan.name} in {seconds:.2f} s ({count(int(sent / max(seconds, 1e-9)))}/s)")


async def _outgoing(plan: Publishing) -> AsyncIterator[dict[str, Any]]:
    """The arguments of ``send`` for each message."""
    common: dict[str, Any] = {"key": plan.key, "headers": plan.headers or None}
    for name, ms in (("delay", plan.delay_ms), ("ttl", plan.ttl_ms)):
        if ms is not None:
            common[name] = ms / 1000
    if plan.priority is not None:
        common["priority"] = plan.priority
    if plan.value is not None:
        for _ in range(plan.count):
            yield {"value": _payload(plan.value), **common}
        return
    assert plan.file is not None
    with sys.stdin.buffer if str(plan.file) == "-" else plan.file.open("rb") as source:
        number = 0
        async for line in _pieces(source, whole=plan.form == "whole"):
            number += 1
            if plan.form == "jsonl":
                if line.strip():
                    yield {**common, **_from_json(line, f"{plan.file}:{number}")}
            else:
                yield {"value": _payload(line), **common}


def _payload(raw: bytes) -> bytes | str:
    """Text as text, so that it is marked as such; else bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _from_json(line: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(line, type=Outgoing)
        options: dict[str, Any] = {"value": _bytes_of(parsed.value)}
        if parsed.key is not None:
            options["key"] = _bytes_of(parsed.key)
        if parsed.headers:
            pairs = parsed.headers.items() if isinstance(parsed.headers, dict) else parsed.headers
            options["headers"] = {name: _bytes_of(text) for name, text in pairs if not name.startswith("headrace.")}
        for name in ("delay", "ttl"):
            text = getattr(parsed, name)
            if text is not None:
                options[name] = parse_duration_ms(text) / 1000
        if parsed.priority is not None:
            options["priority"] = parsed.priority
    except (msgspec.DecodeError, ValueError) as e:
        raise Invalid(f"{where}: {e}", hint='each line is an object such as {"value": ..., "key": "k", "headers": {"a": "b"}}') from None
    return options


def _bytes_of(value: Any) -> Any:
    """The bytes that ``consume --format json`` wrote as an object; anything else as it is."""
    import base64

    if isinstance(value, dict) and set(value) == {"base64", "text"}:
        return base64.b64decode(value["base64"])
    return value


async def _pieces(source: BinaryIO, *, whole: bool) -> AsyncIterator[bytes]:
    """Lines without their end (or everything at once), as soon as they are there; a slow pipe keeps nobody waiting but this."""
    rest = bytearray()
    async for chunk in _chunks(source):
        rest += chunk
        if not whole:
            *lines, last = rest.split(b"\n")
            rest = bytearray(last)
            for line in lines:
                yield bytes(line.removesuffix(b"\r"))
        if len(rest) > limits.MESSAGE_BYTES_MAX:
            raise TooLarge(f"a message of more than {limits.MESSAGE_BYTES_MAX} bytes")
    if rest or whole:
        yield bytes(rest)


async def _chunks(source: BinaryIO) -> AsyncIterator[bytes]:
    """What ``source`` gives, read by a thread that is at most two chunks ahead and does not keep the process alive."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    ahead = threading.Semaphore(2)
    ended = threading.Event()

    def read() -> None:
        chunk: bytes | OSError = b"-"
        while chunk and not isinstance(chunk, OSError):
            ahead.acquire()
            if ended.is_set():
                return
            try:
                chunk = os.read(source.fileno(), READ_BYTES)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            except RuntimeError:  # the loop has ended while this waited for a slow pipe
                return

    threading.Thread(target=read, name="reader", daemon=True).start()
    try:
        while chunk := await queue.get():
            if isinstance(chunk, OSError):
                raise chunk
            yield chunk
            ahead.release()
    finally:
        ended.set()
        ahead.release()


# ---------------------------------------------------------------- consume and tail


async def consume(url: str, plan: Consuming) -> None:
    """Fetches, writes out, acks; ends when the queue is empty unless it follows."""
    taken = 0
    async with headrace.connect(url, name="headrace-cli") as client:
        options: dict[str, Any] = {"filter": plan.where} if plan.where else {}
        if plan.lease_ms:
            options["lease"] = plan.lease_ms / 1000
        async with client.consume(plan.name, pull=True, auto_extend=bool(plan.command), **options) as consumer:
            while not plan.count or taken < plan.count:
                most = 1 if plan.command else FETCH if not plan.count else min(FETCH, plan.count - taken)
                messages = await consumer.fetch(most, wait_ms=FETCH_WAIT_MS if plan.follow else 0)
                for message in messages:
                    if plan.command:
                        await _execute(plan, message)
                    else:
                        _write(message, plan.form)
                taken += len(messages)
                if not plan.command and messages:
                    sys.stdout.flush()
                    for message in messages[:-1]:
                        message.ack()
                    await messages[-1].ack(confirmed=True)
                if not messages and not plan.follow:
                    if not taken and sys.stderr.isatty():
                        print(f"no message is ready in {plan.name}; --follow waits for some", file=sys.stderr)
                    return


async def _execute(plan: Consuming, message: Any) -> None:
    """Runs the command with the value on its standard input; its exit code decides."""
    env = {
        **os.environ, "HEADRACE_QUEUE": plan.name, "HEADRACE_PARTITION": str(message.partition), "HEADRACE_OFFSET": str(message.offset),
        "HEADRACE_ATTEMPT": str(message.attempt), "HEADRACE_KEY": message.key or "",
    }  # fmt: skip
    process = await asyncio.create_subprocess_shell(plan.command, stdin=asyncio.subprocess.PIPE, env=env)
    await process.communicate(message.value)
    if process.returncode == 0:
        await message.ack(confirmed=True)
        return
    again = plan.retry_on is None or process.returncode in plan.retry_on
    print(f"headrace: offset {message.offset}: exit code {process.returncode}, {'retry' if again else 'reject'}", file=sys.stderr)
    await (message.retry(confirmed=True) if again else message.reject(confirmed=True))


async def tail(url: str, plan: Tailing) -> None:
    """Reads and writes out; without ``follow`` it ends at what was the end when it began."""
    async with headrace.connect(url, name="headrace-cli") as client:
        ends: dict[int, int] = {}
        if not plan.follow:
            info = await _describe(client, plan.name)
            ends = {p.partition: p.high_watermark for p in info.partitions}
        options: dict[str, Any] = {"filter": plan.where} if plan.where else {}
        async with client.read(plan.name, start=plan.start, cursor=plan.cursor, **options) as reader:
            read = 0
            if not plan.follow and _at_end(reader, ends):
                return
            async for record in reader:
                _write(record, plan.form)
                sys.stdout.flush()
                read += 1
                if plan.count and read >= plan.count:
                    return
                if not plan.follow and _at_end(reader, ends):
                    return


def _at_end(reader: Any, ends: dict[int, int]) -> bool:
    return all(reader.positions.get(partition, 0) >= end for partition, end in ends.items())


async def _describe(client: headrace.Client, name: str) -> control.Info:
    info = await client.describe(name)
    if info.kind != "stream":
        raise NotFound(f"there is no stream {name!r}", hint=f"headrace stream list; a queue is read with: headrace consume {name}")
    return info


def _write(content: Any, form: str) -> None:
    """One message on standard output."""
    out = sys.stdout.buffer
    if form == "raw":
        out.write(content.value)
    elif form == "text":
        out.write(content.value + b"\n")
    else:
        fields = {
            "partition": content.partition, "offset": content.offset, "key": content.raw_key, "value": None if content.is_null else content.value,
            "headers": list(content.raw_headers), "timestamp_ms": content.timestamp_ms,
        }  # fmt: skip
        attempt = getattr(content, "attempt", None)
        if attempt is not None:
            fields["attempt"] = attempt
        out.write(json.dumps(shown(fields), ensure_ascii=False).encode() + b"\n")



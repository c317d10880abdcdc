"""``headrace publish``, ``consume`` and ``tail``: their options. The work is in ``cli.transfer``, imported when one of them runs."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import typer

from headrace.cli.options import DEFAULT_URL, AsJson, QueueName, StreamName, Url, Where, duration_ms
from headrace.model.errors import Invalid

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Confirm = Literal["queue", "none", "accepted", "local", "majority", "replica"]


class Publishing(msgspec.Struct, frozen=True, kw_only=True):
    """What ``publish`` was asked for. ``value`` None: read ``file``, in ``form``."""

    name: str
    value: bytes | None
    file: Path | None
    form: str
    key: str | None
    headers: dict[str, str]
    delay_ms: int | None
    ttl_ms: int | None
    priority: int | None
    count: int
    codec: Codec
    confirm: Confirm


class Consuming(msgspec.Struct, frozen=True, kw_only=True):
    """What ``consume`` was asked for. ``count`` 0 = no bound."""

    name: str
    count: int
    follow: bool
    form: str
    where: str
    lease_ms: int
    command: str
    retry_on: frozenset[int] | None


class Tailing(msgspec.Struct, frozen=True, kw_only=True):
    """What ``tail`` was asked for."""

    name: str
    start: str
    cursor: str
    count: int
    follow: bool
    form: str
    where: str


def publish(
    target: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="Name of the queue (with --stream: the value).")] = None,
    value: Annotated[str | None, typer.Argument(metavar="[VALUE]", help="The message; default: standard input as a whole.")] = None,
    stream: Annotated[str | None, typer.Option("--stream", "-s", help="Publish to this stream instead of a queue.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="One message per line of this file; - is standard input.")] = None,
    form: Annotated[str, typer.Option("--input", help="lines, jsonl (objects with value, key, headers, ...) or whole; default: by the file.")] = "",
    key: Annotated[str | None, typer.Option("--key", "-k", help="Key: messages of one key keep their order.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="Header; may be repeated.")] = None,
    delay: Annotated[str | None, typer.Option("--delay", help="Deliver it only after this, for instance 30s.")] = None,
    ttl: Annotated[str | None, typer.Option("--ttl", help="It expires after this.")] = None,
    priority: Annotated[int | None, typer.Option("--priority", min=0, max=9, help="9 is delivered first.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Publish the value this often.")] = 1,
    codec: Annotated[str, typer.Option("--codec", help="none, lz4, zstd, gzip or snappy.")] = "none",
    confirm: Annotated[str, typer.Option("--confirm", help="queue (its own level), replica, majority, local, accepted or none.")] = "queue",
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish messages; ends when every one is confirmed."""
    if stream is not None:
        if value is not None:
            raise Invalid("with --stream there is no queue to name", hint="headrace publish --stream NAME VALUE")
        value = target
    name = stream if stream is not None else target
    if not name:
        raise Invalid("publish to where?", hint="headrace publish QUEUE VALUE, or headrace publish --stream NAME VALUE")
    if value is not None and file is not None:
        raise Invalid("either a VALUE or --file", hint="leave one of them out")
    if form not in ("", "lines", "jsonl", "whole"):
        raise Invalid(f"--input {form} is unknown", hint="lines, jsonl or whole")
    if value is None and file is None:
        if sys.stdin.isatty():
            raise Invalid("publish what?", hint="name a VALUE, --file FILE, or pipe it in")
        file, form = Path("-"), form or "whole"
    headers: dict[str, str] = {}
    for pair in header or ():
        title, equals, text = pair.partition("=")
        if not equals or not title:
            raise Invalid(f"--header {pair}: there is no =", hint="write --header NAME=VALUE")
        headers[title] = text
    plan = Publishing(
        name=name, value=None if value is None else value.encode("utf-8", "surrogateescape"), file=file,
        form=form or ("jsonl" if file is not None and file.suffix in (".jsonl", ".ndjson") else "lines"), key=key, headers=headers,
        delay_ms=duration_ms(delay, "--delay"), ttl_ms=duration_ms(ttl, "--ttl"), priority=priority, count=count,
        codec=_one_of(Codec, codec, "--codec"), confirm=_one_of(Confirm, confirm, "--confirm"),
    )  # fmt: skip
    from headrace.cli import transfer

    transfer.run(transfer.publish(url, plan, as_json=as_json))


def _one_of(kind: Any, text: str, option: str) -> Any:
    if text not in get_args(kind):
        raise Invalid(f"{option} {text} is unknown", hint=", ".join(get_args(kind)))
    return text


Form = Annotated[str, typer.Option("--format", help="text (a line each), json (an object a line) or raw (the bytes, nothing between).")]


def consume(
    name: QueueName,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many; 0 = no bound.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more instead of ending when the queue is empty.")] = False,
    form: Form = "text", where: Where = "",
    lease: Annotated[str | None, typer.Option("--lease", help="How long each is held while it is worked on; default: the queue's.")] = None,
    command: Annotated[str, typer.Option("--exec", metavar="COMMAND", help="Run this for each, its value on standard input; 0 acks it.")] = "",
    retry_on: Annotated[str, typer.Option("--retry-on", metavar="CODES", help="Exit codes of --exec that retry, others reject; default: all.")] = "",
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take messages off a queue: each is acked once it is printed (or once --exec succeeded)."""
    codes: frozenset[int] | None = None
    if retry_on:
        try:
            codes = frozenset(int(code) for code in retry_on.split(","))
        except ValueError:
            raise Invalid(f"--retry-on {retry_on}: these are no exit codes", hint="for instance --retry-on 75,111") from None
        if not command:
            raise Invalid("--retry-on without --exec", hint="name a command with --exec")
    plan = Consuming(
        name=name, count=count, follow=follow, form=_form(form, as_json), where=where, lease_ms=duration_ms(lease, "--lease") or 0, command=command,
        retry_on=codes,
    )  # fmt: skip
    from headrace.cli import transfer

    transfer.run(transfer.consume(url, plan))


def tail(
    name: StreamName,
    start: Annotated[
        str, typer.Option("--from", help="earliest, latest (or the cursor: the default), offset:N, timestamp:MS, last:N, or a time ago: 10m.")
    ] = "",
    cursor: Annotated[str, typer.Option("--cursor", help="Go on where this cursor stands, and move it along.")] = "",
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many; 0 = no bound.")] = 0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f/-F", help="Wait for more, or end at what is the end now.")] = True,
    form: Form = "text", where: Where = "", url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read records of a stream; others see them all the same."""
    plan = Tailing(name=name, start=_start(start), cursor=cursor, count=count, follow=follow, form=_form(form, as_json), where=where)
    from headrace.cli import transfer

    transfer.run(transfer.tail(url, plan))


def _form(form: str, as_json: bool) -> str:
    if form not in ("text", "json", "raw"):
        raise Invalid(f"--format {form} is unknown", hint="text, json or raw")
    return "json" if as_json else form


def _start(text: str) -> str:
    """A start position as the broker reads it; a time ago becomes a timestamp."""
    import time

    if text in ("", "earliest", "latest", "cursor") or ":" in text:
        return text
    try:
        return f"timestamp:{time.time_ns() // 1_000_000 - (duration_ms(text, '--from') or 0)}"
    except Invalid:
        hint = "earliest, latest, offset:N, timestamp:MS, last:N, or a time ago such as 10m"
        raise Invalid(f"--from {text} is no position", hint=hint) from None

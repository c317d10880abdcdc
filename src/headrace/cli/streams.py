"""``headrace stream``: declare, look at and change streams and their cursors."""

import time
from typing import Annotated, Any

import typer

from headrace.cli.asking import ask
from headrace.cli.options import DEFAULT_URL, AsJson, Partition, Pattern, StreamName, Url, Yes, duration_ms, given, size_bytes
from headrace.cli.output import confirm, count, emit, rate, size, span, table
from headrace.cli.queues import PAGE, altered, declared, deleted, described, listed, notes, spec_of
from headrace.model.errors import Invalid
from headrace.model.specs import StreamSpec, meant
from headrace.wire import control

app = typer.Typer(no_args_is_help=True, help="Replayable streams: every reader reads every record.")
cursors = typer.Typer(no_args_is_help=True, help="Named durable positions of readers.")
app.add_typer(cursors, name="cursors")

Partitions = Annotated[int | None, typer.Option("--partitions", help="Units of order and parallel reading (1).")]
Tier = Annotated[str | None, typer.Option("--tier", help="durable, speculative (delivered before it is durable) or ephemeral.")]
Age = Annotated[str | None, typer.Option("--retention", help="Age at which records may go, for instance 7d; 0 = kept for ever.")]
Bytes = Annotated[str | None, typer.Option("--retention-bytes", help="Size per partition above which the oldest may go, for instance 10GiB.")]
Records = Annotated[int | None, typer.Option("--retention-records", help="Records per partition above which the oldest may go.")]
Compaction = Annotated[bool | None, typer.Option("--compaction/--no-compaction", help="Keep only the newest record of each key.")]
Tombstone = Annotated[str | None, typer.Option("--tombstone", help="How long a deletion of a key survives compaction (1d).")]
MaxMessageBytes = Annotated[str | None, typer.Option("--max-message-bytes", help="Largest batch of one publish; 0 = the broker's limit.")]
Replication = Annotated[int | None, typer.Option("--replication-factor", help="Copies on different brokers.")]
Durability = Annotated[str | None, typer.Option("--durability", help="local_durable, majority_durable or replica_durable.")]
MinInSync = Annotated[int | None, typer.Option("--min-in-sync", help="Copies that must be in sync for a publish.")]
Binding = Annotated[list[str] | None, typer.Option("--binding", help="MQTT topic filter that this stream captures; may be repeated.")]


def _settings(
    *, retention: str | None, retention_bytes: str | None, tombstone: str | None, max_message_bytes: str | None, binding: list[str] | None,
    **plain: Any,
) -> dict[str, Any]:  # fmt: skip
    return given(
        **plain,
        retention_ms=duration_ms(retention, "--retention"),
        retention_bytes=size_bytes(retention_bytes, "--retention-bytes"),
        tombstone_ms=duration_ms(tombstone, "--tombstone"),
        max_message_bytes=size_bytes(max_message_bytes, "--max-message-bytes"),
        bindings=binding or None,
    )


@app.command("declare")
def declare(
    name: StreamName, partitions: Partitions = None, tier: Tier = None, retention: Age = None, retention_bytes: Bytes = None,
    retention_records: Records = None, compaction: Compaction = None, tombstone: Tombstone = None, max_message_bytes: MaxMessageBytes = None,
    replication_factor: Replication = None, durability: Durability = None, min_in_sync_replicas: MinInSync = None, binding: Binding = None,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Declare a stream. Again with the same settings: nothing happens."""
    settings = _settings(
        partitions=partitions, tier=tier, retention=retention, retention_bytes=retention_bytes, retention_records=retention_records,
        compaction=compaction, tombstone=tombstone, max_message_bytes=max_message_bytes, replication_factor=replication_factor,
        durability=durability, min_in_sync_replicas=min_in_sync_replicas, binding=binding,
    )  # fmt: skip
    spec: StreamSpec = spec_of(StreamSpec, settings)
    info = ask(url, control.DeclareStream(name=name, spec=spec, given=meant(spec, settings)), control.Info)
    emit(info, as_json, lambda: print(declared(info)))


@app.command("alter")
def alter(
    name: StreamName, retention: Age = None, retention_bytes: Bytes = None, retention_records: Records = None, compaction: Compaction = None,
    tombstone: Tombstone = None, max_message_bytes: MaxMessageBytes = None, replication_factor: Replication = None,
    durability: Durability = None, min_in_sync_replicas: MinInSync = None, binding: Binding = None, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Change settings of a stream; those that are not named stay."""
    changes = _settings(
        retention=retention, retention_bytes=retention_bytes, retention_records=retention_records, compaction=compaction, tombstone=tombstone,
        max_message_bytes=max_message_bytes, replication_factor=replication_factor, durability=durability,
        min_in_sync_replicas=min_in_sync_replicas, binding=binding,
    )  # fmt: skip
    altered(url, control.AlterStream(name=name, changes=changes), StreamSpec, as_json)


@app.command("list")
def listing(
    pattern: Pattern = "*", limit: Annotated[int, typer.Option("--limit", min=1, help="Most names.")] = PAGE,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Streams in order of their names, with figures."""
    found = listed(url, "stream", pattern, limit)
    rows = [
        [
            i.name, count(i.records), size(i.bytes), str(i.spec.get("partitions", 1)), rate(i.publish_rate), rate(i.deliver_rate),
            count(i.consumers), notes(i),
        ]
        for i in found.items
    ]  # fmt: skip
    columns = ["NAME", ">RECORDS", ">SIZE", ">PARTITIONS", ">IN/S", ">OUT/S", ">READERS", ""]
    emit(found, as_json, lambda: table(columns, rows, none="no stream; declare one: headrace stream declare NAME"))


@app.command("describe")
def describe(name: StreamName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Settings, figures and partitions of a stream."""
    described(url, name, "stream", as_json)


@app.command("trim")
def trim(
    name: StreamName,
    offset: Annotated[int, typer.Option("--offset", min=-1, help="Give up all below this offset (of --partition, if there are several).")] = -1,
    older: Annotated[str | None, typer.Option("--older-than", help="Give up everything older than this, for instance 2d.")] = None,
    partition: Partition = -1, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Give up old records for good."""
    age_ms = duration_ms(older, "--older-than")
    if (offset < 0) == (age_ms is None):
        raise Invalid("either --offset or --older-than", hint="for instance: headrace stream trim NAME --older-than 7d")
    before_ms = -1 if age_ms is None else time.time_ns() // 1_000_000 - age_ms
    confirm(f"Give up the old records of {name}?", yes=yes, as_json=as_json)
    done = ask(url, control.Trim(name=name, partition=partition, offset=offset, before_ms=before_ms), control.Done)
    emit(done, as_json, lambda: print(f"{name} trimmed: {count(done.count)} records given up"))


@app.command("delete")
def delete(name: StreamName, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Delete a stream, its records and its cursors."""
    deleted(url, control.Delete(name=name, kind="stream"), yes=yes, as_json=as_json)


CursorName = Annotated[str, typer.Argument(metavar="CURSOR", help="Name of the cursor.")]


@cursors.command("list")
def cursors_list(name: StreamName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Cursors of a stream and how far each lags."""
    found = ask(url, control.CursorsList(name=name), control.Cursors)
    now_ms = time.time_ns() // 1_000_000
    rows = [
        [c.cursor, str(c.partition), count(c.offset), count(c.lag), f"{span(max(0, now_ms - c.updated_ms))} ago" if c.updated_ms else ""]
        for c in found.cursors
    ]
    emit(found, as_json, lambda: table(["CURSOR", "PARTITION", ">NEXT OFFSET", ">LAG", "MOVED"], rows, none=f"{name} has no cursor"))


@cursors.command("set")
def cursors_set(
    name: StreamName, cursor: CursorName,
    to: Annotated[str, typer.Argument(metavar="TO", help="earliest, latest, offset:N, timestamp:MS or last:N.")],
    partition: Partition = -1, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Put a cursor somewhere; it is made if there is none."""
    _set(url, control.CursorSet(name=name, cursor=cursor, partition=partition, to=to), as_json)


@cursors.command("reset")
def cursors_reset(name: StreamName, cursor: CursorName, partition: Partition = -1, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Put a cursor back to the earliest record."""
    _set(url, control.CursorSet(name=name, cursor=cursor, partition=partition, to="earliest"), as_json)


def _set(url: str, request: control.CursorSet, as_json: bool) -> None:
    where = ask(url, request, control.Offsets)
    places = ", ".join(f"{partition}/{offset}" for partition, offset in sorted(where.offsets.items()))
    emit(where, as_json, lambda: print(f"cursor {request.cursor} of {request.name} is at {places} (partition/offset)"))


@cursors.command("delete")
def cursors_delete(name: StreamName, cursor: CursorName, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Forget a cursor."""
    confirm(f"Forget the cursor {cursor} of {name}?", yes=yes, as_json=as_json)
    done = ask(url, control.CursorDelete(name=name, cursor=cursor), control.Done)
    emit(done, as_json, lambda: print(f"cursor {cursor} of {name} forgotten"))

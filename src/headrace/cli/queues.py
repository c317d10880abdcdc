"""``headrace queue``: declare, look at and change queues."""

import time
from typing import Annotated, Any, Final

import msgspec
import typer

from headrace.cli.asking import Asker, ask
from headrace.cli.options import DEFAULT_URL, AsJson, Partition, Pattern, QueueName, Url, Where, Yes, duration_ms, given, size_bytes, where
from headrace.cli.output import confirm, count, emit, rate, readable, size, span, table
from headrace.config.reference import value_text
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid
from headrace.model.specs import QueueSpec, StreamSpec, meant
from headrace.wire import control

PAGE: Final = 1000
POLL_S: Final = 0.2

app = typer.Typer(no_args_is_help=True, help="Durable work queues: each message goes to one consumer.")

Partitions = Annotated[int | None, typer.Option("--partitions", help="Units of order and parallel consumption (1).")]
Lease = Annotated[str | None, typer.Option("--lease", help="How long a delivery holds its messages (30s).")]
Ttl = Annotated[str | None, typer.Option("--ttl", help="Default time to live of a message; 0 = for ever.")]
MaxDeliveries = Annotated[int | None, typer.Option("--max-deliveries", help="Deliveries before a message is dead-lettered; 0 = unlimited.")]
Backoff = Annotated[str | None, typer.Option("--backoff", help="Delays before redeliveries, for instance 1s,10s,1m; the last one repeats.")]
DeadLetter = Annotated[str | None, typer.Option("--dead-letter", help="Queue that takes dead letters.")]
MaxMessages = Annotated[int | None, typer.Option("--max-messages", help="Unsettled messages per partition; 0 = unlimited.")]
MaxBytes = Annotated[str | None, typer.Option("--max-bytes", help="Bytes of unsettled messages per partition, for instance 1GiB; 0 = unlimited.")]
MaxAge = Annotated[str | None, typer.Option("--max-age", help="Age at which a message expires whatever its own time to live; 0 = never.")]
MaxMessageBytes = Annotated[str | None, typer.Option("--max-message-bytes", help="Largest batch of one publish; 0 = the broker's limit.")]
Overflow = Annotated[str | None, typer.Option("--overflow", help="Past a limit: refuse, drop_oldest or dead_letter_oldest.")]
OrderedByKey = Annotated[bool | None, typer.Option("--ordered-by-key/--unordered", help="One consumer at a time per key, in order.")]
Replication = Annotated[int | None, typer.Option("--replication-factor", help="Copies on different brokers.")]
Durability = Annotated[str | None, typer.Option("--durability", help="local_durable, majority_durable or replica_durable.")]
MinInSync = Annotated[int | None, typer.Option("--min-in-sync", help="Copies that must be in sync for a publish.")]
CohortGrace = Annotated[str | None, typer.Option("--cohort-grace", help="A static member that returns within this keeps its partitions (10s).")]
CohortTarget = Annotated[int | None, typer.Option("--cohort-target", help="Consumers a cohort is planned for; 0 = as many as there are.")]
Binding = Annotated[list[str] | None, typer.Option("--binding", help="MQTT topic filter that this queue captures; may be repeated.")]


def _settings(
    *, lease: str | None, ttl: str | None, backoff: str | None, max_bytes: str | None, max_age: str | None, max_message_bytes: str | None,
    cohort_grace: str | None, binding: list[str] | None, **plain: Any,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a ``QueueSpec`` that options gave."""
    steps = None if backoff is None else [duration_ms(part.strip(), "--backoff") for part in backoff.split(",") if part.strip()]
    return given(
        **plain,
        lease_ms=duration_ms(lease, "--lease"),
        ttl_ms=duration_ms(ttl, "--ttl"),
        backoff_ms=steps,
        max_bytes=size_bytes(max_bytes, "--max-bytes"),
        max_age_ms=duration_ms(max_age, "--max-age"),
        max_message_bytes=size_bytes(max_message_bytes, "--max-message-bytes"),
        cohort_grace_ms=duration_ms(cohort_grace, "--cohort-grace"),
        bindings=binding or None,
    )


def spec_of(kind: Any, settings: dict[str, Any]) -> Any:
    """A spec of ``kind`` with these settings; ``Invalid`` says which value is wrong."""
    try:
        return msgspec.convert(settings, kind)
    except msgspec.ValidationError as e:
        raise Invalid(str(e), hint="correct the option; --help lists the values") from None


@app.command("declare")
def declare(
    name: QueueName, partitions: Partitions = None, lease: Lease = None, ttl: Ttl = None, max_deliveries: MaxDeliveries = None,
    backoff: Backoff = None, dead_letter: DeadLetter = None, max_messages: MaxMessages = None, max_bytes: MaxBytes = None, max_age: MaxAge = None,
    max_message_bytes: MaxMessageBytes = None, overflow: Overflow = None, ordered_by_key: OrderedByKey = None,
    replication_factor: Replication = None, durability: Durability = None, min_in_sync_replicas: MinInSync = None,
    cohort_grace: CohortGrace = None, cohort_target: CohortTarget = None, binding: Binding = None, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Declare a queue. Again with the same settings: nothing happens."""
    settings = _settings(
        partitions=partitions, lease=lease, ttl=ttl, max_deliveries=max_deliveries, backoff=backoff, dead_letter=dead_letter,
        max_messages=max_messages, max_bytes=max_bytes, max_age=max_age, max_message_bytes=max_message_bytes, overflow=overflow,
        ordered_by_key=ordered_by_key, replication_factor=replication_factor, durability=durability, min_in_sync_replicas=min_in_sync_replicas,
        cohort_grace=cohort_grace, cohort_target=cohort_target, binding=binding,
    )  # fmt: skip
    spec: QueueSpec = spec_of(QueueSpec, settings)
    info = ask(url, control.DeclareQueue(name=name, spec=spec, given=meant(spec, settings)), control.Info)
    emit(info, as_json, lambda: print(declared(info)))


@app.command("alter")
def alter(
    name: QueueName, lease: Lease = None, ttl: Ttl = None, max_deliveries: MaxDeliveries = None, backoff: Backoff = None,
    dead_letter: DeadLetter = None, max_messages: MaxMessages = None, max_bytes: MaxBytes = None, max_age: MaxAge = None,
    max_message_bytes: MaxMessageBytes = None, overflow: Overflow = None, replication_factor: Replication = None, durability: Durability = None,
    min_in_sync_replicas: MinInSync = None, cohort_grace: CohortGrace = None, cohort_target: CohortTarget = None, binding: Binding = None,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Change settings of a queue; those that are not named stay."""
    changes = _settings(
        lease=lease, ttl=ttl, max_deliveries=max_deliveries, backoff=backoff, dead_letter=dead_letter, max_messages=max_messages,
        max_bytes=max_bytes, max_age=max_age, max_message_bytes=max_message_bytes, overflow=overflow, replication_factor=replication_factor,
        durability=durability, min_in_sync_replicas=min_in_sync_replicas, cohort_grace=cohort_grace, cohort_target=cohort_target, binding=binding,
    )  # fmt: skip
    altered(url, control.AlterQueue(name=name, changes=changes), QueueSpec, as_json)


def altered(url: str, request: control.AlterQueue | control.AlterStream, kind: Any, as_json: bool) -> None:
    """Asks for the change and says what holds now."""
    if not request.changes:
        raise Invalid("nothing to change", hint="name a setting, for instance --lease 1m; --help lists them")
    spec_of(kind, request.changes)
    info = ask(url, request, control.Info)
    emit(info, as_json, lambda: print(declared(info)))


def declared(info: control.Info) -> str:
    """One line: what it is and which of its settings differ from the built-in ones."""
    builtin = _builtin(info.kind)
    full = {**builtin, **info.spec}
    parts = [f"{full['partitions']} partition{'s' if full['partitions'] != 1 else ''}"]
    parts += [f"{k} = {value_text(k, v)}" for k, v in full.items() if k != "partitions" and v != builtin.get(k)]
    return f"{info.kind} {info.name}: {', '.join(parts)}"


def _builtin(kind: str) -> dict[str, Any]:
    spec = QueueSpec() if kind == "queue" else StreamSpec()
    return {f: list(v) if isinstance(v := getattr(spec, f), tuple) else v for f in spec.__struct_fields__}


@app.command("list")
def listing(
    pattern: Pattern = "*", limit: Annotated[int, typer.Option("--limit", min=1, help="Most names.")] = PAGE,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Queues in order of their names, with figures."""
    found = listed(url, "queue", pattern, limit)
    columns = ["NAME", ">READY", ">LEASED", ">DELAYED", ">IN/S", ">OUT/S", ">ACKED/S", ">CONSUMERS", ""]
    rows = [
        [
            i.name, count(i.ready), count(i.leased), count(i.delayed), rate(i.publish_rate), rate(i.deliver_rate), rate(i.settle_rate),
            count(i.consumers), notes(i),
        ]
        for i in found.items
    ]  # fmt: skip
    emit(found, as_json, lambda: table(columns, rows, none="no queue; declare one: headrace queue declare NAME"))


def listed(url: str, kind: str, pattern: str, limit: int) -> control.Listing:
    """Up to ``limit`` names, page by page."""
    items: list[control.Info] = []
    with Asker(url) as asker:
        while True:
            after = items[-1].name if items else ""
            page = asker.ask(control.List(kind=kind, pattern=pattern, after=after, limit=min(PAGE, limit - len(items))), control.Listing)
            items += page.items
            if not page.more or not page.items or len(items) >= limit:
                return control.Listing(items=tuple(items), more=page.more)


def notes(info: control.Info) -> str:
    """What is unusual about it."""
    return "; ".join([*(["paused"] if info.paused else []), *info.attention])


@app.command("describe")
def describe(name: QueueName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Settings, figures and partitions of a queue."""
    described(url, name, "queue", as_json)


def described(url: str, name: str, kind: str, as_json: bool) -> None:
    """Prints what is known of one queue or stream."""
    info = ask(url, control.Describe(name=name), control.Info)
    if info.kind != kind:
        raise Invalid(f"{name!r} is a {info.kind}", hint=f"headrace {info.kind} describe {name}")

    def text() -> None:
        print(declared(info))
        for line in notes(info).split("; ") if notes(info) else ():
            print(f"  ! {line}")
        if info.routing is not None:
            print(f"  {routed(info.routing)}")
        full = {**_builtin(kind), **info.spec}
        print("\nsettings\n" + "\n".join(f"  {k} = {value_text(k, v)}" for k, v in full.items()) + "\n")
        if kind == "queue":
            columns = ["PARTITION", "STATE", ">EPOCH", ">READY", ">LEASED", ">DELAYED", ">SETTLED", ">SIZE", ">CONSUMERS", ">OLDEST", ""]
            figures = [[count(p.ready), count(p.leased), count(p.delayed), count(p.settled)] for p in info.partitions]
        else:
            columns = ["PARTITION", "STATE", ">EPOCH", ">START", ">END", ">RECORDS", ">SIZE", ">READERS", ">OLDEST", ""]
            figures = [[count(p.start_offset), count(p.high_watermark), count(p.high_watermark - p.start_offset)] for p in info.partitions]
        rows = [
            [str(p.partition), p.state, str(p.epoch), *f, size(p.bytes), count(p.consumers), span(p.oldest_ms), p.why or moving(p)]
            for p, f in zip(info.partitions, figures, strict=True)
        ]
        table(columns, rows)

    emit(info, as_json, text)


def moving(row: control.PartitionInfo) -> str:
    """What a repartition does to a partition."""
    if row.retiring:
        return "given up: goes when it is empty"
    return f"holds {row.holding} key slots, {count(row.held)} messages" if row.holding else ""


@app.command("inspect")
def inspect(
    name: QueueName,
    state: Annotated[str, typer.Option("--state", help="ready, leased, delayed or any.")] = "ready",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most messages.")] = 20,
    after: Annotated[int, typer.Option("--after", help="Only offsets above this one.")] = -1,
    partition: Partition = -1, where_: Where = "", url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Look at messages without taking them."""
    request = control.Inspect(name=name, state=state, partition=partition, after=after, limit=limit, filter=where(where_))
    found = ask(url, request, control.Inspected)
    rows = [
        [
            f"{m.partition}/{m.offset}", m.state, str(m.attempts), readable(m.key, 40) if m.key is not None else "", readable(m.value),
            " ".join(f"{k}={readable(v, 60)}" for k, v in m.headers),
        ]
        for m in found.messages
    ]  # fmt: skip

    def text() -> None:
        table(["OFFSET", "STATE", ">DELIVERIES", "KEY", "VALUE", "HEADERS"], rows, none=f"no message is {state}")
        if found.more:
            print(f"there are more: --limit {limit * 5}, or --after {found.messages[-1].offset}")

    emit(found, as_json, text)


@app.command("purge")
def purge(
    name: QueueName, leased: Annotated[bool, typer.Option("--leased", help="Also what consumers hold.")] = False,
    partition: Partition = -1, yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Drop ready and delayed messages for good."""
    confirm(f"Drop every waiting message of {name}?", yes=yes, as_json=as_json)
    done = ask(url, control.Purge(name=name, partition=partition, leased=leased), control.Done)
    emit(done, as_json, lambda: print(f"{count(done.count)} messages dropped"))


@app.command("delete")
def delete(
    name: QueueName, if_empty: Annotated[bool, typer.Option("--if-empty", help="Only if it holds no message.")] = False,
    yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Delete a queue and what it holds."""
    deleted(url, control.Delete(name=name, kind="queue", if_empty=if_empty), yes=yes, as_json=as_json)


def deleted(url: str, request: control.Delete, *, yes: bool, as_json: bool) -> None:
    """Asks, deletes, says so."""
    confirm(f"Delete {request.kind} {request.name} and its data?", yes=yes, as_json=as_json)
    done = ask(url, request, control.Done)
    emit(done, as_json, lambda: print(f"{request.kind} {request.name} deleted"))


@app.command("repartition")
def repartition(
    name: QueueName,
    partitions: Annotated[int, typer.Option("--partitions", min=1, max=limits.PARTITIONS_MAX, help="How many it gets.")],
    force: Annotated[bool, typer.Option("--force", help="Keys may lose their order; what is left in given-up partitions is moved.")] = False,
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Give a queue more or fewer partitions while it is used; each key keeps its order."""
    info = ask(url, control.Repartition(name=name, partitions=partitions, force=force), control.Info)

    def text() -> None:
        print(routed(info.routing) if info.routing is not None else f"{name} has {partitions} partitions")
        if info.routing is not None:
            print(f"watch it: headrace queue describe {name}")

    emit(info, as_json, text)


def routed(routing: control.RoutingInfo) -> str:
    """How a repartition stands, in a line."""
    parts = [f"repartition from {routing.before} to {routing.after} partitions: {routing.phase}"]
    if routing.waits_for:
        parts.append(f"waits for {routing.waits_for}")
    return ", ".join([*parts, *(["forced"] if routing.force else [])])


@app.command("pause")
def pause(name: QueueName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Deliver nothing until resumed; publishes go on."""
    done = ask(url, control.Pause(name=name, paused=True), control.Done)
    emit(done, as_json, lambda: print(f"delivery of {name} is paused; go on with: headrace queue resume {name}"))


@app.command("resume")
def resume(name: QueueName, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Deliver again."""
    done = ask(url, control.Pause(name=name, paused=False), control.Done)
    emit(done, as_json, lambda: print(f"{name} is delivered again"))


Limit = Annotated[int, typer.Option("--limit", min=0, help="Most messages; 0 = all that are there now.")]
Rate = Annotated[int, typer.Option("--rate", min=0, help="Messages a second; 0 = as fast as it goes.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Only start it.")]


@app.command("move")
def move(
    name: QueueName, to: Annotated[str, typer.Argument(metavar="TO", help="Queue or stream that takes them.")],
    where_: Where = "", limit: Limit = 0, rate: Rate = 0, no_wait: NoWait = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Move ready messages to another queue or stream, each exactly once."""
    _transfer(url, control.Move(name=name, to=to, filter=where(where_), limit=limit, rate=rate), no_wait, as_json)


@app.command("redrive")
def redrive(
    name: QueueName, to: Annotated[str, typer.Option("--to", help="Queue that takes them; default: the one each came from.")] = "",
    where_: Where = "", limit: Limit = 0, rate: Rate = 0, no_wait: NoWait = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Move dead letters back to where they came from, each exactly once."""
    _transfer(url, control.Redrive(name=name, to=to, filter=where(where_), limit=limit, rate=rate), no_wait, as_json)


def _transfer(url: str, request: control.Move | control.Redrive, no_wait: bool, as_json: bool) -> None:
    """Starts it and shows how far it is until it has ended; Ctrl-C cancels the rest."""
    with Asker(url) as asker:
        progress = asker.ask(request, control.Progress)
        if not no_wait:
            try:
                progress = _watch(asker, progress, quiet=as_json)
            except KeyboardInterrupt:
                progress = asker.ask(control.TransferStatus(id=progress.id, cancel=True), control.Progress)
    if progress.state == "failed":
        raise HeadraceError(f"{count(progress.done)} of {count(progress.total)} messages moved, then it failed: {progress.why}", hint="try it again")
    emit(progress, as_json, lambda: print(f"{count(progress.done)} of {count(progress.total)} messages moved ({progress.state})"))


def _watch(asker: Asker, progress: control.Progress, *, quiet: bool) -> control.Progress:
    if progress.state != "running":
        return progress
    from rich.progress import Progress

    with Progress(disable=quiet, transient=True) as bar:
        task = bar.add_task("moving", total=progress.total or None)
        while progress.state == "running":
            time.sleep(POLL_S)
            progress = asker.ask(control.TransferStatus(id=progress.id), control.Progress)
            bar.update(task, completed=progress.done, total=progress.total or None)
    return progress

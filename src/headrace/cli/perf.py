"""``headrace perf``: how fast is this broker on this machine?

Owns the command line of the load generator and what a person or a script reads of its result. The work is done in ``perf_load``.
"""

import json
import multiprocessing
import os
import secrets
import sys
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from headrace.cli.perf_load import Run, run
from headrace.cli.perf_plan import Plan
from headrace.model.errors import HeadraceError
from headrace.model.ports import DefaultPort
from headrace.wire.frames import Level

Url = Annotated[str, typer.Option("--url", envvar="HEADRACE_URL", help="The broker, or several of a cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
Secs = Annotated[float, typer.Option("--secs", min=0.1, max=3600, help="Measured time, after a warm-up that is left out.")]
Warm = Annotated[float, typer.Option("--warm", min=0, max=60, help="Warm-up in seconds.")]
Count = Annotated[int, typer.Option("--count", min=0, help="Messages instead of --secs (consume and replay: the backlog).")]
Size = Annotated[int, typer.Option("--size", min=8, max=16_000_000, help="Bytes of a message's value.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=100_000, help="Messages a frame.")]
Window = Annotated[int, typer.Option("--window", min=0, help="Unconfirmed messages a connection; 0 = 1000, or 100 batches.")]
Connections = Annotated[int, typer.Option("--connections", min=1, max=500, help="Publishing connections.")]
Consumers = Annotated[int, typer.Option("--consumers", min=1, max=500, help="Consuming connections.")]
Rate = Annotated[float, typer.Option("--rate", min=0, help="Messages a second; latency then counts from when each was due. 0 = full speed.")]
Codec = Annotated[str, typer.Option("--codec", help="none, lz4, zstd, gzip or snappy.")]
Copies = Annotated[
    int, typer.Option("--replication-factor", min=0, max=15, help="Copies, confirmed when all in sync have them durably; 0 = the broker's default.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the queue or stream behind.")]
Name = Annotated[str, typer.Option("--name", help="Queue or stream; default: a new one, deleted afterwards.")]

DEFAULT_URL = f"headrace://127.0.0.1:{DefaultPort.NATIVE.value}"

LATENCIES = (("p50", "p50_us"), ("p90", "p90_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us"))
COUNTS = ("sent", "confirmed", "refused", "delivered", "redelivered", "lost", "dup", "misorder", "gaps")

app = typer.Typer(no_args_is_help=True, help="Measure the broker with frames encoded in advance.")


@app.command("queue")
def queue(
    mode: Annotated[str, typer.Argument(help="publish, consume (drain a backlog) or both at once.")] = "publish",
    url: Url = DEFAULT_URL,
    size: Size = 100,
    batch: Batch = 1,
    window: Window = 0,
    connections: Connections = 1,
    consumers: Consumers = 1,
    queues: Annotated[int, typer.Option(min=1, max=4000, help="Spread over this many queues, one message to each in turn.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Partitions of what is measured.")] = 1,
    replication_factor: Copies = 0,
    prefetch: Annotated[int, typer.Option(min=1, help="Messages that may be on their way to a consumer.")] = 1000,
    rate: Rate = 0,
    secs: Secs = 3,
    warm: Warm = 0.5,
    count: Count = 0,
    level: Annotated[str, typer.Option(help="Confirm level: queue (its own, durable), local, accepted or none.")] = "queue",
    flood: Annotated[int, typer.Option(min=0, max=64, help="Connections that publish at full speed beside the measured ones.")] = 0,
    ahead: Annotated[int, typer.Option(min=0, help="both: messages that may wait between publish and delivery; 0 = no bound.")] = 5000,
    processes: Annotated[int, typer.Option(min=1, max=2, help="both: 2 = publish and consume from two processes.")] = 1,
    auto_ack: Annotated[bool, typer.Option("--auto-ack", help="Settled when delivered.")] = False,
    codec: Codec = "none",
    name: Name = "",
    keep: Keep = False,
    as_json: AsJson = False,
) -> None:
    """Confirms, deliveries and acks a second of a queue, with latencies."""
    plan = Plan(
        url=url,
        name=name or f"perf-{secrets.token_hex(4)}",
        queues=queues,
        partitions=partitions,
        replication_factor=replication_factor,
        publish=mode != "consume",
        consume=mode != "publish",
        size=size,
        batch=batch,
        codec=codec,
        level=int(Level[level.upper()]) if level.upper() in Level.__members__ else 99,
        window=window or max(1000, 100 * batch),
        connections=connections,
        consumers=consumers,
        prefetch=prefetch,
        rate=rate,
        secs=secs,
        warm_s=warm,
        count=count,
        ahead=ahead,
        auto_ack=auto_ack,
    )
    if mode not in ("publish", "consume", "both"):
        raise typer.BadParameter(f"{mode!r} is none of publish, consume, both", param_hint="mode")
    if plan.level == 99 or (level.lower() == "none" and mode == "publish"):
        raise typer.BadParameter("choose queue, local or accepted (none only with both: it has no confirms to count)", param_hint="--level")
    if mode == "consume":
        plan = msgspec.structs.replace(plan, count=count or 200_000)
        carry_out("queue consume", plan, as_json=as_json, keep=keep, fill=True)
    elif processes == 2 and mode == "both":
        carry_out("queue both", plan, as_json=as_json, keep=keep, apart=True)
    else:
        carry_out(f"queue {mode}", plan, as_json=as_json, keep=keep, flood=flood)


@app.command("stream")
def stream(
    mode: Annotated[str, typer.Argument(help="append, replay (read a backlog) or both at once.")] = "append",
    url: Url = DEFAULT_URL,
    size: Size = 100,
    batch: Batch = 100,
    window: Window = 0,
    connections: Connections = 1,
    consumers: Consumers = 1,
    partitions: Annotated[int, typer.Option(min=1, max=1024, help="Partitions of what is measured.")] = 1,
    replication_factor: Copies = 0,
    prefetch: Annotated[int, typer.Option(min=1, help="Records that may be on their way.")] = 200_000,
    rate: Rate = 0,
    secs: Secs = 3,
    warm: Warm = 0.5,
    count: Count = 0,
    codec: Codec = "none",
    name: Name = "",
    keep: Keep = False,
    as_json: AsJson = False,
) -> None:
    """Durable appends and replayed records a second of a stream, with latencies."""
    plan = Plan(
        url=url,
        kind="stream",
        name=name or f"perf-{secrets.token_hex(4)}",
        partitions=partitions,
        replication_factor=replication_factor,
        publish=mode != "replay",
        consume=mode != "append",
        size=size,
        batch=batch,
        codec=codec,
        window=window or max(1000, 100 * batch),
        connections=connections,
        consumers=consumers,
        prefetch=prefetch,
        rate=rate,
        secs=secs,
        warm_s=warm,
        count=count,
        ahead=0,
    )
    if mode not in ("append", "replay", "both"):
        raise typer.BadParameter(f"{mode!r} is none of append, replay, both", param_hint="mode")
    if mode == "replay":
        plan = msgspec.structs.replace(plan, count=count or 2_000_000)
        carry_out("stream replay", plan, as_json=as_json, keep=keep, fill=True)
    else:
        carry_out(f"stream {mode}", plan, as_json=as_json, keep=keep)


def carry_out(title: str, plan: Plan, *, as_json: bool, keep: bool, fill: bool = False, apart: bool = False, flood: int = 0) -> None:
    """Runs a plan (after filling, in two processes, or beside a flood), prints its figures; exit 1 when something was lost or doubled."""
    with _Progress(title, shown=not as_json and sys.stderr.isatty()) as progress:
        figures = _measure(plan, progress, keep=keep, fill=fill, apart=apart, flood=flood)
    figures = {"work": title, "size": plan.size, "batch": plan.batch, "window": plan.window} | figures
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        _print(title, plan, figures)
    if figures["lost"] or figures["dup"] or figures["misorder"] or figures["refused"] or figures["why"]:
        raise typer.Exit(1)


def _measure(plan: Plan, progress: Callable[[float, str], None], *, keep: bool, fill: bool, apart: bool, flood: int) -> dict[str, Any]:
    if fill:
        batch = plan.batch
        filling = msgspec.structs.replace(
            plan, publish=True, consume=False, window=max(10_000, 100 * batch), rate=0.0, count=-(-plan.count // batch) * batch
        )
        filled = run(filling, lambda done, text: progress(done / 2, f"filling {text}"), delete=False)
        taking = msgspec.structs.replace(plan, publish=False, count=filled["confirmed"])
        figures = run(taking, lambda done, text: progress(0.5 + done / 2, text), declare=False, delete=not keep)
        return figures | {"filled": filled["confirmed"], "lost": figures["lost"] + filled["lost"], "fill_rate": filled["rate"]}
    if apart:
        consuming = msgspec.structs.replace(plan, publish=False, secs=plan.secs + 1.0)
        publishing = msgspec.structs.replace(plan, consume=False)
        with _Beside(consuming, delete=False) as other:
            published = run(publishing, progress, declare=False, delete=False)
            figures = other.result()
        figures["lost"] = published["confirmed"] - figures["delivered"] + figures["dup"] + published["lost"]
        figures |= {k: published[k] for k in ("sent", "confirmed", "refused", "latency")}
        if not keep:
            _delete(plan)
        return figures
    if flood:
        flooding = msgspec.structs.replace(
            plan, name=f"{plan.name}-flood", connections=flood, rate=0.0, window=max(plan.window, 10_000), secs=plan.secs + 2.0, count=0
        )
        with _Beside(flooding, delete=True) as other:
            figures = run(plan, progress, delete=not keep)
            flooded = other.result()
        return figures | {"flood_rate": flooded["rate"], "flood_connections": flood, "lost": figures["lost"] + flooded["lost"]}
    return run(plan, progress, delete=not keep)


def _delete(plan: Plan) -> None:
    work = Run(plan)
    work.delete()
    work.close()


class _Beside:
    """A plan carried out by a second process, under way when the block begins."""

    def __init__(self, plan: Plan, *, delete: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(plan, theirs, delete), daemon=True)

    def __enter__(self) -> "_Beside":
        self.process.start()
        self.ours.recv()
        return self

    def result(self) -> dict[str, Any]:
        """Its figures, once it is done."""
        answer = self.ours.recv()
        if isinstance(answer, str):
            raise HeadraceError(f"the second process failed: {answer}")
        figures: dict[str, Any] = answer
        return figures

    def __exit__(self, *_: object) -> None:
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def _work(plan: Plan, pipe: Any, delete: bool) -> None:
    told: list[int] = []

    def progress(_done: float, _text: str) -> None:
        if not told:
            told.append(os.getpid())
            pipe.send("under way")

    try:
        pipe.send(run(plan, progress, delete=delete))
    except HeadraceError as error:
        pipe.send(str(error))


class _Progress:
    """A progress bar on standard error, or nothing."""

    def __init__(self, title: str, *, shown: bool) -> None:
        self.title, self.shown = title, shown
        self.bar: Any = None

    def __enter__(self) -> Callable[[float, str], None]:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=1.0, text="")
        return self.update

    def update(self, done: float, text: str) -> None:
        """Shows a fraction done and what is going on."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def _print(title: str, plan: Plan, figures: dict[str, Any]) -> None:
    shape = f"{plan.size} B" + (f" in batches of {plan.batch}" if plan.batch > 1 else "") + (f", {plan.queues} queues" if plan.queues > 1 else "")
    pace = f"paced {plan.rate:,.0f}/s" if plan.rate else f"window {plan.window}"
    typer.echo(f"{title}, {shape}, {pace}: {figures['rate']:,.0f} messages/s, {figures['mbs']:,.1f} MB/s in {figures['secs']:.1f} s")
    for key, what in (("latency", "confirm"), ("delivery", "delivery")):
        if figures[key]:
            values = "  ".join(f"{name} {figures[key][field] / 1e3:.2f}" for name, field in LATENCIES)
            typer.echo(f"  {what} latency in ms: {values}")
    counts = ", ".join(f"{name} {figures[name]:,}" for name in COUNTS if figures.get(name))
    beside = f", beside a flood of {figures['flood_rate']:,.0f}/s" if "flood_rate" in figures else ""
    typer.echo(f"  {counts}; generator CPU {figures['generator_cpu'] / max(figures['secs'], 0.001):.0%} of a core{beside}")
    if not figures["lost"] and not figures["dup"]:
        typer.echo("  nothing lost, nothing doubled")
    if figures["why"]:
        typer.echo(f"  stopped early or refused: {figures['why']}", err=True)

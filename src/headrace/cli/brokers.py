"""Commands about the broker itself: status, connections, drain, quarantine."""

import time
from typing import Annotated

import typer

from headrace.cli.asking import Asker, ask
from headrace.cli.options import DEFAULT_URL, AsJson, Partition, Url, Yes, duration_ms
from headrace.cli.output import confirm, count, emit, rate, size, span, table
from headrace.wire import control

quarantine = typer.Typer(no_args_is_help=True, help="Partitions whose data is damaged: isolated, while all others are served.")


def status(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """How the broker is: state, figures, what needs attention."""
    now = ask(url, control.Status(), control.BrokerStatus)

    def text() -> None:
        mode = f"{now.mode}, {now.storage}, {'compiled' if now.compiled else 'pure Python'}"
        print(f"broker {now.broker} is {now.state}: release {now.release}, up {span(now.uptime_ms)}, {mode}")
        for line in now.attention:
            print(f"  ! {line}")
        rows = [
            ["listeners", ", ".join(f"{k} {v}" for k, v in now.listeners.items())],
            ["clients", f"{count(now.connections)} connections, {count(now.sessions)} sessions"],
            ["names", f"{count(now.queues)} queues, {count(now.streams)} streams; {count(now.loaded_partitions)} partitions in memory"],
            ["rates", f"{rate(now.publish_rate)}/s published, {rate(now.deliver_rate)}/s delivered, {rate(now.settle_rate)}/s settled"],
            ["network", f"{size(int(now.bytes_in_rate))}/s in, {size(int(now.bytes_out_rate))}/s out"],
            ["memory", size(now.memory_bytes)],
        ]
        if now.storage != "memory":
            sync = f"sync p50 {now.flush_p50_us / 1000:.2f} ms, p99 {now.flush_p99_us / 1000:.2f} ms"
            rows.append(["disk", f"log {size(now.wal_bytes)}, free {size(now.disk_free_bytes)}, {sync}"])
        for name, value in rows:
            print(f"  {name:<10} {value}")

    emit(now, as_json, text)


def connections(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Open client connections."""
    found = ask(url, control.ConnectionsList(), control.Connections)
    now_ms = time.time_ns() // 1_000_000
    rows = [
        [
            str(c.id), c.peer, c.name or c.client, c.protocol, span(max(0, now_ms - c.since_ms)), count(c.publishers), count(c.subscriptions),
            size(c.bytes_in), size(c.bytes_out), size(c.buffered_bytes),
        ]
        for c in found.connections
    ]  # fmt: skip
    columns = ["ID", "PEER", "NAME", "PROTOCOL", ">FOR", ">PUBLISHERS", ">SUBSCRIPTIONS", ">IN", ">OUT", ">UNSENT"]
    emit(found, as_json, lambda: table(columns, rows, none="no connection"))


def drain(
    grace: Annotated[str, typer.Option("--grace", help="How long clients may finish their work.")] = "5s",
    message: Annotated[str, typer.Option("--message", help="Told to every client.")] = "",
    yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Tell clients, let them finish, then stop the broker."""
    grace_ms = duration_ms(grace, "--grace") or 0
    confirm(f"Drain and stop the broker at {url}?", yes=yes, as_json=as_json)
    done = ask(url, control.Drain(grace_ms=grace_ms, message=message), control.Done)
    emit(done, as_json, lambda: print(f"the broker is draining: it stops {f'within {span(grace_ms)}' if grace_ms else 'now'}"))


@quarantine.command("list")
def quarantine_list(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Damaged partitions, and what is known of the damage."""
    found = ask(url, control.QuarantineList(), control.Quarantine)
    now_ms = time.time_ns() // 1_000_000
    rows = [
        [i.name, str(i.partition), span(max(0, now_ms - i.since_ms)), count(i.last_valid_offset), count(i.lost_entries_max), i.why]
        for i in found.items
    ]

    def text() -> None:
        table(["NAME", "PARTITION", ">FOR", ">LAST VALID OFFSET", ">LOST AT MOST", "WHY"], rows, none="nothing is quarantined")
        if rows:
            print("\nsee what a repair would lose: headrace quarantine repair NAME --dry-run")

    emit(found, as_json, text)


@quarantine.command("repair")
def quarantine_repair(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Queue or stream.")], partition: Partition = -1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be lost.")] = False,
    yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Cut a damaged partition to its last valid point and serve it again."""
    if not dry_run:
        confirm(f"Cut {name} to its last valid point? What lies behind it is lost.", yes=yes, as_json=as_json)
    with Asker(url) as asker:
        done = asker.ask(control.QuarantineRepair(name=name, partition=partition, dry_run=dry_run), control.Done)

    def text() -> None:
        verb = "would be repaired" if dry_run else "repaired"
        print(f"{count(done.count)} partition{'s' if done.count != 1 else ''} {verb}")
        for number, damage in done.detail.items():
            what = f"{count(damage['lost_entries_max'])} entries behind offset {count(damage['last_valid_offset'])} at most"
            print(f"  partition {number}: {what} {'would be' if dry_run else 'are'} lost; {damage['why']}")

    emit(done, as_json, text)

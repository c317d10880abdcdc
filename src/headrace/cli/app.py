"""The tree of commands."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace import __version__
from headrace.cli import brokers, cluster, configuration, doctor, messages, mqtt, queues, start, streams, topology

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Headrace: durable queues and replayable streams. Begin with: headrace start",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", help="Print the release.", callback=_version, is_eager=True)] = False) -> None:
    pass


class _Perf(TyperGroup):
    """The load generator's commands, imported when one is asked for: it needs codecs that nobody else here does."""

    def _real(self) -> Any:
        from headrace.cli.perf import app

        return typer.main.get_group(app)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._real().list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._real().get_command(ctx, cmd_name)


BROKER, NAMES, MESSAGES, TOOLS = "The broker", "Queues and streams", "Messages", "Tools"
app.command("start", rich_help_panel=BROKER)(start.start)
app.command("status", rich_help_panel=BROKER)(brokers.status)
app.command("connections", rich_help_panel=BROKER)(brokers.connections)
app.command("drain", rich_help_panel=BROKER)(brokers.drain)
app.command("topology", rich_help_panel=BROKER)(topology.topology)
app.add_typer(cluster.app, name="cluster", rich_help_panel=BROKER)
app.add_typer(brokers.quarantine, name="quarantine", rich_help_panel=BROKER)
app.add_typer(queues.app, name="queue", rich_help_panel=NAMES)
app.add_typer(streams.app, name="stream", rich_help_panel=NAMES)
app.add_typer(mqtt.app, name="mqtt", rich_help_panel=NAMES)
app.command("publish", rich_help_panel=MESSAGES)(messages.publish)
app.command("consume", rich_help_panel=MESSAGES)(messages.consume)
app.command("tail", rich_help_panel=MESSAGES)(messages.tail)
app.command("doctor", rich_help_panel=TOOLS)(doctor.doctor)
app.add_typer(configuration.app, name="config", rich_help_panel=TOOLS)
app.add_typer(
    typer.Typer(cls=_Perf, no_args_is_help=True, help="Measure the broker with frames encoded in advance."), name="perf", rich_help_panel=TOOLS
)

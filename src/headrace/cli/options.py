"""Options that several commands share, and what their values become."""

from typing import Annotated, Any, Final

import typer

from headrace.cli.asking import names_for_completion
from headrace.model.errors import Invalid
from headrace.model.ports import DefaultPort

DEFAULT_URL: Final = f"headrace://127.0.0.1:{DefaultPort.NATIVE.value}"


def _queues(incomplete: str) -> list[str]:
    return names_for_completion("queue", incomplete)


def _streams(incomplete: str) -> list[str]:
    return names_for_completion("stream", incomplete)


Url = Annotated[str, typer.Option("--url", envvar="HEADRACE_URL", help="The broker.", show_envvar=True)]
DEFAULT_ADMIN: Final = f"http://127.0.0.1:{DefaultPort.ADMIN.value}"
Admin = Annotated[str, typer.Option("--admin", envvar="HEADRACE_ADMIN_URL", help="The broker's admin HTTP.", show_envvar=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Output for programs: JSON, of a stable shape.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue.", autocompletion=_queues)]
StreamName = Annotated[str, typer.Argument(metavar="STREAM", help="Name of the stream.", autocompletion=_streams)]
Partition = Annotated[int, typer.Option("--partition", min=-1, help="One partition only; -1 = all.")]
Where = Annotated[
    str, typer.Option("--where", metavar="FILTER", help='Only what matches, for instance: type = "order" and (region ~ "eu-*" or exists trace)')
]
Pattern = Annotated[str, typer.Argument(metavar="[PATTERN]", help="Glob over names: * any run, ? one character.")]


def duration_ms(text: str | None, option: str) -> int | None:
    """Milliseconds in an option's value such as 30s; ``Invalid`` names the option."""
    from headrace.config.units import parse_duration_ms

    try:
        return None if text is None else parse_duration_ms(text)
    except ValueError as e:
        raise Invalid(f"{option}: {e}", hint="correct the option") from None


def size_bytes(text: str | None, option: str) -> int | None:
    """Bytes in an option's value such as 64MiB; ``Invalid`` names the option."""
    from headrace.config.units import parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except ValueError as e:
        raise Invalid(f"{option}: {e}", hint="correct the option") from None


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def where(text: str) -> Any:
    """The filter that ``--where`` describes, None for none."""
    if not text:
        return None
    from headrace.core.filters import parse

    return parse(text)

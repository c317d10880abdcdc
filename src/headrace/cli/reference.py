"""docs/cli.md, generated from the tree of commands."""

import inspect
from typing import Any, Final

import typer

_INTRODUCTION: Final = """\
# Command line

Generated from the code by `python -m headrace.cli.reference`; do not edit.

Every command that asks a broker takes `--url headrace://HOST:PORT` (several addresses separated by commas) or the variable `HEADRACE_URL`; without
either it is the local broker at `headrace://127.0.0.1:7580`. `--json` prints JSON of a stable shape, the same as the admin HTTP. Durations are
written as `250ms`, `5s`, `1m30s`, `2h`, `7d`, sizes as `64KiB`, `16MiB`, `2GiB`.

An error is two lines on standard error, what and why, then what to do (with `--json` one object: `code`, `error`, `message`, `hint`,
`retriable`). Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | an unexpected error; `doctor` found a problem |
| 2 | the command line cannot be read |
| 64 | refused: a value is wrong, or the state forbids it |
| 65 | what answers does not speak the protocol |
| 66 | no such queue, stream, cursor |
| 69 | no broker answers |
| 70 | a bug of the broker |
| 73 | the data directory is in use by another process |
| 74 | the disk failed or is full |
| 75 | try again later: unavailable, draining, or an unknown outcome; `start`: a stop took longer than it may, and was cut short |
| 77 | not allowed |
| 130, 143 | ended by Ctrl-C, by SIGTERM |

`headrace --install-completion` sets up completion of commands, options and names for your shell.
"""


def reference() -> str:
    """The whole text of docs/cli.md."""
    from headrace.cli.app import app

    parts = [_INTRODUCTION]
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="headrace")
    parts += _group(root, context, 2)
    return "\n".join(parts)


def _group(group: Any, context: Any, level: int) -> list[str]:
    parts: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command.hidden:
            continue
        inner = typer.Context(command, info_name=name, parent=context)
        text = inspect.cleandoc(command.help or "").replace("\f", "")
        if hasattr(command, "list_commands"):
            parts.append(f"{'#' * level} {inner.command_path}\n\n{text}\n")
            parts += _group(command, inner, level + 1)
        else:
            parts.append(f"{'#' * level} {inner.command_path}\n\n{text}\n\n{_usage(command, inner)}")
    return parts


def _usage(command: Any, context: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    words = [context.command_path, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
    lines = ["```", " ".join(words), "```", ""]
    lines += [f"- `{_metavar(p)}`: {p.help}" for p in arguments if getattr(p, "help", None)]
    if options:
        lines += ["", "| option | default | meaning |", "|---|---|---|"] if arguments else ["| option | default | meaning |", "|---|---|---|"]
    for p in options:
        names = ", ".join(f"`{name}`" for name in [*p.opts, *p.secondary_opts])
        default = "" if p.default in (None, "", False, ()) or callable(p.default) else f"`{p.default}`"
        lines.append(f"| {names} | {default} | {(p.help or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _metavar(argument: Any) -> str:
    name = (argument.metavar or str(argument.name).upper()).strip("[]")
    return name if argument.required else f"[{name}]"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference())

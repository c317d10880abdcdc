"""``headrace config``: check and show what a broker would be started with. Needs no broker."""

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import AsJson
from headrace.cli.output import emit
from headrace.config import Loaded, as_toml, read
from headrace.config.reading import Mistake, settings
from headrace.model.errors import Invalid

app = typer.Typer(no_args_is_help=True, help="The configuration that a broker would be started with.")

File = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="HEADRACE_CONFIG", help="TOML file.", dir_okay=False, show_envvar=True)
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Any setting; may be repeated.")]


def set_flags(pairs: list[str] | None) -> dict[str, tuple[str, str]]:
    """``--set`` options as flags of ``config.read``."""
    flags: dict[str, tuple[str, str]] = {}
    for pair in pairs or ():
        setting, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"--set {pair}: there is no =", hint="write --set section.field=value, for instance --set log.level=debug")
        flags[setting.strip()] = (f"--set {setting.strip()}", value)
    return flags


@app.command("check")
def check(config: File = None, set_: Set = None, as_json: AsJson = False) -> None:
    """Say every mistake in the file, the environment and --set; exit code 0 if there is none."""
    loaded = read(config, os.environ, set_flags(set_))
    found = loaded.mistakes or _declared(loaded)
    mistakes = [{"setting": m.setting, "origin": m.origin, "message": m.message} for m in found]

    def text() -> None:
        for mistake in found:
            print(mistake)
        if not mistakes:
            changed = sum(origin != "default" for origin in loaded.origins.values())
            print(f"the configuration is valid; {changed} settings are given, all others are at their default")

    emit({"valid": not mistakes, "mistakes": mistakes}, as_json, text)
    if mistakes:
        raise typer.Exit(Invalid.exit)


def _declared(loaded: Loaded) -> tuple[Mistake, ...]:
    """What is wrong with the declared cluster, which a broker itself waits about instead of ending."""
    if loaded.config.coordination.mode != "coordinated":
        return ()
    from headrace.cluster.formation.declaring import read as declared

    found = declared(loaded.config)
    origin = loaded.origins.get(found.setting, "")
    return tuple(Mistake(found.setting, origin, text) for text in found.mistakes)


@app.command("show")
def show(
    config: File = None, set_: Set = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not at its default.")] = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Every setting with where it comes from, as a file that can be used as it is."""
    loaded = read(config, os.environ, set_flags(set_))
    shown = {
        setting: {"value": value, "origin": loaded.origins[setting]}
        for setting, value in settings(loaded.config)
        if not (changed and loaded.origins[setting] == "default")
    }
    emit(shown, as_json, lambda: typer.echo(_toml(loaded, changed), nl=False))
    if loaded.mistakes:
        raise Invalid("\n  ".join(["there are mistakes:", *(str(m) for m in loaded.mistakes)]), hint="what they concern is shown at its default")


def _toml(loaded: Loaded, changed: bool) -> str:
    text = as_toml(loaded.config, loaded.origins)
    if not changed:
        return text
    kept: list[str] = []
    for block in text.strip().split("\n\n"):
        header, *lines = block.splitlines()
        lines = [line for line in lines if not line.endswith("# default")]
        if lines:
            kept.append("\n".join([header, *lines]))
    return "\n\n".join(kept) + "\n" if kept else ""

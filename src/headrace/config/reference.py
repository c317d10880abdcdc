"""Writes the configuration for people: docs/configuration.md from the docstrings of ``model.config``, and a ``Config`` as TOML."""

import ast
import inspect
from typing import Any, Final, get_args

import msgspec

from headrace.config.reading import FIELDS, settings
from headrace.config.units import bytes_text, duration_text, unit_of
from headrace.model import config as model
from headrace.model import specs
from headrace.model.config import Config

_INTRODUCTION: Final = """\
# Configuration

Generated from the code by `python -m headrace.config`; do not edit.

A broker needs no configuration: every setting has a default. Values are taken, each overriding the one before, from

1. the defaults below,
2. a TOML file: `headrace start --config headrace.toml`, or `HEADRACE_CONFIG=headrace.toml`,
3. the environment: `HEADRACE_SECTION__FIELD`, for instance `HEADRACE_LISTEN__NATIVE=0.0.0.0:7580` or `HEADRACE_DEFAULTS__QUEUE__LEASE_MS=1m`,
4. flags of `headrace start`: `--data-dir`, `--listen`, ..., and `--set section.field=value` for any setting.

Sizes may be written as `64KiB`, `16MiB`, `2GiB` (or plain bytes), durations as `250ms`, `5s`, `1m30s`, `2h`, `7d` (or plain milliseconds);
lists in the environment and in flags are separated by commas. An unknown key is a mistake. All mistakes are reported at once, each with the
place it comes from.

`headrace config check --config FILE` checks without starting; `headrace config show` prints every setting with its origin, as a file that can
be used as it is.
"""


def reference() -> str:
    """The whole text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for field in msgspec.structs.fields(Config):
        if field.name == "undeclared":
            parts.append(_undeclared())
        elif field.name == "defaults":
            parts.append(f"## [defaults]\n\n{_class_doc(model.Defaults)}\n")
            for kind, cls in (("queue", specs.QueueSpec), ("stream", specs.StreamSpec)):
                parts.append(f"### [defaults.{kind}]\n\n" + _table(cls, ("defaults", kind)))
        else:
            parts += _section(field.type, (field.name,))
    return "\n".join(parts)


def as_toml(config: Config, origins: dict[str, str] | None = None) -> str:
    """``config`` as a TOML file that reads back to the same value, with each value's origin as a comment."""
    lines: list[str] = []
    section: tuple[str, ...] = ()
    for setting, value in settings(config):
        path = tuple(setting.split("."))
        if path == ("undeclared",):
            continue
        if path[:-1] != section:
            section = path[:-1]
            lines += ["", f"[{'.'.join(section)}]"] if lines else [f"[{'.'.join(section)}]"]
        line = f"{path[-1]} = {value_text(path[-1], value)}"
        lines.append(f"{line:<48} # {origins[setting]}" if origins else line)
    for rule in config.undeclared:
        lines += ["", "[[undeclared]]", f"pattern = {value_text('', rule.pattern)}", f"kind = {value_text('', rule.kind)}"]
        if rule.settings:
            lines.append("settings = { " + ", ".join(f"{k} = {value_text(k, v)}" for k, v in rule.settings.items()) + " }")
    return "\n".join(lines) + "\n"


def value_text(name: str, value: Any) -> str:
    """A value as TOML, sizes and durations with their unit."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(name, v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{msgspec.json.encode(str(k)).decode()} = {value_text('', v)}" for k, v in value.items()) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        unit = unit_of(name)
        if not unit or value == 0:
            return str(value)
        text = duration_text(value) if unit == "ms" else bytes_text(value)
        return text if text.isdigit() else f'"{text}"'
    return msgspec.json.encode(value).decode()


def _section(cls: type, path: tuple[str, ...]) -> list[str]:
    """A section, and after it those within it."""
    parts = [f"{'#' * min(len(path) + 1, 4)} [{'.'.join(path)}]\n\n{_class_doc(cls)}\n\n" + _table(cls, path)]
    for field in msgspec.structs.fields(cls):
        if (*path, field.name) not in FIELDS:
            parts += _section(field.type, (*path, field.name))
    return parts


def _table(cls: type, path: tuple[str, ...]) -> str:
    docs = _attribute_docs(cls)
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(cls):
        if (*path, field.name) not in FIELDS:
            continue
        made = field.default_factory() if callable(field.default_factory) else field.default
        default = value_text(field.name, made)
        rows.append(f"| `{field.name}` | `{default}` | {_values(field.name, FIELDS[(*path, field.name)])} | {docs.get(field.name, '')} |")
    return "\n".join(rows) + "\n"


def _undeclared() -> str:
    docs = _attribute_docs(model.Undeclared)
    rows = [f"| `{f.name}` | {docs.get(f.name, '')} |" for f in msgspec.structs.fields(model.Undeclared)]
    example = '```toml\n[[undeclared]]\npattern = "jobs.*"\nkind = "queue"\nsettings = { lease_ms = "1m", max_deliveries = 5 }\n```\n'
    return "\n".join([f"## [[undeclared]]\n\n{_class_doc(model.Undeclared)}\n", "| field | meaning |", "|---|---|", *rows, "", example])


def _values(name: str, kind: Any) -> str:
    """The values that a field may have, in words."""
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(f"`{v}`" for v in get_args(kind) or info.values)
    if isinstance(info, msgspec.inspect.IntType):
        unit = {"ms": "duration", "bytes": "size"}.get(unit_of(name), "number")
        if info.ge is None and info.le is None:
            return unit
        low, high = (value_text(name, bound).strip('"') if bound is not None else "" for bound in (info.ge, info.le))
        return f"{unit}, {low} to {high}" if low and high else f"{unit}, from {low}" if low else f"{unit}, up to {high}"
    if isinstance(info, msgspec.inspect.BoolType):
        return "`true`, `false`"
    if isinstance(info, msgspec.inspect.DictType):
        return "table"
    if isinstance(info, msgspec.inspect.VarTupleType):
        return f"list of {'durations' if unit_of(name) == 'ms' else 'texts'}"
    return "text"


def _class_doc(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split()).replace("``", "`")


def _attribute_docs(cls: type) -> dict[str, str]:
    """The string that stands below each field in the source of ``cls``."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    last = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs[last] = " ".join(node.value.value.split()).replace("``", "`").replace("|", "\\|")
            last = ""
        else:
            last = ""
    return docs

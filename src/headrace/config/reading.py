"""From file, environment and flags (each overriding the one before) to one ``Config``, with the origin of every value and every mistake at once.

Owns the order of precedence and the wording of mistakes. Does not know what a setting is for. Nothing here is read twice or later: a running broker
keeps the value it was started with.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.config.units import parse_bytes, parse_duration_ms, unit_of
from headrace.model.config import Config, Undeclared
from headrace.model.errors import Invalid
from headrace.model.relations import contradictions
from headrace.model.specs import QueueSpec, StreamSpec

ENV_PREFIX: Final = "HEADRACE_"
MISTAKES_MAX: Final = 100
DEFAULT_ORIGIN: Final = "default"


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong: ``setting`` as ``section.field``, ``origin`` where it was written."""

    setting: str
    origin: str
    message: str

    def __str__(self) -> str:
        return f"{self.setting} ({self.origin}): {self.message}" if self.origin else f"{self.setting}: {self.message}"


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, where each setting came from, and what is wrong with it (wrong settings hold their default)."""

    config: Config
    origins: dict[str, str]
    mistakes: tuple[Mistake, ...] = ()


def load(file: str | Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, tuple[str, str]] | None = None) -> Loaded:
    """As ``read``, but ``Invalid`` naming every mistake if there is one."""
    loaded = read(file, env, flags)
    if loaded.mistakes:
        lines = [str(m) for m in loaded.mistakes]
        head = "the configuration has a mistake" if len(lines) == 1 else f"the configuration has {len(lines)} mistakes"
        raise Invalid(f"{head}: " + "\n  ".join(["", *lines]).rstrip(), hint="correct them; `headrace config check` says when all is well")
    return loaded


def read(file: str | Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, tuple[str, str]] | None = None) -> Loaded:
    """The configuration in ``file`` (TOML), ``env`` (None = this process's environment) and ``flags`` (setting -> (flag as written, value))."""
    reading = _Reading()
    if file is not None:
        reading.file(Path(file))
    reading.environment(os.environ if env is None else env)
    for setting, (flag, text) in (flags or {}).items():
        reading.text(tuple(setting.split(".")), text, flag)
    return reading.result()


def settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Every setting as (``section.field``, value), in the order of their declaration; ``undeclared`` as a whole."""
    for path in FIELDS:
        value: Any = config
        for part in path:
            value = getattr(value, part)
        yield ".".join(path), value


def _fields(cls: type, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in msgspec.structs.fields(cls):
        here = (*path, field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _fields(field.type, here)
        else:
            yield here, field.type


FIELDS: Final[dict[tuple[str, ...], Any]] = dict(_fields(Config, ()))
"""Path of every setting and its type."""
_TABLES: Final = {path[:n] for path in FIELDS for n in range(1, len(path))}
_SPEC_FIELDS: Final = {kind: {f.name: f.type for f in msgspec.structs.fields(cls)} for kind, cls in (("queue", QueueSpec), ("stream", StreamSpec))}


class _Reading:
    """Collects values and mistakes over all sources."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], Any] = {}
        self.origins: dict[str, str] = {}
        self.mistakes: list[Mistake] = []

    def wrong(self, path: tuple[str, ...], origin: str, message: str) -> None:
        if len(self.mistakes) < MISTAKES_MAX:
            self.mistakes.append(Mistake(".".join(path), origin, message))

    def file(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            table = tomllib.loads(text)
        except OSError as e:
            self.wrong(("file",), str(path), f"cannot be read: {e.strerror or e}")
            return
        except UnicodeDecodeError as e:
            self.wrong(("file",), str(path), f"is not UTF-8 text: {e.reason} at byte {e.start}")
            return
        except tomllib.TOMLDecodeError as e:
            self.wrong(("file",), str(path), f"is not TOML: {e}")
            return
        lines = _line_numbers(text)
        self._table((), table, path.name, lines)

    def _table(self, path: tuple[str, ...], table: dict[str, Any], name: str, lines: dict[tuple[str, ...], int]) -> None:
        for key, value in table.items():
            here = (*path, key)
            origin = f"{name}:{lines[here]}" if here in lines else name
            if here == ("undeclared",):
                self._undeclared(value, origin)
            elif here in _TABLES:
                if isinstance(value, dict):
                    self._table(here, value, name, lines)
                else:
                    self.wrong(here, origin, f"is a section, write [{'.'.join(here)}] and its settings below it")
            elif here in FIELDS:
                self._take(here, value, origin, text=False)
            else:
                self.wrong(here, origin, _unknown(here))

    def environment(self, env: Mapping[str, str]) -> None:
        for name in sorted(env):
            if name.startswith(ENV_PREFIX) and "__" in name[len(ENV_PREFIX) :]:
                self.text(tuple(name[len(ENV_PREFIX) :].lower().split("__")), env[name], name)

    def text(self, path: tuple[str, ...], value: str, origin: str) -> None:
        """Takes a value that is written as text (environment or flag)."""
        if path == ("undeclared",) or path not in FIELDS:
            self.wrong(path, origin, "can only be set in the file" if path[0] == "undeclared" else _unknown(path))
        else:
            self._take(path, value, origin, text=True)

    def _take(self, path: tuple[str, ...], value: Any, origin: str, *, text: bool) -> None:
        try:
            self.values[path] = _convert(path[-1], FIELDS[path], value, text=text)
            self.origins[".".join(path)] = origin
        except ValueError as e:
            self.wrong(path, origin, str(e))

    def _undeclared(self, rules: Any, origin: str) -> None:
        if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
            self.wrong(("undeclared",), origin, "is a list of rules, write [[undeclared]] before each")
            return
        taken = []
        for i, rule in enumerate(rules):
            path = f"undeclared[{i}]"
            settings = rule.get("settings", {})
            fields = _SPEC_FIELDS.get(rule.get("kind", "queue"), _SPEC_FIELDS["queue"])
            converted: dict[str, Any] = {}
            for key, value in settings.items() if isinstance(settings, dict) else ():
                if key not in fields:
                    self.wrong((path, "settings", key), origin, "there is no such setting" + _meant(key, fields))
                    continue
                try:
                    converted[key] = _convert(key, fields[key], value, text=False)
                except ValueError as e:
                    self.wrong((path, "settings", key), origin, str(e))
            for key in rule:
                if key not in Undeclared.__struct_fields__:
                    self.wrong((path, key), origin, "there is no such setting" + _meant(key, Undeclared.__struct_fields__))
            known = {k: v for k, v in rule.items() if k in Undeclared.__struct_fields__}
            try:
                taken.append(msgspec.convert({**known, "settings": converted if isinstance(settings, dict) else settings}, Undeclared))
            except msgspec.ValidationError as e:
                self.wrong((path,), origin, _plain(str(e)))
        self.values[("undeclared",)] = tuple(taken)
        self.origins["undeclared"] = origin

    def result(self) -> Loaded:
        config = _build(Config, (), self.values)
        flawed = {m.setting for m in self.mistakes}
        for setting, message in contradictions(config):
            if not any(f == setting or f.startswith(setting) for f in flawed):
                self.mistakes.append(Mistake(setting, self.origins.get(setting.split("[", maxsplit=1)[0], ""), message))
        origins = {setting: self.origins.get(setting, DEFAULT_ORIGIN) for setting, _ in settings(config)}
        return Loaded(config, origins, tuple(self.mistakes))


def _build(cls: Any, path: tuple[str, ...], values: Mapping[tuple[str, ...], Any]) -> Any:
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        here = (*path, field.name)
        if here in _TABLES:
            given[field.name] = _build(field.type, here, values)
        elif here in values:
            given[field.name] = values[here]
    return cls(**given)


def _convert(name: str, kind: Any, value: Any, *, text: bool) -> Any:
    """``value`` as its field wants it; ``ValueError`` with a message for people."""
    unit = unit_of(name)
    parse = {"ms": parse_duration_ms, "bytes": parse_bytes}.get(unit)
    many = getattr(kind, "__origin__", None) is tuple
    if text and many:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if parse is not None and isinstance(value, str):
        value = parse(value)
    elif parse is not None and isinstance(value, list):
        value = [parse(v) if isinstance(v, str) else v for v in value]
    try:
        return msgspec.convert(value, kind, strict=not text)
    except msgspec.ValidationError as e:
        raise ValueError(f"{_plain(str(e))}, is {value!r}" if "got" not in str(e) else f"{_plain(str(e))} ({value!r})") from None


def _plain(message: str) -> str:
    """msgspec's sentence in the words of this reader."""
    for theirs, ours in (("`str`", "text"), ("`int`", "a number"), ("`array`", "a list"), ("`object`", "a table"), (" - at `$.", " at `")):
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


def _unknown(path: tuple[str, ...]) -> str:
    siblings = [p[len(path) - 1] for p in FIELDS if len(p) >= len(path) and p[: len(path) - 1] == path[:-1]]
    if not siblings:
        return "there is no such section" + _meant(path[0], [p[0] for p in FIELDS])
    meant = _meant(path[-1], siblings)
    elsewhere = next((p for p in FIELDS if p[-1] == path[-1]), None)
    if not meant and elsewhere:
        meant = f"; did you mean {elsewhere[-1]} in [{'.'.join(elsewhere[:-1])}]?"
    if len(path) == 1:
        return "there is no such section" + (meant or f"; there are {_few(siblings)}")
    return "there is no such setting" + (meant or f"; [{'.'.join(path[:-1])}] has {_few(siblings)}")


def _few(names: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:12]) + (", ..." if len(unique) > 12 else "")


def _meant(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(dict.fromkeys(known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


_HEADER: Final = re.compile(r"^\s*\[\[?\s*([A-Za-z0-9_.\s-]+?)\s*\]\]?")
_KEY: Final = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")


def _line_numbers(text: str) -> dict[tuple[str, ...], int]:
    """Line of each bare key, as far as a look at each line tells (a multi-line string may fool it, which costs a wrong line number)."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = tuple(part.strip() for part in header[1].split("."))
            found.setdefault(section, number)
        elif key := _KEY.match(line):
            found.setdefault((*section, *key[1].split(".")), number)
    return found

"""How people write a declared config: TOML or a mapping in, a ``Declared`` or all mistakes at once out, each with where it stands.

Owns the spelling (roles, bare lists, addresses, options at the top or under ``[options]``) and what is worth a warning. Knows no broker and no file.
"""

import re
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import msgspec

from headrace.config.units import parse_duration_ms
from headrace.model.formation import (
    CONFIRMED_MAX,
    DAY_MS,
    DISCARD_KEEP_MS,
    MEMBERS_MAX,
    NAME_PATTERN,
    RESET,
    VERSION_MAX,
    VOTERS_MAX,
    Declared,
    DeclaredMember,
    Role,
    contradictions,
    default_address,
)  # fmt: skip

TEXT_CHARACTERS_MAX: Final = 256 * 1024
_NAME: Final = re.compile(NAME_PATTERN)
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_ROLES: Final[dict[str, Role]] = {"voter": "voter", "disc": "voter", "disk": "voter", "observer": "observer", "ram": "observer"}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "form_requires": ("all", "voters"),
    "wipe_policy": ("confirm", "auto"),
    "reset_policy": ("once", "always"),
    "on_removed": ("idle", "exit"),
    "on_conflict": ("idle", "exit"),
}
_OPTIONS: Final = (*_CHOICES, "discard_keep")
_KEYS: Final = ("version", "gospel", "members", "confirm_discard", "options", *_OPTIONS)


class Mistake(msgspec.Struct, frozen=True):
    """What is wrong and where: a key as it is written, ``members.hostA.role``."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """``config`` is None exactly if there are mistakes."""

    config: Declared | None = None
    mistakes: tuple[Mistake, ...] = ()
    warnings: tuple[str, ...] = ()


def parse_text(text: str, *, version: int = 0) -> Parsed:
    """A config in TOML; ``version`` counts in place of its own, 0 = its own."""
    if len(text) > TEXT_CHARACTERS_MAX:
        return Parsed(mistakes=(Mistake("", f"a cluster config has at most {TEXT_CHARACTERS_MAX} characters, this one has {len(text)}"),))
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        return Parsed(mistakes=(Mistake("", f"this is no TOML: {e}"),))
    return parse(table, version=version)


def parse(table: object, *, version: int = 0) -> Parsed:
    """A config as a mapping, as TOML or JSON give it; ``version`` as of ``parse_text``. Never raises, whatever is in it."""
    reading = _Reading()
    if not isinstance(table, Mapping):
        reading.wrong("", "a cluster config is a table")
        return Parsed(mistakes=tuple(reading.mistakes))
    return reading.config({**table, "version": version} if version else table)


def parse_voters(text: str) -> Parsed:
    """``a,b,c`` or ``a=HOST:PORT,b``: the version-1 config of ``--voters``."""
    members: dict[str, Any] = {}
    twice: list[Mistake] = []
    for item in text.split(","):
        name, _, address = item.strip().partition("=")
        if name in members:
            twice.append(Mistake(f"members.{name}", "is named twice"))
        members[name] = {"address": address} if address else "voter"
    parsed = parse({"version": 1, "members": members})
    return Parsed(mistakes=(*twice, *parsed.mistakes)) if twice else parsed


class _Reading:
    """One config that is being read; gathers every mistake."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def wrong(self, where: str, what: str) -> None:
        self.mistakes.append(Mistake(where, what))

    def config(self, table: Mapping[str, Any]) -> Parsed:
        for key in table:
            if key not in _KEYS:
                self.wrong(str(key), f"is no key of a cluster config; there are {', '.join(_KEYS)}")
        version = self._version(table)
        members = self._members(table.get("members"), "members" in table)
        gospel = self._gospel(table.get("gospel", ""), members)
        confirmed = self._confirmed(table.get("confirm_discard", []))
        options = self._options(table)
        if self.mistakes:
            return Parsed(mistakes=tuple(self.mistakes))
        config = Declared(version=version, members=tuple(members), gospel=gospel, confirm_discard=confirmed, **options)
        assert not contradictions(config), contradictions(config)
        return Parsed(config=config, warnings=_warnings(config))

    def _version(self, table: Mapping[str, Any]) -> int:
        version = table.get("version")
        if isinstance(version, int) and not isinstance(version, bool) and 1 <= version <= VERSION_MAX:
            return version
        self.wrong("version", "is missing" if version is None else f"{version!r} is no version: an integer from 1 on, higher for a younger config")
        return 1

    def _members(self, value: Any, given: bool) -> list[DeclaredMember]:
        found: list[DeclaredMember] = []
        before = len(self.mistakes)
        if isinstance(value, Mapping):
            for name, what in value.items():
                self._member(found, f"members.{name}", name, what)
        elif isinstance(value, list | tuple):
            for at, name in enumerate(value):
                self._member(found, f"members[{at}]", name, "voter")
        else:
            self.wrong("members", "must be a table of names and roles, or a list of names" if given else "is missing")
            return found
        if len(found) > MEMBERS_MAX:
            self.wrong("members", f"at most {MEMBERS_MAX} can be listed")
        found.sort(key=lambda m: m.name)
        addresses: dict[str, str] = {}
        for one, other in pairwise(found):
            if one.name == other.name:
                self.wrong(f"members.{one.name}", "is named twice")
        for member in found:
            first = addresses.setdefault(member.address, member.name)
            if first != member.name:
                self.wrong(f"members.{member.name}", f"has the address of {first}: {member.address}")
        voters = sum(m.role == "voter" for m in found)
        if not voters and len(self.mistakes) == before:
            self.wrong("members", "nobody is a voter: a cluster needs at least one")
        if voters > VOTERS_MAX:
            self.wrong("members", f"{voters} voters: at most {VOTERS_MAX} make sense, let the others be observers")
        return found

    def _member(self, found: list[DeclaredMember], where: str, name: Any, what: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == RESET:
            self.wrong(where, f"{name!r} is no name of a member: letters, digits, dots, hyphens, at most 63, and not {RESET!r}")
            return
        table = what if isinstance(what, Mapping) else {"role": what}
        for key in table:
            if key not in ("role", "address"):
                self.wrong(f"{where}.{key}", "is no key of a member; there are role and address")
        role, address = table.get("role", "voter"), table.get("address", default_address(name))
        if not isinstance(role, str) or role not in _ROLES:
            self.wrong(where, f"{role!r} is no role: voter (or disc, disk), observer (or ram)")
            role = "voter"
        if not _is_address(address):
            self.wrong(f"{where}.address", f"{address!r} is no address: HOST:PORT")
            address = default_address(name)
        found.append(DeclaredMember(name=name, role=_ROLES[role], address=address))

    def _gospel(self, value: Any, members: list[DeclaredMember]) -> str:
        if not isinstance(value, str):
            self.wrong("gospel", f"must be {RESET!r} or the name of a member")
            return ""
        if value not in ("", RESET) and all(m.name != value for m in members):
            self.wrong("gospel", f"{value!r} is no member: name one of {', '.join(m.name for m in members) or 'the members'}, or {RESET!r}")
        return value

    def _confirmed(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or any(not isinstance(v, str) or not v or len(v) > 255 for v in value):
            self.wrong("confirm_discard", "must be a list of cluster ids")
            return ()
        if len(value) > CONFIRMED_MAX:
            self.wrong("confirm_discard", f"at most {CONFIRMED_MAX} can be listed")
        return tuple(sorted(set(value)))

    def _options(self, table: Mapping[str, Any]) -> dict[str, Any]:
        inner = table.get("options", {})
        if not isinstance(inner, Mapping):
            self.wrong("options", "must be a table")
            inner = {}
        found: dict[str, Any] = {}
        for key, value in inner.items():
            if key == "members":
                if value in ("open", "closed"):
                    found["undeclared"] = value
                else:
                    self.wrong("options.members", f"{value!r}: must be open or closed")
            elif key not in _OPTIONS:
                self.wrong(f"options.{key}", f"is no option; there are members, {', '.join(_OPTIONS)}")
            elif key in table:
                self.wrong(f"options.{key}", "is given twice, at the top and among the options")
            else:
                self._option(found, f"options.{key}", key, value)
        for key in _OPTIONS:
            if key in table:
                self._option(found, key, key, table[key])
        return found

    def _option(self, found: dict[str, Any], where: str, key: str, value: Any) -> None:
        if key == "discard_keep":
            found["discard_keep_ms"] = self._keep(where, value)
        elif isinstance(value, str) and value in _CHOICES[key]:
            found[key] = value
        else:
            self.wrong(where, f"{value!r}: must be {' or '.join(_CHOICES[key])}")

    def _keep(self, where: str, value: Any) -> int:
        try:
            keep_ms = parse_duration_ms(value) if isinstance(value, str) else -1
        except (ValueError, OverflowError):
            keep_ms = -1
        if 0 <= keep_ms <= 3650 * DAY_MS:
            return keep_ms
        self.wrong(where, f"{value!r} is no duration up to ten years: write for instance 12h or 7d")
        return DISCARD_KEEP_MS


def _is_address(value: Any) -> bool:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) and len(value) <= 255 else None
    return match is not None and 1 <= int(match[2]) <= 65535


def _warnings(config: Declared) -> tuple[str, ...]:
    found: list[str] = []
    voters = len(config.voters)
    if voters % 2 == 0:
        found.append(f"{voters} voters: an even number survives no more failures than {voters - 1}")
    if config.wipe_policy == "auto":
        found.append("wipe_policy auto: data of clusters that the gospel does not name is set aside without being asked about")
    return tuple(found)

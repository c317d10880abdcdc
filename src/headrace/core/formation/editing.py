"""The next version of a declared config: one voter more or less; a first one of brokers that were found; and a config as the text of a file.

Owns what such a change may be and what it leaves as it is. Pure. A gospel is meant for the version that it was written in: ``reset`` does not go on
into the next one.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from headrace.config.units import duration_text
from headrace.core.formation.parsing import Parsed, parse
from headrace.model.errors import Conflict, Invalid, NotFound
from headrace.model.formation import DISCARD_KEEP_MS, RESET, Declared, DeclaredMember, default_address

FEW_VOTERS: Final = 3
MORE_VOTERS: Final = 5
MORE_VOTERS_FROM: Final = 7
"""Members from which on five of them vote."""


def proposed(found: Mapping[str, str]) -> Parsed:
    """A first version with these members, names and addresses: the first three of them vote, of seven or more the first five, and an odd number of
    fewer."""
    count = MORE_VOTERS if len(found) >= MORE_VOTERS_FROM else FEW_VOTERS if len(found) >= FEW_VOTERS else 1
    roles = {name: "voter" if at < count else "observer" for at, name in enumerate(sorted(found))}
    return parse({"version": 1, "members": {name: {"role": role, "address": found[name]} for name, role in roles.items()}})


def with_voter(config: Declared, name: str, address: str = "") -> Declared:
    """``name`` votes too. ``address`` "": as it was, for a new one its name at the default port. ``Conflict`` if it is one already, ``Invalid`` with
    every mistake that the change would be."""
    before = config.member(name)
    if before is not None and before.role == "voter":
        raise Conflict(f"{name} is a voter already", hint="headrace cluster members shows who is what")
    where = address or (before.address if before is not None else default_address(name))
    return _checked(config, DeclaredMember(name=name, role="voter", address=where), name)


def without_vote(config: Declared, name: str) -> Declared:
    """``name`` becomes an observer. ``NotFound``, ``Conflict``."""
    member = _voter(config, name)
    return _checked(config, replace(member, role="observer"), name)


def without(config: Declared, name: str) -> Declared:
    """``name`` leaves the cluster. ``NotFound``, ``Conflict``."""
    member = config.member(name)
    if member is None:
        raise NotFound(f"version {config.version} does not list {name}", hint="headrace cluster members shows who is listed")
    if member.role == "voter":
        _voter(config, name)
    return _checked(config, None, name)


def _voter(config: Declared, name: str) -> DeclaredMember:
    member = config.member(name)
    if member is None:
        raise NotFound(f"version {config.version} does not list {name}", hint="headrace cluster members shows who is listed")
    if member.role != "voter":
        raise Conflict(f"{name} is an observer: it has no vote", hint="headrace cluster members shows who is what")
    if config.voters == (name,):
        raise Conflict(f"{name} is the last voter: without it there is no cluster", hint="add another voter first")
    return member


def _checked(config: Declared, member: DeclaredMember | None, name: str) -> Declared:
    members = {m.name: m for m in config.members if m.name != name} | ({name: member} if member is not None else {})
    gospel = config.gospel if config.gospel in members and config.gospel != RESET else ""
    changed = replace(config, version=config.version + 1, members=tuple(members.values()), gospel=gospel)
    parsed = parse(as_table(changed))
    if parsed.config is None:
        raise Invalid("; ".join(str(m) for m in parsed.mistakes), hint="correct the name or the address")
    return parsed.config


def as_table(config: Declared) -> dict[str, Any]:
    """As ``parsing.parse`` takes it; what is as it would be anyway is left out."""
    plain = Declared(version=1, members=config.members)
    table: dict[str, Any] = {"version": config.version}
    if config.gospel:
        table["gospel"] = config.gospel
    if config.confirm_discard:
        table["confirm_discard"] = list(config.confirm_discard)
    for key in ("form_requires", "wipe_policy", "reset_policy", "on_removed", "on_conflict"):
        if getattr(config, key) != getattr(plain, key):
            table[key] = getattr(config, key)
    if config.discard_keep_ms != DISCARD_KEEP_MS:
        table["discard_keep"] = duration_text(config.discard_keep_ms)
    if config.undeclared != plain.undeclared:
        table["options"] = {"members": config.undeclared}
    table["members"] = {m.name: {"role": m.role, "address": m.address} for m in config.members}
    return table


def as_toml(config: Declared) -> str:
    """As ``parsing.parse_text`` reads it."""
    table = as_table(config)
    members, options = table.pop("members"), table.pop("options", {})
    lines = [f"{key} = {_string(value)}" for key, value in table.items()]
    if options:
        lines += ["", "[options]", *(f"{key} = {_string(value)}" for key, value in options.items())]
    lines += ["", "[members]"]
    lines += [f"{_string(name)} = {{ role = {_string(m['role'])}, address = {_string(m['address'])} }}" for name, m in members.items()]
    return "\n".join(lines) + "\n"


def _string(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

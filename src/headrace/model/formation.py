"""The declared cluster config: which cluster should exist, as one value with a version, a canonical form and a hash.

Owns its fields, its bounds, the relations that hold in every one of them, and how two of them compare. Does not know how people write it
(``core.formation.parsing``) nor what is done about it (``core.formation``).

D1 members are in order of their names, none twice, no address twice, at least one of them a voter. D2 the gospel is "" (none), ``reset`` or a
member's name. D3 equal content means equal hash, whatever order it was written in; the version is part of the content.
"""

import hashlib
from enum import Enum
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from headrace.model.ports import DefaultPort

VERSION_MAX: Final = (1 << 63) - 1
MEMBERS_MAX: Final = 256
VOTERS_MAX: Final = 9
"""More of them make every agreement slower and no cluster safer."""
CONFIRMED_MAX: Final = 64
NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
RESET: Final = "reset"
DAY_MS: Final = 24 * 3600 * 1000
DISCARD_KEEP_MS: Final = 7 * DAY_MS

Role = Literal["voter", "observer"]

_Name = Annotated[str, Meta(pattern=f"^{NAME_PATTERN}$")]
_Text = Annotated[str, Meta(max_length=255)]


class DeclaredMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A broker that shall be in the cluster. A voter hosts a consensus member, an observer uses it."""

    name: _Name
    role: Role = "voter"
    address: _Text = ""
    """``HOST:PORT`` of its peer listener, never empty in a config that was parsed."""


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's head."""

    version: Annotated[int, Meta(ge=1, le=VERSION_MAX)]
    """The higher is the younger."""
    members: Annotated[tuple[DeclaredMember, ...], Meta(min_length=1, max_length=MEMBERS_MAX)]
    gospel: _Text = ""
    """Whose data survives when clusters meet: a member's, ``reset`` = nobody's, "" = none is to be given up."""
    confirm_discard: Annotated[tuple[_Text, ...], Meta(max_length=CONFIRMED_MAX)] = ()
    """Ids of the clusters whose data may be set aside, in order."""
    undeclared: Literal["closed", "open"] = "closed"
    """``open``: authenticated brokers that are not listed join as observers. Written ``members`` among the options."""
    form_requires: Literal["all", "voters"] = "all"
    wipe_policy: Literal["confirm", "auto"] = "confirm"
    reset_policy: Literal["once", "always"] = "once"
    on_removed: Literal["idle", "exit"] = "idle"
    on_conflict: Literal["idle", "exit"] = "idle"
    discard_keep_ms: Annotated[int, Meta(ge=0, le=3650 * DAY_MS)] = DISCARD_KEEP_MS

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.members)

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(m.name for m in self.members if m.role == "voter")

    def member(self, name: str) -> DeclaredMember | None:
        return next((m for m in self.members if m.name == name), None)

    @property
    def required(self) -> tuple[str, ...]:
        """Those without whom nothing may be formed."""
        return self.names if self.form_requires == "all" else self.voters

    @property
    def seed(self) -> str:
        """The voter that gathers the promises of all others: the gospel if it is a voter, else the smallest name."""
        voters = self.voters
        return self.gospel if self.gospel in voters else voters[0]

    def confirms(self, cluster_id: str) -> bool:
        """Whether the data of that cluster may be set aside."""
        return self.wipe_policy == "auto" or cluster_id in self.confirm_discard


class Comparison(Enum):
    """How one config stands to another."""

    SAME = "same"
    YOUNGER = "younger"
    OLDER = "older"
    CONFLICT = "conflict"
    """The same version with other content."""


_encoder = msgspec.json.Encoder(order="deterministic")


def canonical(config: Declared) -> bytes:
    """The one form of it that counts."""
    return _encoder.encode(config)


@lru_cache(maxsize=1024)
def digest(config: Declared) -> str:
    """32 hexadecimal digits that stand for version and content."""
    return hashlib.sha256(canonical(config)).hexdigest()[:32]


def compare(one: tuple[int, str], other: tuple[int, str]) -> Comparison:
    """How ``one`` stands to ``other``, each as (version, hash)."""
    if one[0] != other[0]:
        return Comparison.YOUNGER if one[0] > other[0] else Comparison.OLDER
    return Comparison.SAME if one[1] == other[1] else Comparison.CONFLICT


def mark(config: Declared) -> tuple[int, str]:
    """Version and hash, by which configs are told apart."""
    return config.version, digest(config)


def default_address(name: str) -> str:
    """A bare name is its host, at the default peer port."""
    return f"{name}:{int(DefaultPort.PEER)}"


def contradictions(config: Declared) -> list[str]:
    """The relations of the module's head that ``config`` breaks."""
    wrong: list[str] = []
    names = config.names
    if list(names) != sorted(set(names)):
        wrong.append("members are named twice or not in order")
    addresses = [m.address for m in config.members]
    if "" in addresses or len(set(addresses)) < len(addresses):
        wrong.append("an address is missing or given twice")
    if not config.voters:
        wrong.append("nobody is a voter")
    if len(config.voters) > VOTERS_MAX:
        wrong.append(f"more than {VOTERS_MAX} are voters")
    if config.gospel not in ("", RESET) and config.gospel not in names:
        wrong.append("the gospel is no member")
    if RESET in names:
        wrong.append("a member is called reset")
    if list(config.confirm_discard) != sorted(set(config.confirm_discard)):
        wrong.append("confirm_discard names a cluster twice or is not in order")
    return wrong

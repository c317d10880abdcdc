"""What a broker must remember of its cluster: the records inside its data directory, and the charter, the document that its cluster keeps in the
coordinator.

Owns their fields and bytes. Does not know when they are written. Each kind has one slot; storing a record replaces what is in its slot in one step.
``Held`` and ``Aside`` lie beside the data and stay when the data is set aside; all others lie inside it and go with it.

Bytes: one format version, a CRC-32 of the rest, then msgpack. What is damaged is told from what a newer release wrote.
"""

import zlib
from typing import Annotated, Any, Final, Literal, NewType

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from headrace.model.errors import Damaged, UnsupportedVersion
from headrace.model.formation import MEMBERS_MAX, Declared, contradictions, mark

Directory = NewType("Directory", str)
"""Incarnation of a data directory: random, made when the directory is first used; a wiped machine has another."""

NONE: Final = Directory("")
FORMAT: Final = 1
GONE_MAX: Final = 256
EARLIER_MAX: Final = 16

_Id = Annotated[str, Meta(max_length=64)]
_Name = Annotated[str, Meta(min_length=1, max_length=63)]
_Number = Annotated[int, Meta(ge=0)]


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """A member as the cluster knows it."""

    name: _Name
    incarnation: Annotated[Directory, Meta(min_length=1, max_length=64)]
    seat: _Number = 0
    """Number of its place in the consensus, never given twice in a cluster; 0 = it has none."""
    address: Annotated[str, Meta(max_length=255)] = ""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that was a member: it never is again."""

    name: _Name
    incarnation: Directory
    version: _Number
    """Of the config that removed it; that under which a wiped machine was replaced."""
    replaced: bool = False
    """Another directory of the same name took its place."""
    address: str = ""


class Charter(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster has agreed on, one document in the coordinator, changed only by compare-and-swap on its revision."""

    cluster_id: Annotated[_Id, Meta(min_length=1)]
    revision: Annotated[int, Meta(ge=1)]
    config: Declared
    roster: Annotated[tuple[Enrolled, ...], Meta(max_length=2 * MEMBERS_MAX)]
    gone: Annotated[tuple[Gone, ...], Meta(max_length=GONE_MAX)] = ()
    generation: Annotated[int, Meta(ge=1)] = 1
    """Raised by every recovery from a survivor."""
    born: tuple[int, int] = (0, 0)
    """Version and ballot of the promises it was formed from."""
    reset: _Number = 0
    """Version of the config by which this cluster gives up its data and ends; 0 = it goes on."""
    supersedes: tuple[_Id, ...] = ()
    """Clusters of which this one is the recovered rest."""

    def enrolled(self, name: str) -> Enrolled | None:
        return next((e for e in self.roster if e.name == name), None)

    def has_gone(self, incarnation: Directory) -> Gone | None:
        return next((g for g in self.gone if g.incarnation == incarnation), None)


class Identity(msgspec.Struct, frozen=True, kw_only=True, tag="identity"):
    """Whose data this is."""

    node_id: _Id
    incarnation: Directory
    cluster_id: _Id = ""
    formed: bool = False
    """It has been a member of ``cluster_id``. False = FRESH."""
    standalone: bool = False
    """A cluster of its own, without a consensus member, version 0."""
    seat: _Number = 0
    """The place in the consensus that was taken here last."""
    settled: bool = False
    """The member in that place has been at work: it may never begin again without its data."""
    generation: _Number = 0
    removed_version: _Number = 0
    """The version of the config that removed it; 0 = it is a member."""
    aside: _Id = ""
    """The last order to set data aside that was carried out."""
    ordered_by: Charter | None = None
    """The charter that ended the cluster whose data was set aside: shown to members of it that were away."""
    recovering: bool = False
    """A survivor that starts the consensus again from its own data, alone."""


class Held(msgspec.Struct, frozen=True, kw_only=True, tag="held"):
    """The youngest config that this broker knows and goes by, or proposes."""

    config: Declared
    of: _Id = ""
    """The cluster that has committed it: who got it from there may only join, never form."""
    source: str = ""
    witness: Annotated[str, Meta(max_length=64)] = ""
    """The gospel's directory, where that was fresh when it took the config on: no other directory of that name is meant."""


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A promise that a younger config has ended. Until it is shown that nothing can come of it, nothing younger may be formed."""

    version: _Number
    ballot: _Number
    seed: _Name
    seed_incarnation: Directory
    voters: tuple[tuple[str, str], ...]
    """Names and addresses."""


class Promise(msgspec.Struct, frozen=True, kw_only=True, tag="promise"):
    """Given once per version and ballot, to one seed and one content. A higher ballot is the seed's after it lost its directory."""

    version: _Number
    hash: _Id
    ballot: _Number
    seed: _Name
    seed_incarnation: Directory
    voters: tuple[tuple[str, str], ...] = ()
    earlier: Annotated[tuple[Released, ...], Meta(max_length=EARLIER_MAX)] = ()


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True, tag="bootstrap"):
    """The seed's record that a cluster shall be: written once it has all promises."""

    cluster_id: Annotated[_Id, Meta(min_length=1)]
    config: Declared
    ballot: _Number
    seed: _Name
    seed_incarnation: Directory
    voters: tuple[Enrolled, ...]


class Acceptance(msgspec.Struct, frozen=True, kw_only=True, tag="acceptance"):
    """This directory belongs to that cluster, for good."""

    bootstrap: Bootstrap


class Applied(msgspec.Struct, frozen=True, kw_only=True, tag="applied"):
    """The newest charter that this broker has read from its own cluster."""

    charter: Charter


class Aside(msgspec.Struct, frozen=True, kw_only=True, tag="aside"):
    """The order to set the data of ``cluster_id`` aside; carried out once ``Identity.aside`` says so, resumed until then."""

    id: _Id
    cluster_id: _Id
    version: _Number
    reason: str
    keep_ms: _Number
    ordered_by: Charter | None = None


Record = Identity | Held | Promise | Bootstrap | Acceptance | Applied | Aside
Slot = Literal["identity", "held", "promise", "bootstrap", "acceptance", "applied", "aside"]
OUTSIDE: Final[tuple[Slot, ...]] = ("held", "aside")
"""Slots that stay when the data is set aside."""


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """All that is on the disk."""

    identity: Identity | None = None
    held: Held | None = None
    promise: Promise | None = None
    bootstrap: Bootstrap | None = None
    acceptance: Acceptance | None = None
    applied: Applied | None = None
    aside: Aside | None = None

    def stored(self, record: Record) -> "Records":
        return replace(self, **{slot_of(record): record})

    def without_data(self) -> "Records":
        """What is left once the data was set aside."""
        return Records(held=self.held, aside=self.aside)


def slot_of(record: Record) -> Slot:
    slot: Slot = record.__struct_config__.tag  # type: ignore[assignment]
    return slot


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_charters: msgspec.msgpack.Decoder[Charter] = msgspec.msgpack.Decoder(Charter)


def encode(record: Record | Charter) -> bytes:
    """The bytes of a record, or of the charter."""
    data = _encoder.encode(record)
    return bytes((FORMAT,)) + zlib.crc32(data).to_bytes(4, "big") + data


def _checked(data: bytes, what: str) -> memoryview:
    if data and data[0] > FORMAT:
        raise UnsupportedVersion(f"this {what} has format {data[0]}, this release reads up to {FORMAT}")
    if len(data) < 5 or data[0] != FORMAT or zlib.crc32(data[5:]) != int.from_bytes(data[1:5], "big"):
        raise Damaged(f"these {len(data)} bytes are no {what}")
    return memoryview(data)[5:]


def decode(data: bytes) -> Record:
    """The record in ``data``; ``Damaged`` or, of a newer release, ``UnsupportedVersion``."""
    record: Record = _decoded(_decoder, data, "record of the formation")
    for config in _configs(record):
        if wrong := contradictions(config):
            raise Damaged("the config in this record contradicts itself: " + "; ".join(wrong))
    return record


def decode_charter(data: bytes) -> Charter:
    """The charter in ``data``; raises as ``decode``."""
    charter: Charter = _decoded(_charters, data, "charter")
    if wrong := contradictions(charter.config):
        raise Damaged("the config in this charter contradicts itself: " + "; ".join(wrong))
    return charter


def _decoded(decoder: Any, data: bytes, what: str) -> Any:
    inner = _checked(data, what)
    try:
        return decoder.decode(inner)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Damaged(f"this {what} cannot be read: {e}") from None


def _configs(record: Record) -> tuple[Declared, ...]:
    if isinstance(record, Held | Bootstrap):
        return (record.config,)
    if isinstance(record, Acceptance):
        return (record.bootstrap.config,)
    return (record.charter.config,) if isinstance(record, Applied) else ()


def charter_of(bootstrap: Bootstrap, *, generation: int = 1, supersedes: tuple[str, ...] = ()) -> Charter:
    """The first charter of a cluster that was just formed."""
    return Charter(
        cluster_id=bootstrap.cluster_id, revision=1, config=bootstrap.config, roster=bootstrap.voters, generation=generation, supersedes=supersedes,
        born=(bootstrap.config.version, bootstrap.ballot),
    )  # fmt: skip


def newer(charter: Charter, than: Charter) -> bool:
    """Whether ``charter`` is a later state of the same cluster."""
    return charter.cluster_id == than.cluster_id and charter.revision > than.revision


def charter_mark(charter: Charter) -> tuple[int, str]:
    return mark(charter.config)

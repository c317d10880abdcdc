"""Queues and streams of the catalogue as far as placement is concerned: what their documents say of partitions, copies and routing.

Owns the reading of ``names/`` and ``deleted/``. Does not write there: the catalogue (``broker.catalogue``) owns the documents; fields that do not
matter here are skipped.
"""

from typing import Final

import msgspec

from headrace.core.control.picture import Item, item_of
from headrace.model.errors import Damaged
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec, Spec, StreamSpec

NAMES_PREFIX: Final = "names/"
DELETED_PREFIX: Final = "deleted/"


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's head."""

    id: str
    name: str
    partitions: tuple[PartitionId, ...]
    queue: QueueSpec | None = None
    stream: StreamSpec | None = None
    routing_version: int = 1

    @property
    def spec(self) -> Spec | None:
        return self.queue if self.queue is not None else self.stream


_decode = msgspec.msgpack.Decoder(Declared).decode


def read(value: bytes) -> Declared:
    """``Damaged`` if it is no document of the catalogue."""
    try:
        declared = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Damaged(f"this document of the catalogue cannot be read: {e}") from None
    if declared.spec is None:
        raise Damaged(f"{declared.name!r} is neither a queue nor a stream in the catalogue")
    return declared


def item(declared: Declared) -> Item:
    """What placement needs to know of it."""
    assert declared.spec is not None
    return item_of(declared.id, declared.name, declared.partitions, declared.spec)

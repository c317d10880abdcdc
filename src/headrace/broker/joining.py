"""The answers of several brokers to one verb, each about some partitions of a queue or stream, as one. Pure."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from headrace.broker.catalogue import Item
from headrace.model.errors import Malformed, NotFound
from headrace.wire import control

M = TypeVar("M", bound=control.Message)

_SUMS = ("ready", "leased", "delayed", "settled", "records", "bytes", "consumers", "publishers", "publish_rate", "deliver_rate", "settle_rate")


def numbered(item: Item, number: int) -> Sequence[int]:
    """The partitions that a verb is about which names one, or with -1 all; raises ``NotFound``."""
    if number >= len(item.partitions):
        raise NotFound(f"{item.name!r} has partitions 0..{len(item.partitions) - 1}, not {number}")
    return range(len(item.partitions)) if number < 0 else [number]


def joined(asked: control.Message, answers: Sequence[control.Reply]) -> control.Reply:
    """What all ``answers`` (at least one) say."""
    first = answers[0]
    if len(answers) == 1:
        return first
    replace = msgspec.structs.replace
    if isinstance(first, control.Done):
        return replace(first, count=sum(a.count for a in _alike(control.Done, answers)))
    if isinstance(first, control.Offsets):
        return replace(first, offsets=dict(sorted((n, at) for a in _alike(control.Offsets, answers) for n, at in a.offsets.items())))
    if isinstance(first, control.Cursors):
        rows = [row for a in _alike(control.Cursors, answers) for row in a.cursors]
        return replace(first, cursors=tuple(sorted(rows, key=lambda row: (row.partition, row.cursor))))
    if isinstance(first, control.Info):
        return infos(_alike(control.Info, answers))
    if isinstance(first, control.Inspected) and isinstance(asked, control.Inspect):
        found = _alike(control.Inspected, answers)
        messages = sorted((m for a in found for m in a.messages), key=lambda m: m.partition)
        limit = max(1, asked.limit)
        return replace(first, messages=tuple(messages[:limit]), more=len(messages) > limit or any(a.more for a in found))
    raise Malformed(f"several brokers answered {type(asked).__name__} with {type(first).__name__}")


def infos(found: Sequence[control.Info]) -> control.Info:
    """What several brokers say of the same queue or stream."""
    sums = {name: sum(getattr(info, name) for info in found) for name in _SUMS}
    return msgspec.structs.replace(
        found[0],
        partitions=tuple(sorted((row for info in found for row in info.partitions), key=lambda row: row.partition)),
        attention=tuple(text for info in found for text in info.attention),
        oldest_ms=max(info.oldest_ms for info in found),
        **sums,
    )


def _alike(kind: type[M], answers: Sequence[control.Reply]) -> list[M]:
    wrong = next((a for a in answers if not isinstance(a, kind)), None)
    if wrong is not None:
        raise Malformed(f"one broker answered with {kind.__name__}, another with {type(wrong).__name__}")
    return [a for a in answers if isinstance(a, kind)]

"""Verbs about all partitions of a queue or stream, asked of each partition's owner: which can be, and what their answers are together. Pure."""

from typing import TypeVar, cast

import msgspec

from headrace.wire import control

M = TypeVar("M", bound=control.Message)


def divisible(message: control.Message) -> bool:
    """Whether it is about all partitions, and as good done one by one."""
    if isinstance(message, control.Trim):
        return message.partition < 0 and message.offset < 0  # an offset belongs to one partition
    return isinstance(message, (control.Purge, control.Inspect, control.CursorSet)) and message.partition < 0


def joined(asked: control.Message, answers: list[M]) -> M:
    """The answers of all partitions, in order, as one."""
    first = answers[0]
    if isinstance(first, control.Done):
        done = [cast(control.Done, a) for a in answers]
        return cast(M, msgspec.structs.replace(first, count=sum(a.count for a in done)))
    if isinstance(first, control.Offsets):
        offsets = {n: at for a in answers for n, at in cast(control.Offsets, a).offsets.items()}
        return cast(M, msgspec.structs.replace(first, offsets=offsets))
    if isinstance(first, control.Inspected) and isinstance(asked, control.Inspect):
        messages = tuple(m for a in answers for m in cast(control.Inspected, a).messages)
        more = len(messages) > asked.limit or any(cast(control.Inspected, a).more for a in answers)
        return cast(M, msgspec.structs.replace(first, messages=messages[: asked.limit], more=more))
    return first

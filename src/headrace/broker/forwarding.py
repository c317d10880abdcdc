"""What brokers of a cluster ask each other about partitions: messages given to one, and verbs carried out where partitions are served.

Owns the way there and the bytes of questions and answers. What is given carries a producer and a sequence, so that it is stored once however often
it is asked (``outbox`` repeats it). An answer means committed; ``UnknownOutcome`` that it may be. A verb is carried out by ``parts`` of whoever is
asked, for the partitions that are named; whoever does not serve one of them refuses as ``Elsewhere``, before anything is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from headrace.broker.catalogue import Item
from headrace.broker.queue_partition import QueuePartition
from headrace.model import limits
from headrace.model.cluster import BrokerId
from headrace.model.errors import HeadraceError, Malformed
from headrace.wire import control
from headrace.wire.ingress import scan_run
from headrace.wire.peer import Service

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.cluster.transport import Transport

T = TypeVar("T")

TIMEOUT_MS: Final = 5_000
NAMES_MAX: Final = 10_000

_Name: TypeAlias = Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
_Number: TypeAlias = Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]


class Given(msgspec.Struct, frozen=True, kw_only=True, tag="given"):
    """PUBLISH frames for one partition: one run (``wire.ingress``). Answered by ``Taken``."""

    name: _Name
    partition: _Number
    frames: bytes


class Taken(msgspec.Struct, frozen=True):
    """They are committed, from that offset on."""

    base_offset: int


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    """A verb about those partitions (none: about the broker itself). Answered by its reply."""

    request: bytes
    partitions: Annotated[tuple[_Number, ...], Meta(max_length=limits.PARTITIONS_MAX)] = ()


class Figures(msgspec.Struct, frozen=True, kw_only=True, tag="figures"):
    """What the broker has of these queues and streams. Answered by ``control.Listing``."""

    names: Annotated[tuple[_Name, ...], Meta(max_length=NAMES_MAX)]


class Chunk(msgspec.Struct, frozen=True, kw_only=True, tag="chunk"):
    """The next few messages of one partition that a move or redrive takes. Answered by ``Moved``."""

    name: _Name
    partition: _Number
    to: _Name
    redrive: bool
    filter: control.Filter | None
    after: int
    """Offset of the last message looked at, -1 = none yet."""
    end: int
    """Messages from here on came after the job began; -1: it begins here."""
    count: Annotated[int, Meta(ge=1, le=limits.PREFETCH_MESSAGES_MAX)]


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a ``Chunk``."""

    looked_at: int
    taken: int
    after: int
    end: int
    more: bool
    waits: str = ""
    """Why what was taken before is not at its target yet."""


Question: TypeAlias = Given | Asked | Figures | Chunk

_encode = msgspec.msgpack.Encoder().encode
_question: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_taken = msgspec.msgpack.Decoder(Taken).decode
_moved = msgspec.msgpack.Decoder(Moved).decode


async def give(broker: Broker, item: Item, given: Given) -> int:
    """Has it stored where that partition is served; its base offset once that is committed."""
    owner = elsewhere(broker, item, given.partition)
    if not owner:
        return await _append(broker, item, given)
    return _read(owner, _taken, await _ask(broker, owner, given, TIMEOUT_MS)).base_offset


async def move(broker: Broker, item: Item, chunk: Chunk, timeout_ms: int) -> Moved:
    """Has the messages taken where that partition is served."""
    owner = elsewhere(broker, item, chunk.partition)
    if not owner:
        return await _move(broker, chunk)
    return _read(owner, _moved, await _ask(broker, owner, chunk, timeout_ms))


async def ask(broker: Broker, owner: str, request: control.Request, partitions: Sequence[int], *, timeout_ms: int = TIMEOUT_MS) -> control.Reply:
    """Has another broker carry out a verb for partitions that it serves."""
    asked = Asked(request=control.encode(request), partitions=tuple(partitions))
    reply: control.Reply = _read(owner, control.decode_reply, await _ask(broker, owner, asked, timeout_ms))
    return reply


async def figures(broker: Broker, owner: str, names: Sequence[str], *, timeout_ms: int) -> control.Listing:
    """What another broker has of those queues and streams."""
    found = _read(owner, control.decode_reply, await _ask(broker, owner, Figures(names=tuple(names)), timeout_ms))
    if not isinstance(found, control.Listing):
        raise Malformed(f"broker {owner} answered a question for figures with {type(found).__name__}")
    return found


def elsewhere(broker: Broker, item: Item, number: int) -> str:
    """Id of the other broker that serves a partition; "" = this one does, or nobody."""
    cluster = broker.cluster
    owner = "" if cluster is None else cluster.owner(item.partitions[number])
    return "" if owner == broker.id else owner


async def _ask(broker: Broker, owner: str, question: Question, timeout_ms: int) -> bytes:
    assert broker.cluster is not None
    return await broker.cluster.request(BrokerId(owner), _encode(question), timeout_ms=timeout_ms)


def _read(owner: str, decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed(f"the answer of broker {owner} cannot be read: {e}") from None


def serve(broker: Broker, transport: Transport) -> None:
    """Answers other brokers."""

    async def answer(peer: BrokerId, body: bytes) -> bytes:
        try:
            question = _question.decode(body)
            request = control.decode_request(question.request) if isinstance(question, Asked) else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Malformed(f"what broker {peer} asks cannot be read: {e}") from None
        broker.refresh()
        if isinstance(question, Given):
            return _encode(Taken(await _append(broker, _item(broker, question), question)))
        if isinstance(question, Chunk):
            _item(broker, question)
            return _encode(await _move(broker, question))
        if isinstance(question, Figures):
            return control.encode(await broker.parts.figures(question.names))
        assert request is not None
        name = getattr(request, "name", "")
        count = len(broker.catalogue.get(name).partitions) if name else 0
        if any(n >= count for n in question.partitions) or (name and not question.partitions):
            raise Malformed(f"{name!r} has {count} partitions; a verb is about some of them, not {question.partitions[:10]}")
        return control.encode(await broker.parts.call(request, question.partitions))

    transport.on_request(Service.VERBS, answer)


def _item(broker: Broker, question: Given | Chunk) -> Item:
    item = broker.catalogue.get(question.name)
    if question.partition >= len(item.partitions):
        raise Malformed(f"{question.name!r} has partitions 0..{len(item.partitions) - 1}, not {question.partition}")
    return item


async def _move(broker: Broker, chunk: Chunk) -> Moved:
    item = broker.catalogue.get(chunk.name, "queue")
    await broker.loading.awake(item, (chunk.partition,))
    partition = broker.loading.partition(item, chunk.partition)
    assert isinstance(partition, QueuePartition)
    return await broker.outbox.chunk(partition, chunk)


async def _append(broker: Broker, item: Item, given: Given) -> int:
    await broker.loading.awake(item, (given.partition,))
    done: asyncio.Future[int] = broker.loop.create_future()

    def answer(base: int, error: HeadraceError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(base)
        else:
            done.set_exception(error)

    frames = given.frames
    if len(frames) < 4 or 4 + int.from_bytes(frames[:4], "big") > len(frames):
        raise Malformed("what is given to another partition is no frame")
    run = scan_run(frames, 0, len(frames), limits.FRAME_BYTES_MAX, stamped=True)
    if run.error is not None:
        raise run.error
    if run.next_pos != len(frames) or run.producer_id < 0:
        raise Malformed("what is given to another partition is one run of frames with a producer")
    broker.loading.partition(item, given.partition).append_own(run, frames, answer)
    return await done

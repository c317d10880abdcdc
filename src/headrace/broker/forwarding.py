"""Messages that a partition gives to another, wherever that is served: appended here, or asked of the broker that serves it.

Owns the way there and the bytes of the question. What is given carries a producer and a sequence, so that it is stored once however often it is
asked (``outbox`` repeats it). An answer means committed; ``UnknownOutcome`` that it may be.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from headrace.broker.catalogue import Item
from headrace.model import limits
from headrace.model.cluster import BrokerId
from headrace.model.errors import HeadraceError, Malformed
from headrace.wire.ingress import scan_run
from headrace.wire.peer import Service

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.cluster.transport import Transport

TIMEOUT_MS: Final = 5_000


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """PUBLISH frames for one partition: one run (``wire.ingress``)."""

    name: Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
    partition: Annotated[int, Meta(ge=0, lt=limits.PARTITIONS_MAX)]
    frames: bytes


class Taken(msgspec.Struct, frozen=True):
    """They are committed, from that offset on."""

    base_offset: int


_encode = msgspec.msgpack.Encoder().encode
_given = msgspec.msgpack.Decoder(Given).decode
_taken = msgspec.msgpack.Decoder(Taken).decode


async def give(broker: Broker, item: Item, given: Given) -> int:
    """Has it stored where that partition is served; its base offset once that is committed."""
    cluster = broker.cluster
    owner = "" if cluster is None else cluster.owner(item.partitions[given.partition])
    if cluster is None or owner in ("", broker.id):
        return await _append(broker, item, given)
    answer = await cluster.request(BrokerId(owner), _encode(given), timeout_ms=TIMEOUT_MS)
    try:
        return _taken(answer).base_offset
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"the answer of broker {owner} cannot be read: {e}") from None


def serve(broker: Broker, transport: Transport) -> None:
    """Answers other brokers."""

    async def answer(peer: BrokerId, body: bytes) -> bytes:
        try:
            given = _given(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"what broker {peer} asks cannot be read: {e}") from None
        item = broker.catalogue.get(given.name)
        if given.partition >= len(item.partitions):
            raise Malformed(f"{given.name!r} has partitions 0..{len(item.partitions) - 1}, not {given.partition}")
        return _encode(Taken(await _append(broker, item, given)))

    transport.on_request(Service.VERBS, answer)


async def _append(broker: Broker, item: Item, given: Given) -> int:
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
    broker.partition(item, given.partition).append_own(run, frames, answer)
    return await done

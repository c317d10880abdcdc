"""A watch on etcd that survives its connection: resumed from the revision after the last one shown, ended by ``Reread`` where that is impossible.

Owns one stream at a time and the place in it. Nothing is buffered here: what is not read waits in etcd.

I1 a revision is shown once and whole. I2 before going on after a lost connection a majority is asked how far the store is, so that a restored one
is noticed.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from headrace.cluster.coordinator import Change, Changes, Document, Reread, WatchEvent
from headrace.cluster.etcd.calls import PAUSE_MAX_S, PAUSE_MIN_S, Calls, Closed, RpcError, being_cancelled, kv_pb, pb
from headrace.cluster.etcd.verdicts import judge, refusal
from headrace.model.errors import CoordinatorUnavailable, RevisionGone

BEGIN_S: Final = 3.0
"""A watch is answered at once by an endpoint that works."""


async def watch(calls: Calls, start: bytes, end: bytes, cut: int, from_revision: int) -> AsyncGenerator[WatchEvent, None]:
    """Changes of keys in [start, end) with ``cut`` characters taken off their names."""
    async with aclosing(responses(calls, start, end, from_revision)) as answers:
        async for answer in answers:
            if isinstance(answer, Reread):
                yield answer
                return
            changes = tuple(_change(event, cut) for event in answer.events)
            yield Changes(changes, changes[-1].revision)


async def responses(calls: Calls, start: bytes, end: bytes, from_revision: int) -> AsyncGenerator[Any, None]:
    """etcd's own answers that hold events (never none), or one ``Reread`` at the end. Tries for ever while etcd is not reached; ``Unauthorized`` if
    it refuses."""
    place, restores = from_revision, calls.restores
    connections, pause_s = 0, PAUSE_MIN_S
    while not calls.closed:
        if place and (connections or from_revision):
            try:
                revision = await _revision(calls, start)
            except CoordinatorUnavailable:
                continue
            if calls.restores != restores or revision + 1 < place:
                yield Reread("restored")
                return
        connections += 1
        seat = calls.best()
        try:
            metadata = await calls.metadata(seat)
            stream = seat.watch.Watch(metadata=metadata)
            try:
                request = pb.WatchCreateRequest(key=start, range_end=end, start_revision=place)
                answer = await _begun(stream, pb.WatchRequest(create_request=request))
                while hasattr(answer, "header"):
                    if answer.compact_revision:
                        yield Reread("compacted")
                        return
                    if answer.canceled:
                        if judge(answer.cancel_reason) == "refused":
                            raise refusal(answer.cancel_reason)
                        if judge(answer.cancel_reason) == "token":
                            calls.renew_token()
                        break
                    if answer.created:
                        place = place or answer.header.revision + 1
                        pause_s = PAUSE_MIN_S
                    elif answer.events:
                        if calls.restores != restores:
                            yield Reread("restored")
                            return
                        place = answer.events[-1].kv.mod_revision + 1
                        yield answer
                    answer = await stream.read()
            finally:
                stream.cancel()
        except RevisionGone:
            yield Reread("compacted")
            return
        except (RpcError, Closed, TimeoutError, asyncio.InvalidStateError, asyncio.CancelledError) as e:
            if isinstance(e, asyncio.CancelledError) and being_cancelled():
                raise
            message = (e.details() or "") if isinstance(e, RpcError) else ""
            if judge(message) == "refused":
                raise refusal(message) from None
            if judge(message) == "token":
                calls.renew_token()
        calls.leave(seat)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


async def _begun(stream: Any, request: Any) -> Any:
    """The first answer to a watch. ``TimeoutError`` if none comes: who writes to a stream whose connection is closed in that moment, or to an
    endpoint that only listens, would wait for ever."""
    async with asyncio.timeout(BEGIN_S):
        await stream.write(request)
        return await stream.read()


async def _revision(calls: Calls, key: bytes) -> int:
    since = calls.seen
    request = pb.RangeRequest(key=key, count_only=True)
    answer = await calls.read("kv.Range", request, what="how far it is")
    calls.notice(answer.header, since)
    return int(answer.header.revision)


def _change(event: Any, cut: int) -> Change:
    kv = event.kv
    key = kv.key.decode()[cut:]
    document = None if event.type == kv_pb.Event.DELETE else Document(key, kv.value, kv.version)
    return Change(key, document, kv.mod_revision)

"""Partition 0: a journal of every change of the small state that is not storage's own, so that a lost state does not lose the catalogue.

Owns its entries (CONFIG, a msgpack list of (key, value or nil)) and its checkpoint (all keys and values at an index). They live in log and segments
as any partition's; only the copy of its checkpoint in a segment file has the data, the small state itself needs none.

I1 Replaying puts that the state already has changes nothing, so the copy may be newer than its index says.
"""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from headrace.model.errors import Damaged
from headrace.storage import keys
from headrace.storage.api import Checkpoint, StoredEntry
from headrace.storage.ground import Ground, log
from headrace.storage.index import Part
from headrace.wire.journal import Kind

SYSTEM_PID: Final = 0
EPOCH: Final = 1
_CHUNK: Final = 1000
Pairs = list[tuple[bytes, bytes | None]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pairs).decode


class _Log(Protocol):
    def append(self, pid: int, epoch: int, index: int, kind: int, payload: tuple[bytes], nbytes: int) -> None: ...

    def flush(self) -> None: ...


class _Reader(Protocol):
    def entries_after(self, part: Part, index: int) -> list[StoredEntry]: ...


class SystemJournal:
    """See the module's head."""

    def __init__(self, ground: Ground, log_: _Log) -> None:
        self._ground = ground
        self._log = log_

    def note(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Journals a change; it is durable with the next flush."""
        part = self._ground.part(SYSTEM_PID)
        payload = _encode(list(puts.items()))
        self._log.append(SYSTEM_PID, EPOCH, part.last_index + 1, int(Kind.CONFIG), (payload,), len(payload))
        self._log.flush()

    async def checkpoint(self) -> Checkpoint:
        """All of the state as of now, at the last index."""
        ground = self._ground
        index = ground.part(SYSTEM_PID).last_index
        await ground.writer.drained()
        data = await ground.on(ground.io, self._dump)
        return Checkpoint(EPOCH, index, data, 0, 0, 0)

    def _dump(self) -> bytes:
        damaged: list[bytes] = []
        pairs = [(k, v) for k, v in self._ground.state.scan(b"", damaged=damaged) if not k.startswith(keys.PREFIX) or k.startswith(keys.DELETED)]
        if damaged:
            log.error("%d values of the small state are damaged and not in its copy", len(damaged))
        return _encode(pairs)

    async def begin(self, reader: _Reader) -> list[int]:
        """At start: restores the state if it was lost, and marks it as complete. The answer: partitions that must be deleted again."""
        ground = self._ground
        deleted: list[int] = []
        if ground.lost_state:
            part = ground.part(SYSTEM_PID)
            raw = [ground.system_copy] if ground.system_copy else []
            raw += [bytes(e.payload) for e in reader.entries_after(part, part.checkpoint_index) if e.kind == Kind.CONFIG]
            try:
                items = list({key: value for payload in raw for key, value in _decode(payload)}.items())
            except msgspec.MsgspecError as e:
                raise Damaged(f"the copy of the catalogue cannot be read: {e}", hint="restore the data directory from a backup") from e
            deleted = [keys.number_of(keys.DELETED, key) for key, _ in items if key.startswith(keys.DELETED)]
            for at in range(0, len(items), _CHUNK):
                await ground.writer.submit(dict(items[at : at + _CHUNK]))
            ground.system_copy = b""
            log.warning("the small state was lost: %d values were restored from its journal, the rest from segments and log", len(items))
        if ground.state.get(keys.COMPLETE) is None:
            await ground.writer.submit({keys.COMPLETE: b"1"})
        return deleted

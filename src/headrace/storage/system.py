"""Partition 0: a journal of every change of the small state that is not storage's own, so that a lost state does not lose the catalogue.

Owns its entries (CONFIG, a msgpack list of (key, value or nil)) and its checkpoint (all keys and values at an index). They live in log and segments
as any partition's; only the copy of its checkpoint in a segment file has the data, the small state itself needs none.

I1 Replaying puts that the state already has changes nothing, so the copy may be newer than its index says. I2 State and journal are made durable
side by side; the state says up to which entry it has the changes (``noted``), so a start after a crash between the two brings the one that is behind
up to the other, before anything is served.
"""

import contextlib
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final, Protocol

import msgspec

from headrace.model.errors import Damaged, DiskFull
from headrace.storage import keys
from headrace.storage.api import Checkpoint, StoredEntry
from headrace.storage.ground import Ground, log
from headrace.storage.index import Part
from headrace.wire.journal import Kind

SYSTEM_PID: Final = 0
EPOCH: Final = 1
_CHUNK: Final = 1000
_U64: Final = Struct(">Q")
_UNFINISHED: Final = (1 << 64) - 1
"""Stands in ``noted`` while the journal is written anew."""
Pairs = list[tuple[bytes, bytes | None]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pairs).decode


class _Log(Protocol):
    def append(self, pid: int, epoch: int, index: int, kind: int, payload: tuple[bytes], nbytes: int) -> None: ...

    def flush(self) -> None: ...

    async def durable(self, part: Part, index: int) -> None: ...


class _Reader(Protocol):
    def entries_after(self, part: Part, index: int) -> list[StoredEntry]: ...


class SystemJournal:
    """See the module's head."""

    def __init__(self, ground: Ground, log_: _Log) -> None:
        self._ground = ground
        self._log = log_

    def note(self, puts: Mapping[bytes, bytes | None]) -> int:
        """Journals a change; it is durable with the next flush. The answer is the entry's index."""
        part = self._ground.part(SYSTEM_PID)
        payload = _encode(list(puts.items()))
        index = part.last_index + 1
        self._log.append(SYSTEM_PID, EPOCH, index, int(Kind.CONFIG), (payload,), len(payload))
        self._log.flush()
        return index

    async def commit(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Makes a change durable in the state and in the journal. ``DiskFull``: it is in neither."""
        index = self.note(puts)
        try:
            await self._ground.writer.submit({**puts, keys.NOTED: _U64.pack(index)})
        except DiskFull:
            await self.undo(puts)
            raise
        await self._log.durable(self._ground.part(SYSTEM_PID), index)

    async def undo(self, keys_: Iterable[bytes]) -> None:
        """Journals that these keys are as the state has them: what was noted about them could not be committed."""
        ground = self._ground
        await ground.writer.drained()
        self.note({key: ground.state.get(key) for key in keys_})

    async def checkpoint(self) -> Checkpoint:
        """All of the state as of now, at the last index."""
        ground = self._ground
        index = ground.part(SYSTEM_PID).last_index
        await ground.writer.drained()
        data = await ground.on(ground.io, self._dump)
        return Checkpoint(EPOCH, index, data, 0, 0, 0)

    def _dump(self) -> bytes:
        return _encode(self._pairs())

    def _pairs(self) -> list[tuple[bytes, bytes]]:
        damaged: list[bytes] = []
        pairs = [(k, v) for k, v in self._ground.state.scan(b"", damaged=damaged) if not k.startswith(keys.PREFIX) or k.startswith(keys.DELETED)]
        if damaged:
            log.error("%d values of the small state are damaged and not in its copy", len(damaged))
        return pairs

    async def begin(self, reader: _Reader) -> list[int]:
        """At start: brings state and journal level, and marks the state as complete. The answer: partitions that must be deleted again."""
        ground = self._ground
        part = ground.part(SYSTEM_PID)
        raw = ground.state.get(keys.NOTED)
        noted = -1 if raw is None else _U64.unpack(raw)[0]
        deleted: list[int] = []
        if ground.lost_state:
            copy = [ground.system_copy] if ground.system_copy else []
            changes = self._changes(reader, part.checkpoint_index, copy)
            deleted = [keys.number_of(keys.DELETED, key) for key in changes if key.startswith(keys.DELETED)]
            await self._restore(changes)
            ground.system_copy = b""
            log.warning("the small state was lost: %d values were restored from its journal, the rest from segments and log", len(changes))
        elif SYSTEM_PID in ground.damaged:
            pass
        elif noted > part.last_index:
            log.warning("the journal of the small state was behind it after a crash; it is written anew")
            await self._write_anew()
        elif 0 <= noted < part.last_index:
            changes = self._changes(reader, max(noted, part.checkpoint_index), [])
            missing = [key for key, value in changes.items() if key.startswith(keys.DELETED) and value is not None and ground.state.get(key) is None]
            deleted = [keys.number_of(keys.DELETED, key) for key in missing]
            state = ground.state
            await self._restore({k: v for k, v in changes.items() if not k.startswith(keys.DELETED) and state.get(k) != v})
        if ground.state.get(keys.COMPLETE) is None:
            await ground.writer.submit({keys.COMPLETE: b"1"})
        if ground.state.get(keys.NOTED) != _U64.pack(part.last_index):
            with contextlib.suppress(DiskFull):  # it says less than is true, which the next start finds out again
                await ground.writer.submit({keys.NOTED: _U64.pack(part.last_index)})
        return deleted

    def _changes(self, reader: _Reader, after: int, payloads: list[bytes]) -> dict[bytes, bytes | None]:
        payloads += [bytes(e.payload) for e in reader.entries_after(self._ground.part(SYSTEM_PID), after) if e.kind == Kind.CONFIG]
        try:
            return {key: value for payload in payloads for key, value in _decode(payload)}
        except msgspec.MsgspecError as e:
            raise Damaged(f"the copy of the catalogue cannot be read: {e}", hint="restore the data directory from a backup") from e

    async def _restore(self, changes: dict[bytes, bytes | None]) -> None:
        items = list(changes.items())
        for at in range(0, len(items), _CHUNK):
            await self._ground.writer.submit(dict(items[at : at + _CHUNK]))

    async def _write_anew(self) -> None:
        ground = self._ground
        await ground.writer.submit({keys.NOTED: _U64.pack(_UNFINISHED)})
        pairs = self._pairs()
        for at in range(0, len(pairs), _CHUNK):
            self.note(dict(pairs[at : at + _CHUNK]))
        part = ground.part(SYSTEM_PID)
        await self._log.durable(part, part.last_index)

"""The facade between broker and storage, and the values that pass it. Real ones: ``store.DiskStore``, ``memory.MemoryStore``.

All methods that are not ``async`` return at once and are called on the event loop; callbacks to the owner come on the loop too.
"""

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from headrace.storage.entry import StoredEntry as StoredEntry


class Flushed(NamedTuple):
    """A flush ended: (partition, last durable index) of each partition in it, once. With ``error`` nothing of it is durable and the store takes
    nothing more."""

    partitions: Sequence[tuple[int, int]]
    error: BaseException | None
    durable: bool


class Checkpoint(NamedTuple):
    """A partition's state after all entries up to ``index``. It may be made durable only once that index is."""

    epoch: int
    index: int  # type: ignore[assignment]  # the journal's word; tuple.index is not used
    data: bytes
    floor_offset: int
    """Offsets below are not needed any more."""
    next_offset: int
    wake_at_ms: int
    """Wall time at which the partition must be loaded for its timers, 0 = not needed."""


class PartitionLog(NamedTuple):
    """What a partition is rebuilt from: a checkpoint and all entries after it, in the order of their indexes."""

    checkpoint: Checkpoint | None
    last_epoch: int
    last_index: int
    next_offset: int
    entries: Sequence[StoredEntry]


class Damage(NamedTuple):
    """Why a partition is quarantined, and what a repair would leave."""

    why: str
    last_valid_index: int
    last_valid_offset: int
    lost_entries_max: int
    since_ms: int


class Owner(Protocol):
    """What the store asks of the broker."""

    def checkpoint(self, pid: int) -> Checkpoint | None:
        """The state of a loaded partition at its last appended index; None: not loaded, so its last checkpoint is current."""

    def flushed(self, result: Flushed) -> None: ...

    def pressure(self, on: bool) -> None:
        """The log is at its size limit (or no more): hold publishers back."""

    def disk(self, nearly_full: bool) -> None: ...

    def quarantined(self, pid: int, why: str) -> None:
        """Damage was found while serving."""


class Replication(Protocol):
    """What storage asks of who replicates partitions."""

    def committed_index(self, pid: int) -> int | None:
        """Last index that is committed, so that it may leave the log; None: the partition has one copy, what is durable is committed."""

    def epoch_at(self, pid: int, index: int) -> int:
        """Epoch of the entry at a committed index; 0 = not known."""

    def moved(self, pid: int, moved_to: int) -> None:
        """Entries up to there are not in the log any more."""


class StateReads(Protocol):
    """Committed small state."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys with ``prefix`` in order, those greater than ``after``."""


class Store(Protocol):
    """See the module's head."""

    @property
    def state(self) -> StateReads: ...

    def commit_state(self, puts: Mapping[bytes, bytes | None]) -> Coroutine[Any, Any, None]:
        """Writes (None: deletes) in one atomic, durable step, in group with others."""

    async def open(self, owner: Owner) -> None:
        """Locks and recovers."""

    def partitions(self) -> Sequence[int]:
        """Those with entries in the log after their checkpoint, or that must be woken for timers."""

    def damaged(self) -> Mapping[int, Damage]: ...

    def append(
        self, pid: int, epoch: int, index: int, kind: int, payload: Sequence[bytes], nbytes: int, base_offset: int = -1, record_count: int = 0
    ) -> None: ...

    def flush(self) -> None:
        """Starts a flush if none is running; called at the end of each tick."""

    @property
    def pending_bytes(self) -> int:
        """Appended and not yet durable."""

    def replay(self, pid: int) -> PartitionLog: ...

    def cached(self, pid: int, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry] | None:
        """Records entries from the one that holds ``offset`` on, below ``end_offset``, up to about ``bytes_max``, from memory (not yet durable ones
        too); None: not in memory."""

    async def read(self, pid: int, offset: int, bytes_max: int, end_offset: int) -> list[StoredEntry]:
        """As ``cached``, from wherever it is; [] = nothing is stored in that range any more (or yet); raises ``Damaged``."""

    def offset_for_time(self, pid: int, wall_ms: int) -> int:
        """First offset appended at or after that time (the end, if none)."""

    def first_offset(self, pid: int) -> int:
        """Lowest offset still stored (the end, if none)."""

    def log_bytes(self, pid: int) -> int: ...

    def set_floor(self, pid: int, offset: int) -> None:
        """Lower offsets are dead."""

    def retain(self, pid: int, *, wall_ms: int, age_ms: int, bytes_max: int, records_max: int) -> int:
        """Gives up whole parts beyond the limits (0 = none); the new first offset."""

    async def compact(self, pid: int, keep: Callable[[bytes, int], bytes | None]) -> None:
        """Rewrites sealed parts: ``keep(blob, base_offset)`` gives the frames that stay (None: none)."""

    async def save_checkpoint(self, pid: int, checkpoint: Checkpoint) -> None: ...

    async def delete(self, pids: Sequence[int]) -> None: ...

    async def repair(self, pid: int, *, dry_run: bool) -> Damage: ...

    def stats(self) -> dict[str, float]: ...

    async def close(self) -> None: ...

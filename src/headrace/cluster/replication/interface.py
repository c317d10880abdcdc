"""What replication needs from outside, and what a partition is told by it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from headrace.core.replica.effects import Outcome
from headrace.model.cluster import Assignment, BrokerId
from headrace.wire.peer import Service
from headrace.wire.replication import Entry, Piece

FlushRow: TypeAlias = tuple[int, int, int, int, int]
"""Of a durable flush: partition, first index, last index, bytes, kind of a mark (of a PROMISE both indexes are its epoch) or 0."""

Answered: TypeAlias = Callable[[Outcome, Assignment | None], None]


class Swaps(Protocol):
    """The coordinator's driver."""

    def swap(self, document: Assignment, *, expected: int, answered: Answered) -> None:
        """Records ``document`` if the recorded version is ``expected``. ``answered`` is called once, later, on the loop: UNKNOWN if no answer came,
        REFUSED with what is recorded."""


class Peers(Protocol):
    """The connections to other brokers."""

    def send(self, peer: BrokerId, service: Service, *parts: bytes) -> bool: ...

    def heard_ms(self, peer: BrokerId) -> int: ...

    def answered_ms(self, peer: BrokerId) -> int: ...


class Found(Protocol):
    """What a start finds of a partition's log."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def promised(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def base_epoch(self) -> int: ...
    @property
    def runs(self) -> tuple[tuple[int, int], ...]: ...
    @property
    def covered(self) -> int: ...


class Snapshot(Protocol):
    """A partition's state at a committed index, packed, and which offsets the records that it needs may have."""

    @property
    def index(self) -> int: ...
    @property
    def packed(self) -> bytes: ...
    @property
    def first_offset(self) -> int: ...
    @property
    def end_offset(self) -> int: ...


class Staging(Protocol):
    """Records of another broker on their way to the disk."""

    async def add(self, pieces: Sequence[Piece]) -> None: ...

    async def finish(self, checkpoint: bytes) -> object: ...

    def discard(self) -> None: ...

    def handed(self) -> None: ...


class Log(Protocol):
    """The log as replicas use it; the one on disk is ``storage.replicated``'s, where its words are explained."""

    def damage(self, pid: int) -> str: ...

    def held(self) -> Collection[int]: ...

    def keeps(self, pid: int) -> bool: ...

    def found(self, pid: int) -> Found: ...

    def left(self, pid: int, runs: Sequence[tuple[int, int]]) -> None: ...

    def append(self, pid: int, epoch: int, index: int, kind: int, payload: bytes, base_offset: int = -1, record_count: int = 0) -> bytes: ...

    def received(self, pid: int, entry: Entry) -> bytes: ...

    def truncate(self, pid: int, at: int, epoch: int) -> None: ...

    def covered(self, pid: int) -> int: ...

    async def set_aside(self, pid: int, at: int) -> str: ...

    def snapshot(self, pid: int) -> Snapshot | None: ...

    async def records(self, pid: int, upto: Any, offset: int, bytes_max: int) -> tuple[list[bytes], int]: ...

    def staging(self, pid: int) -> Staging: ...

    async def replace(self, pid: int, staged: Any, base_epoch: int) -> None: ...

    def promise(self, pid: int, epoch: int, generation: int, version: int) -> None: ...

    def flush(self) -> None: ...

    async def durable(self, pid: int) -> None: ...

    async def read(self, pid: int, first: int, end: int) -> list[bytes]: ...


class State(Protocol):
    """Committed small state."""

    def get(self, key: bytes) -> bytes | None: ...


class Replication(Protocol):
    """What a store asks of the driver."""

    def committed_index(self, pid: int) -> int | None: ...

    def epoch_at(self, pid: int, index: int) -> int: ...

    def moved(self, pid: int, moved_to: int) -> None: ...


class Store(Protocol):
    """What has the log and the small state."""

    @property
    def state(self) -> State: ...

    async def commit_state(self, puts: Mapping[bytes, bytes | None]) -> None: ...

    def replicated(self, replication: Replication, on_rows: Callable[[Sequence[FlushRow]], None]) -> Log: ...


class Told(Protocol):
    """A partition. Called on the loop, within a turn; it may append and wait, and must not block."""

    def leads(self, epoch: int, at: int) -> None:
        """This broker serves it from now on, in that epoch, whose first entry is the one at index ``at``; everything up to there is committed."""

    def follows(self, owner: BrokerId, epoch: int) -> None:
        """It copies from ``owner``."""

    def fenced(self, epoch: int, reason: str) -> None:
        """It does not lead in ``epoch`` any more. What waits was told by ``unknown``."""

    def committed(self, end: int) -> None:
        """Entries with indexes below ``end`` may be applied and delivered."""

    def satisfied(self, tokens: Sequence[int]) -> None:
        """They have reached the level for which they waited."""

    def replaced(self, end: int) -> None:
        """What was applied here does not count any more: it is to be loaded anew from the store, where its log ends at ``end``. It was replaced by
        a checkpoint of another broker, begins anew, or was cut by an election that was forced. Never while this broker leads."""

    def unknown(self, tokens: Sequence[int], reason: str) -> None:
        """Whether their entries will be committed is not known: no failure."""

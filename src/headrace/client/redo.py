"""What a reader with a cursor has done with records that its broker has not sent on this channel: kept until they come again. And who waits for a
commit that is not on its way.

On a new connection a broker reads from the cursor, and takes no commit and no ack of what it has not sent there. Pure.
Invariants: R1 nothing is given out for a record before it has come on this channel. R2 what is kept survives any number of broken connections; who
waits for it is told at the first of them. R3 of records that were taken back, or that another reads now, nothing is kept.
"""

from typing import Final

from headrace.client.lane import Waiter
from headrace.model.errors import HeadraceError

_ALL: Final = 1 << 63


class _Kept:
    """Of one partition."""

    __slots__ = ("singly", "up_to")

    def __init__(self) -> None:
        self.up_to = -1
        self.singly: dict[int, Waiter | None] = {}


class Redo:
    """See the module's head."""

    __slots__ = ("_kept", "_reached", "_waiting")

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._waiting: dict[int, list[tuple[int, Waiter]]] = {}
        """By partition: up to where each waits for a commit."""
        self._reached: dict[int, int] | None = {}
        """Partition to the end of what has come on this channel; None = there is no channel."""

    def __bool__(self) -> bool:
        return bool(self._kept)

    def early(self, partition: int, offset: int) -> bool:
        """Whether a record that was handed out has not come on this channel."""
        return self._reached is None or offset >= self._reached.get(partition, _ALL)

    def commit(self, partition: int, offset: int) -> None:
        """Keeps a commit of everything up to and with ``offset``."""
        kept = self._of(partition)
        kept.up_to = max(kept.up_to, offset)

    def ack(self, partition: int, offset: int, waiter: Waiter | None = None) -> None:
        """Keeps a single ack."""
        kept = self._of(partition)
        kept.singly[offset] = waiter or kept.singly.get(offset)

    def _of(self, partition: int) -> _Kept:
        return self._kept.setdefault(partition, _Kept())

    def wait(self, partition: int, offset: int, waiter: Waiter) -> None:
        """``waiter`` is told once everything up to and with ``offset`` is committed."""
        self._waiting.setdefault(partition, []).append((offset, waiter))

    def waiting(self, partition: int, offset: int) -> list[Waiter]:
        """Takes those who wait for a commit up to there, or before."""
        waiting = self._waiting.pop(partition, [])
        later = [(at, waiter) for at, waiter in waiting if at > offset]
        if later:
            self._waiting[partition] = later
        return [waiter for at, waiter in waiting if at <= offset]

    # ------------------------------------------------------------ the channel

    def lost(self, error: HeadraceError) -> None:
        """There is no channel: whoever waits is told that it will be repeated."""
        self._reached = None
        self._fail_waiting(error)
        for kept in self._kept.values():
            for offset, waiter in kept.singly.items():
                _fail(waiter, error)
                kept.singly[offset] = None

    def opened(self, starts: dict[int, int]) -> None:
        """There is a channel; the broker sends from there on, since the cursor has passed all before."""
        self._reached = dict(starts)
        for partition, start in starts.items():
            for waiter in [*self.waiting(partition, start - 1), *(w for _, w in self.take(partition, start)[1])]:
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)

    def moved(self, partition: int, to: int) -> None:
        """The broker goes on at ``to``."""
        if self._reached is not None:
            self._reached[partition] = to

    def take(self, partition: int, end: int) -> tuple[int, list[tuple[int, Waiter | None]]]:
        """What is kept of records below ``end``: up to where all is committed (-1 = nothing is), and what was acked singly."""
        kept = self._kept.get(partition)
        if kept is None:
            return -1, []
        up_to = min(kept.up_to, end - 1)
        if kept.up_to < end:
            kept.up_to = -1
        singly = [(offset, kept.singly.pop(offset)) for offset in sorted(kept.singly) if offset < end]
        if kept.up_to < 0 and not kept.singly:
            del self._kept[partition]
        return up_to, singly

    # ------------------------------------------------------------ ends

    def forget(self, error: HeadraceError, partition: int, first: int = 0) -> None:
        """Records from ``first`` on were taken back, or the partition was."""
        kept = self._kept.get(partition)
        if kept is not None:
            kept.up_to = min(kept.up_to, first - 1)
            for offset in [o for o in kept.singly if o >= first]:
                _fail(kept.singly.pop(offset), error)
            if kept.up_to < 0 and not kept.singly:
                del self._kept[partition]
        waiting = self._waiting.pop(partition, [])
        for offset, waiter in waiting:
            if offset >= first:
                _fail(waiter, error)
        before = [(offset, waiter) for offset, waiter in waiting if offset < first]
        if before:
            self._waiting[partition] = before

    def end(self, error: HeadraceError) -> None:
        """Nothing will come any more."""
        for partition in [*self._kept, *self._waiting]:
            self.forget(error, partition)

    def _fail_waiting(self, error: HeadraceError) -> None:
        for waiting in self._waiting.values():
            for _, waiter in waiting:
                _fail(waiter, error)
        self._waiting.clear()


def _fail(waiter: Waiter | None, error: HeadraceError) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_exception(error)

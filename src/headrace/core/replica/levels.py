"""Who waits for which level of which entry.

Owns the waiting. Knows no members: it is told how far each level has come. A token that asks for what is reached already is answered at the next
look, so none is ever registered too late.
"""

from bisect import insort
from collections.abc import Mapping

from headrace.wire.frames import Level


class Waiting:
    """Tokens by level, in the order of their ends."""

    __slots__ = ("_by_level",)

    def __init__(self) -> None:
        self._by_level: dict[int, list[tuple[int, int]]] = {}

    def add(self, level: int, end: int, token: int) -> None:
        """``token`` waits until everything below ``end`` has reached ``level``."""
        queue = self._by_level.setdefault(level, [])
        if not queue or queue[-1] <= (end, token):
            queue.append((end, token))
        else:
            insort(queue, (end, token))

    def reached(self, ends: Mapping[int, int]) -> list[int]:
        """Takes out the tokens whose level has come as far as they ask, lowest level first."""
        done: list[int] = []
        for level in sorted(self._by_level):
            queue, end = self._by_level[level], ends[level]
            count = 0
            while count < len(queue) and queue[count][0] <= end:
                done.append(queue[count][1])
                count += 1
            if count == len(queue):
                del self._by_level[level]
            elif count:
                del queue[:count]
        return done

    def give_up(self, *, above: int = Level.NONE) -> list[int]:
        """Takes out all tokens of levels above that one."""
        given_up: list[int] = []
        for level in sorted(self._by_level):
            if level > above:
                given_up += [token for _, token in self._by_level.pop(level)]
        return given_up

    def __len__(self) -> int:
        return sum(map(len, self._by_level.values()))

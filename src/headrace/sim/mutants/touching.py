"""Which mutants a run can show at all: those of which it executes a line. Until such a line is reached, a run is the same with the bug and without.

Owns the watching of lines in a run of the sound product. It makes such a run some times slower, and saves one for each mutant that it rules out.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any

from headrace.sim.mutants.planting import Mutant, places

Lines = frozenset[tuple[CodeType, int]]


@cache
def lines_of(mutant: Mutant) -> Lines | None:
    """The lines it is about, each with every code object in which it may be executed; None if one of its edits has no line that could be seen."""
    found: list[tuple[CodeType, int]] = []
    for function, numbers in places(mutant):
        seen = [(code, line) for code in _codes(function.__code__) for _, _, line in code.co_lines() if line is not None and line in numbers]
        if not seen:
            return None
        found += seen
    return frozenset(found)


def _codes(code: CodeType) -> list[CodeType]:
    """A function's code and that of what is defined in it: comprehensions, functions."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [code, *(deeper for c in inner for deeper in _codes(c))]


class Watched:
    """The lines that were executed."""

    def __init__(self) -> None:
        self.lines: set[tuple[CodeType, int]] = set()

    def touches(self, mutant: Mutant) -> bool:
        lines = lines_of(mutant)
        return lines is None or not self.lines.isdisjoint(lines)


@contextmanager
def watching(mutants: Sequence[Mutant]) -> Iterator[Watched]:
    """Watches the functions of these mutants, in this thread."""
    watched = Watched()
    wanted = {code for mutant in mutants for code, _ in lines_of(mutant) or ()}
    add = watched.lines.add

    def inside(frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            add((frame.f_code, frame.f_lineno))
        return inside

    def entered(frame: FrameType, _event: str, _arg: Any) -> Any:
        return inside if frame.f_code in wanted else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        yield watched
    finally:
        sys.settrace(before)

"""Somebody who waits until a partition has committed something."""

from collections.abc import Callable

from headrace.model.errors import HeadraceError


class Waiting:
    """Somebody who waits until everything up to some entry is committed, and is told so by a call; or by ``unknown`` that nobody will know."""

    __slots__ = ("_committed", "unknown")

    def __init__(self, committed: Callable[[], None], unknown: Callable[[HeadraceError], None]) -> None:
        self._committed = committed
        self.unknown = unknown

    def __call__(self) -> None:
        self._committed()

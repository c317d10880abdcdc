"""A repartition as it stands in the catalogue: which partitions publishes go to, and how far the change is."""

from typing import Final, Literal

import msgspec

Phase = Literal["announced", "cutting", "draining"]
PHASES: Final[tuple[Phase, ...]] = ("announced", "cutting", "draining")

RETIRED_KEPT_MS: Final = 10_000
"""So long a partition that was given up is kept at least, empty, to say what became of publishes to it: longer than clients wait for a confirm unless
told otherwise."""


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A queue gets more or fewer partitions."""

    before: int
    after: int
    phase: Phase = "announced"
    since_ms: int = 0
    """Wall clock, when the phase began."""
    force: bool = False
    """Whoever asked does not wait for order: nothing is held, and what is left in partitions that are given up is moved."""

    @property
    def routes(self) -> int:
        """The number of partitions that publishes go to now."""
        return self.before if self.phase == "announced" else self.after

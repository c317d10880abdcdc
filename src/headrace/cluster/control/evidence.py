"""What a broker has seen of the others' lives: the contract between those who look (``sightings``, simulated ones) and those who judge.

Owns the values. Clues are about one incarnation; times are the looking broker's own clock, in milliseconds.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from headrace.core.control.picture import Swim
from headrace.model.cluster import BrokerId, Incarnation, Registered


class Clues(msgspec.Struct, frozen=True, kw_only=True):
    """For and against one life of a broker; the fields are among those of ``core.control.picture.Seen``."""

    swim: Swim = "unknown"
    probe_failed: bool = False
    reset_ms: int | None = None
    refused_ms: tuple[int, ...] = ()
    frame_ms: int | None = None


NONE = Clues()


class Evidence(Protocol):
    """Who looks."""

    def clues(self, broker: BrokerId, incarnation: Incarnation) -> Clues:
        """What is known of that life; ``NONE`` if nothing. Cheap."""

    def look_at(self, registered: Mapping[BrokerId, Registered], closely: frozenset[BrokerId]) -> None:
        """These are the others, as last registered; ``closely`` those whom this broker is to probe once anything speaks against them."""

    def on_news(self, told: Callable[[], None]) -> None:
        """``told`` is called when clues may be others than before."""

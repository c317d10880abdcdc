"""What an old partition still has in hand of each key slot below its cut.

Built from the run tables of its log when it is first asked, never kept: after a restart, and at a new owner, it is built anew. Costs eight bytes
a message with a key that is behind, and what is asked for again and again costs a look at one message a slot: the last one, since that is settled
last.
"""

from array import array
from collections.abc import Callable, Sequence
from enum import IntEnum

from headrace.core.repartition import slots


class Stand(IntEnum):
    """How a message stands."""

    SETTLED = 0
    IN_HAND = 1
    """Ready or leased."""
    LATER = 2
    """Delayed: it holds nothing now, and does again once it is due."""


class Behind:
    """See the module's head."""

    __slots__ = ("_offsets",)

    def __init__(self) -> None:
        self._offsets: dict[int, array[int]] = {}
        """By slot, ascending."""

    def add(self, key_slot: int, offsets: Sequence[int]) -> None:
        """Messages of a key slot, in the order of their offsets."""
        if key_slot:
            self._offsets.setdefault(slots.slot_of(key_slot), array("Q")).extend(offsets)

    def slots(self, stand: Callable[[int], Stand]) -> int:
        """The slots of which anything is in hand. ``stand``: how the message at an offset stands; what is settled is not asked about again."""
        mask = 0
        for slot in [*self._offsets]:
            offsets = self._offsets[slot]
            later: list[int] = []
            while offsets:
                found = stand(offsets[-1])
                if found == Stand.IN_HAND:
                    mask |= 1 << slot
                    break
                offset = offsets.pop()
                if found == Stand.LATER:
                    later.append(offset)
            offsets.extend(reversed(later))
            if not offsets:
                del self._offsets[slot]
        return mask

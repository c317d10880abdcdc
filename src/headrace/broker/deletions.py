"""The data of deleted queues and streams: erased because the catalogue records their deletion, and for no other reason.

Owns whether something is left to erase: on a full disk it waits until there is room. In a cluster the data go by ``erasing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.broker.catalogue import Item
from headrace.model.errors import DiskFull

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


class Deletions:
    """See the module's head."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._left = False

    async def erase(self, item: Item) -> None:
        """Removes the data of what the catalogue records as deleted; on a full disk later, once there is room."""
        try:
            await self._broker.store.delete(item.partitions)
            await self._broker.catalogue.deletion_done(item)
        except DiskFull:
            self._left = True

    async def finish(self) -> None:
        """Erases all that is recorded as deleted."""
        self._left = False
        for item in await self._broker.catalogue.deletions():
            await self.erase(item)

    async def again(self) -> None:
        """Tries what found no room."""
        if self._left:
            await self.finish()

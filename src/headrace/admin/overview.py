"""What the overview page shows, gathered from the verbs in one answer; shared by all viewers for half a second so that many cost as much as one."""

import asyncio
import time
from typing import Any, Final

from headrace.admin.service import Service
from headrace.broker.metrics import OTHER
from headrace.model.errors import HeadraceError
from headrace.wire import control
from headrace.wire.shown import shown

LISTED_MAX: Final = 100
"""Names of each kind that are listed in order; beyond it only the busiest are shown."""
BUSY_MAX: Final = 20
FRESH_S: Final = 0.5


class Overview:
    """One broker's overview."""

    def __init__(self, broker: Service) -> None:
        self.broker = broker
        self._lock = asyncio.Lock()
        self._at = float("-inf")
        self._last: dict[str, Any] = {}

    async def now(self) -> dict[str, Any]:
        """The overview, at most ``FRESH_S`` old."""
        async with self._lock:
            if time.monotonic() - self._at > FRESH_S:
                self._last = await self._gather()
                self._at = time.monotonic()
            return self._last

    async def _gather(self) -> dict[str, Any]:
        verbs = self.broker.verbs
        status = await verbs.call(control.Status())
        figures = self.broker.metrics()
        result: dict[str, Any] = {"status": shown(status), "history": figures.counters.history(), "more": {}}
        for kind in ("queue", "stream"):
            listing = await verbs.call(control.List(kind=kind, limit=LISTED_MAX))
            assert isinstance(listing, control.Listing)
            items = {info.name: info for info in listing.items}
            busiest = sorted((n for n in figures.names if n.kind == kind and n.name != OTHER), key=lambda n: -(n.published + n.delivered))
            for n in busiest[:BUSY_MAX] if listing.more else ():
                if n.name not in items:
                    try:
                        info = await verbs.call(control.Describe(name=n.name))
                    except HeadraceError:  # deleted since
                        continue
                    assert isinstance(info, control.Info)
                    items[n.name] = info
            result[f"{kind}s"] = [_row(info) for info in items.values()]
            result["more"][f"{kind}s"] = listing.more
        return result


def _row(info: control.Info) -> dict[str, Any]:
    """A line of the page: an ``Info`` without what it does not show."""
    row: dict[str, Any] = shown(info)
    row["partition_count"] = len(info.partitions) or info.spec.get("partitions", 1)
    row["oldest_ms"] = info.oldest_ms
    del row["partitions"], row["spec"], row["id"]
    return row

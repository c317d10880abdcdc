"""A broker that dies as kill -9 does at one step of importing a lone one's data: ``python -m tests.integration.cluster.dying POINT start ...``.

``POINT`` is ``Identity/before`` (or ``.../after``, and so on for every record and effect of a formation: ``tests.integration.formation.node``),
``transaction3/before`` for the third transaction that the import tries, or ``done/before`` for its note in the data directory.
"""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from headrace.broker import importing
from headrace.broker.broker import Broker
from headrace.cli import main
from headrace.cluster.coordinator import Coordinator, Document
from tests.integration.formation.node import die_at

carry_over = importing.carry_over


class Counting:
    """A coordinator whose transactions are counted."""

    def __init__(self, real: Coordinator, point: str) -> None:
        self._real, self._point = real, point
        self._count = 0

    async def get(self, key: str) -> Document | None:
        return await self._real.get(key)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None]) -> bool:
        self._count += 1
        dies(self._point, f"transaction{self._count}/before")
        try:
            return await self._real.transact(expected, puts)
        finally:  # also if nobody knows whether it was done
            dies(self._point, f"transaction{self._count}/after")


def dies(point: str, now: str) -> None:
    if point == now:
        os.kill(os.getpid(), signal.SIGKILL)


def plant(point: str) -> None:
    """The product has no switch for it."""

    async def carried(broker: Broker, coordinator: Coordinator) -> str:
        commit = broker.store.commit_state

        async def committed(puts: Mapping[bytes, Any]) -> None:
            if importing.DONE_KEY in puts:
                dies(point, "done/before")
            await commit(puts)
            if importing.DONE_KEY in puts:
                dies(point, "done/after")

        broker.store.commit_state = committed  # type: ignore[method-assign]
        return await carry_over(broker, Counting(coordinator, point))  # type: ignore[arg-type]

    importing.carry_over = carried
    die_at(point)


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    sys.exit(main())

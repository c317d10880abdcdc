"""Changes of assignments that replicas ask for, as compare-and-swaps in the coordinator.

Owns the way from a version of a document to the version under which the coordinator keeps it. Decides nothing, repeats nothing: a replica sends a
change again until somebody says definitely what is recorded (``core.replica.change``).
"""

import asyncio

from headrace.cluster.coordinator import Coordinator
from headrace.cluster.replication.interface import Answered
from headrace.core.replica.effects import Outcome
from headrace.log import get_logger
from headrace.model.cluster import Assignment, decode, encode, partition_key
from headrace.model.errors import CoordinatorUnavailable, HeadraceError, UnknownOutcome

_log = get_logger("cluster")


class Swapping:
    """Implements ``replication.interface.Swaps``."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def swap(self, document: Assignment, *, expected: int, answered: Answered) -> None:
        task = self._loop.create_task(self._swap(document, expected, answered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Nobody is answered any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _swap(self, document: Assignment, expected: int, answered: Answered) -> None:
        outcome, recorded = Outcome.UNKNOWN, None
        try:
            outcome, recorded = await self._try(document, expected)
        except (CoordinatorUnavailable, UnknownOutcome) as e:
            _log.info("whether the assignment of partition %d was changed is not known: %s", document.partition, e)
        except HeadraceError as e:
            _log.error("the assignment of partition %d cannot be changed: %s", document.partition, e)
        answered(outcome, recorded)

    async def _try(self, document: Assignment, expected: int) -> tuple[Outcome, Assignment | None]:
        key = partition_key(document.partition)
        while True:
            found = await self._coordinator.get(key)
            recorded = None if found is None else decode(Assignment, found.value)
            if found is None or recorded is None or recorded.version != expected:
                return Outcome.REFUSED, recorded
            if await self._coordinator.transact({key: found.version}, {key: encode(document)}):
                return Outcome.APPLIED, document

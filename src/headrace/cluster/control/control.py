"""A broker's part in the cluster's control, put together: presence, documents, picture, topology, controller.

Owns the order in which they are made, started and stopped. The coordinator, the evidence and their ends are the caller's.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from headrace.cluster.control import settling
from headrace.cluster.control.controller import Controller
from headrace.cluster.control.evidence import Evidence
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.control.picturing import PREFIXES, Picturing
from headrace.cluster.control.presence import Presence
from headrace.cluster.control.topology import Topology
from headrace.cluster.coordinator import Coordinator
from headrace.core.control.fitting import misfit
from headrace.log import get_logger
from headrace.model import config
from headrace.model.cluster import Incarnation, Mode, Placement, Planning, Registered

_log = get_logger("cluster")
GOODBYE_S: Final = 2.0


class Control:
    """See the module's head. Made on the loop that uses it; ``start`` returns at once, also while the coordinator is away."""

    def __init__(
        self,
        coordinator: Coordinator,
        evidence: Evidence,
        me: Registered,
        *,
        ttl_ms: int,
        placement: config.Placement = config.Placement(),
        prefixes: tuple[str, ...] = (),
        lost: Callable[[str], None] = lambda reason: None,
        displaced: Callable[[Incarnation], None] = lambda other: None,
    ) -> None:
        """``prefixes``: of further documents that ``mirror`` keeps for others."""
        self._coordinator = coordinator
        self._placement = placement
        self.mirror = Mirror(coordinator, (*PREFIXES, *prefixes))
        self.presence = Presence(coordinator, me, ttl_ms=ttl_ms, fits=self._fits, lost=lost, displaced=displaced)
        self.picturing = Picturing(self.mirror, evidence)
        self.topology = Topology(me.id, self.mirror, self.picturing)
        self.controller = Controller(coordinator, self.mirror, self.picturing, evidence, self.presence, begin=self._begin)

    def start(self) -> None:
        self.mirror.start()
        self.presence.start()
        self.controller.start()

    async def stop(self) -> None:
        """The controller steps down, the registration ends; what it owns should have been handed over before (``drain``). A coordinator that does not
        answer holds it up for ``GOODBYE_S`` at most."""
        await self.controller.halt()
        await self.presence.halt()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.controller.step_down()
                await self.presence.release()
        except TimeoutError:
            what = "its registration ends by its time to live, and the others learn of its end from that and from gossip"
            _log.warning("the coordinator did not answer this broker's goodbye within %g s: %s", GOODBYE_S, what)
        await self.mirror.stop()

    def drain(self, draining: bool = True) -> None:
        """Asks the controller to move everything off this broker; ``topology`` shows how far that is."""
        self.presence.update(draining=draining)

    # ------------------------------------------------------------ the cluster's settings

    async def set_placement(self, changes: dict[str, object]) -> Placement:
        return await settling.change_placement(self._coordinator, changes)

    async def set_planning(self, mode: Mode, *, by: str, reason: str = "") -> Planning:
        return await settling.change_planning(self._coordinator, mode, by=by, reason=reason)

    async def _fits(self, me: Registered) -> str:
        await self.mirror.synced.wait()
        return misfit(me, self.picturing.present().values())

    async def _begin(self) -> None:
        await settling.begin(self._coordinator, self._placement)

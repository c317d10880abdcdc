"""What all programs of a run share: the world they act in, how they connect, how the answer of a settlement is noted."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

import headrace
from headrace.client.client import Client as Connected
from headrace.model.errors import HeadraceError, StaleSettle
from headrace.sim.history import DONE, STALE, UNKNOWN, Commit, History, Link, Settle
from headrace.sim.loop import Machine
from headrace.sim.plan import Client, Plan
from headrace.sim.world import World

WAIT_S: Final = 3600.0


class Stage:
    """What all programs of a run share."""

    def __init__(self, world: World, urls: str, plan: Plan, history: History) -> None:
        self.world = world
        self.loop = world.loop
        self.url = urls
        self.plan = plan
        self.history = history
        self.declared = asyncio.Event()
        self.stopping = False
        self.until = 0.0
        """Nothing is begun after this time."""

    @property
    def over(self) -> bool:
        return self.stopping or self.loop.time() >= self.until

    async def connect(self, machine: Machine, client: Client) -> Connected:
        while True:
            try:
                made = await headrace.connect(
                    self.url, name=machine.name, wait=WAIT_S, heartbeat=client.heartbeat_ms / 1000, confirm_timeout=client.confirm_timeout_ms / 1000
                )
                break
            except HeadraceError:  # a broker that goes down for its disk says so to whoever says hello
                await asyncio.sleep(0.05)
        links, now = self.history.links, self.loop.time
        links.append(Link(now(), machine.name, True))
        made.on_connection(lambda up: links.append(Link(now(), machine.name, up)))
        return made


def noted(note: Settle | Commit, answer: Awaitable[None], now: Callable[[], float]) -> None:
    """Has the answer of a settlement noted when it comes."""

    def answered(future: "asyncio.Future[None]") -> None:
        note.told_at = now()
        error = None if future.cancelled() else future.exception()
        note.result = UNKNOWN if future.cancelled() else DONE if error is None else STALE if isinstance(error, StaleSettle) else UNKNOWN

    cast("asyncio.Future[None]", answer).add_done_callback(answered)

"""What the replication driver does once a turn, however many partitions it has."""

import asyncio
from typing import Any, cast

from headrace.cluster.replication.driver import Driver
from headrace.cluster.replication.partition import Replicated
from headrace.model.cluster import BrokerId, Incarnation


class Peers:
    def heard_ms(self, peer: BrokerId) -> int:
        return 0

    answered_ms = heard_ms


class Log:
    def flush(self) -> None:
        pass


class Replica:
    owner = None

    def next_deadline_ms(self, now_ms: int) -> int | None:
        return None


class Collecting:
    """A partition that waits for answers of others in each of its turns."""

    halted = ""
    replica = Replica()

    def __init__(self, driver: Driver, pid: int) -> None:
        self.driver = driver
        self.pid = pid

    def turn(self, now_ms: int) -> None:
        self.driver.collects(cast(Replicated, self), True)



def test_who_is_waited_for_is_looked_at_once_for_all_partitions() -> None:
    async def turns() -> None:
        driver = Driver(BrokerId("a"), Incarnation(1), cast(Any, Peers()), cast(Any, None))
        driver._log = cast(Any, Log())
        told: list[int] = []
        driver.news = lambda: told.append(len(driver._collecting))
        for pid in range(100):
            driver.turns.stir(cast(Replicated, Collecting(driver, pid)))
        await asyncio.sleep(0)
        assert told == [100]
        await asyncio.sleep(0)
        assert told == [100]

    asyncio.run(turns())

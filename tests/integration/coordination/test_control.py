"""Presence, election, plans and topology on a real etcd."""

import asyncio
import logging
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from headrace.cluster.control.control import Control
from headrace.cluster.control.evidence import NONE
from headrace.cluster.control.topology import Reassigned
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.registering import EtcdRegistration
from headrace.model.cluster import CONTROLLER_KEY, BrokerId
from headrace.model.specs import QueueSpec
from tests.integration.coordination.etcds import Member
from tests.unit.cluster.control.places import Eyes, me

PARTITIONS = range(1, 301)


class Broker:
    def __init__(self, address: str, space: str, name: str, life: int = 1) -> None:
        self.name = name
        self.coordinator = EtcdCoordinator([address], space=space)
        self.eyes = Eyes()
        self.told: list[Reassigned] = []
        self.lost: list[str] = []
        self.control = Control(self.coordinator, self.eyes, me(name, life), ttl_ms=2000, lost=self.lost.append)
        self.control.topology.on_reassigned(self.told.extend)
        self.control.start()

    @property
    def elected(self) -> bool:
        return self.control.controller.election.look()

    def owned(self, name: str) -> int:
        return sum(1 for place in self.control.topology.places() if place.owner == name)

    async def die(self) -> None:
        """Without a word, as a killed process does."""
        for task in (self.control.controller._task, self.control.presence._task):
            if task is not None:
                task.cancel()
        await self.control.mirror.stop()
        await self.coordinator.close()

    async def stop(self) -> None:
        await self.control.stop()
        await self.coordinator.close()


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def test_three_brokers_on_etcd(lone_etcd: Member, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.controller")
    address, space = str(lone_etcd.client), "control/"
    user = EtcdCoordinator([address], space=space)
    brokers = {name: Broker(address, space, name) for name in "abc"}
    try:
        for broker in brokers.values():
            await asyncio.wait_for(broker.control.presence.registered.wait(), 20)
        spec = QueueSpec(partitions=len(PARTITIONS), durability="replica_durable", replication_factor=3, min_in_sync_replicas=1)
        document = {"name": "orders", "kind": "queue", "id": "x", "partitions": tuple(PARTITIONS), "queue": spec}
        await user.transact({}, {"names/orders": msgspec.msgpack.encode(document)})
        await until(lambda: all(len(b.control.topology.places()) == len(PARTITIONS) for b in brokers.values()))
        await until(lambda: sum(b.elected for b in brokers.values()) == 1)
        [holder] = [b for b in brokers.values() if b.elected]

        # a registration that is lost though its broker lives
        registration = holder.control.presence._registration
        assert isinstance(registration, EtcdRegistration)
        await user.calls.read("lease.LeaseRevoke", _revocation(registration.incarnation), what="for the end of a lease")
        await until(lambda: holder.lost and holder.control.presence.times == 2 and holder.control.presence.alive)

        # the store forgets what was; nobody misses anything
        page = await user.range("partitions/", limit=1)
        await user.compact(page.revision)

        # the controller dies with all that it owns
        await until(lambda: sum(b.elected for b in brokers.values()) == 1)
        [victim] = [b for b in brokers.values() if b.elected]
        others = [b for b in brokers.values() if b is not victim]
        await until(lambda: all(b.control.picturing.registered(BrokerId(victim.name)) for b in others))
        before = others[0].control.picturing.holder_version
        await victim.die()
        for other in others:
            other.eyes.see(f"{victim.name}-1", replace(NONE, swim="dead", probe_failed=True))
        await until(lambda: all(b.owned(victim.name) == 0 for b in others))
        [taker] = [b for b in others if b.elected]
        assert taker.control.picturing.holder_version > before
        told = {one.partition: one.now for one in taker.told}
        assert sorted(told) == list(PARTITIONS)
        assert taker.control.topology.mine() == told
        view = taker.control.controller.view()
        moved = sum(1 for s in told.values() if s is not None and s.assignment.epoch > 1)
        assert sum(1 for d in view.decisions if (d.act, d.outcome) == ("takeover", "applied")) <= moved
        assert any("is dead" in record.getMessage() for record in caplog.records)

        # it comes back, and is told everything
        back = brokers[victim.name] = Broker(address, space, victim.name, 2)
        await until(lambda: len(back.control.topology.places()) == len(PARTITIONS))
        assert back.control.topology.places() == taker.control.topology.places()
        key = await user.get(CONTROLLER_KEY)
        assert key is not None
        assert key.version == taker.control.controller.election.term
    finally:
        for broker in brokers.values():
            await broker.stop()
        await user.close()


def _revocation(lease: int) -> object:
    from headrace.cluster.etcd.calls import pb

    return pb.LeaseRevokeRequest(ID=lease)

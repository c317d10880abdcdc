"""Control with real transport and simulated gossip, on virtual time: how soon each kind of death is acted on, and what is no death."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from headrace.cluster.control.opening import make_control, registration
from headrace.cluster.memory import MemoryStore
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Me, Probed, Transport
from headrace.core.control.rehearsal import as_owner
from headrace.model.cluster import Assignment, BrokerId, Incarnation, decode, encode, partition_key
from headrace.model.config import Address, Config, Membership
from headrace.model.errors import HeadraceError
from headrace.model.ids import PartitionId
from headrace.model.specs import QueueSpec
from headrace.sim.chance import Chance
from headrace.sim.datagrams import Datagrams
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.membership import SimMembership
from headrace.sim.network import Network

SECRET = b"a secret of the simulated cluster"
PEER, GOSSIP = 7582, 7583
NAMES = ("a", "b", "c", "d")
PARTITIONS = range(1, 9)


class Broker:
    def __init__(self, world: "World", name: str, life: int) -> None:
        self.world, self.name = world, name
        self.id, self.incarnation = BrokerId(name), Incarnation(f"{name}-{life}")
        self.machine = Machine(world.loop, name, world.chance.fork(f"{name} {life}"))
        world.network.machines[name] = self.machine

    async def start(self) -> None:
        secrets = Secrets([SECRET])
        self.transport = Transport(Me(broker=self.id, incarnation=self.incarnation, cluster="one"), secrets)
        await self.transport.start(Address(self.name, PEER))
        settings = Membership(seeds=(f"a:{GOSSIP}", f"b:{GOSSIP}"))
        self.membership = SimMembership(
            self.id, "one", secrets, settings, at=Address(self.name, GOSSIP), datagrams=self.world.datagrams, meta={"incarnation": self.incarnation}
        )
        await self.membership.start()
        me = registration(Config(), self.id, self.incarnation, addresses={"peer": f"{self.name}:{PEER}"}, host=self.name, release="1")
        coordinator = self.world.store.client(self.name)
        self.control, self.sightings = make_control(Config(), coordinator, self.membership, self.transport, me)
        self.sightings.start()
        self.control.start()
        asyncio.get_running_loop().create_task(self.obey())

    async def obey(self) -> None:
        coordinator = self.world.store.client(self.name)
        while True:
            await asyncio.sleep(0.1)
            for partition, stored in self.control.topology.mine().items():
                a = stored.assignment
                new = as_owner(a, frozenset(b.id for b in self.world.brokers.values() if b.machine.alive))
                if a.owner == self.id and new != a:
                    try:
                        key = partition_key(partition)
                        await coordinator.transact({key: stored.stored_version}, {key: encode(new)})
                    except HeadraceError:
                        break


class World:
    def __init__(self, seed: int) -> None:
        self.chance = Chance(seed)
        self.loop = SimLoop(self.chance.fork("loop"), rows_max=0)  # type: ignore[abstract]
        self.network = Network(self.loop, self.chance.fork("network"))
        self.network.shape(0.0002, 0.0005, 0.0)
        self.datagrams = Datagrams(self.network)
        self.brokers: dict[str, Broker] = {}
        self.store: MemoryStore

    async def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.post(None, seconds, future.set_result, None)
        await future

    async def until(self, holds: Callable[[], object], seconds: float) -> float:
        began = self.loop.time()
        while not holds():
            assert self.loop.time() - began < seconds, f"not within {seconds} s: {self.assignments()}"
            await self.sleep(0.005)
        return self.loop.time() - began

    async def start(self, name: str, life: int = 1) -> None:
        broker = self.brokers[name] = Broker(self, name, life)
        await self.loop.spawn(broker.machine, broker.start())

    def assignments(self) -> list[Assignment]:
        found = [self.store.document(partition_key(PartitionId(p))) for p in PARTITIONS]
        return [decode(Assignment, d.value) for d in found if d is not None]

    def controller(self) -> str:
        [name] = [b.name for b in self.brokers.values() if b.machine.alive and b.control.controller.election.look()]
        return name

    def owned(self, name: str) -> int:
        return sum(1 for a in self.assignments() if a.owner == name)

    def kill(self, name: str, *, silently: bool = False) -> None:
        self.brokers[name].machine.kill()
        self.network.ended(self.brokers[name].machine, silently=silently)


def play(scenario: Callable[[World], Awaitable[None]], seed: int = 1) -> None:
    world = World(seed)

    async def run() -> None:
        world.store = MemoryStore()
        spec = QueueSpec(partitions=len(PARTITIONS), durability="replica_durable", replication_factor=3, min_in_sync_replicas=2)
        document = {"name": "orders", "kind": "queue", "id": "x", "partitions": tuple(PARTITIONS), "queue": spec}
        world.store.write({}, {"names/orders": msgspec.msgpack.encode(document)}, 0)
        for name in NAMES:
            await world.start(name)
        await world.until(lambda: len(world.assignments()) == len(PARTITIONS), 5)
        await world.sleep(3)
        assert all(world.owned(name) for name in NAMES)
        await scenario(world)

    try:
        world.loop.run_until_complete(run())
        assert not world.loop.errors, world.loop.errors
        failed = [(task, task.exception()) for _, task in world.loop.unseen()]
        assert not failed, failed
    finally:
        world.loop.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_owner_is_replaced_by_reset_and_refusals_within_a_fraction_of_a_second(seed: int) -> None:
    async def scenario(world: World) -> None:
        victim = next(name for name in NAMES if name != world.controller())
        world.kill(victim)
        took = await world.until(lambda: world.owned(victim) == 0, 2)
        assert took < 0.45
        assert any("connection was reset" in a.reason for a in world.assignments())

    play(scenario, seed)


def test_a_probe_that_a_dying_process_still_takes_costs_no_more_than_another_probe() -> None:
    async def scenario(world: World) -> None:
        controller = world.brokers[world.controller()]
        victim = next(name for name in NAMES if name != controller.name)
        probe, taken = controller.transport.probe, [victim]

        async def dying(at: Address, *, timeout_ms: int, expects: BrokerId = BrokerId("")) -> Probed:
            return Probed(outcome="silent") if taken and taken.pop() else await probe(at, timeout_ms=timeout_ms, expects=expects)

        controller.transport.probe = dying  # type: ignore[method-assign]
        world.kill(victim)
        assert await world.until(lambda: world.owned(victim) == 0, 2) < 0.45
        assert not taken

    play(scenario)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_controller_that_owns_is_replaced_as_both_within_a_second(seed: int) -> None:
    async def scenario(world: World) -> None:
        victim = world.controller()
        world.kill(victim)
        assert await world.until(lambda: world.owned(victim) == 0, 2) < 1.0
        assert world.controller() != victim

    play(scenario, seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_machine_without_power_is_replaced_by_gossip_and_the_own_probe(seed: int) -> None:
    async def scenario(world: World) -> None:
        victim = next(name for name in NAMES if name != world.controller())
        world.kill(victim, silently=True)
        assert await world.until(lambda: world.owned(victim) == 0, 3) < 2.0
        assert any("own probe failed" in a.reason for a in world.assignments())

    play(scenario, seed)


def test_a_broker_that_only_the_controller_does_not_reach_keeps_what_it_owns() -> None:
    async def scenario(world: World) -> None:
        controller = world.controller()
        other = next(name for name in NAMES if name != controller)
        before = world.assignments()
        world.network.break_connections(controller, other)
        world.network.cut(controller, other)
        world.network.cut(other, controller)
        await world.sleep(10)
        assert [(a.owner, a.epoch) for a in world.assignments()] == [(a.owner, a.epoch) for a in before]
        world.network.heal_all()
        await world.sleep(10)
        seen = world.brokers[controller].control.picturing.seen(BrokerId(other))
        assert seen is not None
        assert (seen.swim, seen.probe_failed, seen.reset_ms) == ("alive", False, None)

    play(scenario)


def test_a_broken_connection_alone_moves_nothing() -> None:
    async def scenario(world: World) -> None:
        before = world.assignments()
        for _ in range(20):
            for name in NAMES:
                for other in NAMES:
                    if name < other:
                        world.network.break_connections(name, other)
            await world.sleep(0.3)
        await world.sleep(2)
        assert [(a.owner, a.epoch) for a in world.assignments()] == [(a.owner, a.epoch) for a in before]

    play(scenario)


def test_a_paused_owner_is_replaced_and_back_in_another_epoch_it_owns_nothing_at_first() -> None:
    async def scenario(world: World) -> None:
        victim = next(name for name in NAMES if name != world.controller())
        world.brokers[victim].machine.pause()
        assert await world.until(lambda: world.owned(victim) == 0, 4) < 3.0
        await world.sleep(6)
        world.brokers[victim].machine.resume()
        await world.until(lambda: world.brokers[victim].control.presence.times == 2, 5)
        await world.sleep(5)
        assert world.owned(victim) == 0
        await world.until(lambda: world.owned(victim) > 0, 60)

    play(scenario)


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "headrace")


def test_what_a_broker_held_against_another_ends_when_it_looks_no_more() -> None:
    """Who controls looks at everybody, the others at the controller: when it is another one, nobody would ever take back what the last probe said."""

    async def scenario(world: World) -> None:
        one, other = (world.brokers[name] for name in [name for name in NAMES if name != world.controller()][:2])

        async def silent(at: Address, *, timeout_ms: int, expects: BrokerId = BrokerId("")) -> Probed:
            return Probed(outcome="silent")

        def failed() -> bool:
            return one.sightings.clues(other.id, other.incarnation).probe_failed

        one.transport.probe = silent  # type: ignore[method-assign]
        one.sightings.also(frozenset({other.id}))
        world.network.break_connections(one.name, other.name)
        await world.until(failed, 3)
        await world.sleep(3)
        assert failed()
        one.sightings.also(frozenset())
        await world.until(lambda: not failed(), 3)
        await world.sleep(3)
        assert not failed()

    play(scenario)

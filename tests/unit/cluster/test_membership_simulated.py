"""Membership of simulated clusters: joins, deaths, cuts, restarts, goodbyes and secrets, all on virtual time."""

from collections.abc import Awaitable, Callable, Iterable

import pytest

from headrace.cluster.membership import Changed, Member
from headrace.cluster.secret import Secret, Secrets
from headrace.model.cluster import BrokerId
from headrace.model.config import Address, Membership
from headrace.model.errors import Invalid
from headrace.sim.chance import Chance
from headrace.sim.datagrams import Datagrams
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.membership import SimMembership
from headrace.sim.network import Network

PORT = 7583
OLD, NEW = b"the old secret, long enough", b"the new secret, long enough"
NAMES = ("a", "b", "c", "d", "e")


class World:
    def __init__(self, seed: int = 1) -> None:
        self.chance = Chance(seed)
        self.loop = SimLoop(self.chance.fork("loop"), rows_max=None)  # type: ignore[abstract]
        self.network = Network(self.loop, self.chance.fork("network"))
        self.network.shape(0.0002, 0.0005, 0.0)
        self.datagrams = Datagrams(self.network)
        self.machines: dict[str, Machine] = {}
        self.members: dict[str, SimMembership] = {}

    async def start(self, name: str, life: str = "1", *, secret: bytes = OLD, cluster: str = "one") -> SimMembership:
        machine = self.machines[name] = Machine(self.loop, name, self.chance.fork(f"{name} {life}"))
        self.network.machines[name] = machine

        async def begin() -> SimMembership:
            made = SimMembership(
                BrokerId(name), cluster, Secrets([secret]), Membership(seeds=(f"a:{PORT}", f"b:{PORT}")),
                at=Address(name, PORT), datagrams=self.datagrams, meta={"incarnation": f"{name}-{life}"},
            )  # fmt: skip
            await made.start()
            return made

        made = self.members[name] = await self.loop.spawn(machine, begin())
        return made

    def kill(self, name: str) -> None:
        self.machines[name].kill()
        self.network.ended(self.machines[name], silently=True)

    async def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.post(None, seconds, future.set_result, None)
        await future

    def seen(self, by: str, of: str) -> Member | None:
        return self.members[by].member(BrokerId(of))

    def agree(self, state: str, of: str, by: Iterable[str]) -> bool:
        return all((found := self.seen(one, of)) is not None and found.state == state for one in by)

    async def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> float:
        began = self.loop.time()
        while not holds():
            assert self.loop.time() - began < seconds, {name: m.members() for name, m in self.members.items()}
            await self.sleep(0.005)
        return self.loop.time() - began


def simulated(scenario: Callable[[World], Awaitable[None]], seed: int = 1, names: Iterable[str] = NAMES) -> str:
    world = World(seed)

    async def run() -> None:
        for name in names:
            await world.start(name)
        assert await world.until(lambda: all(world.agree("alive", one, names) for one in names)) < 5.0
        await scenario(world)

    try:
        world.loop.run_until_complete(run())
        assert not world.loop.errors
        return world.loop.trace.digest()
    finally:
        world.loop.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_death_is_seen_by_all_in_a_second_or_two(seed: int) -> None:
    async def scenario(world: World) -> None:
        events = world.members["a"].events()
        world.kill("c")
        assert await world.until(lambda: world.agree("dead", "c", "abde")) < 2.5
        states = []
        while "dead" not in states:
            event = await anext(events)
            assert isinstance(event, Changed)
            if event.member.id == "c":
                states.append(event.member.state)
        assert states == ["suspect", "dead"]
        await world.start("c", "2")
        assert await world.until(lambda: world.agree("alive", "c", "abde")) < 3.0
        assert world.seen("a", "c").incarnation == "c-2"  # type: ignore[union-attr]

    simulated(scenario, seed)


def test_loss_and_doubles_kill_nobody() -> None:
    async def scenario(world: World) -> None:
        world.datagrams.loss, world.datagrams.doubles = 0.05, 0.1
        for _ in range(100):
            await world.sleep(0.3)
            assert not any(m.state == "dead" for member in world.members.values() for m in member.members())

    simulated(scenario)


def test_two_sides_of_a_cut_hold_each_other_dead_and_find_back() -> None:
    async def scenario(world: World) -> None:
        for one in "ab":
            for other in "cde":
                world.network.cut(one, other)
                world.network.cut(other, one)
        await world.until(lambda: world.agree("dead", "c", "ab") and world.agree("dead", "a", "cde"))
        assert world.agree("alive", "b", "a")
        assert world.agree("alive", "d", "ce")
        world.network.heal_all()
        assert await world.until(lambda: all(world.agree("alive", one, NAMES) for one in NAMES), 30.0) < 30.0

    simulated(scenario)


def test_others_ask_for_him_whom_one_cannot_reach() -> None:
    async def scenario(world: World) -> None:
        world.network.cut("a", "c")
        world.network.cut("c", "a")
        for _ in range(200):
            await world.sleep(0.1)
            assert world.seen("a", "c").state != "dead"
            assert world.seen("c", "a").state != "dead"

    simulated(scenario)


def test_who_stood_still_is_dead_and_objects_when_it_goes_on() -> None:
    async def scenario(world: World) -> None:
        world.machines["d"].pause()
        await world.until(lambda: world.agree("dead", "d", "abce"))
        world.machines["d"].resume()
        await world.until(lambda: world.agree("alive", "d", "abce"), 20.0)

    simulated(scenario)


def test_a_goodbye_is_no_death() -> None:
    async def scenario(world: World) -> None:
        await world.loop.spawn(world.machines["e"], world.members["e"].leave())
        await world.until(lambda: world.agree("left", "e", "abcd"))
        await world.sleep(5)
        assert world.agree("left", "e", "abcd")

    simulated(scenario)


def test_what_one_says_of_itself_comes_to_all() -> None:
    async def scenario(world: World) -> None:
        await world.loop.spawn(world.machines["b"], world.members["b"].say(rack="r1", incarnation="other"))
        await world.until(lambda: all(world.seen(one, "b").meta == {"rack": "r1", "incarnation": "other"} for one in NAMES))  # type: ignore[union-attr]
        with pytest.raises(Invalid):
            await world.loop.spawn(world.machines["b"], world.members["b"].say(much="x" * 500))

    simulated(scenario)


def test_strangers_are_not_heard_and_a_secret_is_exchanged() -> None:
    async def scenario(world: World) -> None:
        await world.start("x", secret=NEW)
        await world.start("y", cluster="two")
        await world.sleep(3)
        assert all(world.seen(one, "x") is None and world.seen(one, "y") is None for one in NAMES)
        assert world.members["a"].counters()["decrypt_failures"] > 0
        for name in NAMES:
            await world.members[name].add_secret(NEW)
        for name in NAMES:
            await world.members[name].use_secret(Secret(NEW).id)
        for name in NAMES:
            await world.members[name].remove_secret(Secret(OLD).id)
        await world.until(lambda: all(world.agree("alive", one, (*NAMES, "x")) for one in (*NAMES, "x")), 20.0)
        await world.sleep(3)
        assert all(world.agree("alive", one, NAMES) for one in NAMES)

    simulated(scenario)


def test_a_run_is_repeated_exactly_by_its_seed() -> None:
    async def scenario(world: World) -> None:
        world.kill("b")
        await world.sleep(5)

    assert simulated(scenario, 3) == simulated(scenario, 3) != simulated(scenario, 4)

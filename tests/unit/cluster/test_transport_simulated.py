"""The transport on virtual time: cuts in one and both directions, machines that vanish, stand still or come back; the same every time."""

from collections.abc import Awaitable, Callable

import pytest

from headrace.cluster.transport import Known, Settings
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import UnknownOutcome
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine, SimLoop
from headrace.sim.network import Network
from headrace.wire.peer import Service
from tests.integration.transport.ends import A, B, End

PORT = 7582


class World:
    """Machines with a transport each."""

    def __init__(self, seed: int = 1) -> None:
        self.chance = Chance(seed)
        self.loop = SimLoop(self.chance.fork("loop"), rows_max=None)  # type: ignore[abstract]
        self.network = Network(self.loop, self.chance.fork("network"))
        self.network.shape(0.0002, 0.0005, 0.2)
        self.ends: dict[str, End] = {}
        self.machines: dict[str, Machine] = {}

    async def start(self, name: str, life: str = "1") -> End:
        machine = self.machines[name] = Machine(self.loop, name, self.chance.fork(f"{name} {life}"))
        self.network.machines[name] = machine

        async def begin() -> End:
            return await End(name, life=life).start(host=name, port=PORT)

        end = self.ends[name] = await self.loop.spawn(machine, begin())
        return end

    def know(self, name: str, *others: str) -> None:
        known = {BrokerId(other): Known(Address(other, PORT)) for other in others}
        self.machines[name].context().run(self.ends[name].transport.know, known)

    async def until(self, holds: Callable[[], object], seconds: float = 10.0) -> float:
        """Virtual seconds until ``holds()``."""
        began = self.loop.time()
        while not holds():
            assert self.loop.time() - began < seconds, f"after {seconds} s: {[e.transport.view() for e in self.ends.values()]}"
            await self.sleep(0.001)
        return self.loop.time() - began

    async def sleep(self, seconds: float) -> None:
        future = self.loop.create_future()
        self.loop.post(None, seconds, future.set_result, None)
        await future

    def both(self) -> bool:
        return self.ends["a"].transport.connected(B) and self.ends["b"].transport.connected(A)

    def neither(self) -> bool:
        return not self.ends["a"].transport.connected(B) and not self.ends["b"].transport.connected(A)


def simulated(scenario: Callable[[World], Awaitable[None]], seed: int = 1) -> str:
    """Runs it, with a and b connected at its begin; the hash of all that was on the network."""
    world = World(seed)

    async def run() -> None:
        for name in ("a", "b"):
            await world.start(name)
        world.know("a", "b")
        world.know("b", "a")
        assert await world.until(world.both) < 0.1
        await scenario(world)

    try:
        world.loop.run_until_complete(run())
        assert not world.loop.errors
        return world.loop.trace.digest()
    finally:
        world.loop.close()


def test_who_does_not_serve_is_left_alone_until_it_does_in_another_life() -> None:
    async def scenario(world: World) -> None:
        b, seen = world.ends["b"].transport, world.ends["a"]
        world.machines["b"].context().run(b.close_to_peers)
        assert await world.until(world.neither) < 0.1
        assert not b.view(), "peers are forgotten"
        dials = seen.transport.view()[0].counters.dials_failed
        await world.sleep(3)
        assert world.neither()
        assert seen.transport.view()[0].counters.dials_failed > dials, "a has tried, and was refused"
        assert "does not serve now" in seen.transport.view()[0].trouble
        world.machines["b"].context().run(b.open_to_peers, Incarnation("another"))
        await world.until(world.both)
        assert seen.transport.view()[0].incarnation == "another"

    simulated(scenario)


@pytest.mark.parametrize("cut", [[("a", "b")], [("b", "a")], [("a", "b"), ("b", "a")]])
def test_a_cut_is_found_and_healed(cut: list[tuple[str, str]]) -> None:
    async def scenario(world: World) -> None:
        await world.sleep(1.05)
        for source, target in cut:
            world.network.cut(source, target)
        assert await world.until(lambda: not world.both()) < 3.0
        assert await world.until(world.neither) < 3.0
        a = world.ends["a"].transport
        assert a.now_ms() - a.answered_ms(B) >= 1500
        await world.sleep(20)
        assert world.neither()
        world.network.heal_all()
        assert await world.until(world.both) < 4.0
        assert "silent" in {loss.kind for end in world.ends.values() for loss in end.seen.losses}

    simulated(scenario)


def test_a_machine_without_power_is_silent_and_a_killed_process_resets() -> None:
    for silently in (True, False):

        async def scenario(world: World, silently: bool = silently) -> None:
            await world.sleep(0.5)
            world.machines["b"].kill()
            world.network.ended(world.machines["b"], silently=silently)
            lost = await world.until(lambda: not world.ends["a"].transport.connected(B))
            assert (2.0 <= lost < 3.0) if silently else lost < 0.01
            assert world.ends["a"].seen.losses[0].kind == ("silent" if silently else "reset")
            await world.sleep(5)
            refused = world.ends["a"].transport.peer(B).refused_ms  # type: ignore[union-attr]
            assert len(refused) >= 2
            await world.start("b", "2")
            assert await world.until(lambda: world.ends["a"].transport.connected(B)) < 1.6
            assert world.ends["a"].transport.peer(B).incarnation == "b-2"  # type: ignore[union-attr]

        simulated(scenario)


def test_who_has_proven_itself_ran_after_the_connection_began() -> None:
    async def scenario(world: World) -> None:
        for name, other in (("a", B), ("b", A)):
            transport = world.ends[name].transport
            remote = transport.peer(other)
            assert remote is not None
            assert remote.link is not None
            assert transport.answered_ms(other) == remote.link.since_ms > 0, "before the first beat"

    simulated(scenario)


def test_who_stood_still_holds_no_silence_against_others_and_trusts_no_old_frame() -> None:
    async def scenario(world: World) -> None:
        a, b = world.ends["a"].transport, world.ends["b"].transport
        await world.sleep(1)
        assert a.now_ms() - a.answered_ms(B) < 450
        world.machines["a"].pause()
        await world.sleep(1.8)
        world.network.cut("a", "b")  # what b had sent is still there for a
        before_ms = a.answered_ms(B)
        world.machines["a"].resume()
        await world.sleep(0.01)
        assert a.connected(B)
        assert a.now_ms() - a.heard_ms(B) < 50  # read just now, sent long ago
        assert a.answered_ms(B) - before_ms < 450  # an answer to a beat of before
        assert a.now_ms() - a.answered_ms(B) > 1000
        assert b.connected(A) or world.ends["b"].seen.losses

    simulated(scenario)


def test_who_stands_still_for_long_is_given_up_and_comes_back() -> None:
    async def scenario(world: World) -> None:
        await world.sleep(1)
        world.machines["b"].pause()
        assert await world.until(lambda: not world.ends["a"].transport.connected(B)) < 3.0
        await world.sleep(8)
        assert not world.ends["a"].transport.connected(B)
        world.machines["b"].resume()
        assert await world.until(world.both) < 4.0

    simulated(scenario)


def test_requests_over_a_cut_end_at_their_deadline_or_with_the_connection() -> None:
    async def scenario(world: World) -> None:
        async def work(peer: BrokerId, body: bytes) -> bytes:
            return body

        world.ends["b"].serve(work)
        world.network.cut("b", "a")
        for timeout_ms in (500, 10_000):
            began = world.loop.time()
            with pytest.raises(UnknownOutcome):
                await world.loop.spawn(
                    world.machines["a"], world.ends["a"].transport.request(B, Service.VERBS, b"x", timeout_ms=timeout_ms)
                )  # fmt: skip
            assert world.loop.time() - began < min(timeout_ms / 1000, 2.5) + 0.01

    simulated(scenario)


def test_a_cut_fills_the_queue_and_no_more() -> None:
    async def scenario(world: World) -> None:
        a = world.ends["a"].transport
        world.network.cut("a", "b")
        body, taken = bytes(1024 * 1024), 0
        while a.send(B, Service.REPLICAS, body):
            taken += 1
            await world.sleep(0.0001)
        assert taken == Settings().queue_bytes_max // len(body) + (0 if Settings().queue_bytes_max % len(body) == 0 else 1)
        await world.sleep(0.001)
        assert ("full", "b") in world.ends["a"].seen.events
        assert await world.until(lambda: not a.connected(B)) < 3.0
        world.network.heal_all()
        await world.until(world.both)
        assert a.send(B, Service.REPLICAS, b"again")

    simulated(scenario)


def test_a_run_is_repeated_exactly_by_its_seed() -> None:
    async def scenario(world: World) -> None:
        for _ in range(3):
            await world.sleep(1)
            world.network.cut("a", "b")
            await world.sleep(3)
            world.network.heal_all()
            await world.until(world.both)

    assert simulated(scenario, 5) == simulated(scenario, 5) != simulated(scenario, 6)

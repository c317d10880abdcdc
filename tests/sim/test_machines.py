"""Whose a callback is: what is called on a machine from outside ends with that machine. What goes on nevertheless is seen at its disk."""

import asyncio
from functools import partial

import pytest

from headrace.sim.chance import Chance
from headrace.sim.lanes import SimLane
from headrace.sim.loop import Machine, SimLoop
from tests.sim.test_mqtt_kept import Story


@pytest.fixture
def loop() -> SimLoop:
    return SimLoop(Chance(1))  # type: ignore[abstract]  # what it leaves out is not for a simulator


def _machine(loop: SimLoop, name: str) -> Machine:
    return Machine(loop, name, loop.chance.fork(name))


def _later(loop: SimLoop, seen: list[str]) -> str:
    """As a broker does: one timer begins the next, and a task."""

    async def work() -> None:
        await asyncio.sleep(0.1)
        seen.append(f"task of {loop.ambient.name}")

    def again() -> None:
        seen.append(f"timer of {loop.ambient.name}")
        loop.create_task(work())
        loop.call_later(1.0, again)

    loop.call_later(1.0, again)
    return "begun"


def test_what_is_called_on_a_machine_is_its_own_and_ends_with_it(loop: SimLoop) -> None:
    machine, seen = _machine(loop, "b"), list[str]()
    assert loop.world.call(machine.call, _later, loop, seen) == "begun"
    loop.run_for(1.5)
    assert seen == ["timer of b", "task of b"]
    machine.kill()
    loop.run_for(5.0)
    assert len(seen) == 2


def test_work_for_the_disk_of_a_dead_machine_is_an_error_of_the_run(loop: SimLoop) -> None:
    machine, done = _machine(loop, "b"), list[object]()
    lane = SimLane(loop, machine, "io", lambda: 0.001)
    giving = _machine(loop, "giving")
    giving.call(loop.call_later, 1.0, lane.submit, lambda: 1, lambda result, _: done.append(result))
    giving.call(loop.call_later, 2.0, lane.submit, lambda: 2, lambda result, _: done.append(result))
    loop.run_for(1.5)
    machine.kill()
    assert not loop.errors
    loop.run_for(1.0)
    assert [error["message"] for error in loop.errors] == ["b is dead, and its disk is given work in the name of giving"]
    assert done == [1]


async def _dies(story: Story) -> None:
    await story.until(lambda: bool(story.owner("member")))
    name = story.owner("member")
    host, hub = story.hosts[name], story.hubs()[name]
    cluster = story.cluster(host)
    assert cluster is not None
    copy = hub.partitions[hub.router.number_of("member")].copy
    hand_over, turned = copy.hand_over, list[str]()

    def dies() -> None:
        hand_over()
        host.kill(power=True)
        cluster.driver.turns._turned = partial(turned.append, "turned")

    copy.hand_over = dies
    story._device("member", 1)
    story._spawn("giving", story._give())
    await story.until(lambda: not host.alive)
    await asyncio.sleep(5.0)
    assert not turned


def test_a_broker_that_was_made_to_hand_its_partitions_over_does_nothing_once_it_is_dead() -> None:
    Story(_dies).go()

"""Which life of a broker counts, and when standing still is noticed."""

import asyncio

from headrace.cluster.membership.fanout import Fanout
from headrace.cluster.membership.interface import EVENTS_MAX, Changed, Member, Reread, State
from headrace.cluster.membership.lives import GONE_MAX, Life, Lives
from headrace.cluster.membership.pauses import BEAT_MS, Gaps, Pauses
from headrace.model.cluster import BrokerId
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine, SimLoop

A = BrokerId("a")


def life(run: int, state: State = "alive", id: str = "a") -> Life:
    return Life(f"{id}~{run}", Member(id=BrokerId(id), address=f"h:{run}", state=state, run=run, meta={"incarnation": str(run)}))


def test_a_later_life_counts_and_the_death_of_the_earlier_says_nothing() -> None:
    lives = Lives()
    assert lives.take(life(1)) == (None, life(1).member)
    assert lives.take(life(2)) == (life(1).member, life(2).member)
    assert [found.member.run for found in lives.alive(A)] == [1, 2]
    assert lives.take(life(1, "suspect")) == (life(2).member, life(2).member)
    assert lives.take(life(1, "dead")) == (life(2).member, life(2).member)
    assert lives.member(A) == life(2).member
    assert lives.take(life(2, "dead"))[1] == life(2, "dead").member


def test_a_living_one_counts_before_a_dead_one_whatever_the_clocks_said() -> None:
    lives = Lives()
    lives.take(life(5))
    assert lives.take(life(3))[1] == life(5).member
    assert lives.take(life(5, "dead")) == (life(5).member, life(3).member)


def test_what_is_remembered_of_the_gone_is_bounded() -> None:
    lives = Lives()
    lives.take(life(1, id="living"))
    for i in range(GONE_MAX + 10):
        lives.take(life(1, "dead", id=f"b{i}"))
    assert len(lives.current()) == GONE_MAX + 1
    assert lives.member(BrokerId("living")) is not None
    assert lives.member(BrokerId("b9")) is None
    assert lives.member(BrokerId("b10")) is not None


def test_a_reader_that_is_behind_is_told_to_read_again() -> None:
    async def run() -> None:
        fanout = Fanout()
        quick, slow = fanout.reader(), fanout.reader()
        event = Changed(life(1).member, None)
        for _ in range(EVENTS_MAX):
            fanout.put(event)
            assert await anext(quick) == event
        fanout.put(event)
        assert [await anext(slow), await anext(quick)] == [Reread(), event]
        fanout.end()
        assert [e async for e in slow] == []

    asyncio.run(run())


def test_gaps() -> None:
    gaps = Gaps(0, 1_000_000)
    for now in range(100, 2000, 100):
        assert gaps.beat(now, 1_000_000 + now) == 0
    assert not gaps.late(2450)
    assert gaps.late(2600)
    assert gaps.beat(2700, 1_002_700) == 700
    assert gaps.beat(2800, 1_002_800) == 0
    assert gaps.beat(2900, 1_012_900) == 10_000, "the machine was suspended, its clock with it"
    assert gaps.beat(3000, 1_013_000) == 0
    assert gaps.beat(3100, 1_000_000) == 0, "a clock that is set back tells nothing"


def test_a_machine_that_stood_still_knows_before_it_serves() -> None:
    loop = SimLoop(Chance(1), rows_max=0)  # type: ignore[abstract]
    machine = Machine(loop, "a", Chance(2))
    said: list[object] = []

    async def run() -> None:
        pauses = Pauses()
        pauses.tell(said.append)
        pauses.start()

        def serve() -> None:
            pauses.check(int(machine.monotonic() * 1000))
            said.append("serve")

        loop.call_later(1.0, serve)
        loop.call_later(1.0 + 3 * BEAT_MS / 1000, serve)
        await asyncio.sleep(0.95)
        loop.post(None, 0.01, machine.pause)
        loop.post(None, 3.01, machine.resume)
        await asyncio.sleep(3.5)
        assert pauses.count == 1
        pauses.stop()

    try:
        loop.run_until_complete(loop.spawn(machine, run()))
    finally:
        loop.close()
    assert isinstance(said[0], int)
    assert 2500 <= said[0] <= 3200
    assert said[1:] == ["serve", "serve"]

"""The coordinator of the simulator: its faults, its time, and that a dead broker's lease ends although its renewals were the broker's."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from headrace.cluster.coordinator import Changes, Document, Reread
from headrace.cluster.memory import MemoryCoordinator, MemoryStore
from headrace.errors import Conflict, CoordinatorUnavailable, NotFound, UnknownOutcome
from headrace.sim.chance import Chance
from headrace.sim.loop import Machine, SimLoop


def on_virtual_time(scenario: Callable[[MemoryStore, SimLoop], Awaitable[None]]) -> None:
    loop = SimLoop(Chance(1), rows_max=0)  # type: ignore[abstract]

    async def run() -> None:
        await scenario(MemoryStore(), loop)

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


async def in_machine(loop: SimLoop, machine: Machine, client: MemoryCoordinator) -> None:
    await loop.create_task(client.register("brokers/a", b"", ttl_ms=3000), context=machine.context())


def test_a_killed_machine_is_missed_when_its_lease_is_over() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        machine = Machine(loop, "a", Chance(2))
        await in_machine(loop, machine, store.client("a"))
        b = store.client("b")
        await asyncio.sleep(60)
        assert await b.get("brokers/a") is not None
        killed_at = loop.time()
        machine.kill()
        async with aclosing(b.watch("brokers/")) as events:
            event = await anext(events)
        assert isinstance(event, Changes)
        assert event.changes[0].document is None
        assert 1.9 < loop.time() - killed_at <= 3.0

    on_virtual_time(scenario)


def test_a_paused_machine_finds_its_lease_gone() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        machine = Machine(loop, "a", Chance(2))
        a = store.client("a")
        registration = await loop.create_task(a.register("brokers/a", b"", ttl_ms=3000), context=machine.context())
        machine.pause()
        await asyncio.sleep(10)
        assert store.document("brokers/a") is None
        assert registration.alive
        machine.resume()
        assert await registration.lost()

    on_virtual_time(scenario)


def test_who_is_cut_off_gets_definite_errors_until_asked_again() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a, b = store.client("a"), store.client("b")
        registration = await a.register("brokers/a", b"", ttl_ms=30_000)
        store.unreachable("a")
        with pytest.raises(CoordinatorUnavailable):
            await a.get("k")
        with pytest.raises(CoordinatorUnavailable):
            await a.transact({}, {"k": b""})
        assert not (await a.status()).reachable
        assert await b.get("k") is None
        store.unreachable("a", False)
        assert await a.transact({}, {"k": b""})
        assert registration.alive

    on_virtual_time(scenario)


def test_a_cut_between_question_and_answer_leaves_the_outcome_unknown() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a, b = store.client("a"), store.client("b")
        asking = loop.create_task(a.transact({}, {"k": b"v"}))
        await asyncio.sleep(store.latency_s * 1.5)
        store.unreachable("a")
        with pytest.raises(UnknownOutcome):
            await asking
        assert await b.get("k") == Document("k", b"v", 1)

    on_virtual_time(scenario)


def test_an_answer_is_lost_by_switch() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a = store.client("a")
        store.lose_answers("a")
        assert await a.get("k") is None
        with pytest.raises(UnknownOutcome):
            await a.transact({"k": 0}, {"k": b"v"})
        assert not await a.transact({"k": 0}, {"k": b"v"})
        assert await a.get("k") == Document("k", b"v", 1)

    on_virtual_time(scenario)


def test_a_held_watch_comes_late_and_in_order() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a, b = store.client("a"), store.client("b")
        store.hold_watches("b")
        for n in range(3):
            await a.transact({}, {"k": str(n).encode()})
        async with aclosing(b.watch("k", from_revision=1)) as events:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(5)
            assert not waiting.done()
            assert await b.get("k") == Document("k", b"2", 3)
            store.hold_watches("b", False)
            event = await waiting
        assert isinstance(event, Changes)
        assert [c.revision for c in event.changes] == [1, 2, 3]

    on_virtual_time(scenario)


def test_a_watch_that_was_cut_off_while_the_store_was_compacted_demands_a_read() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a, b = store.client("a"), store.client("b")
        async with aclosing(b.watch("k", from_revision=1)) as events:
            await a.transact({}, {"k": b"1"})
            assert isinstance(await anext(events), Changes)
            store.unreachable("b")
            waiting = asyncio.ensure_future(anext(events))
            await a.transact({}, {"k": b"2"})
            store.compact()
            await a.transact({}, {"k": b"3"})
            await asyncio.sleep(5)
            assert not waiting.done()
            store.unreachable("b", False)
            assert await waiting == Reread("compacted")

    on_virtual_time(scenario)


def test_a_restored_snapshot_ends_watches_and_leases_and_takes_documents_back() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a = store.client("a")
        await a.transact({}, {"k": b"1", "gone": b""})
        backup = store.backup()
        await a.transact({}, {"k": b"2", "gone": None, "late": b""})
        registration = await a.register("brokers/a", b"", ttl_ms=3000)
        async with aclosing(a.watch("k", from_revision=2)) as events:
            assert isinstance(await anext(events), Changes)
            store.restore(backup)
            for _ in range(10):
                await a.transact({}, {"other": b""})
            assert await anext(events) == Reread("restored")
        assert [d.key for d in (await a.range("")).documents] == ["gone", "k", "other"]
        assert await a.get("k") == Document("k", b"1", 1)
        assert await registration.lost()
        with pytest.raises(Conflict):
            await a.transact({}, {"k": b""}, under=registration)

    on_virtual_time(scenario)


def test_members_join_as_learners_and_vote_once_they_have_caught_up() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a = store.client("a")
        store.caught_up = False
        learner = await a.add_member("d:1")
        assert learner.learner
        with pytest.raises(Conflict):
            await a.add_member("d:1")
        with pytest.raises(CoordinatorUnavailable):
            await a.promote_member(learner.id)
        store.caught_up = True
        await a.promote_member(learner.id)
        with pytest.raises(Conflict):
            await a.promote_member(learner.id)
        with pytest.raises(NotFound):
            await a.remove_member(99)
        for member in await a.members():
            if not member.peer_addr.startswith("d"):
                await a.remove_member(member.id)
        assert [m.id for m in await a.members()] == [learner.id]
        assert (await a.status()).leader == learner.id
        with pytest.raises(Conflict):
            await a.remove_member(learner.id)

    on_virtual_time(scenario)


def test_without_a_leader_nobody_gets_an_answer() -> None:
    async def scenario(store: MemoryStore, loop: SimLoop) -> None:
        a = store.client("a")
        store.leader = 0
        with pytest.raises(CoordinatorUnavailable):
            await a.get("k")
        store.leader = 2
        assert await a.get("k") is None

    on_virtual_time(scenario)


def test_the_same_questions_take_the_same_way() -> None:
    def run() -> list[tuple[float, int]]:
        told: list[tuple[float, int]] = []

        async def scenario(store: MemoryStore, loop: SimLoop) -> None:
            async def one(name: str) -> None:
                client = store.client(name)
                for _ in range(20):
                    document = await client.get("k")
                    if await client.transact({"k": document.version if document else 0}, {"k": name.encode()}):
                        told.append((loop.time(), int(name)))

            await asyncio.gather(*(one(str(n)) for n in range(5)))

        on_virtual_time(scenario)
        return told

    assert run() == run()

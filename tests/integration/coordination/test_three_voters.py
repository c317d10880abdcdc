"""Three real voters: endpoints and leaders that die, members that come and go, and what is known of the outcome meanwhile."""

import asyncio
import signal
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from headrace.cluster.coordinator import Changes, Document
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.errors import Conflict, CoordinatorUnavailable, NotFound, UnknownOutcome
from tests.integration.coordination.etcds import READY_S, Ensemble, Member

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


async def write(client: EtcdCoordinator, key: str, value: bytes) -> None:
    """As a careful writer does: reads again whenever the outcome is not known."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                document = await client.get(key)
                if document is not None and document.value == value:
                    return
                if await client.transact({key: document.version if document else 0}, {key: value}):
                    return
            except (UnknownOutcome, CoordinatorUnavailable):
                continue


async def test_another_endpoint_answers_when_one_dies_and_watch_and_registration_live_on(three: Ensemble) -> None:
    leader = await three.leader()
    follower = next(m for m in three.members if m is not leader)
    client = three.client(first=three.members.index(follower))
    registration = await client.register("brokers/a", b"", ttl_ms=4000)
    revision = (await client.range("")).revision
    async with aclosing(client.watch("k", from_revision=revision + 1)) as events, asyncio.timeout(60):
        await client.transact({}, {"k1": b""})
        event = await anext(events)
        assert isinstance(event, Changes)
        await follower.down()
        await write(client, "k2", b"")
        event = await anext(events)
        assert isinstance(event, Changes)
        assert [c.key for c in event.changes] == ["k2"]
        await asyncio.sleep(5)
        assert registration.alive
        assert registration.silent_ms < 4000
        assert await client.get("brokers/a") is not None
    status = await client.status()
    assert [e.reachable for e in status.endpoints].count(False) == 1
    assert status.leader != 0


async def test_writes_go_on_after_the_leader_is_killed_and_none_is_lost(three: Ensemble) -> None:
    """How long they stand still is measured by scripts, not asserted here."""
    leader = await three.leader()
    client = three.client(first=three.members.index(leader), answer_timeout_s=0.5)
    await write(client, "k", b"0")
    killed_at = 0.0
    for n in range(1, 60):
        if n == 20:
            await leader.down()
            killed_at = time.monotonic()
        await write(client, "k", str(n).encode())
        if n == 20:
            print(f"gap after the leader's death: {time.monotonic() - killed_at:.3f} s")
    assert await client.get("k") == Document("k", b"59", 60)
    assert (await three.leader()) is not leader


async def test_a_leader_that_stands_still_is_replaced(three: Ensemble) -> None:
    leader = await three.leader()
    client = three.client(first=three.members.index(leader), answer_timeout_s=0.5)
    await write(client, "k", b"before")
    leader.send(signal.SIGSTOP)
    try:
        await write(client, "k", b"after")
    finally:
        leader.send(signal.SIGCONT)
    async with asyncio.timeout(READY_S):
        while not all(e.reachable for e in (await client.status()).endpoints):
            await asyncio.sleep(0.1)
    assert (await client.get("k")) is not None


async def test_without_a_majority_everything_is_refused_for_certain_and_goes_on_with_one(three: Ensemble) -> None:
    client = EtcdCoordinator(three.addresses, timeout_s=2.0, answer_timeout_s=0.5)
    try:
        await client.transact({}, {"k": b"1"})
        registration = await client.register("brokers/a", b"", ttl_ms=2000)
        revision = (await client.range("")).revision
        async with aclosing(client.watch("k", from_revision=revision + 1)) as events:
            waiting = asyncio.ensure_future(anext(events))
            for member in three.members[1:]:
                await member.down()
            await asyncio.sleep(3)
            with pytest.raises(CoordinatorUnavailable):
                await client.get("k")
            with pytest.raises((CoordinatorUnavailable, UnknownOutcome)):
                await client.transact({"k": 1}, {"k": b"2"})
            async with asyncio.timeout(READY_S):
                status = await client.status()
                while [e.reachable for e in status.endpoints] != [True, False, False]:
                    await asyncio.sleep(0.1)
                    status = await client.status()
            assert status.leader == 0
            assert registration.alive
            assert registration.silent_ms > 1000
            for member in three.members[1:]:
                await member.start(three.members)
                await member.ready()
            await write(client, "k", b"3")
            async with asyncio.timeout(READY_S):
                event = await waiting
            assert isinstance(event, Changes)
            assert event.changes[0].key == "k"
    finally:
        await client.close()


async def test_members_are_added_as_learners_promoted_and_removed(three: Ensemble, tmp_path: Path) -> None:
    client = three.client()
    before = await client.members()
    assert sorted(m.name for m in before) == ["m0", "m1", "m2"]
    assert sorted(m.peer_addr for m in before) == sorted(str(m.peer) for m in three.members)
    await client.transact({}, {f"k{n}": bytes(1000) for n in range(100)})

    fourth = Member("m3", tmp_path)
    async with asyncio.timeout(READY_S):
        while True:  # etcd takes none until all voters have been connected for some seconds
            try:
                learner = await client.add_member(str(fourth.peer))
                break
            except CoordinatorUnavailable:
                await asyncio.sleep(0.2)
    assert learner.learner
    assert learner.name == ""
    with pytest.raises(Conflict):
        await client.add_member(str(fourth.peer))
    with pytest.raises(CoordinatorUnavailable):
        await client.promote_member(learner.id)
    three.members.append(fourth)
    await fourth.start(three.members, founding=False)
    await fourth.ready()
    async with asyncio.timeout(READY_S):
        while True:
            try:
                await client.promote_member(learner.id)
                break
            except CoordinatorUnavailable:
                await asyncio.sleep(0.1)
    assert [m.learner for m in await client.members()] == [False] * 4
    with pytest.raises(Conflict):
        await client.promote_member(learner.id)
    with pytest.raises(NotFound):
        await client.remove_member(12345)

    first = three.members[0]
    gone = next(m for m in await client.members() if m.name == "m0")
    await client.use(three.addresses[1:])  # one that is asked to remove itself may end before it answers
    await client.remove_member(gone.id)
    await write(client, "k0", b"still")
    assert sorted(m.name for m in await client.members()) == ["m1", "m2", "m3"]
    assert first.supervisor is not None
    async with asyncio.timeout(READY_S):
        while first.supervisor.state != "removed":
            await asyncio.sleep(0.1)
    with pytest.raises(CoordinatorUnavailable, match="removed"):
        await first.supervisor.ready(5)


async def test_a_question_to_a_member_that_does_not_answer_is_put_to_the_next(three: Ensemble) -> None:
    leader = await three.leader()
    silent = next(m for m in three.members if m is not leader)
    client = three.client(first=three.members.index(silent))
    await client.transact({}, {"k": b""})
    silent.send(signal.SIGSTOP)
    try:
        assert await client.get("k") is not None
    finally:
        silent.send(signal.SIGCONT)

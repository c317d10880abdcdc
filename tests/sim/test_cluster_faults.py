"""What a cluster does about damage, cuts, deletions and a coordinator that is away, step by step: three simulated brokers and one who looks."""

import asyncio
import logging
from typing import Any

import pytest
from msgspec.structs import replace

from headrace.cluster.control.declared import DELETED_PREFIX, NAMES_PREFIX
from headrace.model.cluster import CONTROLLER_KEY, PARTITIONS_PREFIX, Assignment, decode
from headrace.model.config import KIB
from headrace.sim.clustered import Host
from headrace.sim.world import DATA
from tests.sim.test_cluster_of_three import Story


async def until(true: Any, seconds: float, what: str) -> None:
    """Waits for a condition in virtual time."""
    try:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


def ground(host: Host) -> Any:
    assert host.running is not None
    store: Any = host.running.broker.store
    return store._ground


def documents(run: Story) -> dict[int, Assignment]:
    page = run.store.page(PARTITIONS_PREFIX, "", 1000, 0)
    return {a.partition: a for a in (decode(Assignment, d.value) for d in page.documents)}


async def publish(run: Story, host: Host, name: str, count: int) -> None:
    client = await run.connect(host)
    publisher = client.publisher(name)
    for future in [publisher.post(b"%d" % number, partition=0) for number in range(count)]:
        await future
    await client.close()


def test_an_owner_with_a_damaged_copy_is_replaced_and_its_copy_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        await publish(run, owner, "orders", 50)
        pid = run.copy(owner).pid
        before = run.copy(owner).document.epoch
        ground(owner).isolate(pid, "a byte went bad", 10, 0, 5)
        after = await run.owner(but=owner)
        assert run.copy(after).document.epoch > before
        assert "calls its copy damaged" in documents(run)[pid].reason
        await until(lambda: not ground(owner).damaged and not run.copy(owner).replicated.replica.journal.suspect, 20.0, "the copy is whole again")
        await until(lambda: len(documents(run)[pid].isr) == 3, 20.0, "it is in sync again")
        assert owner.disk.files(f"{DATA}/set-aside/")  # nothing of it was thrown away
        assert owner.running is not None
        await until(lambda: not owner.running.broker.cluster.control.presence.me.unfit, 5.0, "it calls nothing unfit")  # type: ignore[union-attr]
        await publish(run, after, "orders", 5)

    with caplog.at_level(logging.WARNING, "headrace"):
        Story(story).go()


def test_who_is_cut_off_from_all_others_judges_nobody() -> None:
    """It reaches the coordinator all the time; so do those whom it does not hear."""

    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        await asyncio.sleep(2.0)
        holder = run.store.document(CONTROLLER_KEY)
        assert holder is not None
        terms, epochs = holder.version, {pid: a.epoch for pid, a in documents(run).items()}
        for host in run.hosts.values():  # the controller, an owner, and somebody
            run.cut_off(host)
            await asyncio.sleep(4.0)
            run.world.network.heal_all()
            await asyncio.sleep(6.0)
        holder = run.store.document(CONTROLLER_KEY)
        assert holder is not None
        assert holder.version - terms <= 12, "controllers have deposed each other"
        for pid, a in documents(run).items():
            assert a.epoch - epochs[pid] <= 12, f"owners of partition {pid} have deposed each other: {a.reason}"
        serving = await run.owner()
        await run.all_follow(serving)
        await publish(run, serving, "orders", 5)

    Story(story).go()


def test_who_was_cut_off_owns_again_only_after_it_was_well_for_a_while() -> None:
    """Its registration stood all the time."""

    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        run.cut_off(owner)
        await run.owner(but=owner)
        run.world.network.heal_all()
        healed = run.world.loop.time()
        await until(lambda: run.copy(owner).serving, 15.0, "it is the preferred owner")
        assert run.world.loop.time() - healed >= 5.0
        assert "it is the preferred owner and in sync" in documents(run)[run.copy(owner).pid].reason

    run = Story(story)
    run.settings = replace(run.settings, returning_wait_ms=5_000)
    run.go()


def test_a_broker_that_was_down_erases_what_was_deleted_meanwhile_and_then_the_record_goes() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        await publish(run, owner, "orders", 20)
        pid = run.copy(owner).pid
        away = next(host for host in run.hosts.values() if host is not owner)
        away.kill()
        client = await run.connect(owner)
        await client.delete("orders")
        await client.close()
        await until(lambda: pid not in documents(run), 10.0, "its assignment goes")
        await asyncio.sleep(5.0)
        assert run.store.page(DELETED_PREFIX, "", 10, 0).documents, "the record waits for who is away"
        away.start()
        await until(lambda: not run.store.page(DELETED_PREFIX, "", 10, 0).documents, 20.0, "the record is collected")
        for host in run.hosts.values():
            assert host.running is not None
            assert host.running.broker.cluster is not None
            assert not host.running.broker.cluster.driver.holds(pid)

    Story(story).go()


def test_what_is_merely_not_found_is_kept() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        await publish(run, owner, "orders", 20)
        pid = run.copy(owner).pid
        away = next(host for host in run.hosts.values() if host is not owner)
        away.kill()
        lost = [f"{NAMES_PREFIX}orders", f"{PARTITIONS_PREFIX}{pid:020d}"]
        assert run.store.write({}, dict.fromkeys(lost), 0)
        away.start()
        await asyncio.sleep(10.0)
        for host in (owner, away):
            assert host.running is not None
            assert host.running.broker.cluster is not None
            assert host.running.broker.cluster.driver.holds(pid)

    Story(story).go()


def test_who_stops_alone_does_not_wait_for_long() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        for host in run.hosts.values():
            if host is not owner:
                host.kill()
        run.store.leader = 0
        run.store.timeout_s = 5.0
        began = run.world.loop.time()
        assert owner.running is not None
        assert owner.machine is not None
        run.world.loop.spawn(owner.machine, owner.running.stop(10_000), "stop")
        await until(lambda: not owner.alive, 8.0, "it has stopped")
        assert run.world.loop.time() - began < 6.0

    Story(story).go()


def test_partitions_serve_on_while_the_whole_coordinator_is_away() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        run.store.leader = 0
        for _ in range(10):  # ten times as long as a registration lives
            await publish(run, owner, "orders", 3)
            await asyncio.sleep(1.0)
        run.store.leader = 1
        run.store.feed.wake()
        await asyncio.sleep(5.0)
        serving = await run.owner()
        await run.all_follow(serving)
        await publish(run, serving, "orders", 3)

    Story(story).go()


def test_what_comes_at_once_becomes_as_many_entries_as_fit_into_log_files() -> None:
    async def story(run: Story) -> None:
        owner = await run.owner()
        await run.all_follow(owner)
        client = await run.connect(owner)
        publisher = client.publisher("orders")
        for future in [publisher.post(b"x" * 3000, partition=0) for _ in range(200)]:
            await future
        await client.close()
        for host in run.hosts.values():
            assert host.running is not None
            assert not host.running.broker.store.damaged()
            assert not any(p.quarantined for p in host.running.broker.partitions.values())

    run = Story(story)
    for host in run.hosts.values():
        assert host.config.storage.wal_file_bytes in (64 * KIB, 1024 * KIB)
    small = next(seed for seed in range(20) if Story(story, seed=seed).hosts["a"].config.storage.wal_file_bytes == 64 * KIB)
    Story(story, seed=small).go()

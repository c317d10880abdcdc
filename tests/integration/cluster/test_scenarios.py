"""Scenarios of declared formation with brokers that serve: clusters that meet, machines that are wiped, members that leave, resets, pauses; with
messages that must be there afterwards, or must be gone. docs/formation.md says which scenario is shown by which test."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace import connect
from headrace.client.cluster_admin import ClusterAdmin
from tests.integration.cluster.declared import Brokers, publish, values

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
SENT = [b"%03d" % n for n in range(20)]


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    made = Brokers(tmp_path, "abcd")
    try:
        yield made
    finally:
        made.end()


async def formed(brokers: Brokers, names: str, **rest: object) -> str:
    brokers.start(names)
    assert (await brokers.apply(names[0], brokers.config(1, names, **rest)))["verdict"] == "begun"
    return await brokers.together(names, 1)


@contextmanager
def paused(brokers: Brokers, names: str) -> Iterator[None]:
    """They stand still meanwhile; their etcd does not."""
    pids = [process.pid for name in names if (process := brokers[name].process) is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def killed(brokers: Brokers, names: str) -> None:
    """As machines that lose power: with their etcd."""
    for name in names:
        await brokers[name].signalled(signal.SIGKILL)
        brokers[name].end()


async def test_a_fresh_one_waits_for_a_stopped_pair_and_joins_it(brokers: Brokers) -> None:
    """Scenario 3."""
    id = await formed(brokers, "ab")
    await publish(brokers, "ab", SENT)
    for name in "ab":
        await brokers[name].signalled(signal.SIGTERM)
    brokers.start("c")
    assert (await brokers.apply("c", brokers.config(2, "abc")))["verdict"] == "begun"
    waiting = await brokers.until("c", lambda s: {w["name"] for w in s.get("waits_for", ())} == {"a", "b"})
    assert (waiting["state"], waiting["cluster_id"]) == ("wait", "")
    brokers.start("a")
    guest = await brokers.until("c", lambda s: s["guest"] and {w["name"] for w in s["waits_for"]} == {"b"})
    assert (guest["state"], guest["ready"]) == ("wait", False)
    brokers.start("b")
    assert await brokers.together("abc", 2) == id
    assert await values(brokers, "c", len(SENT)) == SENT


async def test_clusters_that_meet_merge_only_as_was_confirmed(brokers: Brokers) -> None:
    """Scenario 5."""
    kept, given_up = await formed(brokers, "ab"), await formed(brokers, "cd")
    await publish(brokers, "ab", SENT)
    await publish(brokers, "cd", [b"of the others"], name="others")
    assert (await brokers.apply("a", brokers.config(2, "abcd", gospel="a")))["verdict"] == "begun"
    for name in "cd":
        refusing = await brokers.until(name, lambda s: "would_lose_data" in s["alarms"])
        assert (refusing["state"], refusing["ready"], refusing["cluster_id"]) == ("active", True, given_up)
        assert "bytes of data here" in refusing["alarms"]["would_lose_data"]
    assert await values(brokers, "cd", 1, name="others") == [b"of the others"], "they go on serving"
    confirmed = brokers.config(3, "abcd", gospel="a", confirm_discard=[given_up])
    admin = ClusterAdmin(f"http://{brokers['a'].admin}")
    plan = await asyncio.to_thread(admin.plan, brokers.config(3, "abcd", gospel="a"))
    assert [(lost.cluster_id, lost.brokers, lost.confirmed) for lost in plan.lost] == [(given_up, ("c", "d"), False)]
    plan = await asyncio.to_thread(admin.plan, confirmed)
    assert [(lost.cluster_id, lost.brokers, lost.confirmed) for lost in plan.lost] == [(given_up, ("c", "d"), True)]
    assert (await brokers.apply("a", confirmed))["verdict"] == "begun"
    assert await brokers.together("abcd", 3) == kept
    assert await values(brokers, "d", len(SENT)) == SENT
    for name in "cd":
        [aside] = (brokers[name].data / "aside").iterdir()
        assert given_up in (aside / "kept.json").read_text()


async def test_a_wiped_machine_comes_back_and_loses_nobodys_data(brokers: Brokers) -> None:
    """Scenarios 6 and 7; then another machine takes the place of one that is gone for good."""
    id = await formed(brokers, "abc", gospel="b")
    await publish(brokers, "abc", SENT)
    await killed(brokers, "b")
    shutil.rmtree(brokers["b"].data)
    brokers.start("b")
    assert (await brokers.apply("b", brokers.config(1, "abc", gospel="b")))["verdict"] in ("begun", "already applied")
    assert await brokers.together("abc", 1) == id
    assert await values(brokers, "b", len(SENT)) == SENT

    await killed(brokers, "b")
    shutil.rmtree(brokers["b"].data)
    with paused(brokers, "ac"):  # so that it hears nothing of the cluster before it is fed
        brokers.start("b")
        assert (await brokers.apply("b", brokers.config(2, "abc", gospel="b")))["verdict"] == "begun"
    for name in "ac":
        refusing = await brokers.until(name, lambda s: "refused" in s["alarms"])
        assert "confirm_discard does not name" in refusing["alarms"]["refused"]
        assert (refusing["state"], refusing["cluster_id"], refusing["committed"]["version"]) == ("active", id, 1)
    assert await values(brokers, "ac", len(SENT)) == SENT
    assert (await brokers.apply("a", brokers.config(3, "abc")))["verdict"] == "begun"
    assert await brokers.together("abc", 3) == id
    assert await values(brokers, "b", len(SENT)) == SENT

    await killed(brokers, "c")
    brokers.start("d")
    assert (await brokers.apply("b", brokers.config(4, "abd")))["verdict"] == "begun"
    assert await brokers.together("abd", 4) == id
    await brokers.until("a", lambda s: s["consensus_members"] == dict.fromkeys("abd", "voter"))
    assert await values(brokers, "d", len(SENT)) == SENT


async def test_the_leader_and_another_leave_at_once_step_by_step(brokers: Brokers) -> None:
    """Scenarios 11 and 12; and what keeps them from leaving is said."""
    id = await formed(brokers, "abcd")
    await publish(brokers, "abcd", [b"three copies"], name="wide")
    await publish(brokers, "abcd", SENT, copies=2)
    leader = (await brokers["a"].cluster())["leader"]
    other = next(n for n in "abcd" if n != leader)
    stay = "".join(n for n in "abcd" if n not in (leader, other))
    assert (await brokers.apply(leader, brokers.config(2, stay)))["verdict"] == "begun"
    keeps = await brokers.until(leader, lambda s: s["drain"])
    assert "something of" in keeps["drain"]
    await brokers.until(leader, lambda s: s["drain"].endswith("something of wide is there"))  # two brokers cannot have three copies
    async with connect(f"headrace://{brokers[stay[0]].native}", wait=60) as client:
        await client.delete("wide")
    assert await brokers.together(stay, 2) == id
    for name in (leader, other):
        gone = await brokers.until(name, lambda s: s["state"] == "removed")
        assert "version 2 removed it" in gone["reason"]
        assert (await brokers[name].get("ready")).status_code == 503
        assert (await brokers[name].get("live")).status_code == 200
    assert await values(brokers, stay, len(SENT)) == SENT
    await brokers[other].signalled(signal.SIGTERM)
    brokers.start(other)
    await brokers.until(other, lambda s: s.get("state") == "removed")
    await brokers[other].without_etcd()


async def test_a_reset_gives_all_data_up_once(brokers: Brokers) -> None:
    """Scenario 14."""
    id = await formed(brokers, "ab")
    await publish(brokers, "ab", SENT)
    refused = await brokers.apply("a", brokers.config(2, "ab", gospel="reset"), code=64)
    assert refused["verdict"] == "invalid"
    assert id in refused["reason"]
    reset = brokers.config(2, "ab", gospel="reset", confirm_discard=[id])
    plan = (await brokers.command("a", "plan", "-", "--json", text=reset)).json
    assert [(lost["cluster_id"], lost["brokers"], lost["confirmed"]) for lost in plan["lost"]] == [(id, ["a", "b"], True)]
    assert (await brokers.apply("a", reset))["verdict"] == "begun"
    for name in "ab":
        await brokers.until(name, lambda s: s["code"] == "serving" and s["cluster_id"] not in ("", id))
    new = await brokers.together("ab", 2)
    await publish(brokers, "ab", [b"anew"])
    assert (await brokers.apply("b", reset))["verdict"] == "already applied"
    assert await brokers.together("ab", 2) == new
    assert await values(brokers, "ab", 1) == [b"anew"], "what was there is gone, what is new is there"
    for name in "ab":
        assert len(list((brokers[name].data / "aside").iterdir())) == 1


@pytest.mark.parametrize("name", ["a", "b"])
async def test_a_pause_during_the_formation_makes_no_second_cluster(brokers: Brokers, name: str) -> None:
    """Scenario 15, as far as a pause stands for a cut; ``a`` is the seed."""
    brokers.start("abc")
    for each in "abc":
        await brokers.until(each, lambda s: s.get("code") == "no_config")
    await brokers.apply("c", brokers.config(1, "abc"))
    with paused(brokers, name):
        await brokers.until("c", lambda s: not s["peers"].get(name, {}).get("reachable", True))
    assert len(await brokers.together("abc", 1)) == 32

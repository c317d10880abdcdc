"""Declared clusters of real processes with real etcd: formed in every order, killed, grown, shrunk, contradicted, wiped, reset, recovered."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from headrace.cluster.formation.recovering import keep
from headrace.config import load
from headrace.model.errors import Conflict, DataDirLocked
from headrace.storage.files import OsFiles
from tests.integration.coordination.etcds import Member
from tests.integration.formation.nodes import Nodes, Status

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(tmp_path, "abcd")
    try:
        yield made
    finally:
        await made.close()


def waits(status: Status, *names: str) -> bool:
    """It waits for exactly these, says so in words, and since when."""
    on = {w["name"] for w in status["waits_for"]}
    return status["state"] in ("wait", "forming") and on == set(names) and status["reason"] != "" and not status["ready"]


def lacks_quorum(one: str, other: str, status: Status) -> bool:
    return status["code"] == "no_quorum" and waits(status, one, other)


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.permutations("abc")])
async def test_three_brokers_become_one_cluster_in_every_order(nodes: Nodes, order: str) -> None:
    nodes.declare(1, "abc")
    first, second, third = order
    await nodes.start(first)
    await nodes[first].until(lambda s: waits(s, second, third))
    await nodes.start(second)
    for name, other in ((first, second), (second, first)):
        status = await nodes[name].until(lambda s: waits(s, third))
        assert status["code"] == "members_missing"
        assert f"{third} is not reachable" in status["reason"]
        assert status["peers"][other]["reachable"]
        assert not status["peers"][third]["reachable"]
        assert "Connect" in status["peers"][third]["trouble"]
    await asyncio.sleep(1)
    since = (await nodes[first].status())["since_wall_ms"]
    status = await nodes[first].until(lambda s: waits(s, third))
    assert status["since_wall_ms"] - since < 100, "it says since when, not since the last look"
    assert 0 <= status["next_try_in_ms"] <= 5_000
    assert not any(list(nodes[n].data.glob("etcd/*")) for n in (first, second)), "nobody forms with two of three"
    await nodes.start(third)
    id = await nodes.together("abc")
    assert len(id) == 32
    for name in "abc":
        lines = [line.split("headrace.formation: ")[1] for line in nodes[name].log.read_text().splitlines() if "headrace.formation: " in line]
        assert all(one != other for one, other in itertools.pairwise(lines))
        assert lines[-1].startswith("active: serves in cluster")


async def test_only_the_fed_one_knows_the_config(nodes: Nodes) -> None:
    await nodes.start("abc")
    for name in "abc":
        await nodes[name].until(lambda s: s["code"] == "no_config")
    answer = await nodes["c"].feed(nodes.config(7, "abc"))
    assert (answer["verdict"], answer["version"]) == ("begun", 7)
    await nodes.together("abc")
    again = await nodes["a"].feed(nodes.config(7, "abc"))
    assert again["verdict"] == "already applied"
    older = await nodes["b"].feed(nodes.config(6, "ab"))
    assert (older["verdict"], older["version"]) == ("older", 7)
    other = await nodes["b"].feed(nodes.config(7, "ab"))
    assert other["verdict"] == "conflict"
    assert "raise the version" in other["reason"]
    for name in "abc":
        status = await nodes[name].status()
        assert (status["state"], status["committed"]["version"]) == ("active", 7)
        assert ("config_conflict" in status["alarms"]) == (name == "b"), "who refused it raises an alarm, and serves on"


async def test_one_that_is_killed_comes_back_with_and_without_its_etcd(nodes: Nodes) -> None:
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    pid = (await nodes["b"].until(lambda s: s["consensus"]["pid"]))["consensus"]["pid"]  # who has a quorum may serve before its own etcd runs
    incarnation = (await nodes["b"].status())["incarnation"]
    await nodes["b"].kill()
    await nodes["a"].until(lambda s: not s["peers"]["b"]["reachable"])
    await nodes.start("b")
    assert await nodes.together("abc") == id
    status = await nodes["b"].until(lambda s: s["consensus"]["pid"])
    assert status["consensus"]["pid"] == pid, "its etcd went on voting and was taken over"
    await nodes["b"].kill(etcd=True)
    assert (await nodes["a"].active())["cluster_id"] == id
    await nodes.start("b")
    assert await nodes.together("abc") == id
    status = await nodes["b"].until(lambda s: s["consensus"]["pid"])
    assert status["consensus"]["pid"] != pid
    assert status["incarnation"] == incarnation


async def test_a_full_stop_and_a_minority_that_waits(nodes: Nodes) -> None:
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    for order in ("abc", "cab", "bca"):
        for name in order:
            await nodes[name].kill(etcd=True)
        first, second, third = order
        await nodes.start(first)
        await nodes[first].until(partial(lacks_quorum, second, third))
        await nodes[first].until(lambda s: s["consensus"]["pid"])  # it starts its member at once
        await nodes.start(second)
        for name in (first, second):
            assert (await nodes[name].active())["cluster_id"] == id
        await nodes.start(third)
        assert await nodes.together("abc") == id


async def test_a_fourth_joins_and_one_is_removed_and_told_when_it_comes_back(nodes: Nodes) -> None:
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    await nodes.start("d")
    await nodes["d"].until(lambda s: s["code"] == "no_config")
    plan = await nodes["a"].ask(do="plan", config=nodes.config(2, "abcd"))
    assert plan[0].startswith("enrol d")
    assert (await nodes["b"].feed(nodes.config(2, "abcd")))["verdict"] == "begun"
    assert await nodes.together("abcd") == id
    status = await nodes["d"].until(lambda s: s["quorum"]["need"] == 3 and s["consensus"]["state"] == "serving")
    assert status["committed"]["version"] == 2

    await nodes["a"].stop()
    answer = await nodes["c"].feed(nodes.config(3, "bcd"))
    assert answer["verdict"] == "begun"
    await nodes["c"].until(lambda s: s["committed"]["version"] == 3 and s["quorum"]["need"] == 2)
    assert await nodes.together("bcd") == id
    await nodes.start("a")
    gone = await nodes["a"].until(lambda s: s["state"] == "removed" and s["consensus"]["state"] == "stopped")
    assert "version 3 removed it" in gone["reason"]
    assert not gone["ready"]
    await nodes["a"].kill()
    await nodes.start("a")
    await nodes["a"].until(lambda s: s["state"] == "removed")

    assert (await nodes["d"].feed(nodes.config(4, "bd", observers="c")))["verdict"] == "begun"
    assert await nodes.together("bcd") == id
    status = await nodes["c"].until(lambda s: s["consensus"]["state"] == "stopped")
    assert status["ready"]
    assert (await nodes["b"].feed(nodes.config(5, "bcd")))["verdict"] == "begun"
    assert await nodes.together("bcd") == id
    await nodes["c"].until(lambda s: s["consensus"]["state"] == "serving" and s["quorum"]["need"] == 2)


async def test_two_contents_of_one_version_halt_the_fresh_and_a_younger_one_heals(nodes: Nodes) -> None:
    nodes.declare(3, "ab")
    nodes.declare(3, "ab", on="b", gospel="b")
    await nodes.start("ab")
    for name, other in ("ab", "ba"):
        status = await nodes[name].until(lambda s: s["code"] == "config_conflict")
        assert status["state"] == "halted"
        assert f"other content on {other}" in status["reason"]
    assert (await nodes["b"].feed(nodes.config(4, "ab")))["verdict"] == "begun"
    await nodes.together("ab")


async def test_a_broken_config_and_one_without_this_broker_halt(nodes: Nodes) -> None:
    nodes["a"].declared = 'version = 0\nvoter = 1\n[members]\na = "boss"\n'
    nodes.declare(1, "ab", on="c")
    await nodes.start("ac")
    status = await nodes["a"].until(lambda s: s["state"] == "halted")
    assert status["code"] == "broken_config"
    assert all(text in status["reason"] for text in ("version", "voter", "members.a"))
    status = await nodes["c"].until(lambda s: s["state"] == "halted")
    assert status["code"] == "not_listed"
    await nodes["a"].stop()
    nodes.declare(2, "a")
    await nodes.start("a")
    await nodes.together("a")
    await nodes["a"].stop()
    nodes["a"].declared = "version ="
    await nodes.start("a")
    status = await nodes["a"].active()
    assert "broken_config" in status["alarms"]


@pytest.mark.parametrize("left", [False, True])
async def test_a_wiped_machine_comes_back_as_another_directory(nodes: Nodes, left: bool) -> None:
    """``left``: its etcd still runs on the files that are gone."""
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    before = await nodes["c"].status()
    await nodes["c"].kill(etcd=not left)
    nodes["c"].wipe()
    await nodes.start("c")
    assert await nodes.together("abc") == id
    assert nodes["c"].etcds() == 1
    status = await nodes["c"].until(lambda s: s["consensus"]["state"] == "serving" and s["consensus"]["seat"] > 1)
    assert status["incarnation"] != before["incarnation"]
    assert status["node_id"] != before["node_id"]
    await nodes["a"].until(lambda s: s["quorum"] == {"need": 2, "have": 3})


async def test_data_without_an_identity_is_left_alone_and_one_process_a_directory(nodes: Nodes) -> None:
    nodes.declare(1, "a")
    (nodes["a"].data / "wal").mkdir(parents=True)
    await nodes.start("a")
    status = await nodes["a"].until(lambda s: s["state"] == "halted")
    assert status["code"] == "unidentified"
    path = nodes["a"].folder / "headrace.toml"
    with pytest.raises(DataDirLocked):
        await asyncio.to_thread(keep, load(path, {}).config, OsFiles(), confirm="x")
    assert (await nodes["a"].feed(nodes.config(2, "a")))["verdict"] == "invalid"


async def test_a_confirmed_reset_sets_the_data_aside_and_makes_another_cluster(nodes: Nodes) -> None:
    nodes.declare(1, "ab")
    await nodes.start("ab")
    id = await nodes.together("ab")
    refused = await nodes["a"].feed(nodes.config(2, "ab", gospel="reset"))
    assert refused["verdict"] == "invalid"
    assert id in refused["reason"]
    node_id = (await nodes["a"].status())["node_id"]
    answer = await nodes["a"].feed(nodes.config(2, "ab", gospel="reset", confirm_discard=[id]))
    assert answer["verdict"] == "begun"
    for name in "ab":
        await nodes[name].until(lambda s: s["code"] == "serving" and s["cluster_id"] != id)
        [aside] = (nodes[name].data / "aside").iterdir()
        kept = json.loads((aside / "kept.json").read_text())
        assert kept["cluster_id"] == id
        assert (aside / "formation" / "identity").exists()
        assert nodes[name].etcds() == 1
        assert list(aside.glob("etcd/seat-1/data/member/wal/*.wal"))
    assert await nodes.together("ab") != id
    assert (await nodes["a"].status())["node_id"] != node_id


async def test_recovery_on_one_survivor_and_the_old_ones_do_not_undo_it(nodes: Nodes) -> None:
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    for name in "abc":
        await nodes[name].kill(etcd=True)
    config = load(nodes["a"].folder / "headrace.toml", {}).config
    with pytest.raises(Conflict, match=id):
        await asyncio.to_thread(keep, config, OsFiles(), confirm="another")
    new = await asyncio.to_thread(keep, config, OsFiles(), confirm=id)
    await nodes.start("a")
    status = await nodes["a"].until(lambda s: s["code"] == "serving")
    assert (status["cluster_id"], status["generation"], status["quorum"]["need"]) == (new, 2, 1)
    await nodes.start("bc")
    assert await nodes.together("abc") == new
    await nodes["a"].until(lambda s: s["quorum"] == {"need": 2, "have": 3})
    await nodes["a"].kill(etcd=True)
    await nodes.start("a")
    assert await nodes.together("abc") == new


async def test_on_an_etcd_that_runs_anyway(nodes: Nodes, tmp_path: Path) -> None:
    etcd = Member("outside", tmp_path / "outside")
    await etcd.start([etcd])
    try:
        await etcd.ready()
        for name in "abcd":
            nodes[name].endpoints = [str(etcd.client)]
        nodes.declare(1, "abc")
        await nodes.start("abc")
        id = await nodes.together("abc")
        assert {(await nodes[n].status())["consensus"]["kind"] for n in "abc"} == {"external"}
        leader = (await nodes["a"].status())["leader"]
        await nodes[leader].kill()
        other = next(n for n in "abc" if n != leader)
        await nodes[other].until(lambda s: s["leader"] not in ("", leader))
        await nodes.start(leader)
        assert await nodes.together("abc") == id
        await nodes["c"].kill()
        nodes["c"].wipe()
        await nodes.start("cd")
        assert (await nodes[other].feed(nodes.config(2, "bcd")))["verdict"] == "begun"
        assert await nodes.together("bcd") == id
        await nodes["a"].until(lambda s: s["state"] == "removed")
        config = load(nodes["a"].folder / "headrace.toml", {}).config
        with pytest.raises(Conflict, match="runs anyway"):
            await asyncio.to_thread(keep, config, OsFiles(), confirm=id)
    finally:
        await etcd.stop()

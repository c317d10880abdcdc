"""The commands of ``headrace cluster`` on brokers in processes of their own: forming, growing, shrinking, voters, seeds, secrets, recovery."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.client.cluster_admin import ClusterAdmin
from headrace.model.errors import Conflict, NotConnected
from tests.integration.cluster.declared import PATIENCE_S, Brokers, headrace, publish, values

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture
async def brokers(tmp_path: Path) -> AsyncIterator[Brokers]:
    made = Brokers(tmp_path, "abcd")
    try:
        yield made
    finally:
        made.end()


async def test_one_that_is_fed_forms_grows_and_shrinks_the_cluster_without_a_restart(brokers: Brokers) -> None:
    brokers.start("abcd")
    for name in "abcd":
        waiting = await brokers.until(name, lambda s: s.get("code") == "no_config")
        assert (waiting["state"], waiting["ready"]) == ("wait", False)
        assert (await brokers[name].get("live")).status_code == 200
        assert (await brokers[name].get("ready")).status_code == 503
    first = brokers.config(1, "abc")
    planned = await brokers.command("c", "plan", "-", text=first)
    assert "form a cluster of a, b, c" in planned.out
    assert (await brokers["c"].cluster())["code"] == "no_config", "a plan changes nothing"
    assert (await brokers.apply("c", first))["verdict"] == "begun"
    id = await brokers.together("abc", 1)
    sent = [b"%03d" % n for n in range(50)]
    await publish(brokers, "abc", sent)

    assert (await brokers.apply("a", first))["verdict"] == "already applied"
    other = await brokers.apply("b", brokers.config(1, "ab"), code=64)
    assert (other["verdict"], other["version"]) == ("conflict", 1)
    wrong = await brokers.apply("a", 'version = 0\nvoter = 1\n[members]\na = "boss"\n', code=64)
    assert wrong["verdict"] == "invalid"
    assert len(wrong["mistakes"]) == 3, wrong
    assert (await brokers["a"].cluster())["state"] == "active"

    planned = (await brokers.command("a", "plan", "-", "--json", text=brokers.config(2, "abcd"))).json
    assert [s["kind"] for s in planned["steps"]] == ["enrol", "seat", "add_learner", "catch_up", "promote"]
    assert {s["name"] for s in planned["steps"]} == {"d"}
    assert (planned["answer"]["verdict"], planned["lost"], planned["emptied"]) == ("begun", [], [])
    pids = [brokers[n].process.pid for n in "abcd" if brokers[n].process]
    assert (await brokers.apply("b", brokers.config(2, "abcd")))["verdict"] == "begun"
    assert await brokers.together("abcd", 2) == id
    assert (await brokers.apply("b", brokers.config(1, "abc"), code=64))["verdict"] == "older"

    planned = (await brokers.command("d", "plan", "-", "--json", text=brokers.config(3, "bcd"))).json
    assert planned["emptied"] == ["a"]
    assert {s["kind"] for s in planned["steps"]} == {"drain", "remove", "strike"}
    shown = await brokers.command("d", "plan", "-", text=brokers.config(3, "bcd"))
    assert "hand over all that they own and copy, and leave: a" in shown.out
    assert (await brokers.apply("d", brokers.config(3, "bcd")))["verdict"] == "begun"
    assert await brokers.together("bcd", 3) == id
    gone = await brokers.until("a", lambda s: s["state"] == "removed")
    assert "version 3 removed it" in gone["reason"]
    assert pids == [brokers[n].process.pid for n in "abcd" if brokers[n].process], "nobody was restarted"
    assert await values(brokers, "bcd", 50) == sent


async def test_no_argument_reads_the_configured_file_again_and_another_path_is_forgotten(brokers: Brokers, tmp_path: Path) -> None:
    configured = tmp_path / "configured.toml"
    configured.write_text("version = \n")
    brokers.start("a", "--cluster", str(configured))
    halted = await brokers.until("a", lambda s: s.get("state") == "halted")
    assert halted["code"] == "broken_config"
    again = (await brokers.command("a", "apply", "--json", code=64)).json
    assert (again["verdict"], again["source"]) == ("invalid", str(configured))
    configured.write_text(brokers.config(1, "a"))
    begun = (await brokers.command("a", "apply", "--json")).json
    assert (begun["verdict"], begun["source"]) == ("begun", str(configured))
    id = await brokers.together("a", 1)
    last = await brokers.command("a", "voter", "remove", "a", code=64)
    assert "a is the last voter" in last.err
    elsewhere = tmp_path / "elsewhere.toml"
    elsewhere.write_text(brokers.config(5, "a"))
    assert (await brokers.command("a", "apply", str(elsewhere), "--json")).json["verdict"] == "begun"
    assert await brokers.together("a", 5) == id
    read = (await brokers.command("a", "apply", "--json", code=64)).json
    assert (read["verdict"], read["version"], read["source"]) == ("older", 5, str(configured))
    stamped = (await brokers.command("a", "apply", "--auto-version", "--json")).json
    assert stamped["verdict"] == "begun"
    assert stamped["version"] > 1_700_000_000


async def test_voters_come_and_go_one_at_a_time_and_the_quorum_is_kept(brokers: Brokers) -> None:
    brokers.start("abcd")
    await brokers.until("d", lambda s: s.get("code") == "no_config")
    await brokers.apply("a", brokers.config(1, "ab", observers="c"))
    id = await brokers.together("abc", 1)
    assert "promote" not in json.dumps((await brokers["a"].cluster())["plan"])
    added = (await brokers.command("c", "voter", "add", "c", "--json")).json
    assert (added["verdict"], added["version"]) == ("begun", 2)
    assert await brokers.together("abc", 2) == id
    await brokers.until("b", lambda s: s["consensus_members"] == dict.fromkeys("abc", "voter"))
    added = (await brokers.command("b", "voter", "add", "d", "--address", brokers["d"].peer, "--json")).json
    assert (added["verdict"], added["version"]) == ("begun", 3)
    assert await brokers.together("abcd", 3) == id
    for name in "ab":
        await brokers.until(name, lambda s: s["consensus_members"] == dict.fromkeys("abcd", "voter"))

    twice = await brokers.command("b", "voter", "add", "d", code=64)
    assert "a voter already" in twice.err
    nobody = await brokers.command("b", "voter", "remove", "e", code=66)
    assert "does not list e" in nobody.err
    admin = ClusterAdmin(f"http://{brokers['a'].admin}")
    removed = await asyncio.to_thread(admin.remove_voter, "d")
    assert (removed.verdict, removed.version) == ("begun", 4)
    assert await brokers.together("abcd", 4) == id
    await brokers.until("a", lambda s: s["consensus_members"] == dict.fromkeys("abc", "voter"))
    members = await asyncio.to_thread(admin.members)
    assert {m.name: (m.role, m.vote) for m in members.members} == {
        "a": ("voter", "voter"), "b": ("voter", "voter"), "c": ("voter", "voter"), "d": ("observer", "none")
    }  # fmt: skip
    assert members.committed
    assert {m.name for m in members.members if m.leader} <= set("abc")
    assert (await brokers.apply("a", members.toml))["verdict"] == "already applied", "what is printed is what is committed"

    await brokers["c"].signalled(signal.SIGKILL)
    brokers["c"].end()
    await brokers.until("a", lambda s: not s["peers"]["c"]["reachable"] and s["quorum"] == {"need": 2, "have": 2})
    refused = await brokers.command("a", "voter", "remove", "b", code=64)
    assert "the quorum would be lost: c" in refused.err
    with pytest.raises(Conflict, match="the quorum would be lost"):
        await asyncio.to_thread(admin.remove_voter, "b", leave=True)
    removed = await asyncio.to_thread(admin.remove_voter, "c", leave=True)  # the dead one can go
    assert removed.verdict == "begun"
    assert await brokers.together("abd", 5) == id
    text = (await brokers.command("a", "status")).out
    assert "a is active" in text
    assert "version 5 is committed" in text


async def test_a_broker_with_seeds_finds_its_cluster_and_forms_none(brokers: Brokers) -> None:
    named = [f"localhost:{brokers[n].peer.rpartition(':')[2]}" for n in "abd"]
    brokers.start("d", "--seeds", ",".join(named))
    waiting = await brokers.until("d", lambda s: s.get("code") == "no_config")
    brokers.start("ab")
    await brokers.apply("b", brokers.config(1, "ab", observers="d").replace(f'd = {{ role = "observer", address = "{brokers["d"].peer}" }}', ""))
    id = await brokers.together("ab", 1)
    status = await brokers.until("d", lambda s: s["peers"].get("a", {}).get("reachable") and s["peers"].get("b", {}).get("reachable"))
    assert status["code"] == "no_config", "it knows a cluster that does not list it, and forms none"
    assert status["since_wall_ms"] == waiting["since_wall_ms"] or status["state"] == "wait"
    assert (await brokers.apply("a", brokers.config(2, "ab", observers="d")))["verdict"] == "begun"
    assert await brokers.together("abd", 2) == id


async def test_brokers_that_found_each_other_by_a_name_are_declared_as_they_were_found(brokers: Brokers) -> None:
    seeds = ",".join(f"localhost:{brokers[n].peer.rpartition(':')[2]}" for n in "abc")
    brokers.start("abc", "--seeds", seeds)
    await brokers.until("b", lambda s: {n for n, p in s.get("peers", {}).items() if p["reachable"]} == {"a", "c"})
    found = (await brokers.command("b", "members", "--toml")).out
    assert "version = 1" in found
    assert all(f'"{n}" = {{ role = "voter", address = "{brokers[n].peer}" }}' in found for n in "abc")
    for name in "abc":
        assert (await brokers[name].cluster())["code"] == "no_config", "to be found forms nothing"
    assert (await brokers.apply("b", found))["verdict"] == "begun"
    await brokers.together("abc", 1)


async def test_an_open_cluster_takes_a_broker_with_seeds_in_as_an_observer(brokers: Brokers) -> None:
    brokers.start("a")
    await brokers.apply("a", brokers.config(1, "a").replace("[members]", '[options]\nmembers = "open"\n[members]'))
    id = await brokers.together("a", 1)
    brokers.start("d", "--seeds", f"localhost:{brokers['a'].peer.rpartition(':')[2]}")
    assert await brokers.together("ad", 1) == id
    members = await asyncio.to_thread(ClusterAdmin(f"http://{brokers['a'].admin}").members)
    assert {m.name: m.role for m in members.members} == {"a": "voter", "d": ""}


async def test_the_secret_is_exchanged_while_all_serve(brokers: Brokers) -> None:
    old, new = "a secret of the tests' cluster", "another secret of the tests' cluster"
    brokers.start("abc")
    await brokers.apply("a", brokers.config(1, "abc"))
    id = await brokers.together("abc", 1)
    await brokers.registered("abc")
    before = (await brokers.command("a", "secret", "status", "--json")).json["brokers"]
    assert [b["broker"] for b in before] == ["a", "b", "c"]
    assert len({tuple(b["accepted"]) for b in before}) == 1
    brokers.write_secret("a", new, old)
    unlike = await brokers.command("a", "secret", "rotate", code=64)
    assert "do not begin with the same secret" in unlike.err
    assert (await brokers.command("a", "secret", "status", "--json")).json["brokers"][0]["accepted"] == before[0]["accepted"]
    for name in "bc":
        brokers.write_secret(name, new, old)
    await brokers["c"].signalled(signal.SIGTERM)
    silent = await brokers.command("a", "secret", "rotate", code=64)
    assert "nothing was done: c cannot be asked" in silent.err
    brokers.start("c")  # its file is the new one already: it uses what the others do not accept, so it stays out
    await brokers["c"].get("live")
    also = ("--also", f"http://{brokers['c'].admin}")
    rotated = (await brokers.command("a", "secret", "rotate", *also, "--json")).json["brokers"]
    assert [b["broker"] for b in rotated] == ["a", "b", "c"]
    assert all(b["accepted"][0] != before[0]["accepted"][0] and len(b["accepted"]) == 2 for b in rotated)
    assert await brokers.together("abc", 1) == id
    await brokers.registered("abc")
    for name in "abc":
        brokers.write_secret(name, new)
    rotated = (await brokers.command("b", "secret", "rotate", "--json")).json["brokers"]
    assert all(len(b["accepted"]) == 1 and b["accepted"] == b["file"] for b in rotated)
    assert await brokers.together("abc", 1) == id
    await brokers["b"].signalled(signal.SIGTERM)
    brokers.start("b")
    assert await brokers.together("abc", 1) == id
    await publish(brokers, "abc", [b"still here"])


async def test_recovery_shows_what_is_at_risk_asks_and_goes_on_with_one(brokers: Brokers) -> None:
    brokers.start("abc")
    await brokers.apply("a", brokers.config(1, "abc"))
    id = await brokers.together("abc", 1)
    sent = [b"%03d" % n for n in range(20)]
    await publish(brokers, "abc", sent)
    await publish(brokers, "abc", sent, name="many", durability="majority_durable")
    offline = ("cluster", "recover", "--data-dir", str(brokers["a"].data), "--name", "a")
    running = await headrace(*offline, code=73)
    assert "another process" in running.err or "in use" in running.err
    await brokers["a"].signalled(signal.SIGKILL)
    brokers["a"].end()
    serving = await headrace(*offline, "--ask", f"http://{brokers['b'].admin}", "--accept-data-loss", code=64)
    assert "its majority is not lost" in serving.err
    for name in "bc":
        await brokers[name].signalled(signal.SIGKILL)
        brokers[name].end()
    with pytest.raises(NotConnected):
        await asyncio.to_thread(ClusterAdmin(f"http://{brokers['b'].admin}").status)
    asked = await headrace(*offline, "--ask", f"http://{brokers['b'].admin}", code=64)
    assert id in asked.out
    assert "given up: b, c" in asked.out
    assert "has not been accepted" in asked.err
    nothing = await headrace("cluster", "recover", "--data-dir", str(brokers.folder / "nowhere"), "--name", "a", code=66)
    assert "there is no data directory" in nothing.err
    done = (await headrace(*offline, "--accept-data-loss", "--json")).json
    assert done["survivor"]["given_up"] == ["b", "c"]
    brokers.start("a")
    status = await brokers.until("a", lambda s: s.get("code") == "serving")
    assert (status["cluster_id"], status["generation"]) == (done["recovered"], 2)
    async with asyncio.timeout(PATIENCE_S):  # until it is the controller, and holds the others for dead
        while (looked := await brokers.command("a", "force-election", "many", code=None)).code:
            await asyncio.sleep(1)
    assert "confirmed messages too" in looked.out
    assert "nothing was done" in looked.out
    elected = await brokers.command("a", "force-election", "many", "--accept-data-loss")
    assert "a owns partition 0 of many" in elected.out
    had = await values(brokers, "a", 1, name="many")
    assert set(had) <= set(sent), "what the survivor had is served again"
    brokers.start("bc")
    assert await brokers.together("abc", 1) == done["recovered"]
    assert (await brokers["b"].cluster())["generation"] == 2, "the old ones do not undo it"
    await publish(brokers, "abc", [b"anew"], name="after")
    assert await values(brokers, "abc", 1, name="after") == [b"anew"]

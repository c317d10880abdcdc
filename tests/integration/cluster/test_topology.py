"""The whole cluster as each of three real brokers shows it: while all is well, one is paused, one was killed, before there is a cluster."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.members import WAIT_S, Member, Three

pytestmark = pytest.mark.timeout(600)

Picture = dict[str, Any]
WAITING = {"a": "waiting", "b": "unreachable", "c": "unreachable"}


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    made = Three(tmp_path)
    try:
        yield made
    finally:
        made.end()


async def shown(member: Member, query: str = "", *, until: Callable[[Picture], bool]) -> Picture:
    """What it shows once it is so."""
    found: Picture = {}
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                answer = await member.get(f"topology{query}")
                if answer.status_code == 200:
                    found = answer.json()
                    if until(found):
                        return found
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(json.dumps(found, indent=1)) from None


def well(now: Picture) -> bool:
    return not now["attention"] and bool(now["partitions"]) and all(p["state"] == "serving" and _lags(p) == [0, 0] for p in now["partitions"])


async def agreed(three: Three) -> list[Picture]:
    """What each shows, once all show the same owners in the same epochs."""
    async with asyncio.timeout(WAIT_S):
        while True:
            pictures = [await shown(member, until=well) for member in three.members.values()]
            if len({json.dumps([(p["id"], p["owner"], p["epoch"]) for p in now["partitions"]]) for now in pictures}) == 1:
                return pictures


def _lags(row: dict[str, Any]) -> list[int]:
    return [f["lag"] for f in row["followers"]]


async def test_every_broker_shows_the_whole_cluster(three: Three) -> None:
    three.start("abc")
    await three.ready()
    async with three.connect() as client:
        await client.declare_queue("orders", partitions=3, replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
        await client.declare_stream("events", replication_factor=3, durability="majority_durable")
        for n in range(30):
            await client.publish("orders", b"%d" % n, partition=n % 3)
            await client.publish("events", b"%d" % n)

        pictures = await agreed(three)
        for member, now in zip(three.members.values(), pictures, strict=True):
            brokers = {b["name"]: b for b in now["brokers"]}
            assert sorted(brokers) == ["a", "b", "c"]
            assert {(b["state"], b["voter"], b["registered"], b["copies"]) for b in brokers.values()} == {("alive", True, True, 4)}
            assert [b["id"] for b in now["brokers"] if b["controller"]] == [now["controller"]]
            assert sum(b["owns"] for b in brokers.values()) == 4
            assert brokers[member.name]["id"] == now["broker"]
            for name, broker in brokers.items():
                assert broker["addresses"] == {"native": three[name].native, "admin": three[name].admin, "peer": three[name].peer}
            assert [(p["name"], p["partition"], p["kind"]) for p in now["partitions"]] == [
                ("events", 0, "stream"), *(("orders", n, "queue") for n in range(3))
            ]  # fmt: skip
            for row in now["partitions"]:
                assert {row["owner"], *(f["broker"] for f in row["followers"])} == set(row["replicas"]) == {b["id"] for b in brokers.values()}
                assert row["high_watermark"] == row["end"] > 10
                assert all(f["held"] == row["end"] and f["in_sync"] for f in row["followers"])
                assert len(row["isr"]) == (3 if row["kind"] == "queue" else 0)
        assert {p["name"] for p in (await shown(three["a"], "?name=events", until=well))["partitions"]} == {"events"}
        first = await shown(three["a"], "?limit=1", until=lambda now: bool(now["partitions"]))
        assert first["more"]
        assert {p["name"] for p in first["partitions"]} == {"events"}
        assert {p["name"] for p in (await shown(three["a"], "?after=events", until=well))["partitions"]} == {"orders"}

        # An owner is paused: whoever is asked answers within its bound, and says what it does not know.
        ids = {b["name"]: b["id"] for b in pictures[0]["brokers"]}
        names = {id: name for name, id in ids.items()}
        lost = three[names[pictures[0]["partitions"][1]["owner"]]]
        others = [m for m in three.members.values() if m is not lost]
        assert lost.process is not None
        lost.process.send_signal(signal.SIGSTOP)
        now = await shown(others[0], until=lambda now: any(b["state"] != "alive" for b in now["brokers"]) or bool(now["unanswered"]))
        assert now["attention"]
        now = await shown(others[1], until=lambda now: all(p["owner"] != ids[lost.name] and p["state"] == "serving" for p in now["partitions"]))
        assert {b["name"]: b["state"] for b in now["brokers"]}[lost.name] in ("suspect", "dead")
        assert any(lost.name in line for line in now["attention"])
        assert all(_lags(p) != [0, 0] or p["end"] for p in now["partitions"])
        lost.process.send_signal(signal.SIGCONT)
        await shown(others[0], until=well)

        # A follower of what nobody uses is killed: what waits there is delivered all the same.
        async with client.consume("orders") as consumer:
            assert await lost.signalled(signal.SIGKILL) == -signal.SIGKILL
            await shown(others[0], until=lambda now: {b["name"]: b["state"] for b in now["brokers"]}[lost.name] == "dead")
            got = set()
            async with asyncio.timeout(WAIT_S):
                async for message in consumer:
                    await message.ack(confirmed=True)
                    got.add(message.value)
                    if len(got) == 30:
                        break
        now = await shown(others[1], until=lambda now: all(p["state"] == "serving" for p in now["partitions"]))
        assert all(ids[lost.name] not in p["isr"] for p in now["partitions"] if p["name"] == "orders")
        behind = [f for p in now["partitions"] for f in p["followers"] if f["broker"] == ids[lost.name]]
        assert len(behind) == 4
        assert not any(f["in_sync"] for f in behind)
        assert all(f["why"] or f["lag"] < 0 for f in behind)


async def test_the_command_shows_it_to_people_and_programs(three: Three) -> None:
    three.start("a")  # alone it has no cluster to serve, and says on whom it waits
    now = await shown(three["a"], until=lambda now: {b["name"]: b["state"] for b in now["brokers"]} == WAITING)
    assert now["state"] == "wait"
    assert "it waits for b" in now["attention"]
    three.start("bc")
    await three.ready()
    async with three.connect() as client:
        await client.declare_queue("orders", partitions=2, replication_factor=3, durability="replica_durable", min_in_sync_replicas=2)
        await client.publish("orders", b"one", partition=0)
        await client.publish("orders", b"one", partition=1)
    await shown(three["b"], until=well)
    url = f"headrace://{three['b'].native}"
    code, out, _ = await command("topology", "--url", url, "--json")
    assert code == 0
    assert well(json.loads(out))
    code, out, _ = await command("topology", "orders", "--url", url)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["BROKER", "STATE", "ROLE"]
    assert [line.split()[:2] for line in lines[1:4]] == [["a", "alive"], ["b", "*"], ["c", "alive"]]
    rows = [line.split() for line in lines if line.startswith("orders/")]
    assert [row[:2] for row in rows] == [["orders/0", "serving"], ["orders/1", "serving"]]
    assert all("(0)," in row and "3" in row for row in rows)
    code, _, told = await command("topology", "nothing", "--url", url)
    assert code != 0
    assert "no queue or stream 'nothing'" in told
    watching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", "topology", "--watch", "--json", "--url", url, stdout=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    async with asyncio.timeout(WAIT_S):
        for _ in range(2):
            assert well(json.loads(await watching.stdout.readline()))
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 0
    assert await three.stop() == [0, 0, 0]


async def command(*argv: str) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()

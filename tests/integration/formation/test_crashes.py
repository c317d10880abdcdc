"""A broker that dies as kill -9 does, before or after each record is written and each step is taken, comes back and brings it to its end.

Four of these deaths a day; HEADRACE_FORMATION_CRASHES=all tries all of them (ten minutes).
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.formation.nodes import PATIENCE_S, Ended, Nodes
from tests.today import TODAY

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

FORMING = ("Identity", "Held", "Promise", "Acceptance", "StartConsensus", "Commit", "Applied")


def some(points: Sequence[str], count: int) -> list[str]:
    """Of today."""
    every = [f"{point}/{when}" for point in points for when in ("before", "after")]
    if os.environ.get("HEADRACE_FORMATION_CRASHES") == "all":
        return every
    return sorted(random.Random(TODAY).sample(every, count))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(tmp_path, "abcd")
    try:
        yield made
    finally:
        await made.close()


async def first_to_die(nodes: Nodes, names: str) -> str:
    """Whoever of them ends."""
    waiting = {asyncio.ensure_future(nodes[n].process.wait()): n for n in names}  # type: ignore[union-attr]
    done, rest = await asyncio.wait(waiting, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    assert done, "nobody came to that point"
    name = waiting[done.pop()]
    assert await nodes[name].died() == -9
    return name


@pytest.mark.parametrize("point", some([*(f"a/{what}" for what in (*FORMING, "Bootstrap")), *(f"b/{what}" for what in FORMING)], 2))
async def test_while_a_cluster_is_formed(nodes: Nodes, point: str) -> None:
    """``a`` is the seed; every broker may be the one that commits first, so a death at ``Commit`` is anybody's."""
    who, what, when = point.split("/")
    nodes.declare(1, "abc")
    points = "abc" if what == "Commit" else who
    for name in "abc":
        await nodes[name].start(die_at=f"{what}/{when}" if name in points else "")
    dead = {await first_to_die(nodes, points)}
    if what == "Commit":
        await asyncio.sleep(1)
        for name in set("abc") - dead:
            process = nodes[name].process
            assert process is not None
            if process.returncode is not None:
                dead.add(name)
                nodes[name].process = None
    for name in dead:
        await nodes[name].start()
    if what == "Commit":  # those that have not come to that point yet, never will: a cluster is formed once
        for name in set("abc") - dead:
            await nodes[name].stop()
            await nodes[name].start()
    id = await nodes.together("abc")
    assert {(await nodes[n].status())["committed"]["revision"] for n in "abc"} == {1}, "it was formed once"
    assert len(id) == 32


@pytest.mark.parametrize("point", some(["Commit", "AddLearner", "Promote", "Remove"], 1))
async def test_the_leader_while_a_cluster_is_changed(nodes: Nodes, point: str) -> None:
    what = point.partition("/")[0]
    nodes.declare(1, "abc")
    await nodes.start("abc")
    id = await nodes.together("abc")
    for name in "abc":
        await nodes[name].kill()
    await nodes.start("d")
    for name in "abc":
        await nodes[name].start(die_at=point)
    assert await nodes.together("abc") == id
    with suppress(Ended):  # it commits what it was fed, and may die before it has said so
        await nodes["b"].feed(nodes.config(2, "bcd"))
    for _ in range(3):
        name = await first_to_die(nodes, "".join(n for n in "abc" if nodes[n].process is not None))
        await nodes[name].start()
        if what != "Commit":
            break
        alive = [n for n in "abc" if nodes[n].process is not None]
        if all(nodes[n].process.returncode is None for n in alive):  # type: ignore[union-attr]
            break
    for name in "abc":  # whoever still has a death before it gets another life without
        if nodes[name].process is not None:
            await nodes[name].kill()
            await nodes[name].start()
    assert await nodes.together("bcd") == id
    gone = await nodes["a"].until(lambda s: s["state"] == "removed")
    assert "version 2 removed it" in gone["reason"]
    members = await nodes["b"].until(lambda s: s["quorum"] == {"need": 2, "have": 3})
    assert members["committed"]["version"] == 2


@pytest.mark.parametrize("point", some(["Aside", "SetAside", "Identity"], 1))
async def test_while_data_is_set_aside(nodes: Nodes, point: str) -> None:
    nodes.declare(1, "ab")
    await nodes.start("ab")
    id = await nodes.together("ab")
    for name in "ab":
        await nodes[name].kill()
    await nodes["a"].start()
    await nodes["b"].start(die_at=point)
    await nodes["a"].until(lambda s: s["code"] == "serving")
    await nodes["b"].until(lambda s: s["code"] == "serving")
    assert (await nodes["a"].feed(nodes.config(2, "ab", gospel="reset", confirm_discard=[id])))["verdict"] == "begun"
    assert await first_to_die(nodes, "b") == "b"
    await nodes["b"].start()
    for name in "ab":
        await nodes[name].until(lambda s: s["code"] == "serving" and s["cluster_id"] != id)
        [aside] = (nodes[name].data / "aside").iterdir()
        assert (aside / "formation" / "identity").exists()
        assert nodes[name].etcds() == 1, "none runs on what was set aside"
        assert list(aside.glob("etcd*/seat-1/data/member/wal/*.wal"))
    assert await nodes.together("ab") != id

"""Brokers in processes of their own that begin without any config, and the commands of ``headrace cluster`` that make them one, as processes too."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace import connect
from headrace.model.specs import Durability
from tests.integration.cluster.members import WAIT_S, Member

Status = dict[str, Any]
PATIENCE_S = 3 * WAIT_S


class Result:
    """What a command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def headrace(*arguments: str, text: str = "", code: int | None = 0) -> Result:
    """``headrace ARGUMENTS`` as a process of its own, with ``text`` for its standard input."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", *arguments, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate(text.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    result = Result(process.returncode, out.decode(), err.decode())
    assert code is None or result.code == code, (arguments, result.code, result.out, result.err)
    return result


class Brokers:
    """Those of one test. They know a secret and, each, its own peer address; nobody else."""

    def __init__(self, folder: Path, names: str) -> None:
        self.folder = folder
        self.members = {name: Member(name, folder) for name in names}
        self.secrets: dict[str, Path] = {}
        for name in names:
            self.secrets[name] = folder / f"{name}.secret"
            self.write_secret(name, "a secret of the tests' cluster")

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def write_secret(self, name: str, *lines: str) -> None:
        self.secrets[name].write_text("".join(f"{line}\n" for line in lines))
        self.secrets[name].chmod(0o600)

    def start(self, names: str, *more: str) -> None:
        for name in names:
            options = more or ("--set", "coordination.mode=coordinated")
            self[name].start("--peer", self[name].peer, *options, secret=self.secrets[name])

    def config(self, version: int, voters: str, *, observers: str = "", **rest: Any) -> str:
        """As the text of a file."""
        lines = [f"version = {version}", *(f"{key} = {json.dumps(value)}" for key, value in rest.items()), "[members]"]
        lines += [f'{name} = {{ role = "voter", address = "{self[name].peer}" }}' for name in voters]
        lines += [f'{name} = {{ role = "observer", address = "{self[name].peer}" }}' for name in observers]
        return "\n".join(lines) + "\n"

    async def command(self, name: str, *arguments: str, text: str = "", code: int | None = 0) -> Result:
        """``headrace cluster ARGUMENTS``, asked of that broker, once its admin interface answers."""
        await self[name].get("live")
        return await headrace("cluster", *arguments, "--admin", f"http://{self[name].admin}", text=text, code=code)

    async def apply(self, name: str, config: str, *more: str, code: int | None = 0) -> Any:
        return (await self.command(name, "apply", "-", "--json", *more, text=config, code=code)).json

    async def until(self, name: str, holds: Callable[[Status], Any]) -> Status:
        status: Status = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not holds(status := await self[name].cluster()):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{name}: {json.dumps(status, indent=1)}\n{self[name].log.read_text()[-4000:]}") from None
        return status

    async def together(self, names: str, version: int = 0) -> str:
        """All serve, in one cluster that is as it was declared, and nothing is left to do; its id."""

        def settled(s: Status) -> bool:
            done = s["code"] == "serving" and s["leader"] and not s["plan"]
            return bool(done and (not version or s["committed"]["version"] == version))

        ids = {(await self.until(name, settled))["cluster_id"] for name in names}
        assert len(ids) == 1, ids
        for name in names:
            await self[name].ready()
        return str(ids.pop())

    async def registered(self, names: str) -> None:
        """Returns once all of them know the admin HTTP of all of them."""
        for name in names:
            async with asyncio.timeout(PATIENCE_S):
                while {m["name"] for m in (await self[name].get("cluster/members")).json()["members"] if m["admin"]} < set(names):
                    await asyncio.sleep(0.1)

    def end(self) -> None:
        for member in self.members.values():
            member.end()


async def publish(
    brokers: Brokers, names: str, these: list[bytes], *, name: str = "orders", copies: int = 3, durability: Durability = "replica_durable"
) -> None:
    """Confirmed by two brokers, to a queue of three copies, or as many as there are brokers. Who has just come back is given nothing for ten seconds:
    if two have, a confirm takes as long."""
    url = "headrace://" + ",".join(brokers[n].native for n in names)
    async with connect(url, wait=WAIT_S, confirm_timeout=WAIT_S) as connected:
        await connected.declare_queue(name, replication_factor=copies, durability=durability, min_in_sync_replicas=2)
        for value in these:
            await connected.publish(name, value)


async def values(brokers: Brokers, names: str, count: int, *, name: str = "orders") -> list[bytes]:
    """The first so many different ones, in order; they stay there, unacked."""
    url = "headrace://" + ",".join(brokers[n].native for n in names)
    got: set[bytes] = set()
    async with connect(url, wait=WAIT_S) as connected, asyncio.timeout(PATIENCE_S), connected.consume(name) as consumer:
        async for message in consumer:
            got.add(message.value)
            if len(got) == count:
                break
    return sorted(got)

"""What ``headrace cluster up`` does, step by step: brokers are started, used, looked at, and ended.

Owns what is done in which order, what is said of it, and that nothing is left when it ends, however it ends. Brokers are ``tryout_brokers``'s, what
they are used for ``tryout_demo``'s, the check of failovers ``tryout_failover``'s.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.log import configure
from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.tryout_brokers import Brokers, Local

HEALTHY_S: Final = 60.0
STEP_S: Final = 60.0
LOOK_S: Final = 0.1
LOST: Final = 1
STOPPED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def carry_out(count: int, data_dir: str, *, as_json: bool, staggered: bool, demo: bool, keep: bool, verify: bool) -> int:
    """Until it is stopped, or has verified what was asked; the exit code."""
    configure("error", "text")
    tell = Teller(as_json=as_json)
    return asyncio.run(Tryout(tell, _brokers(count, data_dir), staggered=staggered, demo=demo, keep=keep, verify=verify).run())


def _brokers(count: int, data_dir: str) -> Brokers:
    """None of them started; without an etcd nothing is left behind."""
    from headrace.cli.tryout_brokers import Brokers, program

    etcd = program()
    return Brokers(Path(data_dir).absolute() if data_dir else Path(tempfile.mkdtemp(prefix="headrace-cluster-")), count, etcd)


class Teller:
    """Says what happens: to people as lines on standard output; to programs one JSON object there, and the lines on standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._began_s = time.monotonic()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began_s

    def step(self, text: str) -> None:
        """Something has happened."""
        print(f"{self.passed_s:6.1f} s  {text}", file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def line(self, text: str = "") -> None:
        """For people alone."""
        if not self.as_json:
            print(text, flush=True)

    def result(self, value: dict[str, Any]) -> None:
        """For programs alone."""
        if self.as_json:
            print(json.dumps(value), flush=True)


class Tryout:
    """One run of the command."""

    def __init__(self, tell: Teller, brokers: Brokers, *, staggered: bool, demo: bool, keep: bool, verify: bool) -> None:
        self._tell = tell
        self._brokers = brokers
        self._staggered = staggered
        self._demo = demo and not verify
        self._keep = keep
        self._verify = verify
        self._checks: list[str] = []

    async def run(self) -> int:
        """The exit code. All that was started has ended by then."""
        brokers = self._brokers
        stop = asyncio.Event()
        for number in STOPPED:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stopped, working = asyncio.create_task(stop.wait()), asyncio.create_task(self._work(), name="tryout")
        try:
            await asyncio.wait((stopped, working), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            self._tell.step("stopping")
            return 0
        finally:
            stopped.cancel()
            working.cancel()
            await asyncio.gather(stopped, working, return_exceptions=True)
            await brokers.stop()
            if self._keep or brokers.again:
                again = f"headrace cluster up --brokers {len(brokers.all)} --data-dir {brokers.folder}"
                self._tell.step(f"all have ended; the data is kept: {again}")
            else:
                await asyncio.to_thread(brokers.remove)
                self._tell.step("all have ended, nothing is left")

    async def _work(self) -> int:
        """Never returns while it holds; else the exit code."""
        from headrace.cli import tryout_demo

        tell, brokers = self._tell, self._brokers
        if brokers.etcd.banner:
            tell.step(f"note: {brokers.etcd.banner}")
        names = ", ".join(b.name for b in brokers.all)
        tell.step(f"starting {len(brokers.all)} brokers ({names}) in {brokers.folder}" + (", which were kept" if brokers.again else ""))
        watching = asyncio.create_task(self._watch())
        try:
            await (self._start_staggered() if self._staggered else self._start())
        finally:
            watching.cancel()
        healthy_ms = round(tell.passed_s * 1000)
        tell.step("all serve; checking")
        await tryout_demo.seed(brokers, demo=self._demo)
        await tryout_demo.check(brokers, self._passed)
        if self._verify:
            return await self._failovers(healthy_ms)
        traffic = tryout_demo.Traffic(brokers)
        if self._demo:
            traffic.start()
        try:
            self._show(healthy_ms)
            while True:
                await asyncio.sleep(LOOK_S * 10)
                for broker in brokers.all:  # one that is killed by hand is what this is for
                    self._look_after(broker)
        finally:
            await traffic.stop()

    def _passed(self, text: str) -> None:
        self._checks.append(text)
        self._tell.step(f"ok: {text}")

    def _look_after(self, broker: Local) -> None:
        child = broker.child
        if child is not None and not child.alive:
            broker.child = None
            self._tell.step(f"{broker.name} has {child.end}; start it again: {self._typed(broker)}")

    def _typed(self, broker: Local) -> str:
        import shlex

        return shlex.join(["headrace", *self._brokers.command(broker)])

    # ------------------------------------------------------------ starting

    async def _start(self) -> None:
        for broker in self._brokers.all:
            self._brokers.start(broker)
        await self._brokers.ready(self._brokers.all, HEALTHY_S)

    async def _start_staggered(self) -> None:
        """One voter after another, each until it says on whom it waits; then the observers, one after another."""
        tell, brokers = self._tell, self._brokers
        voters = brokers.voters
        for count, broker in enumerate(voters, 1):
            tell.step(f"starting {broker.name}, voter {count} of {len(voters)}")
            brokers.start(broker)
            missing = {b.name for b in voters[count:]}
            if missing:
                await self._until_waits(voters[:count], missing)
                tell.step(f"no quorum yet: {', '.join(b.name for b in voters[:count])} cannot form a cluster without {', '.join(sorted(missing))}")
        await brokers.ready(voters, HEALTHY_S)
        for broker in brokers.observers:
            tell.step(f"starting {broker.name}, an observer")
            brokers.start(broker)
            await brokers.ready([broker], HEALTHY_S)
        await self._elected()

    async def _until_waits(self, started: list[Local], missing: set[str]) -> None:
        try:
            async with asyncio.timeout(STEP_S):
                while True:
                    said = [await b.get("cluster") for b in started]
                    if all(s is not None and missing <= {w["name"] for w in s.get("waits_for", ())} for s in said):
                        return
                    for broker in started:
                        broker.check()
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise HeadraceError(f"{', '.join(b.name for b in started)} did not say that they wait for {', '.join(sorted(missing))}") from None

    async def _elected(self) -> None:
        from headrace.cli.tryout_demo import picture

        async with asyncio.timeout(STEP_S):
            while True:
                now = await picture(self._brokers.all[0].url)
                if now.controller:
                    break
                await asyncio.sleep(LOOK_S)
        names = {b.id: b.name for b in now.brokers}
        self._tell.step(f"{names.get(now.controller, now.controller)} is elected controller, term {now.term}: {now.controller_why}")

    async def _watch(self) -> None:
        """Says every change of state of every member, with its reason."""
        told: dict[str, tuple[str, str]] = {}
        leader = ""
        while True:
            for broker in self._brokers.all:
                if broker.child is None or (status := await broker.get("cluster")) is None:
                    continue
                now = (status["state"], status["reason"])
                if told.get(broker.name) != now:
                    told[broker.name] = now
                    self._tell.step(f"{broker.name} is {now[0]}: {now[1]}")
                if status.get("leader") and status["leader"] != leader:
                    leader = status["leader"]
                    self._tell.step(f"{leader} is elected leader of the consensus")
            await asyncio.sleep(LOOK_S)

    # ------------------------------------------------------------ holding

    def _show(self, healthy_ms: int) -> None:
        tell, brokers = self._tell, self._brokers
        tell.line()
        tell.line(f"The cluster is up, healthy after {healthy_ms / 1000:.1f} s.")
        for broker in brokers.all:
            role = "" if broker.place.role == "voter" else "  (observer)"
            tell.line(f"  {broker.name}  clients {broker.url}  admin {broker.admin_url}/  topology {broker.admin_url}/admin/topology{role}")
        tell.line("  use it, in another terminal:")
        tell.line(f"    export HEADRACE_URL={brokers.url()}")
        tell.line("    headrace topology --watch")
        if self._demo:
            tell.line("    headrace tail demo.events")
        tell.line("  lose a broker, and see what happens (kill -9):")
        for broker in brokers.all:
            if broker.child is not None:
                tell.line(f"    kill -9 {broker.child.record.pid}   # {broker.name}")
        tell.line(f"  data and logs: {brokers.folder}" + ("" if self._keep or brokers.again else "  (removed at the end; --keep keeps them)"))
        tell.line("  stop: Ctrl-C")
        tell.result(self._facts(healthy_ms))

    def _facts(self, healthy_ms: int) -> dict[str, Any]:
        brokers = self._brokers
        rows = [
            {
                "name": b.name, "role": b.place.role, "url": b.url, "admin": b.admin_url, "topology": f"{b.admin_url}/admin/topology",
                "pid": b.child.record.pid if b.child is not None else 0,
            }
            for b in brokers.all
        ]  # fmt: skip
        return {"url": brokers.url(), "data_dir": str(brokers.folder), "healthy_ms": healthy_ms, "brokers": rows, "checks": self._checks}

    async def _failovers(self, healthy_ms: int) -> int:
        from headrace.cli import tryout_failover

        found = await tryout_failover.verify(self._brokers, self._tell.step)
        good = all(phase["ok"] for phase in found)
        self._tell.result(self._facts(healthy_ms) | {"ok": good, "phases": found})
        self._tell.line()
        self._tell.line("nothing confirmed was lost" if good else "something confirmed is missing or out of order: see above")
        return 0 if good else LOST

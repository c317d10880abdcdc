"""The formation of this broker, running: the machine is told what happens, and what it asks for is done.

Owns the order in which effects are carried out, the machine's clock, and what is shown and logged of it. Decides nothing.

R1 one record is written at a time, none while data is set aside, and the machine hears of it when it is durable; a write that failed is repeated.
R2 what concerns the consensus member or the data is done one after another, in the order in which it was asked for; messages go out at once. R3 what
is told of the consensus was seen after the last such step. R4 a mistake of the machine itself stops it and says so; the broker does not serve then.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from headrace.ambient import ambient
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.formation.place import Place, Request, Seen
from headrace.cluster.formation.slots import Kept, Slots
from headrace.core.formation import effects
from headrace.core.formation.books import Found
from headrace.core.formation.effects import Answer, AnyEffect, Standing, State, Verdict
from headrace.core.formation.machine import Formation
from headrace.core.formation.messages import AnyMessage
from headrace.core.formation.outlook import Outlook
from headrace.core.formation.planning import Step
from headrace.core.formation.records import Identity, Record
from headrace.log import get_logger
from headrace.model.errors import Conflict, HeadraceError, StorageError
from headrace.model.formation import Declared

_log = get_logger("formation")

LOOK_S: Final = 1.0
LOOK_SOON_S: Final = 0.25
"""While anything is on its way."""
WRITE_AGAIN_S: Final = 1.0
FAULT_S: Final = 0.5
SIZE_S: Final = 60.0
CLEAN_S: Final = 3600.0

Work = effects.StartConsensus | effects.StopConsensus | effects.Follow | effects.SetAside | Request


class Around:
    """The broker around its formation; what concerns it is overridden. Without a broker there is nothing to serve, hand over or close."""

    def changed(self, standing: Standing) -> None:
        """Serve while it is ACTIVE or DRAINING, and else not."""

    async def drain(self, names: tuple[str, ...]) -> None:
        """Returns once these brokers own and copy nothing any more; cancelled when others are to be drained, or none."""

    async def quiet(self, reason: str) -> None:
        """Returns once nothing serves and the data is closed: it is about to be set aside."""

    def exit(self, reason: str) -> None:
        """End the process, as the cluster config asks for."""


Send = Callable[[str, str, AnyMessage], None]
"""To whom, at which address, what."""


class Driver:
    """See the module's head. Made on the loop that uses it."""

    def __init__(
        self, found: Found, slots: Slots, place: Place, around: Around, *, identified: Callable[[Identity], None] = lambda identity: None
    ) -> None:
        """``identified`` is told when the directory has an identity, or another one, or another cluster."""
        self.name = found.name
        self.records = found.records
        """Durable."""
        self.failed = ""
        """What the machine itself did wrong."""
        self._slots = slots
        self._place = place
        self._around = around
        self._identified = identified
        self._found = found
        self._ambient = ambient()
        self._loop = asyncio.get_running_loop()
        self._machine: Formation | None = None
        self._send: Send = lambda to, address, message: None
        self._troubles: Callable[[], dict[str, str]] = dict
        self._timer: asyncio.TimerHandle | None = None
        self._work: deque[Work] = deque()
        self._more = asyncio.Event()
        self._look_now = asyncio.Event()
        self._turns = 0
        """Steps of work begun or ended: what was seen across one of them is not told (R3)."""
        self._writing = ""
        self._writer: asyncio.Task[None] | None = None
        self._disk = asyncio.Lock()
        self._stored = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: asyncio.Task[None] | None = None
        self._stopped = False

    # ------------------------------------------------------------ life

    def begin(self, send: Send, troubles: Callable[[], dict[str, str]]) -> None:
        """From now on it says and does something. ``send`` takes messages to peers, ``troubles`` says why some cannot be reached."""
        self._send, self._troubles = send, troubles
        self._machine = Formation(self._found, self.now_ms())
        for run in (self._do_work, self._look, self._measure):
            self._spawn(run(), run.__name__)
        self._pump()

    async def stop(self) -> None:
        """The member of the consensus is stopped too. What was told to be durable is."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task
        await self._place.close()

    def now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    # ------------------------------------------------------------ what others see and want

    @property
    def standing(self) -> Standing:
        if self.failed:
            return Standing(State.HALTED, "failed", f"the formation itself has failed: {self.failed}")
        if self._machine is None:
            return Standing(State.INIT, "starting", "has not begun yet")
        return self._machine.standing

    @property
    def ready(self) -> bool:
        """Whether the broker may serve: what a readiness check answers. Liveness is another matter: who waits or is halted lives."""
        return not self.failed and self._machine is not None and self._machine.ready

    @property
    def coordinator(self) -> Coordinator | None:
        """Of the cluster that this broker belongs to or is a guest of."""
        return self._place.coordinator

    async def until(self, holds: Callable[[Standing], bool]) -> Standing:
        """Waits until the standing is such."""
        while not holds(self.standing):
            self._changed.clear()
            await self._changed.wait()
        return self.standing

    async def feed(self, config: Declared, *, source: str = "command") -> Answer:
        """An operator wants ``config``. ``BEGUN``: it is taken on, and durable here."""
        machine = self._machine
        if machine is None or self.failed:
            return Answer(Verdict.BUSY, 0, self.standing.reason)
        answer = machine.fed(config, self.now_ms(), source=source)
        self._pump()
        if answer.verdict is Verdict.BEGUN:
            while self._writing:
                self._stored.clear()
                await self._stored.wait()
        return answer

    def plan(self) -> tuple[Step, ...]:
        """The steps that are left to what is committed."""
        return self._machine.plan() if self._machine is not None and not self.failed else ()

    def outlook(self, config: Declared) -> Outlook:
        """What ``config`` would bring, without doing any of it."""
        machine = self._machine
        if machine is None or self.failed:
            return Outlook(answer=Answer(Verdict.BUSY, 0, self.standing.reason))
        return machine.outlook(config, self.now_ms())

    @property
    def current(self) -> Declared | None:
        """The youngest config that is known here: committed, or proposed."""
        return self._machine.current if self._machine is not None else None

    def keeps(self, name: str) -> str:
        """Why the vote of ``name`` must not be taken away now, "" = it may be."""
        return self._machine.keeps(name) if self._machine is not None and not self.failed else self.standing.reason

    def corrected(self) -> None:
        """This broker's own configuration was read again, and there is no mistake in it."""
        self._tell(lambda m, now_ms: m.corrected(now_ms))

    def introduced(self, name: str, address: str) -> None:
        """A broker of that name was found there."""
        self._tell(lambda m, now_ms: m.introduced(name, address, now_ms))

    def heard(self, sender: str, message: AnyMessage) -> None:
        """A peer says something."""
        if self._machine is not None:
            self._tell(lambda m, now_ms: m.heard(sender, message, now_ms))

    def peer_lost(self, name: str) -> None:
        """Nothing connects this broker with it any more."""
        self._tell(lambda m, now_ms: m.peer_lost(name, now_ms))

    def stopping(self, reason: str) -> None:
        """The broker is going to stop and hands over what it owns."""
        self._tell(lambda m, now_ms: m.stopping(reason, now_ms))

    def status(self) -> dict[str, Any]:
        """How things stand now: state, reason, on whom it waits since when, peers, cluster, plan. Times are milliseconds of the wall clock."""
        standing = self.standing
        shown: dict[str, Any] = {"name": self.name, "ready": self.ready, "failed": self.failed, "writing": self._writing}
        shown["consensus"] = self._place.view()
        if self._machine is None:
            return shown | {"state": standing.state.value, "code": standing.code, "reason": standing.reason}
        now_ms, wall_ms = self.now_ms(), self._ambient.wall_ns() // 1_000_000
        view = self._machine.view()
        troubles = self._troubles()
        for since in (view, *view["waits_for"], *view["peers"].values()):
            since["since_wall_ms"] = wall_ms - max(0, now_ms - since.pop("since_ms"))
        for name, peer in view["peers"].items():
            peer["trouble"] = troubles.get(name, "")
        view["next_try_in_ms"] = max(0, view.pop("next_try_ms") - now_ms)
        return view | shown | {"state": standing.state.value, "code": standing.code, "reason": standing.reason}

    # ------------------------------------------------------------ the machine

    def _tell(self, verb: Callable[[Formation, int], None]) -> None:
        if self._machine is None or self._stopped or self.failed:
            return
        try:
            verb(self._machine, self.now_ms())
        except Exception as e:
            self._fail(e)
            return
        self._pump()

    def _pump(self) -> None:
        machine = self._machine
        if machine is None or self._stopped or self.failed:
            return
        try:
            while out := machine.take():
                for effect in out:
                    self._begin(effect)
            machine.check()
            due_ms = machine.next_deadline_ms()
        except Exception as e:
            self._fail(e)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(1, due_ms - self.now_ms()) / 1000, self._tell, Formation.tick)

    def _fail(self, error: Exception) -> None:
        self.failed = repr(error)
        _log.error("the formation has failed, and this broker does not serve any more until it is started again", exc_info=error)
        self._around.changed(self.standing)
        self._changed.set()

    def _begin(self, effect: AnyEffect) -> None:
        if isinstance(effect, effects.Send):
            self._send(effect.to, effect.address, effect.message)
        elif isinstance(effect, effects.Store):
            assert not self._writing, "one store at a time"
            self._writing = type(effect.record).__name__
            self._writer = self._spawn(self._write(effect.record), "a record of the formation")
        elif isinstance(effect, effects.Changed):
            self._told(effect)
        elif isinstance(effect, effects.Alarm):
            if effect.reason:
                _log.error("alarm: %s", effect.reason)
            else:
                _log.info("the alarm %s is over", effect.key)
        elif isinstance(effect, effects.Drain):
            if self._draining is not None:
                self._draining.cancel()
            self._draining = self._spawn(self._drain(effect.names), "drain") if effect.names else None
        elif isinstance(effect, effects.Exit):
            _log.error("this broker ends, as its cluster's config asks for: %s", effect.reason)
            self._around.exit(effect.reason)
        else:
            self._work.append(effect)
            self._more.set()

    def _told(self, effect: effects.Changed) -> None:
        """One sentence for every transition."""
        now = effect.now
        if (now.state, now.reason) != (effect.before.state, effect.before.reason):
            level = "error" if now.state is State.HALTED else "info"
            getattr(_log, level)("%s: %s", now.state.value, now.reason)
        self._around.changed(now)
        self._changed.set()
        self._look_now.set()

    # ------------------------------------------------------------ tasks

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=f"formation: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    async def _write(self, record: Record) -> None:
        while True:
            try:
                async with self._disk:
                    await asyncio.to_thread(self._slots.write, record)
                break
            except (OSError, StorageError) as e:
                _log.error("a record of the formation cannot be written, it is tried again: %s", e)
                await asyncio.sleep(WRITE_AGAIN_S)
        self._writing = ""
        self.records = self.records.stored(record)
        if isinstance(record, Identity):
            self._identified(record)
        self._tell(lambda m, now_ms: m.stored(record, now_ms))
        self._stored.set()

    async def _drain(self, names: tuple[str, ...]) -> None:
        await self._around.drain(names)
        self._tell(lambda m, now_ms: m.drained(names, now_ms))

    async def _do_work(self) -> None:
        while True:
            while not self._work:
                self._more.clear()
                await self._more.wait()
            effect = self._work.popleft()
            self._turns += 1
            try:
                await self._do(effect)
            finally:
                self._turns += 1
                self._look_now.set()

    async def _do(self, effect: Work) -> None:
        if isinstance(effect, effects.StartConsensus):
            await self._place.start(effect)
        elif isinstance(effect, effects.StopConsensus):
            await self._place.stop(drop=effect.drop)
            self._tell(lambda m, now_ms: m.consensus(effects.NO_CONSENSUS, now_ms))
        elif isinstance(effect, effects.Follow):
            await self._place.follow(effect)
        elif isinstance(effect, effects.SetAside):
            await self._set_aside(effect)
        elif any(not isinstance(e, _OTHERS) for e in self._work):
            return  # a newer one waits: of this one nobody waits to hear any more
        else:
            fault = ""
            try:
                await self._place.carry_out(effect)
            except HeadraceError as e:
                fault = str(e)
                level = "debug" if isinstance(e, Conflict) else "info"  # somebody else was quicker
                getattr(_log, level)("%s was not done: %s", type(effect).__name__, fault)
                await asyncio.sleep(FAULT_S)  # it will be asked for again
            self._tell(lambda m, now_ms: m.answered(effect.number, now_ms, fault=fault))

    async def _set_aside(self, effect: effects.SetAside) -> None:
        """Also if it was asked for again meanwhile: without data it is a success."""
        await self._around.quiet(effect.reason)
        await self._place.forget()
        until_ms = self._ambient.wall_ns() // 1_000_000 + effect.keep_ms
        while True:
            try:
                async with self._disk:
                    where = await asyncio.to_thread(self._slots.set_aside, effect.id, Kept(effect.cluster_id, effect.reason, until_ms))
                    if self._writer is not None:
                        self._writer.cancel()  # what waits to be written is of the directory that is no more
                        self._writing = ""
                break
            except (OSError, StorageError) as e:
                _log.error("data cannot be set aside, it is tried again: %s", e)
                await asyncio.sleep(WRITE_AGAIN_S)
        _log.warning("the data of cluster %s was set aside in %s: %s", effect.cluster_id, where, effect.reason)
        self._work = deque(e for e in self._work if not isinstance(e, effects.SetAside))
        self.records = self.records.without_data()
        self._tell(lambda m, now_ms: m.set_aside(effect.id, now_ms))

    async def _look(self) -> None:
        while True:
            self._look_now.clear()
            turns = self._turns
            seen = await self._place.look() if turns % 2 == 0 else None
            if seen is not None and turns == self._turns:
                self._saw(seen)
            settled = self.standing.state in (State.ACTIVE, State.REMOVED, State.HALTED) and not (self._machine and self._machine.plan())
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if settled else LOOK_SOON_S):
                    await self._look_now.wait()
            if self._look_now.is_set():
                await asyncio.sleep(0.01)

    def _saw(self, seen: Seen) -> None:
        self._tell(lambda m, now_ms: m.consensus(seen.consensus, now_ms))
        if seen.read:
            self._tell(lambda m, now_ms: m.committed(seen.charter, now_ms))

    async def _measure(self) -> None:
        """How much data there is, for those who have to decide about it; what was set aside goes when its time is over."""
        cleaned = float("-inf")
        while True:
            nbytes = await asyncio.to_thread(self._slots.data_bytes)
            if self._machine is not None:
                self._machine.holds(nbytes)
            if self._ambient.monotonic() - cleaned >= CLEAN_S:
                cleaned = self._ambient.monotonic()
                await asyncio.to_thread(self._slots.clean, self._ambient.wall_ns() // 1_000_000)
            await asyncio.sleep(SIZE_S)


_OTHERS: Final = (effects.StartConsensus, effects.StopConsensus, effects.Follow, effects.SetAside)

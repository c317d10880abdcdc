"""The controller's loop: stands for election, and while elected takes a picture, plans and applies, whenever something changed or time says so.

Owns when it is planned and how changes reach the coordinator. What is decided is ``core.control``'s; who is elected ``election``'s.

K1 every transaction compares the controller's key with the term in which it was planned, and each partition with the version it was planned on. K2 a
plan is made only once this broker sees what its last one wrote, or a bounded time has passed. K3 nothing is applied while planning is paused or a dry
run, nor within ``AFTER_PAUSE_MS`` after this broker stood still: what happened meanwhile must reach it first. K4 no failure ends the loop.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from headrace.cluster.control.decisions import Decision, Decisions, Outcome
from headrace.cluster.control.election import Election
from headrace.cluster.control.evidence import Evidence
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.control.picturing import Picturing
from headrace.cluster.control.presence import Presence
from headrace.cluster.coordinator import Coordinator
from headrace.core.control.changes import Change, Finding, Plan, transaction, transactions
from headrace.core.control.forcing import Acceptance, Risk, Tail, force, risk
from headrace.core.control.picture import Picture
from headrace.core.control.planning import plan
from headrace.core.control.rehearsal import rehearse
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Mode, partition_key
from headrace.model.errors import Conflict, CoordinatorUnavailable, Elsewhere, Invalid, UnknownOutcome
from headrace.model.ids import PartitionId

_log = get_logger("controller")

GATHER_S: Final = 0.005
"""What happens together is planned together."""
RETRY_S: Final = 0.2
SHOWN_S: Final = 1.0
LOOK_S: Final = 5.0
"""It is planned at least so often: nothing should need it."""
REST_S_MAX: Final = 0.1
"""After a plan the broker has as much time for itself as it took, but no more than this."""
BESIDE: Final = 100
"""Partitions from which on a plan is made on a thread, so that the broker serves on."""
AFTER_PAUSE_MS: Final = 500
HANDOVERS_KEPT: Final = 2048


class _Deposed(Exception):
    """Another is the controller, or this one in another term."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What admin shows of it."""

    elected: bool
    """Whether this broker is the controller; if it is not, it knows no findings and no decisions of others."""
    holder: BrokerId
    holder_reason: str
    term: int
    mode: Mode
    plans: int
    alarms: tuple[str, ...]
    findings: tuple[Finding, ...]
    decisions: tuple[Decision, ...]


class Controller:
    """See the module's head."""

    def __init__(
        self,
        coordinator: Coordinator,
        mirror: Mirror,
        picturing: Picturing,
        evidence: Evidence,
        presence: Presence,
        *,
        begin: Callable[[], Awaitable[object]],
    ) -> None:
        """``begin`` is done before the first plan: it sees to it that the cluster's settings are there."""
        self._begin: Callable[[], Awaitable[object]] | None = begin
        self._coordinator = coordinator
        self._mirror = mirror
        self._picturing = picturing
        self._evidence = evidence
        self._presence = presence
        self.election = Election(coordinator, mirror, picturing, presence)
        self.decisions = Decisions()
        self.plans = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._handovers_ms: deque[int] = deque(maxlen=HANDOVERS_KEPT)
        self._awake_ms = 0
        self._rehearsed: tuple[tuple[PartitionId, int], ...] = ()
        mirror.on_turn(self._news.set)
        evidence.on_news(self._news.set)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="controller")

    async def halt(self) -> None:
        """Nothing is planned any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def step_down(self) -> None:
        """Lets another take over at once, if this broker is the controller."""
        await self.election.step_down("it stops")

    def stood_still(self, pause_ms: int) -> None:
        """This broker has run again for an instant only; see K3."""
        self._awake_ms = self._picturing.now_ms() + AFTER_PAUSE_MS
        self._news.set()

    # ------------------------------------------------------------ for operators

    def view(self) -> View:
        picturing = self._picturing
        planning = picturing.planning
        alarms = [f.reason for f in (*self.decisions.findings, *picturing.troubles()) if f.kind == "frozen" or f in picturing.troubles()]
        if planning.mode != "on":
            alarms.append(_not_on(planning.mode, planning.by, planning.reason))
        return View(
            elected=self.election.look(),
            holder=picturing.holder.broker,
            holder_reason=picturing.holder.reason,
            term=picturing.holder_version,
            mode=planning.mode,
            plans=self.plans,
            alarms=tuple(alarms),
            findings=self.decisions.findings,
            decisions=self.decisions.history(),
        )

    async def rehearse(self) -> tuple[Change, ...]:
        """What would be changed from now on if nothing else happened, on any broker; long for large clusters, on a thread."""
        picture = self._picturing.picture()
        changes, _ = await asyncio.get_running_loop().run_in_executor(None, rehearse, picture)
        return changes

    def risk(self, partition: PartitionId, chosen: BrokerId, tails: tuple[Tail, ...]) -> Risk:
        """What electing ``chosen`` would cost; see ``core.control.forcing``."""
        return risk(self._picturing.picture(), partition, chosen, tails)

    async def force(self, shown: Risk, acceptance: Acceptance, tails: tuple[Tail, ...]) -> Change:
        """The election with accepted loss, on the controller only (``Elsewhere``). ``Conflict``: nothing was changed."""
        if not self.election.look():
            raise Elsewhere(f"the controller is broker {self._picturing.holder.broker or 'nobody'}", hint="ask there")
        change = force(self._picturing.picture(), shown, acceptance, tails)
        made = transaction([change], self.election.term)
        if not await self._coordinator.transact(made.expected, made.puts):
            raise Conflict("the partition or the controller has changed meanwhile", hint="look again, then accept")
        self.decisions.record(change, "applied", self.election.term)
        return change

    # ------------------------------------------------------------ the loop

    async def _run(self) -> None:
        await self._mirror.synced.wait()
        while True:
            self._news.clear()
            wait_s: float = RETRY_S
            try:
                wait_s = await self._turn()
            except (CoordinatorUnavailable, UnknownOutcome) as e:
                _log.info("the coordinator does not answer the controller: %s", e)
                await asyncio.sleep(RETRY_S)
            except _Deposed:
                _log.info("another is the controller meanwhile")
            except Exception:
                _log.exception("planning failed; it is tried again")
                await asyncio.sleep(5 * RETRY_S)
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(GATHER_S)

    async def _turn(self) -> float:
        """One look at everything; seconds until the next one if nothing happens."""
        picturing, election = self._picturing, self.election
        elected = election.look()
        self._look_at(elected)
        if not elected:
            self.decisions.found(())
            why, until_ms = election.vacancy() if election.may_stand else ("", None)
            if not why:
                return self._seconds_to(until_ms)
            if not await election.take(why):
                return RETRY_S
            self._look_at(True)
        if self._begin is not None:
            await self._begin()
            self._begin = None
        if self._presence.me.draining:
            await election.step_down("it drains")
            return LOOK_S
        alone = picturing.secluded()
        if alone:
            await election.step_down(alone)
            return RETRY_S
        left_ms = self._awake_ms - picturing.now_ms()
        if left_ms > 0:
            return left_ms / 1000
        if picturing.planning.mode == "paused":
            self.decisions.found(())
            return LOOK_S
        began_ms = picturing.now_ms()
        term = election.term
        if not term:  # it was replaced while something was waited for above
            return RETRY_S
        made = await self._plan(picturing.picture(self._recent_handovers(began_ms)))
        self.plans += 1
        self.decisions.found(made.findings)
        if picturing.planning.mode == "dry_run":
            self._tell(made, term)
            return self._seconds_to(made.look_again_ms)
        if made.changes and not await self._apply(made, term):
            return RETRY_S
        if made.changes:
            return GATHER_S  # one change of a partition at a time: there may be more to do
        await asyncio.sleep(min(REST_S_MAX, (picturing.now_ms() - began_ms) / 1000))
        return self._seconds_to(made.look_again_ms)

    def _look_at(self, elected: bool) -> None:
        """The controller looks at everybody, the others only at the controller."""
        everybody = self._picturing.brokers()
        self._evidence.look_at(everybody, frozenset(everybody) if elected else frozenset((self._picturing.holder.broker,)))

    async def _plan(self, picture: Picture) -> Plan:
        if len(picture.stored) + sum(len(item.partitions) for item in picture.items) < BESIDE:
            return plan(picture)
        return await asyncio.get_running_loop().run_in_executor(None, plan, picture)

    def _seconds_to(self, moment_ms: int | None) -> float:
        if moment_ms is None:
            return LOOK_S
        return min(LOOK_S, max(0.001, (moment_ms - self._picturing.now_ms()) / 1000))

    def _recent_handovers(self, now_ms: int) -> tuple[int, ...]:
        while self._handovers_ms and now_ms - self._handovers_ms[0] > 10_000:
            self._handovers_ms.popleft()
        return tuple(self._handovers_ms)

    def _tell(self, made: Plan, term: int) -> None:
        """A dry run, told once."""
        told = tuple((c.partition, c.stored_version) for c in made.changes)
        if told != self._rehearsed:
            self._rehearsed = told
            for change in made.changes:
                self.decisions.record(change, "dry_run", term)

    # ------------------------------------------------------------ applying

    async def _apply(self, made: Plan, term: int) -> bool:
        """Applies a plan, urgent changes first. False: this broker does not see yet what became of it."""
        tried: dict[str, int] = {}
        try:
            for part in transactions(made.changes, term):
                if self._picturing.planning.mode != "on":
                    break
                await self._commit(part.changes, term, tried)
        finally:
            shown = await self._mirror.moved(tried, timeout_s=SHOWN_S)
        return shown

    async def _commit(self, changes: Sequence[Change], term: int, tried: dict[str, int]) -> None:
        """One transaction; if it fails, its halves, so that a change that was overtaken does not hold up the others."""
        made = transaction(changes, term)
        refused = ""
        try:
            done = await self._coordinator.transact(made.expected, made.puts)
        except UnknownOutcome:
            self._record(changes, "unknown", term)
            if await self._lost(changes[0]):
                return
            tried.update({partition_key(c.partition): c.stored_version for c in changes})
            raise
        except Invalid as e:  # beyond a bound of the coordinator
            done, refused = False, str(e)
        if done:
            self._record(changes, "applied", term)
            tried.update({partition_key(c.partition): c.stored_version for c in changes})
            return
        if not refused and await self.election.deposed():
            raise _Deposed
        if len(changes) == 1:
            self._record(changes, "refused" if refused else "overtaken", term)
            if not refused:
                tried[partition_key(changes[0].partition)] = changes[0].stored_version
            return
        half = len(changes) // 2
        await self._commit(changes[:half], term, tried)
        await self._commit(changes[half:], term, tried)

    async def _lost(self, change: Change) -> bool:
        """Whether what was not answered has not been done: its leader died with it. It is planned anew; should it arrive after all, one of both is
        overtaken. ``CoordinatorUnavailable`` if nobody can be asked."""
        document = await self._coordinator.get(partition_key(change.partition))
        return (0 if document is None else document.version) == change.stored_version

    def _record(self, changes: Sequence[Change], outcome: Outcome, term: int) -> None:
        for change in changes:
            self.decisions.record(change, outcome, term)
            if change.act == "restore" and outcome in ("applied", "unknown"):
                self._handovers_ms.append(self._picturing.now_ms())


def _not_on(mode: Mode, by: str, reason: str) -> str:
    what = "planning is paused, dead owners are not replaced" if mode == "paused" else "planning is a dry run, nothing is done"
    return f"{what}; {by or 'somebody'} wanted it so" + (f": {reason}" if reason else "")

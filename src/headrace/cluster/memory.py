"""A coordinator of many brokers in one process: deterministic, on the loop's time, with faults by switch. For the simulator and for tests.

``MemoryStore`` is the consensus as a whole, ``MemoryCoordinator`` what one broker sees of it. Owns documents at every revision since the last
compaction, leases and the switches; what a broker asks takes ``latency_s`` each way. Draws no numbers and knows no clock but the loop's.

I1 leases end, and late changes come, in the context in which the store was made: the death of a broker's machine does not keep its lease. None ends
while there is no leader.
I2 a broker that is unreachable gets no answer; what it asked may have been done only if it was reached when it asked.
"""

import asyncio
import contextvars
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal, TypeVar

import msgspec

from headrace.cluster.coordinator import (
    RANGE_KEYS_MAX,
    Change,
    Document,
    Endpoint,
    Member,
    Page,
    Registration,
    Status,
    WatchEvent,
    check_transaction,
)
from headrace.cluster.feed import CUT_OFF, ENDED, Feed
from headrace.cluster.presence import Presence
from headrace.model.errors import Conflict, CoordinatorUnavailable, Invalid, NotFound, RevisionGone, UnknownOutcome

T = TypeVar("T")
LATENCY_S = 0.001
TIMEOUT_S = 2.0
RENEWALS_PER_TTL = 3


class Backup(msgspec.Struct, frozen=True):
    """The documents at one moment, to be restored later."""

    documents: tuple[Document, ...]
    revision: int


class _Lease:
    def __init__(self, number: int, ttl_s: float) -> None:
        self.number = number
        self.ttl_s = ttl_s
        self.keys: dict[str, None] = {}
        self.timer: asyncio.TimerHandle | None = None


class MemoryStore:
    """See the module's head. Faults are set at any time: ``unreachable``, ``lose_answers``, ``hold_watches``, ``compact``, ``drop_lease``,
    ``restore``, ``caught_up``, and ``leader`` = 0 while there is none."""

    def __init__(self, *, voters: int = 3, latency_s: float = LATENCY_S, timeout_s: float = TIMEOUT_S) -> None:
        self.latency_s, self.timeout_s = latency_s, timeout_s
        self.leader, self.term = 1, 1
        self.caught_up = True
        """Whether learners hold everything, so that they may be promoted."""
        self.feed = Feed()
        self.members = [Member(n, f"voter{n}", f"voter{n}:0", f"voter{n}:0", False) for n in range(1, voters + 1)]
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._unreachable: dict[str, None] = {}
        self._answers_to_lose: dict[str, tuple[int, bool]] = {}
        self._held: dict[str, int] = {}
        """Broker: the last revision its watches show."""
        self._keys: list[str] = []
        self._versions: dict[str, list[tuple[int, Document | None]]] = {}
        self._compacted = 0
        self._leases: dict[int, _Lease] = {}
        self._lease_of: dict[str, int] = {}
        self._numbers = voters

    # ------------------------------------------------------------ switches

    def unreachable(self, broker: str, off: bool = True) -> None:
        """Cuts ``broker`` off from the store, or connects it again."""
        if off:
            self._unreachable[broker] = None
        else:
            self._unreachable.pop(broker, None)
            self.feed.wake()

    def reached(self, broker: str) -> bool:
        return self.leader != 0 and broker not in self._unreachable

    def lose_answers(self, broker: str, count: int = 1, *, done: bool = True) -> None:
        """The next transactions of ``broker`` that write are done, or not, and their answers lost."""
        self._answers_to_lose[broker] = (count, done)

    def hold_watches(self, broker: str, hold: bool = True) -> None:
        """The watches of ``broker`` show nothing newer than now until they are let go on."""
        if hold:
            self._held.setdefault(broker, self.feed.revision)
        else:
            self._held.pop(broker, None)
            self.feed.wake()

    def compact(self) -> None:
        """Forgets everything but the newest state."""
        self._compacted = self.feed.revision
        self.feed.compact(self.feed.revision)
        for key in list(self._keys):
            newest = self._versions[key][-1]
            if newest[1] is None:
                self._keys.remove(key)
                del self._versions[key]
            else:
                self._versions[key] = [newest]

    def drop_lease(self, key: str) -> None:
        """Ends the lease that holds ``key``, though its broker lives."""
        number = self._lease_of.get(key)
        if number is not None:
            self.revoke(number)

    def backup(self) -> Backup:
        return Backup(tuple(d for k in self._keys if (d := self._versions[k][-1][1]) is not None), self.feed.revision)

    def restore(self, backup: Backup) -> None:
        """Puts an older state in the place of this one; all leases are gone."""
        for lease in self._leases.values():
            if lease.timer is not None:
                lease.timer.cancel()
        self._leases.clear()
        self._lease_of.clear()
        self._keys = [d.key for d in backup.documents]
        self._versions = {d.key: [(backup.revision, d)] for d in backup.documents}
        self._compacted = backup.revision
        self._held = dict.fromkeys(self._held, backup.revision)
        self.feed.restore(backup.revision)

    # ------------------------------------------------------------ what brokers ask, at the moment it is done

    def client(self, broker: str) -> "MemoryCoordinator":
        return MemoryCoordinator(self, broker)

    def document(self, key: str) -> Document | None:
        versions = self._versions.get(key)
        return versions[-1][1] if versions else None

    def page(self, prefix: str, after: str, limit: int, revision: int) -> Page:
        at = revision or self.feed.revision
        if at < self._compacted or at > self.feed.revision:
            raise RevisionGone(f"revision {at} is not there: {self._compacted} to {self.feed.revision} are")
        found: list[Document] = []
        start = bisect_right(self._keys, after) if after > prefix else bisect_left(self._keys, prefix)
        for i in range(start, len(self._keys)):
            key = self._keys[i]
            if not key.startswith(prefix):
                break
            versions = self._versions[key]
            place = bisect_right(versions, at, key=lambda v: v[0])
            document = versions[place - 1][1] if place else None
            if document is not None:
                if len(found) == limit:
                    return Page(tuple(found), True, at)
                found.append(document)
        return Page(tuple(found), False, at)

    def write(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], lease: int) -> bool:
        if lease and lease not in self._leases:
            raise Conflict("the registration is lost", hint="register again")
        if any(_version(self.document(key)) != version for key, version in expected.items()):
            return False
        revision = self.feed.revision + 1
        changes: list[Change] = []
        for key, value in puts.items():
            before = self.document(key)
            if before is None and value is None:
                continue
            document = None if value is None else Document(key, value, _version(before) + 1)
            if key not in self._versions:
                insort(self._keys, key)
            self._versions.setdefault(key, []).append((revision, document))
            held = self._lease_of.pop(key, 0)
            if held:
                self._leases[held].keys.pop(key, None)
            if lease and document is not None:
                self._lease_of[key] = lease
                self._leases[lease].keys[key] = None
            changes.append(Change(key, document, revision))
        if changes:
            self.feed.append(tuple(changes))
        return True

    def grant(self, ttl_s: float) -> int:
        self._numbers += 1
        lease = self._leases[self._numbers] = _Lease(self._numbers, ttl_s)
        self.renew(lease.number)
        return lease.number

    def renew(self, number: int) -> bool:
        """Whether that lease is still there; it then lasts for its whole time from now."""
        lease = self._leases.get(number)
        if lease is None:
            return False
        if lease.timer is not None:
            lease.timer.cancel()
        lease.timer = self._loop.call_later(lease.ttl_s, self._expire, number, context=self._context.copy())
        return True

    def _expire(self, number: int) -> None:
        """Its time is over. While there is no leader nothing is decided, and the next one gives every lease its whole time again."""
        if self.leader:
            self.revoke(number)
        else:
            self.renew(number)

    def revoke(self, number: int) -> None:
        lease = self._leases.get(number)
        if lease is not None:
            if lease.timer is not None:
                lease.timer.cancel()
            self.write({}, dict.fromkeys(lease.keys), 0)
            del self._leases[number]

    def holds(self, key: str) -> int:
        """The lease that holds ``key``; 0 = none."""
        return self._lease_of.get(key, 0)

    def visible(self, broker: str) -> int:
        """Up to which revision watches of ``broker`` show anything."""
        return CUT_OFF if broker in self._unreachable else self._held.get(broker, self.feed.revision)

    def loses_answer(self, broker: str) -> Literal["", "answer", "change"]:
        """Whether a transaction of ``broker`` loses its answer, or is lost itself."""
        count, done = self._answers_to_lose.get(broker, (0, True))
        if not count:
            return ""
        self._answers_to_lose[broker] = (count - 1, done)
        return "answer" if done else "change"

    def new_member(self, peer_addr: str) -> Member:
        if any(m.peer_addr == peer_addr for m in self.members):
            raise Conflict(f"{peer_addr} is a member already")
        if any(m.learner for m in self.members):
            raise Conflict("there is a learner already; promote or remove it first")
        self._numbers += 1
        member = Member(self._numbers, "", peer_addr, "", True)
        self.members.append(member)
        return member

    def promote(self, member: int) -> None:
        place = self._place(member)
        if not self.members[place].learner:
            raise Conflict(f"member {member} votes already")
        if not self.caught_up:
            raise CoordinatorUnavailable(f"member {member} has not caught up", hint="try again in a moment")
        self.members[place] = msgspec.structs.replace(self.members[place], learner=False)

    def remove(self, member: int) -> None:
        place = self._place(member)
        if not self.members[place].learner and sum(not m.learner for m in self.members) == 1:
            raise Conflict("the last voter cannot be removed")
        del self.members[place]
        if member == self.leader:
            self.term += 1
            self.leader = next(m.id for m in self.members if not m.learner)

    def _place(self, member: int) -> int:
        for place, known in enumerate(self.members):
            if known.id == member:
                return place
        raise NotFound(f"no member has the id {member}", hint="list the members")


class MemoryRegistration(Presence):
    """Renewed by a task of the broker that registered."""

    def __init__(self, coordinator: "MemoryCoordinator", key: str, lease: int, ttl_s: float, *, asked_at: float, revision: int) -> None:
        super().__init__(key, lease, asked_at)
        self._coordinator = coordinator
        self._renewing = self._loop.create_task(self._renew(ttl_s / RENEWALS_PER_TTL))
        self._watching = self._loop.create_task(self._watch(revision + 1))

    async def update(self, value: bytes) -> None:
        await self._coordinator.transact({}, {self.key: value}, under=self)

    async def release(self) -> None:
        if self.finish("it was released"):
            try:
                await self._coordinator.ask(lambda: self._coordinator.store.revoke(self.incarnation), writes=True)
            except (CoordinatorUnavailable, UnknownOutcome):
                return  # its time to live ends it

    def finish(self, reason: str) -> bool:
        news = self.end(reason)
        if news:
            self._renewing.cancel()
            self._watching.cancel()
        return news

    async def _renew(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            asked_at = self._loop.time()
            try:
                there = await self._coordinator.ask(lambda: self._coordinator.store.renew(self.incarnation), writes=False)
            except CoordinatorUnavailable:
                continue
            if not there:
                self.finish("its lease ended")
                return
            self.renewed(asked_at)

    async def _watch(self, revision: int) -> None:
        while True:
            async for _ in self._coordinator.watch(self.key, from_revision=revision):
                revision = 0
                if self._coordinator.store.holds(self.key) != self.incarnation:
                    self.finish("its document is gone or another's")
                    return


class MemoryCoordinator:
    """Implements ``Coordinator`` for one broker of a ``MemoryStore``."""

    def __init__(self, store: MemoryStore, broker: str) -> None:
        self.store = store
        self.broker = broker
        self._registrations: list[MemoryRegistration] = []
        self._closed = False

    async def get(self, key: str) -> Document | None:
        return await self.ask(lambda: self.store.document(key), writes=False)

    async def range(self, prefix: str, *, after: str = "", limit: int = RANGE_KEYS_MAX, revision: int = 0) -> Page:
        limit = max(1, min(limit, RANGE_KEYS_MAX))
        return await self.ask(lambda: self.store.page(prefix, after, limit, revision), writes=False)

    async def transact(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, under: Registration | None = None) -> bool:
        check_transaction(expected, puts)
        if under is not None:
            if not isinstance(under, MemoryRegistration):
                raise Invalid("that registration is another coordinator's")
            if not under.alive:
                raise Conflict(f"the registration of {under.key} is lost", hint="register again")
        lease = under.incarnation if under is not None else 0
        before, after = dict(expected), dict(puts)
        return await self.ask(lambda: self.store.write(before, after, lease), writes=bool(puts))

    async def register(self, key: str, value: bytes, *, ttl_ms: int) -> MemoryRegistration:
        check_transaction({}, {key: value})
        asked_at = asyncio.get_running_loop().time()

        def enter() -> tuple[int, int]:
            lease = self.store.grant(ttl_ms / 1000)
            self.store.write({}, {key: value}, lease)
            return lease, self.store.feed.revision

        lease, revision = await self.ask(enter, writes=True)
        registration = MemoryRegistration(self, key, lease, ttl_ms / 1000, asked_at=asked_at, revision=revision)
        self._registrations = [r for r in self._registrations if r.alive] + [registration]
        return registration

    def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncGenerator[WatchEvent, None]:
        return self.store.feed.watch(prefix, from_revision, lambda: ENDED if self._closed else self.store.visible(self.broker))

    async def members(self) -> tuple[Member, ...]:
        return await self.ask(lambda: tuple(self.store.members), writes=False)

    async def add_member(self, peer_addr: str) -> Member:
        return await self.ask(lambda: self.store.new_member(peer_addr), writes=True)

    async def promote_member(self, member: int) -> None:
        await self.ask(lambda: self.store.promote(member), writes=True)

    async def remove_member(self, member: int) -> None:
        await self.ask(lambda: self.store.remove(member), writes=True)

    async def status(self) -> Status:
        await asyncio.sleep(2 * self.store.latency_s)
        if not self.store.reached(self.broker):
            return Status(0, 0, 0, (Endpoint("memory", False, fault="cut off"),))
        store = self.store
        answer = Endpoint("memory", True, 2000 * store.latency_s, 1, "", store.leader, store.term, store.feed.revision)
        return Status(store.leader, store.term, store.feed.revision, (answer,))

    async def close(self) -> None:
        """Stops renewing (leases end by themselves) and ends its watches."""
        self._closed = True
        self.store.feed.wake()
        for registration in self._registrations:
            registration.finish("the coordinator was closed")
        self._registrations.clear()

    async def ask(self, task: Callable[[], T], *, writes: bool) -> T:
        """There, done, and back."""
        store, broker = self.store, self.broker
        if self._closed:
            raise CoordinatorUnavailable("the coordinator's client was closed")
        await asyncio.sleep(store.latency_s)
        if not store.reached(broker):
            await asyncio.sleep(store.timeout_s)
            raise CoordinatorUnavailable(f"{broker} does not reach the coordinator")
        lost = store.loses_answer(broker) if writes else ""
        if lost != "change":
            answer = task()
            if not lost:
                await asyncio.sleep(store.latency_s)
                if store.reached(broker):
                    return answer
        await asyncio.sleep(store.timeout_s)
        if not writes:
            raise CoordinatorUnavailable(f"{broker} does not reach the coordinator")
        raise UnknownOutcome("the coordinator's answer was lost: it may have been written", hint="read the documents again before deciding")


def _version(document: Document | None) -> int:
    return 0 if document is None else document.version

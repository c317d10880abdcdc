"""One short run of a cluster of three or five brokers under all faults, with brokers that are added and taken away meanwhile.

Owns what goes wrong beyond ``sim.clustered`` (disks, clocks, pauses, the coordinator), who comes and goes, and the count of changes of members. Who
publishes and takes, and K1 to K7, are ``sim.clustered``'s, with little load: what matters here is how many clusters there are, not how busy.

K8 In bounded time after all is healed every partition is led by a broker that is there, every replica of it is in sync, nothing moves any more,
nobody has a damaged copy, who was taken away has nothing, and of what was deleted there are no data and no records.
K9 Then no follower has anything in memory that its log does not say (``inside``).
"""

import asyncio
import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final

from msgspec.structs import replace

import headrace
from headrace.broker.cluster import Cluster
from headrace.cluster.control.declared import DELETED_PREFIX, read
from headrace.cluster.memory import MemoryStore
from headrace.model.cluster import PARTITIONS_PREFIX, PLACEMENT_KEY, Assignment, BrokerId, Placement, broker_key, decode
from headrace.model.config import KIB, MIB
from headrace.model.errors import HeadraceError
from headrace.sim import clustered
from headrace.sim.chance import Chance
from headrace.sim.clustered import Host
from headrace.sim.clusters import absent, rare
from headrace.sim.clusters.acts import ACT_S, ACTS, Scene
from headrace.sim.clusters.held import held_of, strays
from headrace.sim.clusters.inside import strayed
from headrace.sim.world import DATA
from headrace.storage.index import POSITION_BITS, POSITION_MASK
from headrace.storage.walfiles import name_of
from headrace.storage.walformat import ENTRY_BYTES

KINDS: Final = (
    *clustered.KINDS, "away", "pause", "clock", "damage", "full", "failed-sync", "etcd", "lease", "answers", "watch", "compact", "join", "leave",
    "alter", "delete", "power-all", "night",
)  # fmt: skip
MORE: Final = ("d", "e", "f", "g")
"""Names of brokers that may be added."""
ROOM: Final = 1 << 40
LEAVES_S: Final = 45.0
ACTS_AFTER_S: Final = (1.0, 2.0)


class Totals(clustered.Totals):
    """What runs were. ``isr``, ``members``, ``owners`` are changes of assignments, ``changed`` the seeds that saw one of the first two."""

    failed: int = 0
    changed: int = 0
    isr: int = 0
    members: int = 0
    owners: int = 0
    joined: int = 0
    left: int = 0
    pauses: int = 0
    damaged: int = 0
    disks: int = 0
    """Full, or with a failed sync."""
    outages: int = 0
    """Of the coordinator, for one broker or all."""
    absent: int = 0
    """Brokers that were away while something of which they have a copy was deleted."""
    acts: int = 0
    """Schedules of ``acts`` that were played."""
    nights: int = 0
    """Runs in which all slept for a while, with queues that nobody had used lately."""
    real_s: float = 0.0
    steps: int = 0


class Watched(MemoryStore):
    """Tells what becomes of assignments."""

    def __init__(self, told: Callable[[Assignment | None, Assignment], None], *, timeout_s: float) -> None:
        super().__init__(timeout_s=timeout_s)
        self._told = told
        self.deleted: dict[int, str] = {}
        """Partitions of what was deleted at any time, and its id."""

    def write(self, expected: Mapping[str, int], puts: Mapping[str, bytes | None], lease: int) -> bool:
        before = {key: self.document(key) for key in puts if key.startswith(PARTITIONS_PREFIX)}
        done = super().write(expected, puts, lease)
        for key, value in puts.items():
            if done and value is not None and key.startswith(DELETED_PREFIX):
                self.deleted.update(dict.fromkeys(read(value).partitions, key))
        for key, old in before.items():
            value = puts[key]
            if done and value is not None:
                self._told(decode(Assignment, old.value) if old is not None else None, decode(Assignment, value))
        return done


class Run(clustered.Run):
    """See the module's head."""

    all_kinds: tuple[str, ...] = KINDS
    rests_s = (0.02, 0.5)
    lasts_s = (2.0, 5.0)
    first_fault_s = 0.3
    wal_files_bytes = (1 * MIB, 64 * KIB, 64 * KIB)

    def __init__(self, seed: int, *, rows_max: int | None = 0) -> None:
        first = Chance(seed, "clusters")
        self._absence = first.fork("missed deletion")
        self.names = tuple("abcde"[: first.choice([3, 3, 5])])
        self.settings = replace(clustered.SETTINGS, replace_after_ms=first.choice([1_500, 60_000]))
        super().__init__(seed, rows_max=rows_max)
        self.totals: Totals = Totals(seeds=1)
        self.partitions = first.choice([1, 1, 2])
        self.pause_s = first.choice([0.1, 0.3, 1.0])
        self.hurt = ""
        """The broker on whose disk something was damaged, until its copies are sound again."""
        self.hurt_pid = 0
        self.going: dict[str, BrokerId] = {}
        """Brokers that are to be taken away, and their ids."""
        self.gone: dict[str, BrokerId] = {}
        self.syncs: dict[str, int] = {}
        """How many syncs of a disk will fail."""
        self.acting = Chance(seed, "acts")
        self.acts = self.acting.happens(0.4) and self.level != "local_durable"
        """Whether an act comes after the faults, which have half the time then, and are not nights."""
        if self.acts:
            self.lasts_s = ACTS_AFTER_S
            self.kinds = [kind for kind in self.kinds if kind != "night"] or ["kill"]
        self.ids: dict[str, BrokerId] = {}
        """Of all brokers, as of the last moment in which every one was there."""
        for host in self.hosts.values():
            self._fail(host)

    store: Watched

    def make_store(self) -> Watched:
        return Watched(self._changed, timeout_s=0.3)

    async def begin(self) -> None:
        await super().begin()
        if "night" in self.kinds:
            rare.begin(self)
        elif not self.acts:
            absent.begin(self, self._absence)

    def _changed(self, before: Assignment | None, now: Assignment) -> None:
        if before is None:
            return
        totals = self.totals
        totals.isr += set(before.isr) != set(now.isr)
        totals.members += {*before.replicas, *before.learners} != {*now.replicas, *now.learners}
        totals.owners += before.owner != now.owner

    def _fail(self, host: Host) -> None:
        def fault(operation: str, path: str, nbytes: int) -> int | None:
            if self.syncs.get(host.name, 0) and operation in ("pwritev_durable", "fsync", "fsync_dir", "commit"):
                self.syncs[host.name] -= 1
                raise OSError(errno.EIO, "the sync failed", path)
            return None

        host.disk.fault = fault

    # ------------------------------------------------------------ faults

    def fault(self) -> None:
        faults = self.faults
        kind = faults.choice(self.kinds)
        if kind in clustered.KINDS:
            self.usual(kind)
            return
        name, lasts = faults.choice([n for n in self.names if n not in self.gone]), faults.between(0.1, 2.5)
        host = self.hosts[name]
        _DOING[kind](self, host, lasts)

    def _away(self, host: Host, lasts: float) -> None:
        self.totals.deaths += host.alive
        self.away[host.name] = self.world.loop.time() + 2 * lasts
        host.kill(power=self.faults.happens(0.5))

    def _power_all(self, host: Host, lasts: float) -> None:
        for each in self.hosts.values():
            self.totals.deaths += each.alive
            each.kill(power=True)

    def _night(self, host: Host, lasts: float) -> None:
        """All start again, twice, and move meanwhile what their logs have: who was used before alone is idle then, with all that it holds."""
        if not self.totals.nights:
            self.totals.nights = 1
            self.world.loop.spawn(self.world.loop.world, self._sleep(), "night")

    async def _sleep(self) -> None:
        for _ in range(2):
            for host in [h for name, h in self.hosts.items() if name not in self.gone]:
                self.totals.deaths += host.alive
                host.kill(power=self.faults.happens(0.5))
                host.start()
            machine = self.world.machine(f"filler-{self.world.loop.steps}")
            filled = self.works[machine.name] = self.world.loop.spawn(machine, rare.fill(self, machine), machine.name)
            await asyncio.wait({filled}, timeout=3.0)
            for _ in range(5):
                await asyncio.sleep(0.1)
                for each in self.hosts.values():
                    cluster = self.cluster(each)
                    if cluster is not None:
                        store: Any = cluster.broker.store
                        each.call(partial(store._mover.wake, force=True))

    def _pause(self, host: Host, lasts: float) -> None:
        self.totals.pauses += host.alive
        host.pause()
        self.world.loop.post(None, lasts, host.resume)

    def _clock(self, host: Host, lasts: float) -> None:
        host.jump(self.faults.choice([-1.0, 1.0]) * self.faults.between(0.1, 3600.0))

    def _full(self, host: Host, lasts: float) -> None:
        self.totals.disks += 1
        host.disk.capacity = sum(len(node.data) for node in host.disk.names.values()) + self.faults.choice((0, 4096, 65_536))
        self.world.loop.post(None, lasts, self._roomy, host)

    @staticmethod
    def _roomy(host: Host) -> None:
        host.disk.capacity = ROOM

    def _failed_sync(self, host: Host, lasts: float) -> None:
        if host.serving:
            self.totals.disks += 1
            self.syncs[host.name] = 1

    def _etcd(self, host: Host, lasts: float) -> None:
        self.totals.outages += 1
        self.store.leader = 0
        self.world.loop.post(None, lasts, self._elected)

    def _elected(self) -> None:
        self.store.leader = 1
        self.store.feed.wake()

    def _lease(self, host: Host, lasts: float) -> None:
        id = self.id_of(host)
        if id:
            self.store.drop_lease(broker_key(id))

    def _answers(self, host: Host, lasts: float) -> None:
        count = self.faults.randint(1, 3)
        self.store.lose_answers(host.name, count, done=count != 2)

    def _watch(self, host: Host, lasts: float) -> None:
        self.store.hold_watches(host.name)
        self.world.loop.post(None, lasts, self.store.hold_watches, host.name, False)

    def _compact(self, host: Host, lasts: float) -> None:
        self.store.compact()

    def _alter(self, host: Host, lasts: float) -> None:
        """An operator changes what a queue promises."""
        if self.level == "local_durable":
            return
        level, floor = self.faults.choice([("replica_durable", 1), ("replica_durable", 2), ("majority_durable", 1)])
        name = self.faults.choice(["orders", "events"])
        machine = self.world.machine(f"operator-{self.world.loop.steps}")

        async def alter() -> None:
            with suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(clustered.TRY_S):
                    client = await headrace.connect(host.url, name="operator", wait=0)
                    do = client.alter_queue if name == "orders" else client.alter_stream
                    await do(name, durability=level, min_in_sync_replicas=floor)
                    await client.close()

        self.world.loop.spawn(machine, alter(), "alter")

    def _delete(self, host: Host, lasts: float) -> None:
        """A queue is deleted that was declared before, or one is declared."""
        machine = self.world.machine(f"operator-{self.world.loop.steps}")

        async def change() -> None:
            with suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(clustered.TRY_S):
                    client = await headrace.connect(host.url, name="operator", wait=0)
                    if await client.list("spare"):
                        await client.delete("spare")
                    else:
                        copies = 1 if self.level == "local_durable" else 3
                        await client.declare_queue("spare", partitions=2, durability=self.level, replication_factor=copies)
                        await client.publish("spare", b"x" * 1000)
                    await client.close()

        self.world.loop.spawn(machine, change(), "delete")

    # ------------------------------------------------------------ who comes and goes

    def id_of(self, host: Host) -> BrokerId:
        """Its id; "" while it does not run."""
        return BrokerId(host.running.broker.id) if host.running is not None and host.serving else BrokerId("")

    def _join(self, host: Host, lasts: float) -> None:
        left = [name for name in MORE if name not in self.hosts]
        if left and len(self.hosts) - len(self.gone) < 6:
            self.totals.joined += 1
            self.names = (*self.names, left[0])
            host = self.host(left[0])
            self._fail(host)
            host.start()

    def _leave(self, host: Host, lasts: float) -> None:
        """Everything is to be moved off it; it is stopped for good once the controller has done so."""
        id = self.id_of(host)
        if self.level == "local_durable":
            return  # its partitions stay where they are until they are altered
        staying = len(self.hosts) - len(self.gone) - len(self.going)
        if staying <= 3:
            self._join(host, lasts)
        elif id and host.name not in self.going:
            self.going[host.name] = id
            self.world.loop.spawn(self.world.loop.world, self._empty(host.name, id), "leave")

    async def _empty(self, name: str, id: BrokerId) -> None:
        loop = self.world.loop
        asked = False
        while name in self.going and not self.over and not self.broken:
            await asyncio.sleep(0.2)
            others = [h for h in self.hosts.values() if h.name != name and h.serving]
            if not others:
                continue
            if not asked or not self._emptied(id):  # who asked for another at that moment may have forgotten this one
                asked = await self._ask(self.faults.choice(others), id)
            documents = self.documents()
            if asked and documents and not any(id in {a.owner, *a.copies} for a in documents) and self._emptied(id):
                del self.going[name]
                self.gone[name] = id
                self.totals.left += 1
                self.names = tuple(n for n in self.names if n != name)
                if self.hosts[name].alive:
                    loop.spawn(loop.world, self.hosts[name].stop(), "stop")

    async def _ask(self, host: Host, id: BrokerId) -> bool:
        cluster, machine = self.cluster(host), host.machine
        if cluster is None or machine is None:
            return False

        async def ask() -> None:
            settings = cluster.control.picturing.settings
            await cluster.control.set_placement({"emptied": tuple(sorted({*settings.emptied, id}))})

        task = self.world.loop.spawn(machine, ask(), "empty")
        await asyncio.wait((task,), timeout=clustered.TRY_S)  # it never ends if its machine dies
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), HeadraceError):
            self.broken.append(f"{host.name} cannot be told to empty {id}: {task.exception()!r}")
        return self._emptied(id)

    def _emptied(self, id: BrokerId) -> bool:
        document = self.store.document(PLACEMENT_KEY)
        return document is not None and id in decode(Placement, document.value).emptied

    # ------------------------------------------------------------ damage

    def cluster(self, host: Host) -> Cluster | None:
        """Its part in the cluster, while it serves."""
        return host.running.broker.cluster if host.running is not None and host.serving else None

    def documents(self) -> list[Assignment]:
        """Those that are recorded."""
        page = self.store.page(PARTITIONS_PREFIX, "", 1000, 0)
        return [_assignment(d.value) for d in page.documents]

    def _damage(self, host: Host, lasts: float) -> None:
        cluster = self.cluster(host)
        if cluster is not None:
            self.spoil(host, [a for a in self.documents() if a.partition in cluster.copies or cluster.dormant.document(a.partition) is not None])

    def spoil(self, host: Host, mine: list[Assignment]) -> bool:
        """A byte of one of ``mine`` goes bad on the disk of ``host``, which dies, if others have everything that was committed; whether it did."""
        if self.hurt or not mine or not all(self._others_hold(host, a) for a in self.documents() if self.id_of(host) in a.copies):
            return False
        pid = self.faults.choice(mine).partition
        store: Any = host.running.broker.store if host.running is not None else None
        part = store._ground.part(pid)
        rows = [(place, size) for place, size, _ in part.rows_from(0) if size > ENTRY_BYTES]
        refs = [ref for ref in part.moved.refs if ref.nbytes > ENTRY_BYTES]
        if not rows and not refs:
            return False
        self.totals.damaged += 1
        self.totals.deaths += 1
        self.hurt, self.hurt_pid = host.name, pid
        host.kill()
        if rows and (not refs or self.faults.happens(0.6)):
            place, size = self.faults.choice(rows)
            path, at = f"{DATA}/wal/{name_of(place >> POSITION_BITS)}", place & POSITION_MASK
        else:
            ref = self.faults.choice(refs)
            path, at, size = f"{DATA}/segments/segment-{ref.file:016x}.seg", ref.position, ref.nbytes
        if host.disk.exists(path):
            host.disk.flip(path, at + self.faults.randint(0, size - 1), 1 << self.faults.randint(0, 7))
        return True

    def _others_hold(self, host: Host, document: Assignment) -> bool:
        """Whether every other member has on its disk whatever may have been committed."""
        if document.level == "local_durable":
            return False
        cluster, me = self.cluster(host), self.id_of(host)
        others = [h for h in self.hosts.values() if h is not host and self.id_of(h) in document.members]
        if cluster is None or me not in document.members or len(others) != len(document.members) - 1 or not others:
            return False
        ends = []
        for each in [host, *others]:
            found = self.cluster(each)
            held = held_of(found, document.partition) if found is not None else None
            if held is None:
                return False
            ends.append(held)
        return min(h.durable for h in ends[1:]) >= max(h.committed for h in ends) and ends[0].end == ends[0].committed

    # ------------------------------------------------------------ a run

    def _start_some(self, often: float) -> None:
        for name in self.gone:
            self.away[name] = float("inf")
        super()._start_some(often)
        cluster = self.cluster(self.hosts[self.hurt]) if self.hurt else None
        if cluster is not None:
            self.hosts[self.hurt].call(cluster.take_up, self.hurt_pid)  # damage is found by who looks
        if self.hurt and not self.unsound(self.hosts[self.hurt]):
            self.hurt = ""

    def unsound(self, host: Host) -> str:
        """What of it is damaged or does not count; as long as it does not serve, all of it."""
        cluster = self.cluster(host)
        if cluster is None:
            return "it does not serve"
        for pid, copy in cluster.copies.items():
            if copy.replicated.halted or copy.replicated.replica.journal.suspect or (copy.partition is not None and copy.partition.quarantined):
                why = copy.replicated.halted or (copy.partition.quarantined if copy.partition is not None else "") or "it has lost something"
                return f"its copy of partition {pid}: {why}"
        for a in self.documents():
            if cluster.dormant.document(a.partition) is not None and cluster.driver.unfit(a.partition):
                return f"its copy of partition {a.partition}, which it did not take up, is unfit"
        return ""

    def host_of(self, id: BrokerId) -> Host:
        """The broker of that id, there or not."""
        return self.hosts[next(name for name, known in self.ids.items() if known == id)]

    def sound(self, host: Host) -> bool:
        """Whether it serves and no copy of it is damaged."""
        return not self.unsound(host)

    def mended(self) -> None:
        self.syncs.clear()
        self._elected()
        for host in self.hosts.values():
            self._roomy(host)
            host.resume()
            self.store.hold_watches(host.name, False)
            self.store.lose_answers(host.name, 0)
        super().mended()

    async def act(self) -> None:
        """One of ``acts.ACTS``, after everything was well for a moment."""
        if not self.acts or not await self._well():
            return
        one = self.acting.choice([a for a in self.documents() if a.level != "local_durable" and a.item in ("orders", "events")])
        act = self.acting.choice(ACTS[one.level])
        self.world.trace.note("run", "act", f"{act.__name__} with partition {one.partition}")
        self.totals.acts += 1
        await act(Scene(self, one.partition))

    async def _well(self) -> bool:
        """Whether everything is well within bounded time."""
        loop = self.world.loop
        self.mended()
        end = loop.time() + ACT_S
        while loop.time() < end and not self.broken:
            self._start_some(1.0)
            await asyncio.sleep(0.2)
            if not self.unsettled():
                self.ids = {name: self.id_of(host) for name, host in self.hosts.items() if host.serving}
                self.look_inside()
                return not self.broken
        return False

    async def _heal(self) -> None:
        await super()._heal()
        loop = self.world.loop
        end = loop.time() + LEAVES_S
        wrong = "nothing was looked at"
        while wrong and loop.time() < end and not self.broken:
            self._start_some(1.0)
            await asyncio.sleep(0.2)
            wrong = self.unsettled()
        if wrong and not self.broken:
            self.broken.append(f"K8 {LEAVES_S:g} s after everything was delivered: {wrong}")
        self.look_inside()

    def look_inside(self) -> None:
        """K9."""
        for name, host in self.hosts.items():
            cluster = self.cluster(host)
            if cluster is not None:
                self.broken += strayed(name, cluster)

    def unsettled(self) -> str:
        """What is not as it must be in the end."""
        if self.going:
            return f"{', '.join(self.going)} cannot be taken away"
        ids = {}
        for name, host in self.hosts.items():
            if name in self.gone:
                continue
            if not host.serving:
                return f"{name} does not serve"
            ids[self.id_of(host)] = host
        for a in self.documents():
            what = f"partition {a.partition} of {a.item}, version {a.version} ({a.reason})"
            if a.owner not in ids:
                return f"{what} is owned by {a.owner}, who is not there"
            if a.learners or a.leaving:
                return f"{what} still moves: to {a.learners} from {a.leaving}"
            if a.level == "replica_durable" and set(a.isr) != set(a.replicas):
                return f"{what} has only {a.isr} of {a.replicas} in sync"
            owner = self.cluster(ids[a.owner])
            if owner is not None and owner.dormant.owned(a.partition):
                ids[a.owner].call(owner.take_up, a.partition)  # as if it were used
            if owner is None or a.partition not in owner.copies or not owner.copies[a.partition].serving:
                return f"{what} is not served by {a.owner}"
        records = self.store.page(DELETED_PREFIX, "", 1000, 0).documents
        if records:
            return f"the records of deletions {[d.key for d in records]} are not collected"
        for name, host in self.hosts.items():
            cluster = self.cluster(host)
            left = [pid for pid in self.store.deleted if cluster is not None and cluster.driver.holds(pid)]
            if left and name not in self.gone:
                return f"{name} has data of the partitions {left}, which were deleted"
            moved = strays(cluster, self.documents()) if cluster is not None else []
            if cluster is not None and moved and name not in self.gone:
                return f"{name} has data of partitions that were moved to others: {cluster.leftovers.waiting}"
            unsound = "" if name in self.gone else self.unsound(host)
            if unsound:
                return f"{name}: {unsound}"
        return ""

    def go(self) -> Totals:
        super().go()
        totals = self.totals
        totals.changed = int(totals.isr + totals.members > 0)
        totals.steps = self.world.loop.steps
        return totals


@lru_cache(maxsize=1024)
def _assignment(document: bytes) -> Assignment:
    """The same few are looked at many times."""
    return decode(Assignment, document)


_DOING: Final[dict[str, Callable[[Run, Host, float], None]]] = {
    "away": Run._away, "power-all": Run._power_all, "pause": Run._pause, "clock": Run._clock, "damage": Run._damage, "full": Run._full,
    "failed-sync": Run._failed_sync, "etcd": Run._etcd, "lease": Run._lease, "answers": Run._answers, "watch": Run._watch,
    "night": Run._night, "compact": Run._compact, "join": Run._join, "leave": Run._leave, "alter": Run._alter, "delete": Run._delete,
}  # fmt: skip

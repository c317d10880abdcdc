"""The catalogue: which queues and streams exist, with what settings and partitions. Documents in the coordinator, looked up lazily.

One document a name (``names/<name>``), so a name is a queue or a stream for life and two declarations of one name meet in one compare-and-swap.
Partition ids are allocated from one counter and never used twice. 100,000 names cost nothing but their documents: only used items are objects here.
"""

import asyncio
import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from headrace.cluster.coordinator import Document
from headrace.core.group_records import home
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.errors import Conflict, CoordinatorUnavailable, Invalid, NotFound, Refused, Unavailable
from headrace.model.routing import Change, Phase
from headrace.model.specs import FIXED, QueueSpec, Spec, StreamSpec, check_name, check_queue, check_stream, difference, replicated

if TYPE_CHECKING:
    from headrace.cluster.mirrored import Documents

_log = get_logger("catalogue")
ID_BLOCK = 256
CACHE_MAX = 10_000
_RETRIES = 64
_AGAIN_S = 0.01
NAMES = "names/"
COUNTER = "ids/partition"
_ALLOTTED = "ids/allotted/"
OWN = "$"
"""Names that begin so are the brokers' own: found, but not listed, counted or given to clients."""
MQTT = OWN + "mqtt"
"""The session partitions of MQTT in a cluster."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A queue or stream as it stands in the catalogue. ``id`` is unique for ever: a deleted and redeclared name gets a new one."""

    name: str
    kind: Literal["queue", "stream"]
    id: str
    partitions: tuple[int, ...]
    queue: QueueSpec | None = None
    stream: StreamSpec | None = None
    routing_version: int = 1
    paused: bool = False
    created_ms: int = 0
    change: Change | None = None
    """A repartition under way. ``partitions`` has those that are new and those that are given up meanwhile."""
    home_count: int = 0
    """Partitions among which a group has its home, 0 = all. Set by the first repartition, so that homes stay where they are."""

    @property
    def routes(self) -> int:
        """The number of partitions that publishes go to."""
        return len(self.partitions) if self.change is None else self.change.routes

    def home(self, group: str) -> int:
        """The partition whose owner decides for a cohort or group."""
        return home(group if self.kind == "stream" else self.name, self.home_count or len(self.partitions))

    @property
    def spec(self) -> Spec:
        spec = self.queue if self.queue is not None else self.stream
        assert spec is not None
        return spec


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Item).decode


def queue_of(item: Item) -> QueueSpec:
    """The settings of a queue; raises ``Refused`` for a stream."""
    if item.queue is None:
        hint = "declare another stream with more partitions and have its readers read both; `headrace stream declare`"
        raise Refused(f"{item.name!r} is a stream: only queues are repartitioned", hint=hint)
    return item.queue


class _Bound(msgspec.Struct):
    bindings: tuple[str, ...] = ()


class _Kind(msgspec.Struct):
    """What is counted of an item, what it captures, and its partition ids."""

    name: str
    kind: Literal["queue", "stream"]
    queue: _Bound | None = None
    stream: _Bound | None = None
    change: dict[str, Any] | None = None
    partitions: tuple[int, ...] = ()


_decode_kind = msgspec.msgpack.Decoder(_Kind).decode


def session_spec(members: int) -> StreamSpec:
    """How the session partitions of MQTT are kept in a cluster of so many brokers."""
    spec = replicated(StreamSpec(partitions=limits.MQTT_SESSION_PARTITIONS), (), members)
    return spec if spec.replication_factor == 1 else msgspec.structs.replace(spec, durability="majority_durable")


class Catalogue:
    """Owns the items and their cache. ``changed`` is called on the loop after each committed change with (item, "declared" | "altered" |
    "deleted")."""

    def __init__(
        self,
        coordinator: "Documents",
        *,
        new_id: Callable[[], str],
        wall_ms: Callable[[], int],
        undeclared: Callable[[str, str], Spec | None],
        changed: Callable[[Item, str], None],
        known: Callable[[], bool] | None = None,
    ) -> None:
        """``known``: whether the names of the cluster have been read; then its changes come by ``told``. None: nobody else changes anything."""
        self._known = known
        self._coordinator = coordinator
        self._new_id = new_id
        self._wall_ms = wall_ms
        self._undeclared = undeclared
        self._changed = changed
        self._cache: dict[str, Item] = {}
        self._ids: list[int] = []
        self._unused = 1
        """No name that was there at the start has this partition id, or a higher one: the counter may have been lost with a damaged disk."""
        self._allocating = asyncio.Lock()
        self.bound: dict[str, tuple[Literal["queue", "stream"], tuple[str, ...]]] = {}
        """Kind and bindings of the names that have any."""
        self.changing: dict[str, None] = {}
        """Names of the queues that are being repartitioned, as of the start."""
        self._leaving: list[str] = []
        """Names of which a deletion is under way: it may take a while, on a disk that is full."""
        self.queues = 0
        self.streams = 0

    async def open(self) -> None:
        """Counts what is there (one pass over the names, without keeping them)."""
        after = ""
        while True:
            page = await self._coordinator.range(NAMES, after=after)
            for document in page.documents:
                item = _decode_kind(document.value)
                self._count(item.kind, 1)
                self._unused = max(self._unused, 1 + max(item.partitions, default=0))
                spec = item.queue or item.stream
                if item.change is not None:
                    self.changing[item.name] = None
                if spec is not None and spec.bindings:
                    self.bound[item.name] = (item.kind, spec.bindings)
            if not page.more:
                return
            after = page.documents[-1].key
            await asyncio.sleep(0)

    def find(self, name: str) -> Item | None:
        """The item of that name, or None. At once: from the cache or one read of the state store."""
        item = self._cache.get(name)
        if item is None:
            document = self._coordinator.peek(NAMES + name)
            if document is None:
                return None
            item = self._keep(_decode(document.value))
        return item

    def _keep(self, item: Item) -> Item:
        """Has it in the cache, which forgets the one that came first if there is no room."""
        if item.name not in self._cache and len(self._cache) >= CACHE_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[item.name] = item
        return item

    def get(self, name: str, kind: str = "") -> Item:
        """The item of that name; raises ``NotFound``, or ``Conflict`` if it is of the other kind."""
        item = self.find(name)
        if item is None or name.startswith(OWN):
            check_name(name)
            self._check_known(name)
            raise NotFound(f"there is no {kind or 'queue or stream'} named {name!r}")
        if kind and item.kind != kind:
            raise self.wrong_kind(item, kind)
        return item

    @staticmethod
    def wrong_kind(item: Item, kind: str) -> Conflict:
        """``item`` is no ``kind``."""
        return Conflict(f"{item.name!r} is a {item.kind}, not a {kind}; a name keeps its kind", hint=f"use the {item.kind} commands, or another name")

    async def use(self, name: str, kind: str) -> Item:
        """As ``get``, but an undeclared name is declared first where a policy for it exists."""
        if self.find(name) is None:
            check_name(name)
            self._check_known(name)
            spec = self._undeclared(name, kind)
            if spec is not None:
                return await self.declare(name, spec)
        return self.get(name, kind)

    async def declare(self, name: str, spec: Spec) -> Item:
        """Idempotent: the same settings give the existing item, others raise ``Conflict`` naming the differing fields."""
        check_name(name)
        kind: Literal["queue", "stream"] = "queue" if isinstance(spec, QueueSpec) else "stream"
        _check(spec, name)
        if isinstance(spec, QueueSpec):
            self._check_dead_letter(name, spec)
        return await self._declare(name, kind, spec)

    async def declare_own(self, name: str, spec: StreamSpec) -> Item:
        """What brokers of a cluster keep in replicated partitions for themselves, whatever ``spec`` it was first declared with."""
        assert name.startswith(OWN)
        return self.find(name) or await self._declare(name, "stream", spec)

    async def _declare(self, name: str, kind: Literal["queue", "stream"], spec: Spec) -> Item:
        for _ in range(_RETRIES):
            item = self.find(name)
            if item is not None:
                if item.kind != kind:
                    raise Conflict(f"{name!r} is a {item.kind} already; a name is a queue or a stream for life")
                fields = difference(item.spec, spec)
                if fields:
                    was = ", ".join(f"{f} = {getattr(item.spec, f)!r} (asked {getattr(spec, f)!r})" for f in fields)
                    raise Conflict(f"{kind} {name!r} exists with other settings: {was}")
                if name in self._leaving:
                    raise Unavailable(f"{name!r} is being deleted; try again")
                return item
            self._check_known(name)
            item = Item(
                name=name,
                kind=kind,
                id=self._new_id(),
                partitions=await self._allocate(spec.partitions),
                queue=spec if isinstance(spec, QueueSpec) else None,
                stream=spec if isinstance(spec, StreamSpec) else None,
                created_ms=self._wall_ms(),
            )
            if await self._coordinator.transact({NAMES + name: 0}, {NAMES + name: _encode(item)}):
                self._recorded(item, "declared")
                return item
            await asyncio.sleep(0.001)
        raise Unavailable(f"{name!r} is being changed by others; try again")

    async def alter(self, name: str, kind: str, changes: dict[str, Any]) -> Item:
        """Changes settings that are safe to change; raises ``Invalid`` or ``Conflict`` and changes nothing otherwise."""

        def altered(item: Item) -> Item:
            old = item.spec
            unknown = sorted(set(changes) - set(old.__struct_fields__))
            if unknown:
                raise Invalid(f"a {item.kind} has no setting {', '.join(unknown)}; it has {', '.join(old.__struct_fields__)}")
            altered = [f for f in changes if getattr(old, f) != changes[f]]
            fixed = sorted(f for f in altered if f in FIXED and (f != "replication_factor" or self._known is None))  # a cluster makes copies
            if fixed:
                raise Conflict(f"{', '.join(fixed)} cannot be altered after declaration", hint="declare another one and move the messages")
            try:
                spec = msgspec.convert({**msgspec.structs.asdict(old), **changes}, type(old))
            except msgspec.ValidationError as e:
                raise Invalid(f"settings of {name!r}: {e}") from None
            _check(spec, name)
            if isinstance(spec, QueueSpec):
                self._check_dead_letter(name, spec)
                return msgspec.structs.replace(item, queue=spec)
            return msgspec.structs.replace(item, stream=spec)

        return await self._update(name, kind, altered)

    async def repartition(self, name: str, count: int, *, force: bool) -> Item:
        """Begins to give a queue ``count`` partitions. Asked again for the same it changes nothing, but takes up ``force``."""
        if not 1 <= count <= limits.PARTITIONS_MAX:
            raise Invalid(f"partitions must lie in 1..{limits.PARTITIONS_MAX}, is {count}")
        made: list[int] = []

        def changed(item: Item) -> Item:
            spec, change, have = queue_of(item), item.change, len(item.partitions)
            if change is not None:
                if change.after != count:
                    raise Conflict(
                        f"{name!r} is being repartitioned from {change.before} to {change.after} partitions",
                        hint="wait until that is done (`headrace queue describe`), or let it end at once with --force and the same number",
                    )
                return msgspec.structs.replace(item, change=msgspec.structs.replace(change, force=True)) if force else item
            if count == have:
                return item
            return msgspec.structs.replace(
                item,
                queue=msgspec.structs.replace(spec, partitions=count),
                partitions=(*item.partitions, *made[: max(0, count - have)]),
                change=Change(before=have, after=count, since_ms=self._wall_ms(), force=force),
                home_count=item.home_count or have,
            )

        missing = count - len(self.get(name, "queue").partitions)
        if missing > 0:
            made += await self._allocate(missing)
        return await self._update(name, "queue", lambda item: changed(item) if count - len(item.partitions) <= len(made) else item)

    async def advance(self, was: Item, phase: Phase) -> Item:
        """A repartition goes on from where ``was`` shows it; after ``announced`` a new routing version begins. Done already, it changes nothing."""

        def changed(item: Item) -> Item:
            change = item.change
            if item.id != was.id or change is None or was.change is None or change.phase != was.change.phase:
                return item
            version = item.routing_version + (change.phase == "announced")
            changed = msgspec.structs.replace(change, phase=phase, since_ms=self._wall_ms())
            homes = min(item.home_count or len(item.partitions), change.after)
            return msgspec.structs.replace(item, change=changed, routing_version=version, home_count=homes)

        return await self._update(was.name, "queue", changed)

    async def settle(self, was: Item) -> Item | None:
        """A repartition is done. What it gave up is no longer a part of the queue; an item of that alone, recorded as deleted, comes back."""
        for _ in range(_RETRIES):
            document = self._document(was.name)
            item = _decode(document.value)
            if item.id != was.id or item.change is None or item.routing_version != was.routing_version:
                return None
            kept, retired = item.partitions[: item.change.after], item.partitions[item.change.after :]
            now = msgspec.structs.replace(item, partitions=kept, change=None)
            gone = msgspec.structs.replace(item, id=self._new_id(), partitions=retired, change=None)
            also: dict[str, bytes | None] = {"deleted/" + gone.id: _encode(gone)} if retired else {}
            if await self._coordinator.transact({NAMES + was.name: document.version}, {NAMES + was.name: _encode(now), **also}):
                self._recorded(now, "altered")
                return gone if retired else None
        raise Unavailable(f"{was.name!r} is being changed by others; try again")

    async def pause(self, name: str, paused: bool) -> Item:
        return await self._update(name, "", lambda item: msgspec.structs.replace(item, paused=paused))

    async def delete(self, name: str, kind: str = "") -> Item:
        """Removes the name; the caller removes the data of the item that is returned."""
        for _ in range(_RETRIES):
            self.get(name, kind)
            document = self._document(name)
            item = _decode(document.value)  # not as it was last told of: its partitions may just have changed
            self._leaving.append(name)
            try:
                gone = await self._coordinator.transact({NAMES + name: document.version}, {NAMES + name: None, "deleted/" + item.id: _encode(item)})
            finally:
                self._leaving.remove(name)
            if gone:
                self._recorded(item, "deleted")
                return item
            self._cache.pop(name, None)
        raise Unavailable(f"{name!r} is being changed by others; try again")

    async def deletions(self) -> list[Item]:
        """Recorded deletions whose data may still be there (a crash came between)."""
        return [_decode(d.value) for d in (await self._coordinator.range("deleted/")).documents]

    async def deletion_done(self, item: Item) -> None:
        await self._coordinator.transact({}, {"deleted/" + item.id: None})

    async def page(self, *, kind: str = "", pattern: str = "*", after: str = "", limit: int = 1000) -> tuple[list[Item], bool]:
        """Items in the order of their names, after ``after``; True if there are more."""
        found: list[Item] = []
        after = NAMES + after if after else ""
        while True:
            page = await self._coordinator.range(NAMES, after=after)
            for document in page.documents:
                item = _decode(document.value)
                if item.name.startswith(OWN):
                    continue
                if (not kind or item.kind == kind) and (pattern == "*" or fnmatch.fnmatchcase(item.name, pattern)):
                    if len(found) == limit:
                        return found, True
                    found.append(item)
            if not page.more:
                return found, False
            after = page.documents[-1].key
            await asyncio.sleep(0)

    # ------------------------------------------------------------ what others change

    def told(self, key: str, before: Document | None, now: Document | None) -> None:
        """A document under ``names/`` has changed, whoever did it; for a cluster's mirror."""
        self._cache.pop(key[len(NAMES) :], None)
        try:
            if now is not None:
                self._change(_decode(now.value), "declared" if before is None else "altered")
            elif before is not None:
                self._change(_decode(before.value), "deleted")
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            _log.error("%s of the catalogue cannot be read: %s", key, e)

    def _recorded(self, item: Item, change: str) -> None:
        """What was asked for here is recorded; where all changes are told there is nothing more to do."""
        if self._known is not None:
            return
        if change == "altered":
            document = self._coordinator.peek(NAMES + item.name)
            if document is None or _decode(document.value) != item:
                return  # it was deleted or changed again meanwhile, and whoever did that says so
        if change == "deleted":
            self._cache.pop(item.name, None)
        else:
            self._keep(item)
        self._change(item, change)

    def _change(self, item: Item, change: str) -> None:
        if change != "altered" and not item.name.startswith(OWN):
            self._count(item.kind, 1 if change == "declared" else -1)
        if change != "deleted" and item.spec.bindings:
            self.bound[item.name] = (item.kind, item.spec.bindings)
        else:
            self.bound.pop(item.name, None)
        self._changed(item, change)

    # ------------------------------------------------------------ inside

    def _check_known(self, name: str) -> None:
        if self._known is not None and not self._known():
            raise CoordinatorUnavailable(f"whether there is {name!r} is not known: this broker has not reached the coordinator since it started")

    def _document(self, name: str) -> Document:
        document = self._coordinator.peek(NAMES + name)
        if document is None:
            self._cache.pop(name, None)
            raise NotFound(f"there is no queue or stream named {name!r}")
        return document

    async def _update(self, name: str, kind: str, change: Callable[[Item], Item]) -> Item:
        for _ in range(_RETRIES):
            self.get(name, kind)
            document = self._document(name)
            old = _decode(document.value)
            new = change(old)
            if new == old:
                self._keep(old)  # stored perhaps by a request that was not told so yet: it holds as soon as one of them is answered
                self._changed(old, "altered")
                return old
            if await self._coordinator.transact({NAMES + name: document.version}, {NAMES + name: _encode(new)}):
                self._recorded(new, "altered")
                return new
            await asyncio.sleep(_AGAIN_S)  # what another request has begun is not recorded yet
        raise Unavailable(f"{name!r} is being changed by others; try again")

    def _check_dead_letter(self, name: str, spec: QueueSpec) -> None:
        """Refuses a chain of dead-letter queues that leads back to ``name``."""
        seen, at = [name], spec.dead_letter
        while at:
            if at in seen:
                raise Invalid(
                    f"dead letters would go round in a circle: {' -> '.join([*seen, at])}", hint="let the last queue of the chain have no dead_letter"
                )
            seen.append(at)
            item = self.find(at)
            if item is not None and item.kind != "queue":
                raise Invalid(f"dead_letter {at!r} is a stream; name a queue")
            at = item.queue.dead_letter if item is not None and item.queue is not None else ""

    async def allotted(self, key: str, count: int) -> tuple[int, ...]:
        """Partition ids that belong to no queue or stream but to what ``key`` names; the same at every call, whatever ``count`` is later."""
        for _ in range(_RETRIES):
            document = await self._coordinator.get(_ALLOTTED + key)
            if document is not None:
                return tuple(msgspec.msgpack.decode(document.value, type=list[int]))
            made = await self._allocate(count)
            await self._coordinator.transact({_ALLOTTED + key: 0}, {_ALLOTTED + key: msgspec.msgpack.encode(list(made))})
        raise Unavailable(f"partitions for {key} are being allotted by others; try again")

    async def _allocate(self, count: int) -> tuple[int, ...]:
        async with self._allocating:
            while len(self._ids) < count:
                document = await self._coordinator.get(COUNTER)
                first = max(int(document.value) if document else 1, self._unused)
                size = max(ID_BLOCK, count)
                if await self._coordinator.transact({COUNTER: document.version if document else 0}, {COUNTER: str(first + size).encode()}):
                    self._ids.extend(range(first, first + size))
            taken, self._ids = self._ids[:count], self._ids[count:]
            return tuple(taken)

    def _count(self, kind: str, change: int) -> None:
        if kind == "queue":
            self.queues += change
        else:
            self.streams += change


def _check(spec: Spec, name: str) -> None:
    if isinstance(spec, QueueSpec):
        check_queue(spec, name=name)
    else:
        check_stream(spec)

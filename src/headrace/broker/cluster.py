"""A broker's part in a cluster, put together: coordinator, transport, membership, control, the driver of its replicas, its copies of partitions.

Owns their order at start and stop, and which copies there are. What is assigned to whom the coordinator says; what is committed, the replicas.
Nothing here is made by a lone broker.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec
from msgspec.structs import replace

from headrace import __version__
from headrace.broker import forwarding, importing
from headrace.broker.catalogue import Item
from headrace.broker.copies import Copy
from headrace.broker.dormant import Dormant
from headrace.broker.electing import Electing
from headrace.broker.erasing import Erasing
from headrace.broker.fitness import Fitness
from headrace.broker.leftovers import Leftovers
from headrace.broker.survey import Survey
from headrace.cluster.control.control import Control
from headrace.cluster.control.declared import NAMES_PREFIX
from headrace.cluster.control.opening import make_control, registration
from headrace.cluster.control.sightings import PEER, Sightings
from headrace.cluster.control.topology import Place, Reassigned
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.membership import Membership, Pauses
from headrace.cluster.mirrored import Mirrored
from headrace.cluster.replication import interface
from headrace.cluster.replication.driver import OWN_PID, Driver
from headrace.cluster.swapping import Swapping
from headrace.cluster.transport import Transport
from headrace.log import get_logger
from headrace.model.cluster import Assignment, BrokerId, Incarnation
from headrace.model.config import advertised
from headrace.model.errors import HeadraceError, Invalid, NotFound, Refused, StorageError
from headrace.model.ids import PartitionId
from headrace.storage.api import Replication
from headrace.storage.wal import entry_bytes_max
from headrace.wire import control
from headrace.wire.peer import Service

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

_log = get_logger("cluster")
NATIVE: Final = "native"
ADMIN: Final = "admin"
HANDOVER_LOOK_S: Final = 0.05
ENTRY_HEAD_BYTES_MAX: Final = 4096
"""What an entry has besides the frames in it, at most."""
ALONE_S: Final = 1.0
"""A broker that drains waits so long for others to be connected."""
AWAKE_S: Final = 2.0
"""So long a first use waits until its partition is served."""


class Means(Protocol):
    """What a coordinated broker is given by whoever starts it. Coordinator and transport are its own only as long as it runs."""

    node_id: str
    """Of the data directory; "" = the broker draws one for it."""

    @property
    def members(self) -> int:
        """Of the cluster as it was declared, whether they run or not; at least 1."""

    cluster_id: str

    def voters(self) -> tuple[str, ...]:
        """Names of the members that host a part of the consensus, as declared."""

    async def coordinator(self, me: BrokerId) -> Coordinator: ...

    def transport(self, me: BrokerId, incarnation: Incarnation) -> Transport:
        """To be watched and served; nobody is let in yet."""

    def membership(self, me: BrokerId, incarnation: Incarnation) -> Membership:
        """To be started, and left."""

    async def admit(self) -> None:
        """Other brokers are let in from now on."""

    async def release(self) -> None:
        """All that used coordinator and transport has ended."""


class ReplicatedStore(interface.Store, Protocol):
    """A store that has a log for replicas."""

    def reserve(self, replication: Replication) -> None: ...

    def busy(self) -> Sequence[int]: ...


class Nothing:
    """What is known of replicas before there is a driver: nothing of anybody is committed."""

    def committed_index(self, pid: int) -> int | None:
        return None if pid == OWN_PID else 0

    def epoch_at(self, pid: int, index: int) -> int:
        return 0

    def moved(self, pid: int, moved_to: int) -> None: ...


class Cluster:
    """See the module's head."""

    def __init__(self, broker: Broker, means: Means) -> None:
        self.broker = broker
        self.copies: dict[int, Copy] = {}
        """Those that were taken up in this life."""
        self.dormant: Dormant
        self._means = means
        self._coordinator: Coordinator
        self._transport: Transport
        self._membership: Membership
        self._sightings: Sightings
        self._swapping: Swapping
        self._driver: Driver | None = None
        self._fitness: Fitness
        self.leftovers: Leftovers
        self._going: dict[int, bool] = {}
        """Partitions whose data here are being erased."""
        self._pauses: Pauses
        self.control: Control
        self.survey: Survey
        self.electing: Electing
        self.gateway: Callable[[BrokerId, bytes], None] = _nobody
        """Takes what the gateways of other brokers send to those of this one; what comes before there is one is lost."""

    # ------------------------------------------------------------ life

    @property
    def node_id(self) -> str:
        """The id that the broker has to have, "" = any."""
        return self._means.node_id

    @property
    def members(self) -> int:
        """How many brokers the cluster is to have."""
        return self._means.members

    @property
    def id(self) -> str:
        """Of the cluster."""
        return self._means.cluster_id

    def voters(self) -> tuple[str, ...]:
        return self._means.voters()

    @property
    def _store(self) -> ReplicatedStore:
        return cast(ReplicatedStore, self.broker.store)

    @property
    def driver(self) -> Driver:
        """Of all its copies; there is one once it has started."""
        assert self._driver is not None
        return self._driver

    def reserve(self) -> None:
        """Before the store is opened. ``Invalid`` where it cannot replicate."""
        if not self.broker.durable:
            raise Invalid("a broker of a cluster keeps its data on disk", hint="set broker.storage to disk")
        if self.broker.config.recovery.on_mismatch == "truncate":
            raise Invalid("recovery.on_mismatch = truncate would cut what other brokers count on", hint="set it to quarantine or refuse")
        self._store.reserve(Nothing())

    async def start(self) -> None:
        """Once the store is open and the broker has its id. The coordinator need not be reached: what is assigned is served when it is heard."""
        me, incarnation = BrokerId(self.broker.id), Incarnation(self.broker.incarnation)
        self._coordinator = await self._means.coordinator(me)
        self._transport = self._means.transport(me, incarnation)
        self._membership = self._means.membership(me, incarnation)
        try:
            await self._begin(me, incarnation)
        except (Exception, asyncio.CancelledError):
            if self._driver is not None:
                with suppress(StorageError):
                    await self._driver.stop()
            await self._membership.close()
            await self._means.release()
            raise

    async def _begin(self, me: BrokerId, incarnation: Incarnation) -> None:
        broker, config, transport = self.broker, self.broker.config, self._transport
        self._swapping = Swapping(self._coordinator)
        self._driver = driver = Driver(me, incarnation, transport, self._swapping, take_up=self.take_up)
        busy = frozenset(self._store.busy())
        self.dormant = Dormant(me, lambda pid: pid in busy or driver.unfit(pid))
        transport.watch(driver)
        transport.on_batch(Service.REPLICAS, driver.take)
        transport.on_batch(Service.MQTT, self._told_gateway)
        forwarding.serve(broker, transport)
        self.survey = Survey(broker, self, transport)
        self.electing = Electing(broker, self, transport)
        await driver.start(self._store)
        await self._means.admit()
        registered = registration(config, me, incarnation, addresses={PEER: self._peer_address()}, host=socket.gethostname(), release=__version__)
        writes = max(broker.entry_bytes_max, config.limits.frame_bytes_max) + ENTRY_HEAD_BYTES_MAX
        registered = replace(registered, writes_bytes_max=writes, takes_bytes_max=entry_bytes_max(config.storage.wal_file_bytes))
        self.control, self._sightings = make_control(config, self._coordinator, self._membership, transport, registered)
        self._fitness = Fitness(driver, self.control, self._sightings, broker.store.damaged())
        self.leftovers = Leftovers(driver, self.control, self._coordinator, driver.held(), self._let_go, self._is_gone)
        mirror = self.control.mirror
        imported = asyncio.Event()
        broker.catalogue = broker.make_catalogue(Mirrored(self._coordinator, mirror), lambda: imported.is_set() and mirror.synced.is_set())
        broker.spawn(importing.keep_carrying(broker, self._coordinator, mirror, imported))
        mirror.on_change(NAMES_PREFIX, broker.catalogue.told)
        self.control.topology.on_reassigned(self._reassigned)
        await self._membership.start()
        self._sightings.start()
        self.control.start()
        self._pauses = Pauses()
        self._pauses.tell(self.control.controller.stood_still)
        self._pauses.start()
        broker.spawn(self.leftovers.run())
        broker.spawn(Erasing(driver, self.control, self._coordinator, broker.store, self._forget).run())

    def _peer_address(self) -> str:
        listen = self.broker.config.listen
        return str(advertised(listen.peer, listen.peer_advertise, port=self._transport.port, hostname=socket.gethostname()))

    async def stop(self) -> None:
        """Before the store is closed. What waits has an unknown outcome."""
        if self._driver is None:
            return
        self._pauses.stop()
        self._fitness.stop()
        await self.control.stop()
        await self._driver.stop()
        await self._swapping.stop()
        await self._sightings.stop()
        await self._membership.leave()
        await self._means.release()

    def admins(self) -> dict[str, str]:
        """The admin HTTP of all brokers that are registered now, by name."""
        return {r.name: f"http://{r.addresses[ADMIN]}" for r in self.control.picturing.present().values() if ADMIN in r.addresses}

    def advertise(self, **urls: str) -> None:
        """This broker's listeners are reached there, by their names (``native``, ``admin``)."""
        told = {name: url.partition("://")[2] for name, url in urls.items()}
        self.control.presence.update(addresses={**self.control.presence.me.addresses, **told})

    async def drain(self, grace_ms: int) -> None:
        """Gives what it serves to others, as far as they have everything; the controller moves the rest, and gives nothing back. For at most that
        long."""
        loop = self.broker.loop
        end = loop.time() + grace_ms / 1000
        heard_s = loop.time()
        while True:
            if self._driver is None or self._driver.links:
                heard_s = loop.time()
            elif self._serving() and loop.time() - heard_s >= ALONE_S:
                _log.warning("no other broker is connected, so nobody takes over what this one serves (%d partitions)", len(self._serving()))
                return
            for copy in self._serving():
                copy.hand_over()
            self.control.drain()
            if not self._serving() or loop.time() >= end:
                return
            await asyncio.sleep(min(HANDOVER_LOOK_S, end - loop.time()))

    async def empty(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Has the controller move everything off these brokers; the queues and streams of which they still have something."""
        picturing = self.control.picturing
        ids = {id for id, registered in picturing.brokers().items() if registered.name in names}
        if not ids <= set(picturing.settings.emptied):
            await self.control.set_placement({"emptied": tuple(sorted({*picturing.settings.emptied, *ids}))})
        documents = (s.assignment for s in picturing.stored.values())
        return tuple(sorted({a.item for a in documents if ids & {a.owner, *a.replicas, *a.learners}}))

    async def stay(self) -> None:
        """This broker was to be emptied, and is not any more: it may be given something again. ``HeadraceError``: not now."""
        emptied = self.control.picturing.settings.emptied
        if self.broker.id in emptied:
            await self.control.set_placement({"emptied": tuple(id for id in emptied if id != self.broker.id)})
            _log.info("this broker is listed again, and may be given something again")

    def _serving(self) -> list[Copy]:
        """Those that another could serve."""
        return [c for c in self.copies.values() if c.serving and c.document.level != "local_durable" and len(c.document.replicas) > 1]

    def failed(self, error: BaseException) -> None:
        """The log has failed."""
        if self._driver is not None:
            self._driver.failed(error)

    def damaged(self, pid: int, why: str) -> None:
        """Damage was found in the copy here: it takes and gives nothing until ``renew``."""
        if self._driver is not None:
            self.take_up(pid)
            self._driver.damaged(pid, why)

    async def renew(self, pid: int) -> None:
        """The copy here, which is damaged, is made anew from another broker's; see ``Driver.renew``."""
        assert self._driver is not None
        self.take_up(pid)
        if pid not in self.copies:
            raise Refused(f"partition {pid} is not assigned to this broker; what is damaged of it here is not used")
        await self._driver.renew(pid, "an operator wants its damaged copy to be replaced")

    # ------------------------------------------------------------ copies

    def _reassigned(self, news: tuple[Reassigned, ...]) -> None:
        assert self._driver is not None
        for one in news:
            if one.now is None:
                if one.recorded:
                    self._forget(one.partition)
                else:
                    _log.error("partition %d is assigned to nobody any more and was not deleted; its copy here is left as it is", one.partition)
                continue
            document = one.now.assignment
            copy = self.copies.get(one.partition)
            if self.broker.id not in document.copies:
                self.leftovers.moved(one.partition)
            if copy is not None:
                self._assigned(copy, document)
            elif self.dormant.note(document, self._item(document)):
                self.take_up(one.partition)

    def _item(self, document: Assignment) -> Item | None:
        item = self.broker.catalogue.find(document.item)
        return item if item is not None and document.partition in item.partitions else None

    def _assigned(self, copy: Copy, document: Assignment) -> None:
        assert self._driver is not None
        copy.assigned(document)
        self._driver.assigned(document)
        if document.owner == self.broker.id:
            copy.replicated.activate()

    def take_up(self, pid: int) -> None:
        """What this broker has of a partition is looked after from now on, if it has a copy: it was asked for, or another broker speaks of it."""
        document = None if pid in self._going else self.dormant.take(pid)
        if document is None or self._driver is None:
            return
        copy = self.copies[pid] = Copy(self.broker, document)
        copy.taken_up_s = self.broker.loop.time()
        copy.replicated = self._driver.open(pid, copy)
        item = self._item(document)
        if item is not None:
            copy.wish(item)
        self._assigned(copy, document)

    async def awake(self, item: Item, numbers: Iterable[int] | None = None) -> None:
        """Before partitions (None: all) are used for the first time: returns once those that are this broker's to serve are served, or soon. Who
        uses them is told why they are not. All others of the item begin too: who uses one will use them, and they need not begin one by one."""
        pids = item.partitions if numbers is None else [item.partitions[n] for n in numbers if 0 <= n < len(item.partitions)]
        for pid in item.partitions:
            if self.dormant.owned(pid):
                self.take_up(pid)
        for pid in pids:
            copy = self.copies.get(pid)
            if copy is not None and copy.is_starting:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(copy.taken_up_s + AWAKE_S):
                        await copy.begun.wait()

    def declared(self, item: Item) -> None:
        """A queue or stream is known, or altered."""
        for pid in item.partitions:
            if self.dormant.declared(pid, item):
                self.take_up(pid)
            copy = self.copies.get(pid)
            if copy is not None:
                copy.wish(item)

    def deleted(self, item: Item, why: HeadraceError) -> None:
        """Nothing is done for it any more. Its data stay until nobody is assigned any of it."""
        for pid in item.partitions:
            copy = self.copies.get(pid)
            if copy is not None:
                copy.close(why)

    def _forget(self, pid: int) -> None:
        """It was deleted; its data go next."""
        copy = self.copies.pop(pid, None)
        if copy is not None:
            copy.close(NotFound(f"{copy.document.item!r} was deleted"))
        self.dormant.take(pid)
        self._fitness.forget(pid)

    def _let_go(self, pid: int) -> None:
        """It was moved to others; its data here go next."""
        self._going[pid] = True
        copy = self.copies.pop(pid, None)
        if copy is not None:
            copy.close(copy.elsewhere())
        self.dormant.take(pid)
        self._fitness.forget(pid)

    def _is_gone(self, pid: int) -> None:
        """Its data here are erased, or cannot be yet. It may have been given back meanwhile."""
        del self._going[pid]
        document = self.dormant.document(pid)
        if document is not None and self.dormant.note(document, self._item(document)):
            self.take_up(pid)

    # ------------------------------------------------------------ who serves what

    def owner(self, pid: int) -> str:
        """Id of the broker that serves a partition, "" = nobody does."""
        return self.control.topology.place(PartitionId(pid)).owner

    def others(self) -> list[str]:
        """Ids of the other brokers that are registered now."""
        return sorted(id for id in self.control.topology.present() if id != self.broker.id)

    async def request(self, peer: BrokerId, body: bytes, *, timeout_ms: int, service: Service = Service.VERBS) -> bytes:
        """Asks another broker; see ``Transport.request``."""
        return await self._transport.request(peer, service, body, timeout_ms=timeout_ms)

    @property
    def transport(self) -> Transport:
        """To the other brokers, as long as this one runs."""
        return self._transport

    def _told_gateway(self, peer: BrokerId, body: bytes) -> None:
        self.gateway(peer, body)

    def replicas_now_ms(self) -> int:
        """The time by which replicas judge silence."""
        assert self._driver is not None
        return self._driver.now_ms()

    def where(self, pid: int) -> str:
        """What to do to reach who serves a partition."""
        address = self.control.topology.place(PartitionId(pid)).addresses.get(NATIVE, "")
        return f"connect to headrace://{address}" if address else "ask again in a moment: nobody who serves it is registered now"

    def topology(self, names: tuple[str, ...], *, all_brokers: bool = True) -> control.TopologyInfo:
        """Who serves the partitions of those queues and streams; with the addresses of everybody, or of those alone."""
        rows = [_row(name, number, place) for name in names for number, place in enumerate(self.control.topology.item(name))]
        wanted = {row.owner for row in rows}
        brokers: dict[str, tuple[str, ...]] = {
            str(id): (f"headrace://{registered.addresses[NATIVE]}",)
            for id, registered in self.control.topology.present().items()
            if (all_brokers or id in wanted) and NATIVE in registered.addresses
        }
        return control.TopologyInfo(brokers=brokers, partitions=tuple(rows))

    def on_topology(self, told: Callable[[], None]) -> None:
        """Calls ``told`` whenever ``topology`` may have another answer."""
        self.control.topology.on_change(told)

    def detail(self, pid: int) -> dict[str, Any]:
        """What an ``Elsewhere`` says of who serves a partition; empty if nobody does."""
        place = self.control.topology.place(PartitionId(pid))
        address = place.addresses.get(NATIVE, "")
        number = self.control.topology.number(place.partition)
        if not address or number is None:
            return {}
        row = msgspec.to_builtins(_row(place.item, number, place))
        return {"brokers": {place.owner: [f"headrace://{address}"]}, "partitions": [row]}


def _nobody(peer: BrokerId, body: bytes) -> None:
    pass


def _row(name: str, number: int, place: Place) -> control.PartitionOwner:
    return control.PartitionOwner(
        name=name, partition=number, owner=place.owner, epoch=place.epoch, routing_version=place.routing_version, id=place.partition
    )

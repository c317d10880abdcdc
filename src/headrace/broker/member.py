"""A member of a cluster in this process: its formation, the broker while that may serve, and what is answered while there is none.

Owns when a broker is made, of what, and when it ends. How things stand the formation says; what a broker does is ``broker.run``'s.

M1 a broker serves only while the formation says ACTIVE or DRAINING. M2 a broker is of one data directory: it has ended before that is set aside, and
the next one goes by the new id. M3 the formation begins first and ends last. M4 the admin interface answers from the beginning to the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Final

from msgspec.structs import replace

from headrace import __version__
from headrace.ambient import ambient
from headrace.broker import run, survey
from headrace.broker.importing import lone_id
from headrace.broker.metrics import Counters, Snapshot
from headrace.broker.verbs import compiled, resident_bytes
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.formation.commands import Commands
from headrace.cluster.formation.driver import Around
from headrace.cluster.formation.opening import Running, open_formation
from headrace.cluster.membership import Membership
from headrace.cluster.opening import make_membership
from headrace.cluster.transport import Transport
from headrace.core.formation.effects import Standing, State
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Config
from headrace.model.errors import CoordinatorUnavailable, HeadraceError, Invariant, Unavailable
from headrace.storage.files import OsFiles
from headrace.wire import control

_log = get_logger("member")
NATIVE: Final = "headrace.gateways.native.listen"
ADMIN: Final = "headrace.admin.listen"
MQTT: Final = "headrace.gateways.mqtt.listen"
EMPTIED_LOOK_S: Final = 1.0
SHOWN_MAX: Final = 5
SERVES: Final = (State.ACTIVE, State.DRAINING)
SHOWN: Final = {State.INIT: "starting", State.WAIT: "waiting", State.CATCHUP: "catching up"}
"""In a broker's status, where the state's own name is no word for it."""


class Formed:
    """Implements ``cluster.Means`` with what a formation has."""

    def __init__(self, formation: Running, config: Config, node_id: str) -> None:
        self.node_id = node_id
        self.cluster_id = formation.cluster
        self._formation = formation
        self._config = config
        self._incarnation = Incarnation("")
        self.gossip: Membership | None = None
        """While a broker takes part."""

    @property
    def members(self) -> int:
        return max(1, len(self._formation.members()))

    def voters(self) -> tuple[str, ...]:
        return tuple(m.name for m in self._formation.members() if m.role == "voter")

    async def coordinator(self, me: BrokerId) -> Coordinator:
        found = self._formation.driver.coordinator
        if found is None:
            raise CoordinatorUnavailable("no consensus is used now")
        return found

    def transport(self, me: BrokerId, incarnation: Incarnation) -> Transport:
        self._incarnation = incarnation
        return self._formation.transport

    def membership(self, me: BrokerId, incarnation: Incarnation) -> Membership:
        self.gossip = make_membership(self._config, me, self._formation.cluster, self._formation.secrets, {"incarnation": incarnation})
        return self.gossip

    async def admit(self) -> None:
        self._formation.transport.open_to_peers(self._incarnation)

    async def release(self) -> None:
        self.gossip = None
        self._formation.transport.close_to_peers()


class Member(Around):
    """See the module's head. ``url``, ``admin_url``, ``draining`` and ``drain_grace_ms`` are as ``run.RunningBroker``'s, ``url`` "" while no broker
    serves; ``stopped`` is set when it has ended for whatever reason."""

    def __init__(self, config: Config, *, tune: bool, told: Callable[[bool], None]) -> None:
        """``told`` hears whenever a broker begins to serve here, and when that is over."""
        self.config = config
        self.running: run.RunningBroker | None = None
        self.url = ""
        self.admin_url = ""
        self.stopped = asyncio.Event()
        self.draining = asyncio.Event()
        self.drain_grace_ms = 0
        self.error: HeadraceError | None = None
        self._began_s = ambient().monotonic()
        self._tune = tune
        self._told = told
        self._formation: Running
        self._means: Formed | None = None
        """Of the present broker, or the last one."""
        self._turn = asyncio.Lock()
        """Held while a broker is made or ended."""
        self._look = asyncio.Event()
        self._drains = ""
        """What keeps brokers that are being emptied."""
        self._given_up = ""
        """Node id of the directory whose data is set aside."""
        self._following: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_admin: run.Stop | None = None

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Returns at once, whatever is waited for. ``Invalid``, ``DataDirLocked``, ``StorageError`` and ``Unavailable`` end a broker."""
        self._formation = await open_formation(self.config, OsFiles(), self, lone=lone_id)
        try:
            if self.config.listen.admin not in ("", "off"):
                commands = Commands(self._formation, self._gossip, self._admins, lambda: self._drains)
                urls, self._stop_admin = await import_module(ADMIN).listen(self, self, commands)
                self.admin_url = urls["admin"]
        except BaseException:
            await self._formation.stop()
            raise
        self._following = asyncio.get_running_loop().create_task(self._follow(), name="the broker of a member")

    @property
    def addresses(self) -> dict[str, str]:
        """What a ready file holds."""
        more = self.running.addresses if self.running is not None else {}
        return {**more, "url": self.url, "admin": self.admin_url}

    async def stop(self, drain_grace_ms: int = 0, message: str = "") -> None:
        """Drains for at most that long, then stops: the broker, then the formation with its consensus member. Safe to call more than once."""
        self._stop_soon(drain_grace_ms, message)
        await self.stopped.wait()

    def _stop_soon(self, grace_ms: int, message: str) -> None:
        self._drains_for(grace_ms)
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(grace_ms, message), name="the end of a member")

    def _drains_for(self, grace_ms: int) -> None:
        if not self.draining.is_set():
            self.drain_grace_ms = grace_ms
            self.draining.set()

    async def _stop(self, grace_ms: int, message: str) -> None:
        try:
            self._formation.driver.stopping(message or "the broker is being stopped")
            async with self._turn:
                await self._end(grace_ms, message)
            if self._following is not None:
                self._following.cancel()
            if self._stop_admin is not None:
                await self._stop_admin()
            await self._formation.stop()
        except Exception as e:
            _log.exception("the member did not end cleanly")
            self.error = self.error or Invariant(f"the member did not end cleanly: {e!r}")
        finally:
            self.stopped.set()

    # ------------------------------------------------------------ the broker

    def _may_serve(self) -> bool:
        driver = self._formation.driver
        identity = driver.records.identity
        return (
            self._stopping is None and driver.standing.state in SERVES and identity is not None and identity.node_id != self._given_up
            and bool(self._formation.cluster) and driver.coordinator is not None
        )  # fmt: skip

    async def _follow(self) -> None:
        """Makes and ends brokers as the formation wants it."""
        while True:
            self._look.clear()
            async with self._turn:
                if not self._may_serve():
                    await self._end(0, self._formation.driver.standing.reason)
                elif self.running is None:
                    await self._begin()
            await self._look.wait()

    async def _begin(self) -> None:
        formation = self._formation
        identity = formation.driver.records.identity
        assert identity is not None
        membership = replace(formation.config.membership, seeds=formation.config.membership.seeds or formation.seeds())
        config = replace(formation.config, membership=membership)
        try:
            means = self._means = Formed(formation, config, identity.node_id)
            running = await run.start(config, (import_module(NATIVE).listen, import_module(MQTT).listen), tune=self._tune, means=means)
        except Exception as e:
            self.error = e if isinstance(e, HeadraceError) else Unavailable(f"the broker cannot be started: {e}")
            self._stop_soon(0, str(e))
            return
        if self.admin_url:
            running.broker.listeners["admin"] = self.admin_url
            if running.broker.cluster is not None:
                running.broker.cluster.advertise(admin=self.admin_url)
        self.running, self.url = running, running.url
        self._watching = asyncio.get_running_loop().create_task(self._watch(running), name="the end of a broker")
        self._staying = asyncio.get_running_loop().create_task(self._stay(running), name="what a member may have")
        self._told(True)

    async def _stay(self, running: run.RunningBroker) -> None:
        """Who was to be removed, and is listed again, takes part again; the leader, who had him emptied, may be another one by now."""
        cluster = running.broker.cluster
        while cluster is not None:
            if self._formation.driver.standing.code == "serving":
                with suppress(HeadraceError):
                    await cluster.stay()
            await asyncio.sleep(EMPTIED_LOOK_S)

    async def _end(self, grace_ms: int, message: str) -> None:
        running, self.running = self.running, None
        if running is None:
            return
        if self._staying is not None:
            self._staying.cancel()
        self.url = ""
        self._told(False)
        await running.stop(grace_ms, message)

    async def _watch(self, running: run.RunningBroker) -> None:
        """It was asked to drain, or has failed: then its process ends too."""
        await running.draining.wait()
        if self.running is running:
            self._drains_for(running.drain_grace_ms)
        await running.stopped.wait()
        if self.running is running:
            self.error = running.error
            self._stop_soon(0, "the broker has ended")

    # ------------------------------------------------------------ told by the formation

    def changed(self, standing: Standing) -> None:
        self._look.set()

    async def drain(self, names: tuple[str, ...]) -> None:
        told = ""
        while True:
            cluster = self.running.broker.cluster if self.running is not None else None
            why = "no broker serves here now"
            try:
                if cluster is not None:
                    left = await cluster.empty(names)
                    if not left:
                        self._drains = ""
                        return
                    why = f"something of {', '.join(left[:SHOWN_MAX])}{' and others' if left[SHOWN_MAX:] else ''} is there"
            except HeadraceError as e:
                why = str(e)
            self._drains = why
            if why != told:
                told = why
                _log.info("%s cannot be removed yet: %s", ", ".join(names), why)
            await asyncio.sleep(EMPTIED_LOOK_S)

    async def quiet(self, reason: str) -> None:
        identity = self._formation.driver.records.identity
        self._given_up = identity.node_id if identity is not None else ""
        async with self._turn:
            await self._end(0, reason)

    def exit(self, reason: str) -> None:
        self._stop_soon(self.config.broker.drain_grace_ms, reason)

    # ------------------------------------------------------------ asked by the admin interface

    def _gossip(self) -> Membership | None:
        return self._means.gossip if self.running is not None and self._means is not None else None

    def _admins(self) -> dict[str, str]:
        cluster = self.running.broker.cluster if self.running is not None else None
        return cluster.admins() if cluster is not None else {}

    async def call(self, request: control.Request) -> control.Reply:
        """As the broker's verbs; while there is none, its status and refusals that say on what it waits."""
        running, standing = self.running, self._formation.driver.standing
        if running is not None:
            reply = await running.verbs.call(request)
            if isinstance(reply, control.BrokerStatus) and standing.code != "serving":
                state = reply.state if self._formation.driver.ready else _shown(standing)
                return replace(reply, state=state, attention=(*reply.attention, standing.reason))
            return reply
        if isinstance(request, control.Status):
            return self._waiting(standing)
        if isinstance(request, control.ClusterTopology):
            return survey.waiting(self._formation.status(), self.admin_url.partition("://")[2])
        if isinstance(request, control.Drain):
            self._stop_soon(request.grace_ms, request.message)
            return control.Done(count=0, detail={"grace_ms": request.grace_ms})
        raise Unavailable(f"this broker does not serve, it is {_shown(standing)}: {standing.reason}", hint="/admin/api/cluster shows all of it")

    def _waiting(self, standing: Standing) -> control.BrokerStatus:
        driver = self._formation.driver
        return control.BrokerStatus(
            broker=driver.name, incarnation=self._formation.transport.me.incarnation, release=__version__, state=_shown(standing),
            uptime_ms=self._up_ms(), mode="coordinated", storage=self.config.broker.storage, compiled=compiled(),
            listeners={"admin": self.admin_url} if self.admin_url else {}, connections=0, sessions=0, queues=0, streams=0, loaded_partitions=0,
            publish_rate=0, deliver_rate=0, settle_rate=0, bytes_in_rate=0, bytes_out_rate=0, wal_bytes=0, disk_free_bytes=0,
            memory_bytes=resident_bytes(), flush_p50_us=0, flush_p99_us=0, attention=(standing.reason,),
        )  # fmt: skip

    def _up_ms(self) -> int:
        return int((ambient().monotonic() - self._began_s) * 1000)

    def metrics(self) -> Snapshot:
        return self.running.broker.metrics() if self.running is not None else Snapshot(counters=Counters())


def _shown(standing: Standing) -> str:
    return SHOWN.get(standing.state, standing.state.value)

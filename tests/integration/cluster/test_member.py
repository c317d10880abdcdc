"""A member whose formation says what the test wants: when a broker serves, which one, what is answered meanwhile, and how all of it ends."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import headrace
from headrace.ambient import ambient
from headrace.broker import member as members
from headrace.broker.member import Member
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.formation.addresses import settled
from headrace.cluster.memory import MemoryStore
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Me, Transport
from headrace.core.formation.effects import Standing, State
from headrace.core.formation.records import Identity, Records
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Broker, Cluster, Config, Coordination, Listen, parse_address
from headrace.model.errors import HeadraceError, NotConnected, StorageError, Unavailable
from headrace.model.formation import DeclaredMember
from headrace.wire import control
from tests.integration.formation.nodes import ports

WAIT_S = 30.0
WAITS = Standing(State.WAIT, "members_missing", "b is not reachable", ("b",))
SERVES = Standing(State.ACTIVE, "serving", "serves in cluster one")


class Told:
    """A formation, as far as a member uses one."""

    def __init__(self, config: Config) -> None:
        self.config = settled(config, f"127.0.0.1:{ports()}")
        self.cluster = "one"
        self.secrets = Secrets([b"a secret of this test's cluster"])
        self.store = MemoryStore()
        self.driver = self
        self.standing = WAITS
        self.name = "a"
        self.records = Records()
        self.coordinator: Coordinator = self.store.client("a")
        self.transport = Transport(Me(broker=BrokerId("first"), incarnation=Incarnation("one"), cluster="one"), self.secrets)
        self.transport.close_to_peers()
        self.told: list[str] = []
        self.around: Member

    @property
    def ready(self) -> bool:
        return self.standing.state is State.ACTIVE

    def identified(self, node_id: str) -> None:
        self.records = Records(identity=Identity(node_id=node_id, incarnation="0" * 32, cluster_id="one", formed=True))
        self.transport.me = Me(broker=BrokerId(node_id), incarnation=Incarnation(ambient().token(8)), cluster="one")

    def says(self, standing: Standing) -> None:
        self.standing = standing
        self.around.changed(standing)

    def members(self) -> tuple[DeclaredMember, ...]:
        return (DeclaredMember(name=self.config.broker.name),)

    def seeds(self) -> tuple[str, ...]:
        return (self.config.listen.gossip,)

    def status(self) -> dict[str, Any]:
        return {"code": self.standing.code}

    def stopping(self, reason: str) -> None:
        self.told.append("stopping")

    async def stop(self) -> None:
        assert self.around.running is None
        self.told.append("stopped")
        await self.transport.stop()


@pytest.fixture
async def formation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Told]:
    listen = Listen(native=f"127.0.0.1:{ports()}", admin="off")
    config = Config(broker=Broker(name="a", data_dir=str(tmp_path / "data")), listen=listen, coordination=Coordination(mode="coordinated"))
    made = Told(config)
    made.identified("first")
    await made.transport.start(parse_address(made.config.listen.peer))

    async def opened(config: Config, disk: object, around: Member, *, lone: Callable[[Config], str]) -> Told:
        assert not lone(config)
        made.around = around
        return made

    monkeypatch.setattr(members, "open_formation", opened)
    member = Member(config, tune=False, told=lambda serves: made.told.append("serves" if serves else "ceases"))
    await member.start()
    yield made
    await member.stop()
    assert made.told[-2:] == ["stopping", "stopped"] or made.told[-3:] == ["stopping", "ceases", "stopped"]


async def until(formation: Told, told: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not formation.told or formation.told[-1] != told:
            await asyncio.sleep(0.01)


async def publish(formation: Told, value: bytes) -> None:
    async with await headrace.connect(f"headrace://{formation.config.listen.native}", wait=WAIT_S) as client, asyncio.timeout(WAIT_S):
        while True:
            try:
                await client.declare_queue("orders", replication_factor=1)
                await client.publish("orders", value)
                return
            except HeadraceError as e:  # a broker that has just begun does not know the catalogue yet
                if not e.retriable:
                    raise
            await asyncio.sleep(0.05)


async def waiting(formation: Told) -> list[bytes]:
    async with await headrace.connect(f"headrace://{formation.config.listen.native}", wait=WAIT_S) as client:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return [m.value for m in await client.inspect("orders")]
                except HeadraceError as e:
                    if not e.retriable:
                        raise
                await asyncio.sleep(0.05)


async def test_it_serves_when_and_as_long_as_it_may(formation: Told) -> None:
    member = formation.around
    with pytest.raises(Unavailable, match="b is not reachable"):
        await member.call(control.List())
    status = await member.call(control.Status())
    assert isinstance(status, control.BrokerStatus)
    assert (status.state, status.attention) == ("waiting", ("b is not reachable",))
    with pytest.raises(NotConnected):
        await headrace.connect(f"headrace://{formation.config.listen.native}")

    formation.says(SERVES)
    await until(formation, "serves")
    assert member.running is not None
    life = member.running.broker.incarnation
    assert member.running.broker.id == "first"
    assert formation.transport.me.incarnation == life
    await publish(formation, b"kept")
    status = await member.call(control.Status())
    assert isinstance(status, control.BrokerStatus)
    assert (status.state, status.attention) == ("serving", ())
    shown = await member.call(control.ClusterTopology())
    assert isinstance(shown, control.ClusterTopologyInfo)
    assert [(b.id, b.incarnation, b.voter) for b in shown.brokers] == [("first", life, True)]
    assert [(p.name, p.owner) for p in shown.partitions] == [("orders", "first")]

    formation.says(Standing(State.HALTED, "replaced", "another directory of a is in the cluster"))
    await until(formation, "ceases")
    async with asyncio.timeout(WAIT_S):
        while formation.transport.me.incarnation == life and not formation.transport._closed:
            await asyncio.sleep(0.01)
    with pytest.raises(NotConnected):
        await headrace.connect(f"headrace://{formation.config.listen.native}")
    with pytest.raises(Unavailable, match="another directory"):
        await member.call(control.List())

    formation.says(SERVES)
    await until(formation, "serves")
    assert member.running is not None
    assert member.running.broker.incarnation != life
    assert await waiting(formation) == [b"kept"]
    formation.says(Standing(State.ACTIVE, "no_leader", "serves what it owns; the coordinator has no leader"))
    status = await member.call(control.Status())
    assert isinstance(status, control.BrokerStatus)
    assert (status.state, status.attention[-1]) == ("serving", formation.standing.reason)
    formation.says(Standing(State.DRAINING, "being_removed", "is removed"))
    status = await member.call(control.Status())
    assert isinstance(status, control.BrokerStatus)
    assert status.state == "draining"
    assert formation.told == ["serves", "ceases", "serves"]


async def test_data_that_is_set_aside_is_nobodys_and_another_broker_begins(formation: Told, tmp_path: Path) -> None:
    member = formation.around
    formation.says(SERVES)
    await until(formation, "serves")
    await publish(formation, b"of before")
    await member.quiet("its data is set aside")
    assert member.running is None
    assert not member.draining.is_set(), "its process lives on"
    shutil.move(tmp_path / "data", tmp_path / "aside")  # nothing writes there any more
    formation.says(SERVES)
    await asyncio.sleep(0.2)
    assert member.running is None
    assert not (tmp_path / "data").exists()
    formation.records = Records()
    formation.says(WAITS)
    formation.identified("second")
    formation.says(SERVES)
    await until(formation, "serves")
    assert member.running is not None
    assert member.running.broker.id == "second"


async def test_a_store_of_another_directory_ends_it(formation: Told) -> None:
    formation.says(SERVES)
    await until(formation, "serves")
    formation.says(WAITS)
    await until(formation, "ceases")
    formation.identified("second")
    formation.says(SERVES)
    async with asyncio.timeout(WAIT_S):
        await formation.around.stopped.wait()
    assert isinstance(formation.around.error, StorageError)
    assert "first" in str(formation.around.error)


async def test_an_asked_drain_ends_it_whether_it_serves_or_not(formation: Told) -> None:
    formation.says(SERVES)
    await until(formation, "serves")
    await formation.around.call(control.Drain(grace_ms=10))
    async with asyncio.timeout(WAIT_S):
        await formation.around.draining.wait()
        assert formation.around.drain_grace_ms == 10
        await formation.around.stopped.wait()
    assert formation.around.error is None


async def test_a_config_that_says_exit_ends_it(formation: Told) -> None:
    formation.says(Standing(State.REMOVED, "removed", "version 2 removed it"))
    formation.around.exit("version 2 removed it")
    async with asyncio.timeout(WAIT_S):
        await formation.around.stopped.wait()
    assert formation.around.error is None


async def test_an_address_of_its_own_that_is_in_use_ends_it_and_nothing_stays_open(formation: Told) -> None:
    gossip = parse_address(formation.config.listen.gossip)
    taken = await asyncio.start_server(lambda reader, writer: None, gossip.host, gossip.port)
    async with taken:
        formation.says(SERVES)
        async with asyncio.timeout(WAIT_S):
            await formation.around.stopped.wait()
    assert isinstance(formation.around.error, Unavailable)
    assert str(gossip) in str(formation.around.error)
    assert formation.told == ["stopping", "stopped"]


async def test_who_is_emptied_holds_nothing_in_the_end(formation: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    formation.says(SERVES)
    await until(formation, "serves")
    await publish(formation, b"kept")
    draining = asyncio.ensure_future(formation.around.drain(("b",)))  # there is no such broker, so it has nothing
    await asyncio.wait_for(draining, WAIT_S)
    formation.says(Standing(State.DRAINING, "being_removed", "is removed"))
    draining = asyncio.ensure_future(formation.around.drain(("a",)))
    await asyncio.wait((draining,), timeout=2.5)
    assert not draining.done(), "nobody could take what it owns"
    assert "a cannot be removed yet: something of orders is there" in caplog.text
    draining.cancel()
    cluster = formation.around.running.broker.cluster if formation.around.running is not None else None
    assert cluster is not None
    assert cluster.control.picturing.settings.emptied == ("first",)
    formation.says(SERVES)  # it is listed again
    async with asyncio.timeout(WAIT_S):
        while cluster.control.picturing.settings.emptied:
            await asyncio.sleep(0.01)


def test_a_members_listeners_follow_from_its_declared_address() -> None:
    def listens(declared: str, **given: str) -> SimpleNamespace:
        made = settled(Config(listen=Listen(**given)), declared).listen
        return SimpleNamespace(peer=(made.peer, made.peer_advertise), gossip=(made.gossip, made.gossip_advertise))

    assert listens("10.0.0.1:7000").peer == ("10.0.0.1:7000", "10.0.0.1:7000")
    assert listens("10.0.0.1:7000").gossip == ("10.0.0.1:7001", "10.0.0.1:7001")
    assert listens("one.example:7000").peer == ("0.0.0.0:7000", "one.example:7000")
    assert listens("one.example:7000").gossip == ("0.0.0.0:7001", "one.example:7001")
    assert listens("").peer == ("127.0.0.1:7582", "")
    assert settled(Config(cluster=Cluster(seeds=("one.example:7582",))), "").listen.peer == "0.0.0.0:7582"
    assert listens("").gossip == ("127.0.0.1:7583", "")
    given = listens("one.example:7000", peer="10.0.0.2:7100", gossip="10.0.0.2:0", gossip_advertise="two.example:7300")
    assert (given.peer, given.gossip) == (("10.0.0.2:7100", "one.example:7000"), ("10.0.0.2:0", "two.example:7300"))

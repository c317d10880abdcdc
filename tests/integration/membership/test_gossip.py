"""Gossip on real sockets: several members in one process that join, die, come back, say goodbye; strangers; secrets that are exchanged."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from headrace.cli.ports import neighbours
from headrace.cluster.membership import Changed, Claimed
from headrace.cluster.membership.gossip import Gossip
from headrace.cluster.opening import make_membership, make_transport, read_secrets
from headrace.cluster.rotation import Rotation
from headrace.cluster.secret import Secret, Secrets
from headrace.cluster.transport import Known, Me
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address, Config, Listen, Membership
from headrace.model.errors import Conflict, Invalid, NotFound, Unavailable

OLD, NEW = b"the old secret, long enough", b"the new secret, long enough"

Start = Callable[..., Awaitable[Gossip]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts members; the first started is the seed of all later ones."""
    made: list[Gossip] = []

    async def begin(
        id: str, life: str = "1", *, secrets: Secrets | None = None, cluster: str = "one", host: str = "127.0.0.1", seed: bool = True
    ) -> Gossip:
        seeds = (str(made[0].address),) if made and seed else ()
        settings = Membership(seeds=seeds, probe_interval_ms=100, probe_timeout_ms=50)
        one = Gossip(
            BrokerId(id), cluster, secrets or Secrets([OLD]), settings, at=Address(host, 0), meta={"incarnation": f"{id}-{life}"}
        )  # fmt: skip
        await one.start()
        made.append(one)
        return one

    yield begin
    for one in made:
        await one.close()


async def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def sees(one: Gossip, id: str, state: str, incarnation: str = "") -> bool:
    found = one.member(BrokerId(id))
    return found is not None and found.state == state and incarnation in ("", found.incarnation)


async def test_five_find_each_other_one_dies_and_comes_back_elsewhere(start: Start) -> None:
    members = [await start(id) for id in "abcde"]
    await until(lambda: all(sees(one, id, "alive") for one in members for id in "abcde"))
    assert [m.id for m in members[0].members()] == ["a", "b", "c", "d", "e"]
    events = members[0].events()
    others = [one for one in members if one is not members[2]]
    await members[2].close()
    await until(lambda: all(sees(one, "c", "dead") for one in others))
    states = []
    while "dead" not in states:
        event = await anext(events)
        if isinstance(event, Changed) and event.member.id == "c":
            states.append(event.member.state)
    assert states[-2:] == ["suspect", "dead"]
    await start("c", "2")
    await until(lambda: all(sees(one, "c", "alive", "c-2") for one in others), 5.0)


async def test_a_quick_restart_is_seen_although_no_death_was(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await until(lambda: sees(a, "b", "alive"))
    before = a.member(BrokerId("b"))
    await b.close()
    await start("b", "2")
    await until(lambda: sees(a, "b", "alive", "b-2"), 5.0)
    after = a.member(BrokerId("b"))
    assert before is not None
    assert after is not None
    assert after.run > before.run


async def test_a_goodbye_is_no_death(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await until(lambda: sees(a, "b", "alive"))
    await b.leave()
    await until(lambda: sees(a, "b", "left"))


async def test_what_one_says_of_itself(start: Start) -> None:
    a, b = await start("a"), await start("b")
    await until(lambda: sees(a, "b", "alive"))
    await b.say(rack="r1")
    await until(lambda: dict(a.member(BrokerId("b")).meta) == {"incarnation": "b-1", "rack": "r1"})  # type: ignore[union-attr]
    await b.say(rack="")
    await until(lambda: dict(a.member(BrokerId("b")).meta) == {"incarnation": "b-1"})  # type: ignore[union-attr]
    with pytest.raises(Invalid, match="at most 400"):
        await b.say(much="x" * 500)


async def test_wrong_secrets_and_other_clusters_are_not_heard(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    a = await start("a")
    strangers = [await start("x", secrets=Secrets([NEW])), await start("y", cluster="two")]
    await until(lambda: a.counters()["decrypt_failures"] + a.counters()["decode_errors"] > 0)
    assert [m.id for m in a.members()] == ["a"]
    assert all(len(one.members()) == 1 for one in strangers)


async def test_names_and_ipv6(start: Start) -> None:
    a = await start("a", host="localhost")
    assert a.address.host in ("127.0.0.1", "::1")
    try:
        six = await start("b", host="::1", seed=False)
    except (Unavailable, Invalid):
        pytest.skip("this machine has no IPv6")
    assert six.address.host == "::1"
    c = Gossip(
        BrokerId("c"), "one", Secrets([OLD]), Membership(seeds=(f"localhost:{a.address.port}",)), at=Address("localhost", 0), meta={}
    )  # fmt: skip
    await c.start()
    await until(lambda: sees(a, "c", "alive"))
    await c.close()


async def test_an_address_that_cannot_be_used(start: Start) -> None:
    a = await start("a")
    taken = Gossip(BrokerId("b"), "one", Secrets([OLD]), Membership(), at=a.address, meta={})
    with pytest.raises(Unavailable, match="cannot be opened"):
        await taken.start()
    nowhere = Gossip(BrokerId("b"), "one", Secrets([OLD]), Membership(), at=Address("no-such-host.invalid", 0), meta={})
    with pytest.raises(Unavailable, match="has no address"):
        await nowhere.start()


async def test_an_advertised_address() -> None:
    port = neighbours(1)
    for advertise, seen in ((Address("localhost", 0), Address("127.0.0.1", port)), (Address("127.0.0.1", 4711), Address("127.0.0.1", 4711))):
        one = Gossip(BrokerId("a"), "one", Secrets([OLD]), Membership(), at=Address("0.0.0.0", port), advertise=advertise, meta={})
        await one.start()
        assert one.address == seen
        await one.close()
    neither = Gossip(BrokerId("a"), "one", Secrets([OLD]), Membership(), at=Address("0.0.0.0", 0), advertise=Address("localhost", 0), meta={})
    with pytest.raises(Invalid, match="a port that the system picks"):
        await neither.start()


@pytest.mark.parametrize("earlier_first", [True, False])
async def test_two_processes_of_one_broker_are_told(start: Start, earlier_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    a = await start("a")
    a.claim_s = 0.5
    events = a.events()
    b = await start("b", "1")
    if earlier_first:
        await until(lambda: sees(a, "b", "alive"))
    b2 = await start("b", "2")
    b2.claim_s = b.claim_s = 1e6
    async with asyncio.timeout(10):
        while not isinstance(event := await anext(events), Claimed):
            pass
    assert event.member.id == "b"
    assert "two processes are broker b" in caplog.text


# ---------------------------------------------------------------- secrets, for connections and gossip together


class Broker:
    """What a broker has of a cluster."""

    def __init__(self, id: str, seeds: tuple[str, ...], secrets: Secrets) -> None:
        self.id = BrokerId(id)
        config = Config(listen=Listen(peer="127.0.0.1:0", gossip="127.0.0.1:0"), membership=Membership(seeds=seeds))
        self.secrets = secrets
        self.transport = make_transport(config, Me(broker=self.id, incarnation=Incarnation("1"), cluster="one"), self.secrets)
        self.membership = make_membership(config, self.id, "one", self.secrets, {"incarnation": "1"})
        self.rotation = Rotation(self.secrets, self.transport, lambda: self.membership)

    async def start(self) -> None:
        await self.transport.start(Address("127.0.0.1", 0))
        await self.membership.start()

    async def stop(self) -> None:
        await self.transport.stop()
        await self.membership.leave()


async def test_a_rotation_by_command_while_all_goes_on() -> None:
    brokers: list[Broker] = []
    for id in "abc":
        brokers.append(Broker(id, tuple(str(b.membership.address) for b in brokers[:1]), Secrets([OLD])))
        await brokers[-1].start()
    for one in brokers:
        one.transport.know({b.id: Known(Address("127.0.0.1", b.transport.port)) for b in brokers})

    def whole() -> bool:
        others = [(one, other) for one in brokers for other in brokers if one is not other]
        return all(one.transport.connected(other.id) and one.membership.member(other.id) is not None for one, other in others)

    await until(whole)
    a, b, c = brokers
    old, new = Secret(OLD).id.hex(), Secret(NEW).id.hex()
    with pytest.raises(NotFound):
        await a.rotation.use(new)
    for one in brokers:
        assert await one.rotation.add(NEW) == new
    await a.rotation.use(new)
    with pytest.raises(Conflict, match="still used by b, c"):
        await a.rotation.remove(old)
    await b.rotation.use(new)
    await c.rotation.use(new)
    with pytest.raises(Conflict, match="in use here"):
        await a.rotation.remove(new)
    for one in brokers:
        await one.rotation.remove(old)
    await until(whole)
    assert [one.rotation.ids() for one in brokers] == [[new]] * 3
    await asyncio.sleep(1.0)  # ten probes: nobody is suspected for long
    await until(lambda: all(m.state == "alive" for one in brokers for m in one.membership.members()))
    late = Broker("d", (str(a.membership.address),), Secrets([OLD]))
    await late.start()
    failures = a.membership.counters()["decrypt_failures"]
    assert await late.membership.join((a.membership.address,)) == 0
    assert a.membership.counters()["decrypt_failures"] > failures
    assert a.membership.member(late.id) is None
    for one in (*brokers, late):
        await one.stop()


def test_secret_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "secret"
    with pytest.raises(Invalid, match="no cluster secret is given"):
        read_secrets("")
    with pytest.raises(Invalid, match="cannot be read"):
        read_secrets(str(path))
    path.write_text("# ours\n" + NEW.decode() + "\n")
    path.chmod(0o600)
    assert read_secrets(str(path)).used.id == Secret(NEW).id
    assert not caplog.text
    path.chmod(0o644)
    read_secrets(str(path))
    assert "chmod 600" in caplog.text


STANDALONE = """
import asyncio, sys
from headrace import testing

async def main():
    async with testing.broker(storage="memory") as broker:
        pass

asyncio.run(main())
import headrace.broker.run, headrace.cli
loaded = [m for m in sys.modules if m.split(".")[0] == "kinship" or m.startswith(("headrace.cluster.transport", "headrace.cluster.membership"))]
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_a_lone_broker_loads_nothing_of_it() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", STANDALONE], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr

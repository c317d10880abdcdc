"""Seeds: how they are written, and which addresses they are; a service record is asked of a name server in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import cast

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cluster.formation.seeking import addresses, every, service
from headrace.config import load
from headrace.model.config import Address
from headrace.model.errors import HeadraceError, Invalid, NotFound, Unavailable
from headrace.model.seeds import seed_mistake


@pytest.mark.parametrize("text", ["a:7582", "a.example:1", "10.0.0.1:7582", "[::1]:7582", "srv:_peer._tcp.h", "srv:_peer._tcp.h.default.svc"])
def test_a_seed_is_a_machine_with_its_port_or_a_service(text: str) -> None:
    assert seed_mistake(text) == ""


@pytest.mark.parametrize(
    "text", ["", "a", "a:", "a:0", "a:65536", ":7582", "0.0.0.0:7582", "[::]:7582", "srv:", "srv:a b", "http://a:1", "a:1:2", "a" * 300]
)
def test_anything_else_is_a_mistake_that_says_what_to_write(text: str) -> None:
    assert "HOST:PORT" in seed_mistake(text) or "srv:" in seed_mistake(text) or "at most" in seed_mistake(text)
    with pytest.raises(Invalid, match=r"cluster\.seeds") if text else nullcontext():
        load(None, {}, {"cluster.seeds": ("--seeds", text), "coordination.mode": ("--seeds", "coordinated")})


@given(st.text(max_size=40) | st.text(max_size=20).map(lambda t: f"srv:{t}") | st.text(max_size=20).map(lambda t: f"{t}:7582"))
async def test_whatever_is_written_is_refused_or_looked_up(text: str) -> None:
    if seed_mistake(text):
        return
    try:
        async with asyncio.timeout(0.001):
            await addresses(text)
    except (HeadraceError, TimeoutError):
        pass


class Names(asyncio.DatagramProtocol):
    """A name server of a few lines."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text(omit_final_dot=True)
        self.asked.append(name)
        answer = dns.message.make_response(query)
        if found := self.records.get(name):
            answer.answer.append(dns.rrset.from_text(f"{name}.", 5, "IN", "SRV", *found))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), addr)  # type: ignore[arg-type]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Names]:
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(Names, local_addr=("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], transport.get_extra_info("sockname")[1]
    monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
    yield made
    transport.close()


async def test_a_service_is_its_machines_and_ports(names: Names) -> None:
    names.records["_peer._tcp.headrace"] = ["10 0 7592 localhost.", "5 0 7582 localhost.", "20 0 7602 ."]
    assert await service("_peer._tcp.headrace") == [Address("localhost", 7582), Address("localhost", 7592)]
    found = await addresses("srv:_peer._tcp.headrace")
    assert {at.port for at in found} == {7582, 7592}
    assert all(at.host in ("127.0.0.1", "::1") for at in found)
    names.records["_peer._tcp.headrace"] = ["5 0 7999 localhost."]
    assert {at.port for at in await addresses("srv:_peer._tcp.headrace")} == {7999}, "it is looked up anew"


async def test_what_has_no_address_says_so_and_keeps_no_other_out(names: Names) -> None:
    names.records["_peer._tcp.gone"] = ["5 0 7582 nobody.invalid."]
    with pytest.raises(Unavailable, match="no service record of _peer"):
        await addresses("srv:_peer._tcp.nothing")
    with pytest.raises(NotFound, match="none of the machines"):
        await addresses("srv:_peer._tcp.gone")
    found, wrong = await every(["srv:_peer._tcp.nothing", "127.0.0.1:7582", "nobody.invalid:1", "127.0.0.1:7582"])
    assert found == [Address("127.0.0.1", 7582)], "each once"
    assert len(wrong) == 2

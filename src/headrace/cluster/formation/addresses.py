"""Where a broker's etcd is, by the one address that a declared config has of it: the ports next to its peer listener's.

What a broker's own listeners are told follows from the same address, where its configuration names no other.

A declared member is ``HOST:PORT`` of its peer listener. The port after that is its gossip's, the second its etcd's for clients, the third its etcd's
for other voters, as the default ports are. So a config needs no more than one address a member, and all brokers know all places without asking.

Owns that rule and what it makes impossible. Knows no etcd.
"""

from ipaddress import ip_address
from typing import Final

from msgspec.structs import replace

from headrace.core.formation.parsing import Mistake
from headrace.model.config import Address, Config, parse_address
from headrace.model.formation import Declared
from headrace.model.ports import DefaultPort

GOSSIP: Final = DefaultPort.GOSSIP - DefaultPort.PEER
ETCD_CLIENT: Final = DefaultPort.ETCD_CLIENT - DefaultPort.PEER
ETCD_PEER: Final = DefaultPort.ETCD_PEER - DefaultPort.PEER
PORT_MAX: Final = 65_535 - max(GOSSIP, ETCD_CLIENT, ETCD_PEER)

assert 0 < GOSSIP < ETCD_CLIENT < ETCD_PEER


def _beside(address: str, step: int) -> Address:
    at = parse_address(address)
    return Address(at.host, at.port + step)


def gossip(address: str) -> Address:
    return _beside(address, GOSSIP)


def etcd_client(address: str) -> Address:
    return _beside(address, ETCD_CLIENT)


def etcd_peer(address: str) -> Address:
    return _beside(address, ETCD_PEER)


def mistakes(config: Declared) -> tuple[Mistake, ...]:
    """Ports that one host cannot have twice, or that there are none of."""
    found: list[Mistake] = []
    taken: dict[tuple[str, int], str] = {}
    for member in config.members:
        at = parse_address(member.address)
        if not 0 < at.port <= PORT_MAX:
            found.append(Mistake(f"members.{member.name}.address", f"its port lies in 1 to {PORT_MAX}: the next {ETCD_PEER} belong to it as well"))
            continue
        for step in (0, GOSSIP, ETCD_CLIENT, ETCD_PEER) if member.role == "voter" else (0, GOSSIP):
            other = taken.setdefault((at.host, at.port + step), member.name)
            if other != member.name:
                what = f"port {at.port + step} of {at.host} would be {other}'s too: keep their addresses {ETCD_PEER + 1} ports apart"
                found.append(Mistake(f"members.{member.name}.address", what))
                break
    return tuple(found)


def settled(config: Config, declared: str) -> Config:
    """``config`` with all of ``listen.peer`` and ``listen.gossip`` filled in, by this broker's ``declared`` address ("" = it has none)."""
    listen = config.listen
    anywhere = "0.0.0.0" if config.cluster.seeds else "127.0.0.1"  # who looks for others elsewhere is to be reached from there
    peer = listen.peer or (str(_bound(parse_address(declared))) if declared else f"{anywhere}:{DefaultPort.PEER.value}")
    advertise = listen.peer_advertise or declared
    port = parse_address(peer).port
    near = str(_beside(peer, GOSSIP)) if port else str(parse_address(peer))
    told = str(gossip(advertise)) if advertise and not listen.gossip else ""
    return replace(
        config,
        listen=replace(listen, peer=peer, peer_advertise=advertise, gossip=listen.gossip or near, gossip_advertise=listen.gossip_advertise or told),
    )


def _bound(declared: Address) -> Address:
    """A name may lead to this machine from others only, so all of its addresses are bound."""
    try:
        ip_address(declared.host)
    except ValueError:
        return declared if declared.host == "localhost" else Address("0.0.0.0", declared.port)
    return declared

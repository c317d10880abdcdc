"""Where a broker's etcd is, by the one address that a declared config has of it: the ports next to its peer listener's.

A declared member is ``HOST:PORT`` of its peer listener. The port after that is its gossip's, the second its etcd's for clients, the third its etcd's
for other voters, as the default ports are. So a config needs no more than one address a member, and all brokers know all places without asking.

Owns that rule and what it makes impossible. Knows no etcd.
"""

from typing import Final

from headrace.core.formation.parsing import Mistake
from headrace.model.config import Address, parse_address
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

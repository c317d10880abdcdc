"""From the configuration to a running voter and a client of it: what ``[coordination]`` means.

Owns the paths, the files that are read and which addresses are asked. Does not decide who votes; formation hands that in.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.cluster.etcd.calls import Access
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.command import Voter, timings
from headrace.cluster.etcd.program import find
from headrace.cluster.etcd.supervisor import Supervisor
from headrace.model.config import Address, Config, parse_address
from headrace.model.errors import Invalid

FOLDER = "etcd"


def folder_of(config: Config) -> Path:
    """Where this broker's voter keeps everything."""
    return Path(config.coordination.etcd.data_dir or Path(config.broker.data_dir) / FOLDER).absolute()


def free_port(address: Address) -> Address:
    """``address``, with a port that is free now in the place of 0: for tests and for several brokers on one host."""
    if address.port:
        return address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as held:
        held.bind((address.host, 0))
        return Address(address.host, held.getsockname()[1])


async def open_voter(config: Config, name: str, members: Mapping[str, Address], *, token: str, founding: bool, tryout: bool = False) -> Supervisor:
    """Starts (or adopts) this broker's etcd as member ``name`` of ``members`` (name to peer address); ask the result when it is ``ready``.
    ``ProgramMissing`` and ``ProgramUnsuitable`` say what to install."""
    coordination, folder = config.coordination, folder_of(config)
    client, peer = parse_address(coordination.etcd.client_addr), parse_address(coordination.etcd.peer_addr)
    if members.get(name) != peer:
        raise Invalid(f"voter {name} is declared at {members.get(name)}, but its coordination.etcd.peer_addr is {peer}", hint="make them the same")
    heartbeat_ms, election_ms = timings(list(members.values()), heartbeat_ms=coordination.heartbeat_ms, election_ms=coordination.election_ms)
    voter = Voter(
        name=name, data_dir=str(folder / "data"), client=client, peer=peer, members=members, founding=founding, token=token,
        heartbeat_ms=heartbeat_ms, election_ms=election_ms, snapshot_count=coordination.snapshot_count,
    )  # fmt: skip
    program = await asyncio.to_thread(find, coordination.etcd.binary, tryout=tryout)
    supervisor = Supervisor(program, voter, folder)
    await supervisor.start()
    return supervisor


async def open_client(config: Config, voters: Sequence[str] = ()) -> EtcdCoordinator:
    """A client of the external endpoints if there are any, else of ``voters`` (client addresses, this broker's own first)."""
    etcd = config.coordination.etcd
    return EtcdCoordinator(etcd.endpoints or voters, await asyncio.to_thread(_access, config))


def _access(config: Config) -> Access:
    etcd = config.coordination.etcd
    return Access(
        ca=_file(etcd.tls.ca, "tls.ca"), cert=_file(etcd.tls.cert, "tls.cert"), key=_file(etcd.tls.key, "tls.key"), user=etcd.user,
        password=_file(etcd.password_file, "password_file").decode().strip(),
    )  # fmt: skip


def _file(path: str, setting: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise Invalid(f"coordination.etcd.{setting}: {path} cannot be read: {e.strerror or e}", hint="correct the path or its permissions") from None

"""How etcd is started: one value with all that a voter needs, and the command line that says so in each accepted version.

Owns flags and timings. Pure: no file, no process. Does not know who forms the cluster; that hands in the members.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from headrace.cluster.etcd.program import Version
from headrace.model.config import Address

HEARTBEAT_MS, ELECTION_MS = 50, 500
HEARTBEAT_ONE_HOST_MS, ELECTION_ONE_HOST_MS = 25, 250
QUOTA_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Size of etcd's database at which it takes no more writes; Headrace's documents need a few megabytes."""
REVISIONS_KEPT: Final = 10_000
REQUEST_BYTES: Final = 2 * 1024 * 1024


class Voter(msgspec.Struct, frozen=True, kw_only=True):
    """One member of etcd as it is to be run. ``members``: every member's name and peer address, this one's included; ``founding``: all of them start
    now for the first time (otherwise this one was added to them). ``listen_host``: what is bound, "" = the addresses that others are told; ``alone``:
    goes on with its data and without the other members, for good."""

    name: str
    data_dir: str
    client: Address
    peer: Address
    members: Mapping[str, Address]
    founding: bool
    token: str
    heartbeat_ms: int
    election_ms: int
    snapshot_count: int
    listen_host: str = ""
    alone: bool = False


def timings(members: Sequence[Address], *, heartbeat_ms: int = 0, election_ms: int = 0) -> tuple[int, int]:
    """Heartbeat and election timeout; 0 = chosen: shorter where all members are on this host, for no network delays them."""
    here = all(on_this_host(m.host) for m in members)
    return (
        heartbeat_ms or (HEARTBEAT_ONE_HOST_MS if here else HEARTBEAT_MS),
        election_ms or max(ELECTION_ONE_HOST_MS if here else ELECTION_MS, 10 * heartbeat_ms),
    )


def on_this_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def arguments(voter: Voter, version: Version, listen: Mapping[str, str]) -> list[str]:
    """Everything after the program's name. ``listen``: the IP address of each host that is bound, for etcd binds no names."""
    hosts = (voter.listen_host or a.host for a in (voter.client, voter.peer))
    client, peer = (str(Address(listen.get(h, h), a.port)) for h, a in zip(hosts, (voter.client, voter.peer), strict=True))
    flags = {
        "name": voter.name,
        "data-dir": voter.data_dir,
        "listen-client-urls": f"http://{client}",
        "advertise-client-urls": f"http://{voter.client}",
        "listen-peer-urls": f"http://{peer}",
        "initial-advertise-peer-urls": f"http://{voter.peer}",
        "initial-cluster": ",".join(f"{name}=http://{address}" for name, address in voter.members.items()),
        "initial-cluster-state": _state(founding=voter.founding),
        "initial-cluster-token": voter.token,
        "heartbeat-interval": str(voter.heartbeat_ms),
        "election-timeout": str(voter.election_ms),
        "pre-vote": "true",
        "strict-reconfig-check": "false",  # it would let nobody in while a voter is away: the dead could not be replaced. Voting asks instead
        "snapshot-count": str(voter.snapshot_count),
        "quota-backend-bytes": str(QUOTA_BYTES),
        "auto-compaction-mode": "revision",
        "auto-compaction-retention": str(REVISIONS_KEPT),
        "max-request-bytes": str(REQUEST_BYTES),
        "grpc-keepalive-min-time": "2s",
        "log-level": "warn",
        "logger": "zap",
        "log-outputs": "stderr",
    }
    if version < (3, 6, 0):
        flags["enable-v2"] = "false"
    return [f"--{name}={value}" for name, value in flags.items()] + (["--force-new-cluster"] if voter.alone else [])


def _state(*, founding: bool) -> Literal["new", "existing"]:
    return "new" if founding else "existing"

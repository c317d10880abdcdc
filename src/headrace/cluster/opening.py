"""Transport and membership as the configuration says, for a broker in coordinated mode. Nothing here is imported by a lone broker.

Owns which setting becomes what. The broker starts, feeds (``Transport.know``) and stops what is made here.
"""

import os
import stat
from collections.abc import Mapping

from headrace.cluster.membership.interface import Membership
from headrace.cluster.secret import Secrets, secret_lines
from headrace.cluster.transport import Me, Settings, Transport
from headrace.log import get_logger
from headrace.model.cluster import BrokerId
from headrace.model.config import Config, parse_address
from headrace.model.errors import Invalid

_log = get_logger("membership")
_FILE_BYTES_MAX = 64 * 1024
MAKE = "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > cluster-secret)"


def read_secrets(path: str) -> Secrets:
    """The cluster's secrets in ``path``; ``Invalid`` if there are none. Warns if others than the owner may read it."""
    return Secrets(read_secret_lines(path))


def read_secret_lines(path: str) -> list[bytes]:
    """As ``read_secrets``, the used one first."""
    if not path:
        raise Invalid(
            "no cluster secret is given: the brokers of a cluster know each other by it",
            hint=f"make one ({MAKE}), give every broker the same file, and name it with --secret-file or peers.secret_file",
        )
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_FILE_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as e:
        hint = f"correct peers.secret_file (--secret-file) or the file's owner, or make one: {MAKE}"
        raise Invalid(f"the cluster secret's file {path} cannot be read: {e}", hint=hint) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("others than its owner may read the cluster's secret in %s; chmod 600 it", path)
    return secret_lines(text)


def make_transport(config: Config, me: Me, secrets: Secrets) -> Transport:
    """To be started at ``listen.peer``."""
    peers = config.peers
    return Transport(me, secrets, Settings(queue_bytes_max=peers.queue_bytes_max, compression=peers.compression))


def make_membership(config: Config, id: BrokerId, cluster: str, secrets: Secrets, meta: Mapping[str, str]) -> Membership:
    """At ``listen.gossip``. Bound to every address and told none to advertise, the one that leads to the network is advertised."""
    from headrace.cluster.membership.gossip import Gossip

    listen = config.listen
    advertise = parse_address(listen.gossip_advertise) if listen.gossip_advertise else None
    return Gossip(id, cluster, secrets, config.membership, at=parse_address(listen.gossip), advertise=advertise, meta=meta)

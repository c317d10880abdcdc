"""What a coordinated broker is given as its configuration says: an etcd that runs anyway, TCP between brokers, gossip.

Owns which setting becomes what. Voters of its own are not started here: who votes is formation's affair.
"""

from headrace import __version__
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.etcd.opening import open_client
from headrace.cluster.membership import Membership
from headrace.cluster.opening import make_membership, make_transport, read_secrets
from headrace.cluster.transport import Me, Transport
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Config
from headrace.model.errors import Invalid


class Configured:
    """Implements ``cluster.Means``."""

    def __init__(self, config: Config, cluster: str) -> None:
        """``cluster``: its id, the same on all its brokers. ``Invalid`` for a configuration without endpoints or secret."""
        if not config.coordination.etcd.endpoints:
            raise Invalid("no coordinator is named", hint="set coordination.etcd.endpoints")
        self._config = config
        self._cluster = cluster
        self._secrets = read_secrets(config.peers.secret_file)

    async def coordinator(self, me: BrokerId) -> Coordinator:
        return await open_client(self._config)

    def transport(self, me: BrokerId, incarnation: Incarnation) -> Transport:
        introduced = Me(broker=me, incarnation=incarnation, cluster=self._cluster, release=__version__)
        return make_transport(self._config, introduced, self._secrets)

    def membership(self, me: BrokerId, incarnation: Incarnation) -> Membership:
        return make_membership(self._config, me, self._cluster, self._secrets, {"incarnation": incarnation})

"""Control as the configuration says, on the transport and membership of a broker in coordinated mode.

Owns which setting becomes what, and that the transport dials whom the coordinator knows. The broker starts and stops what is made here, beside the
transport and membership that it has made itself.
"""

from collections.abc import Callable, Mapping

from headrace.ambient import ambient
from headrace.cluster.control.control import Control
from headrace.cluster.control.sightings import PEER, Sightings
from headrace.cluster.coordinator import Coordinator
from headrace.cluster.membership.interface import Membership
from headrace.cluster.transport import Known, Transport
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Incarnation, Registered
from headrace.model.config import Config, parse_address
from headrace.model.errors import Invalid

_log = get_logger("cluster")


def registration(config: Config, id: BrokerId, incarnation: Incarnation, *, addresses: Mapping[str, str], host: str, release: str) -> Registered:
    """What this broker says of itself. ``addresses``: as advertised, by listener, ``peer`` among them; ``host``: the machine's name."""
    return Registered(
        id=id, name=config.broker.name or id, incarnation=incarnation, addresses=dict(addresses), rack=config.broker.rack, host=host, release=release,
        started_wall_ms=ambient().wall_ns() // 1_000_000,
    )  # fmt: skip


def make_control(
    config: Config,
    coordinator: Coordinator,
    membership: Membership,
    transport: Transport,
    me: Registered,
    *,
    lost: Callable[[str], None] = lambda reason: None,
    displaced: Callable[[Incarnation], None] = lambda other: None,
) -> tuple[Control, Sightings]:
    """Both to be started (sightings after membership) and, in the other order, stopped."""
    sightings = Sightings(me.id, membership, transport)
    control = Control(
        coordinator, sightings, me, ttl_ms=config.coordination.registration_ttl_ms, placement=config.placement, lost=lost, displaced=displaced
    )
    control.mirror.on_turn(lambda: transport.know(_known(control.picturing.brokers(), me.id)))
    return control, sightings


def _known(brokers: Mapping[BrokerId, Registered], me: BrokerId) -> dict[BrokerId, Known]:
    """Whom the transport shall be connected with: those who are gone too, since they come back."""
    known: dict[BrokerId, Known] = {}
    for id, registered in brokers.items():
        try:
            if id != me:
                known[id] = Known(parse_address(registered.addresses.get(PEER, "")), registered.incarnation)
        except Invalid:
            _log.warning("broker %s registered no address for its peers", id)
    return known

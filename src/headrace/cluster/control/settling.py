"""The cluster's runtime settings of placement and planning: documents that begin with this broker's configuration and are then changed by
compare-and-swap.

Owns those two documents. Does not act by them.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from msgspec.structs import asdict

from headrace.ambient import ambient
from headrace.cluster.coordinator import Coordinator
from headrace.log import get_logger
from headrace.model import config
from headrace.model.cluster import PLACEMENT_KEY, PLANNING_KEY, Mode, Placement, Planning, decode, encode
from headrace.model.errors import Invalid, Unavailable

_log = get_logger("cluster")
_TRIES: Final = 16

D = TypeVar("D", Placement, Planning)


def configured(section: config.Placement) -> Placement:
    """What a cluster begins with."""
    return Placement(strategy=section.strategy, virtual_nodes=section.virtual_nodes, copies_per_broker_max=section.copies_per_broker_max)


async def begin(coordinator: Coordinator, section: config.Placement) -> Placement:
    """The cluster's settings, made from ``section`` if there are none yet."""
    document = await coordinator.get(PLACEMENT_KEY)
    if document is None:
        first = configured(section)
        if await coordinator.transact({PLACEMENT_KEY: 0}, {PLACEMENT_KEY: encode(first)}):
            return first
        document = await coordinator.get(PLACEMENT_KEY)
    return configured(section) if document is None else decode(Placement, document.value)


async def change_placement(coordinator: Coordinator, changes: dict[str, object]) -> Placement:
    """``Invalid`` for unknown settings and values out of bounds; nothing was changed then."""
    unknown = sorted(set(changes) - set(Placement.__struct_fields__))
    if unknown:
        raise Invalid(f"placement has no setting {', '.join(unknown)}; it has {', '.join(Placement.__struct_fields__)}")
    new = await _swap(coordinator, PLACEMENT_KEY, Placement, lambda old: Placement(**{**asdict(old), **changes}))
    _log.info("placement is set anew: %s", ", ".join(f"{name} = {value!r}" for name, value in sorted(changes.items())))
    return new


async def change_planning(coordinator: Coordinator, mode: Mode, *, by: str, reason: str = "") -> Planning:
    """Pauses planning in the whole cluster, lets it go on, or lets it only say what it would do."""
    wall_ms = ambient().wall_ns() // 1_000_000
    new = Planning(mode=mode, by=by, reason=reason, since_wall_ms=wall_ms)
    return await _swap(coordinator, PLANNING_KEY, Planning, lambda old: new)


async def _swap(coordinator: Coordinator, key: str, kind: type[D], change: Callable[[D], D]) -> D:
    for _ in range(_TRIES):
        document = await coordinator.get(key)
        old: D = kind() if document is None else decode(kind, document.value)
        new = change(old)
        if await coordinator.transact({key: document.version if document else 0}, {key: encode(new)}):
            return new
    raise Unavailable(f"{key} is being changed by others; try again")

"""Who of a group may use one partition, kept where that is served: the only arbiter between two members that both believe it theirs.

Owns the order in which a partition passes from one member to the next. The group's home has decided before (``groups``); here a member shows the
generation in which it was told.

Invariants: H1 one member of a group at a time is attached to a partition, the one of the newest generation that came. H2 what the one before had
leased is back before the next is granted anything. H3 beside a cohort nobody else consumes a partition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.broker.queue_partition import QueuePartition
from headrace.broker.session import Session
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import Subscription, member_id
from headrace.model.errors import Conflict, Fenced, Invalid
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

GENERATION_MAX = 1 << 62


def check(broker: Broker, asked: control.Subscribe | control.SubscribeStream, group: str) -> None:
    """Raises ``Invalid`` unless a group, partitions and a seat are named as a lone broker, or one of several, needs them."""
    if not asked.seat:
        if group and broker.cluster is not None:
            raise Invalid("in a cluster the members of a cohort or group join it first", hint="send group.join, then name its token as the seat")
        if group and asked.partitions:
            raise Invalid("a cohort or group assigns the partitions; name it or partitions, not both")
        return
    if broker.cluster is None or not group or not asked.partitions:
        raise Invalid("a seat is shown in a cluster, with the name of its cohort or group and the partitions that it was given")
    if not 0 < asked.seat < 1 << 64 or not 0 < asked.generation < GENERATION_MAX:
        raise Invalid(f"a seat is a token of 64 bits, its generation lies in 1..{GENERATION_MAX - 1}")


def take(
    broker: Broker,
    partition: QueuePartition | StreamPartition,
    session: Session,
    asked: control.Subscribe | control.SubscribeStream,
    group: str,
    owner_token: int,
) -> None:
    """Gives ``partition`` to the member that ``asked`` names. ``Fenced`` if it was given to another since, ``Conflict`` if others consume it."""
    partition.activate()
    mine = session.subscriptions.get(asked.token) if asked.token else None
    others: list[Subscription] = [s for s in partition.subscriptions.values() if s is not mine]
    if isinstance(partition, QueuePartition) and any(s.group != group for s in others):
        raise Conflict(
            f"partition {partition.number} of {partition.item.name!r} has consumers that are not of the cohort {group!r}",
            hint="let all consumers of a queue join one cohort",
        )
    partition.groups.hold(group, asked.generation, member_id(session, asked.seat))
    broker.mark(partition)
    for other in others:
        if other.group == group:
            what = f"partition {partition.number} of {partition.item.name!r}"
            broker.sessions.end(other, Fenced(f"{what} was given to another member of {group!r} in generation {asked.generation}"))
    if isinstance(partition, QueuePartition):
        partition.machine.release_absent(owner_token, broker.now_ms, broker.wall_ms)

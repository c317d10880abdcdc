"""How far a copy of a partition comes on one broker of a simulated cluster, whether that has taken it up or not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.broker.cluster import Cluster
from headrace.model.cluster import Assignment


class Held(NamedTuple):
    """How far a copy comes: exclusive ends of what is durable, of what is known to be committed, of all."""

    durable: int
    committed: int
    end: int


def held_of(cluster: Cluster, pid: int) -> Held | None:
    """Of a sound copy that a broker has; None: it has none."""
    if cluster.driver.unfit(pid):
        return None
    copy = cluster.copies.get(pid)
    if copy is not None:
        journal = copy.replicated.replica.journal
        return Held(journal.durable_end, journal.high_watermark, journal.end)
    if cluster.dormant.document(pid) is None:
        return None
    store: Any = cluster.broker.store
    end = store._ground.part(pid).last_index + 1  # all of it was moved, as it is dormant
    return Held(end, end, end)


def strays(cluster: Cluster, documents: Sequence[Assignment]) -> list[int]:
    """The partitions of which a broker has data although it has no copy."""
    return [a.partition for a in documents if cluster.broker.id not in a.copies and cluster.driver.keeps(a.partition)]

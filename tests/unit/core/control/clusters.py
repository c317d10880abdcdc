"""Small clusters for tests: brokers by letter, one queue, and what is seen of each."""

from typing import Any

from msgspec.structs import replace

from headrace.core.control.picture import Item, Picture, Seen, Stored
from headrace.model.cluster import Assignment, BrokerId, Incarnation, Placement, Registered
from headrace.model.ids import PartitionId
from headrace.model.specs import Durability

NOW = 1_000_000
A, B, C, D, E = (BrokerId(name) for name in "abcde")
P = PartitionId(1)


def seen(broker: BrokerId, **what: Any) -> Seen:
    """A broker that is alive unless ``what`` says otherwise; ``draining`` goes to its registration."""
    registered = Registered(id=broker, name=f"broker-{broker}", incarnation=Incarnation(f"life-{broker}"), draining=what.pop("draining", False))
    return Seen(registered=registered, **{"swim": "alive", **what})


def dead(broker: BrokerId, *, ms: int = 0) -> Seen:
    """A broker that died ``ms`` ago."""
    return seen(broker, swim="dead", probe_failed=True, present=False, since_ms=NOW - ms)


def owned(level: Durability = "replica_durable", **what: Any) -> Assignment:
    """Partition 1 of ``orders``, owned by a, copied by b and c, all in sync."""
    isr = (A, B, C) if level == "replica_durable" else ()
    base = Assignment(partition=P, item="orders", owner=A, level=level, floor=2, replicas=(A, B, C), isr=isr, preferred=A, version=7)
    return replace(base, **what)


def picture(a: Assignment | None, *brokers: Seen, factor: int = 3, **what: Any) -> Picture:
    """One queue ``orders`` of one partition with ``a`` as its assignment, under version 70 in the coordinator; a, b and c are alive unless given."""
    given = {b.id: b for b in brokers}
    everyone = {**{b: seen(b) for b in (A, B, C)}, **given}
    level: Durability = a.level if a else "replica_durable"
    stored = (Stored(a, 70),) if a else ()
    settings = Placement(**what.pop("settings", {}))
    item = Item("id", "orders", (P,), level, 2, factor)
    return Picture(now_ms=NOW, items=(item,), brokers=tuple(everyone.values()), stored=stored, settings=settings, **what)

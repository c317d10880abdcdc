"""What a seed makes of the small world: how many brokers, which level, which faults, how often."""

from collections.abc import Sequence

import msgspec

from headrace.core.replica.peer import Pace
from headrace.model.cluster import BrokerId
from headrace.model.specs import Durability
from headrace.sim.chance import Chance

FAULTS = ("crash", "stop", "all", "reset", "slow", "off", "cut", "one-way")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's head. Probabilities are of each occasion."""

    seed: int
    brokers: int
    replicas: int
    level: Durability
    floor: int
    faults_ms: int
    faults: Sequence[tuple[float, str]]
    fault_ms_max: int
    sync_ms_max: int
    delay_ms_max: int
    loss: float
    """Of messages, without the connection breaking."""
    duplicated: float
    swap_lost: float
    suspicion: float
    """That the controller takes the partition away from an owner that lives."""
    moves: float
    altered: bool
    trim: float
    publish_ms_max: int
    pace: Pace
    lying: BrokerId = BrokerId("")
    """A broker whose disk forgets synced entries in a crash."""


def drawn(seed: int) -> Plan:
    """The plan of that seed."""
    chance = Chance(seed, "plan")
    brokers = chance.pick([(1, 1), (3, 2), (10, 3), (3, 4), (2, 5)])
    lying = brokers >= 3 and chance.happens(0.15)
    replicas = min(brokers, chance.pick([(1, 1), (2, 2), (6, 3), (1, 5)]))
    if lying:
        replicas = max(3, replicas)
    level: Durability = chance.pick([(6, "replica_durable"), (4, "majority_durable"), (0.0 if lying else 0.5, "local_durable")])
    if replicas == 1:
        level = "local_durable" if chance.happens(0.6) else "majority_durable"
    floor = chance.randrange(1, min(3, replicas) + 1)
    if lying:
        floor = max(2, floor)
    kinds = [kind for kind in FAULTS if chance.happens(0.6)] or ["crash"]
    if lying:
        kinds = ["crash", "cut", "alone", *(kind for kind in kinds if kind in ("slow", "reset", "off", "stop"))]
    weights = {"alone": 6.0, "crash": 4.0, "stop": 1.0, "all": 0.6, "reset": 2.0, "slow": 1.0, "off": 1.0, "cut": 1.0, "one-way": 1.0}
    return Plan(
        seed=seed,
        brokers=brokers,
        replicas=replicas,
        level=level,
        floor=floor,
        faults_ms=chance.randrange(1_000, 3_500) if lying else chance.randrange(300, 2_500),
        faults=[(weights[k], k) for k in kinds],
        fault_ms_max=chance.choice([700, 2500] if lying else [80, 200, 500, 1000]),
        sync_ms_max=chance.choice([1, 4, 30]),
        delay_ms_max=chance.choice([1, 4, 40]),
        loss=chance.choice([0.0, 0.0, 0.005, 0.05]),
        duplicated=chance.choice([0.0, 0.02, 0.2]),
        swap_lost=chance.choice([0.0, 0.1, 0.4]),
        suspicion=chance.choice([0.0, 0.0 if lying else 0.02, 0.1, 0.1 if lying else 0.4]),
        moves=chance.choice([0.0, 0.1, 0.4]),
        altered=chance.happens(0.5),
        trim=chance.choice([0.0, 0.5]),
        publish_ms_max=chance.choice([15, 50, 150]),
        pace=chance.choice([Pace(), Pace(window=7, append=2), Pace(window=40, append=10)]),
        lying=BrokerId(chance.choice(["b0", "b0", "b1"])) if lying else BrokerId(""),
    )

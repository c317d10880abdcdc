"""One run, written down: what the brokers are set to, how fast disks and links are, what is done and what goes wrong when.

A scenario is drawn from a seed by ``swarm.draw`` and can be reduced and kept as JSON: a failing run is repeated from its seed, a shrunk one from its
scenario. Nothing else decides anything.
"""

from typing import Literal

import msgspec

from headrace.sim.workload import Plan
from headrace.sim.world import Speeds

FaultKind = Literal[
    "kill", "power", "stop", "pause", "cut", "reset", "sync_error", "write_error", "full", "slow", "clock", "flip", "stale", "state_lost"
]  # fmt: skip
DAMAGE: frozenset[str] = frozenset({"flip", "stale", "state_lost"})
"""Faults that no single copy survives: what they hit may be quarantined, and must never be served wrong."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something goes wrong at virtual second ``at`` (counted from when the first broker serves)."""

    at: float
    kind: FaultKind
    broker: int = 0
    seconds: float = 0.0
    """How long it lasts; for deaths, how long until it is started again."""
    again: float = 0.0
    """For deaths: killed once more this long after the start began (0 = not)."""
    number: int = 0
    """Chooses among the ways in which it can happen."""


class Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The network: seconds a byte takes, up to how much more, and how often what was written at once arrives in pieces."""

    delay: float = 0.0001
    spread: float = 0.0001
    split: float = 0.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is set in the brokers' configuration."""

    wal_file_bytes: int = 1 << 20
    wal_bytes_max: int = 1 << 26
    flush_bytes_max: int = 1 << 18
    tail_cache_bytes: int = 1 << 20
    segment_own_bytes_min: int = 1 << 16
    segment_file_bytes: int = 1 << 20
    idle_unload_ms: int = 60_000
    reconnect_grace_ms: int = 5_000
    heartbeat_ms: int = 15_000
    frame_bytes_max: int = 1 << 17
    message_bytes_max: int = 1 << 16
    in_flight_bytes_max: int = 1 << 24
    write_buffer_bytes_high: int = 1 << 22


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's head."""

    seed: int
    plan: Plan
    faults: tuple[Fault, ...] = ()
    settings: Settings = Settings()
    speeds: Speeds = Speeds()
    shape: Shape = Shape()
    brokers: int = 1
    seconds: float = 60.0
    """Faults end, and phase 1 with them, at the latest then."""
    rest: float = 0.0
    """How long everybody is away after that, before anything is healed: what nobody uses leaves memory, what is due happens all the same."""


def encode(scenario: Scenario) -> bytes:
    return msgspec.json.format(msgspec.json.encode(scenario), indent=1)


def decode(data: bytes) -> Scenario:
    return msgspec.json.decode(data, type=Scenario)

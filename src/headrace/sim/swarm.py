"""Draws a scenario from a seed: each takes its own few faults and its own corner of the configuration, so that the runs together are everywhere.

A run with every fault at once explores less than many runs with few each: most states are reached only when something is left out.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from headrace.sim import workload
from headrace.sim.chance import Chance
from headrace.sim.scenario import Fault, FaultKind, Scenario, Settings, Shape
from headrace.sim.world import Speeds

KIB = 1024
COLD = "cold reads"
SLOW = "slow flushes"
"""Features that are asked for only."""
REST = "rest"
"""One that some runs have anyway."""
DEATHS: tuple[FaultKind, ...] = ("kill", "power", "stop")
STORAGE: tuple[FaultKind, ...] = ("sync_error", "write_error", "full", "slow")
OTHERS: tuple[FaultKind, ...] = ("pause", "cut", "reset", "clock")
HURTS: tuple[FaultKind, ...] = ("flip", "stale", "state_lost")


def draw(seed: int, wants: Sequence[str] = ()) -> Scenario:
    """The scenario of that seed. ``wants``: features of the plan (``plan.draw``) that it is to have in any case."""
    chance = Chance(seed, "swarm")
    plan = workload.draw(chance.fork("plan"), wants)
    seconds = chance.between(0.3, 20.0)
    made = Scenario(
        seed=seed, plan=plan, faults=faults(chance.fork("faults"), seconds), settings=settings(chance.fork("settings")),
        speeds=speeds(chance.fork("speeds")), shape=shape(chance.fork("shape")), seconds=seconds,
    )  # fmt: skip
    made = resting(made, chance.fork("rest"), always=REST in wants)
    made = cold(made) if COLD in wants else made
    return replace(made, speeds=replace(made.speeds, flush=(0.005, 0.04))) if SLOW in wants else made


def resting(scenario: Scenario, chance: Chance, *, always: bool) -> Scenario:
    """One in four is left alone for a while, and most of those unload soon."""
    if not chance.happens(0.25) and not always:
        return scenario
    soon = replace(scenario.settings, idle_unload_ms=1_000) if chance.happens(0.8) else scenario.settings
    return replace(scenario, settings=soon, rest=round(chance.between(1.5, 6.0), 3))


def cold(scenario: Scenario) -> Scenario:
    """With next to no cache and slow disks: most of what is delivered has to be read first, and that takes its time."""
    slow = replace(scenario.speeds, work=(0.002, 0.3), slow=max(scenario.speeds.slow, 0.02))
    return replace(scenario, settings=replace(scenario.settings, tail_cache_bytes=4 * KIB), speeds=slow)


def faults(chance: Chance, seconds: float) -> tuple[Fault, ...]:
    """Up to a dozen, of few kinds."""
    kinds: list[FaultKind] = []
    if chance.happens(0.85):
        kinds += [kind for kind in DEATHS if chance.happens(0.6)]
    kinds += [kind for kind in STORAGE if chance.happens(0.25)]
    kinds += [kind for kind in OTHERS if chance.happens(0.25)]
    if chance.happens(0.15):
        kinds.append(chance.choice(HURTS))
    if not kinds:
        return ()
    found = []
    for _ in range(chance.randint(1, 12)):
        kind = chance.choice(kinds)
        lasts = chance.between(0.001, 3.0)
        if kind == "clock":
            lasts = chance.choice((-1, 1)) * chance.between(0.01, 100.0)
        found.append(
            Fault(
                at=round(chance.random() * seconds, 6), kind=kind, seconds=round(lasts, 6), number=chance.randrange(1 << 16),
                again=round(chance.between(0.0005, 0.05), 6) if kind in ("kill", "power") and chance.happens(0.25) else 0.0,
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda fault: fault.at))


def settings(chance: Chance) -> Settings:
    """Small limits, so that a short run meets them."""
    small = chance.happens(0.7)
    file_bytes = chance.choice((128, 192, 256)) * KIB if small else 1 << 20  # holds what one read brings, as any legal one does
    return Settings(
        wal_file_bytes=file_bytes,
        wal_bytes_max=file_bytes * chance.choice((3, 6, 64)),
        flush_bytes_max=file_bytes // chance.choice((2, 4)),
        frame_bytes_max=file_bytes // 4,
        message_bytes_max=file_bytes // chance.choice((8, 16)),
        tail_cache_bytes=chance.choice((4 * KIB, 64 * KIB, 1 << 20)),
        segment_own_bytes_min=chance.choice((2 * KIB, 16 * KIB, 1 << 16)),
        segment_file_bytes=chance.choice((32 * KIB, 1 << 20)),
        idle_unload_ms=chance.choice((1_000, 5_000, 60_000)),
        reconnect_grace_ms=chance.choice((0, 200, 2_000, 5_000)),
        heartbeat_ms=chance.choice((500, 2_000, 15_000)),
        in_flight_bytes_max=chance.choice((64 * KIB, 1 << 24)),
        write_buffer_bytes_high=chance.choice((64 * KIB, 1 << 22)),
    )


def speeds(chance: Chance) -> Speeds:
    flush = chance.between(0.00005, 0.005)
    work = chance.between(0.00005, 0.02)
    return Speeds(flush=(flush, flush * chance.between(1.0, 10.0)), work=(work, work * 10), slow=0.02 if chance.happens(0.2) else 0.0)


def shape(chance: Chance) -> Shape:
    delay = chance.between(0.00002, 0.01)
    return Shape(delay=delay, spread=delay * chance.between(0.01, 10.0), split=0.2 if chance.happens(0.3) else 0.0)

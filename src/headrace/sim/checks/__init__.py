"""Whether what was seen in a run is what was promised (docs/concepts.md, docs/protocol.md): one function per promise, over a finished history.

Owns the judgement, not the facts: those are the history's, and the live broker's for what only shows inside. Every check is careful to ask for no
more than is promised: what a lost connection, a dead broker, a limit or an operator may rightly cause is no violation. ``seen`` holds the indexes,
``messages`` I1 to I4 and I11, ``leases`` I9, I10 and order by key, ``times`` delays, expiry, pauses and priorities, ``streams`` I1, I5 and cursors,
``shares`` cohorts and groups, ``repartitions`` keys over partitions, ``rules`` limits, purges and tiers,
``inside`` I15, I17 and I18. I16 is raised by the workload where it stalls.
"""

from collections.abc import Callable, Iterator, Sequence, Set

from headrace.sim.checks import inside, leases, messages, repartitions, restarts, rules, shares, streams, times
from headrace.sim.checks.seen import Seen, Violation
from headrace.sim.history import History
from headrace.sim.world import SimBroker, World

__all__ = ["CHECKS", "Seen", "Violation", "check", "judge"]

CHECKS: tuple[Callable[[Seen], Iterator[Violation]], ...] = (
    messages.from_nowhere, messages.lost, messages.one_value, messages.out_of_order, messages.stored_twice, messages.too_soon, leases.unexplained,
    leases.leased_twice, leases.settled_for_others, leases.key_order, repartitions.key_order, leases.dead_letters,
    streams.lost, streams.gaps, streams.cursors,
    streams.unacked, streams.not_told, streams.starts, streams.told_starts, times.too_early, times.expiry, times.extended, times.paused,
    times.ready_order, leases.lost_at_a_restart, restarts.ended, shares.interleaved, inside.told_figures, rules.limits, rules.overflowed,
    rules.purged, rules.tiers, rules.skipped,
)  # fmt: skip
"""Those that need the history alone."""
FORGETFUL: tuple[Callable[[Seen], Iterator[Violation]], ...] = (messages.from_nowhere, inside.told_figures)
"""What still holds when a broker that keeps everything in memory has died."""
SHOWN_MAX = 20
"""So many violations of one check are told."""


def check(history: History, world: World, brokers: Sequence[SimBroker], *, damage: Set[tuple[str, int]] | None = None) -> list[Violation]:
    """All that is wrong. ``damage``: (name, partition) that are or were quarantined."""
    life = sum(broker.incarnation for broker in brokers)
    jumped = any(broker.jumps for broker in brokers)
    lives = [(born, died) for broker in brokers for born, died in broker.lives]
    seen = Seen(history, damage=damage, jumped=jumped, life=life, lives=lives, cut=world.network.was_cut)
    forgot = life > len(brokers) and any(broker.config.broker.storage != "disk" for broker in brokers)
    found = judge(seen, FORGETFUL if forgot else CHECKS)
    return found + _some(inside.inside(seen, brokers)) + _some(rules.leftovers(seen, brokers))


def judge(seen: Seen, checks: Sequence[Callable[[Seen], Iterator[Violation]]] = CHECKS) -> list[Violation]:
    """All that those checks find."""
    found: list[Violation] = []
    for one in checks:
        found += _some(one(seen))
    return found


def _some(violations: Iterator[Violation]) -> list[Violation]:
    found = []
    for violation in violations:
        found.append(violation)
        if len(found) == SHOWN_MAX:
            break
    return found

"""python -m headrace.sim.clusters: whole clusters of three and five brokers under all faults, one by one or many on all cores.

    python -m headrace.sim.clusters --seed 17                  # one; what was wrong in full
    python -m headrace.sim.clusters --seeds 0-19999 --jobs 2   # a line for each failure, totals at the end
    python -m headrace.sim.clusters --minutes 5                # seeds nobody has seen yet

The exit code is 1 if a promise was broken.
"""

import sys

from headrace.sim.clusters.command import Kind, command
from headrace.sim.clusters.run import Run, Totals
from headrace.sim.clusters.sweep import one


def main(argv: list[str] | None = None) -> int:
    return command(Kind("headrace.sim.clusters", __doc__, "clusters", Run, Totals, one, _text, _brief), argv)


def _brief(t: Totals) -> str:
    return f"{t.failed} failed, {t.changed} with changes of members, {_rate(t):.1f} seeds/s a core"


def _rate(totals: Totals) -> float:
    return totals.seeds / totals.real_s if totals.real_s else 0.0


def _text(t: Totals) -> str:
    return (
        f"{t.seeds:,} clusters, {t.failed:,} failed; {t.changed:,} saw members change ({t.isr:,} changes of an isr, {t.members:,} of copies,"
        f" {t.owners:,} of owners, {t.joined:,} brokers added, {t.left:,} taken away); {t.deaths:,} deaths, {t.cuts:,} cuts, {t.pauses:,} pauses,"
        f" {t.damaged:,} disks damaged, {t.disks:,} full or with a failed sync, {t.outages:,} outages of the coordinator,"
        f" {t.absent:,} brokers away from a deletion, {t.acts:,} acts, {t.nights:,} nights;"
        f" {t.confirmed:,} confirmed, {t.acked:,} acked, {t.read:,} read; {t.steps:,} events, {t.steps / t.real_s if t.real_s else 0.0:,.0f}"
        f" a second and core, {_rate(t):.1f} clusters a second and core; {t.virtual_s / 3600:,.1f} virtual hours"
    )


if __name__ == "__main__":
    sys.exit(main())

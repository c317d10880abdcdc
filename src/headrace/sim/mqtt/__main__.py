"""python -m headrace.sim.mqtt: clusters of three and five brokers with MQTT clients under faults, one by one or many on all cores.

    python -m headrace.sim.mqtt --seed 17                  # one; what was wrong in full
    python -m headrace.sim.mqtt --seeds 0-9999 --jobs 2    # a line for each failure, totals at the end
    python -m headrace.sim.mqtt --minutes 5                # seeds nobody has seen yet

The exit code is 1 if a promise was broken.
"""

import sys

from headrace.sim.clusters.command import Kind, command
from headrace.sim.mqtt.run import Run, Totals, one


def main(argv: list[str] | None = None) -> int:
    return command(Kind("headrace.sim.mqtt", __doc__, "MQTT", Run, Totals, one, _text, _brief), argv)


def _brief(t: Totals) -> str:
    return f"{t.failed} failed"


def _text(t: Totals) -> str:
    return (
        f"{t.seeds:,} clusters, {t.failed:,} failed; {t.deaths:,} deaths, {t.cuts:,} cuts, {t.pauses:,} pauses, {t.outages:,} outages of all etcd,"
        f" {t.owners:,} changes of owners; {t.published:,} messages, {t.confirmed:,} acknowledged, {t.taken:,} deliveries, {t.resumed:,} sessions"
        f" resumed, {t.takeovers:,} taken over, {t.wills:,} wills, {t.virtual_s:,.0f} virtual s,"
        f" {t.real_s:,.0f} s of a core"
    )


if __name__ == "__main__":
    sys.exit(main())

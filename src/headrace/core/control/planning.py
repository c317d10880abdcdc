"""The plan: one picture of the cluster in, changes and findings out.

Owns the order of the steps, which is the order of urgency: dead owners, owners that go, new partitions, missing copies, then comfort (preferred
owners, balance). A plan decides at most one change of a partition; what else it needs follows in the next. Once everything is as wanted, the plan
of the same picture is empty (P1), and equal pictures give equal plans whatever the order of their lists (P2).
"""

from headrace.core.control.balance import choose_preferred, move_copies
from headrace.core.control.changes import Finding, Plan
from headrace.core.control.copies import mend
from headrace.core.control.draft import Draft
from headrace.core.control.liveness import frozen
from headrace.core.control.ownership import assign_new, deleted, hand_over, restore_preferred, take_over
from headrace.core.control.picture import Picture

_STEPS = (deleted, take_over, hand_over, assign_new, mend, restore_preferred, choose_preferred, move_copies)


def plan(picture: Picture) -> Plan:
    """What to change now, most urgent first, and what cannot be done, with reasons. Cost: linear in partitions, quadratic in brokers at worst."""
    why = frozen(picture)
    if why:
        return Plan(findings=(Finding(kind="frozen", partition=None, reason=why),))
    draft = Draft(picture)
    for step in _STEPS:
        step(draft)
    return draft.plan()

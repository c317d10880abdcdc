"""Who gets which partition: the strategies as pure functions of members and of who had what before.

Knows no time, no connection, no generation: ``groups`` does. Every strategy gives each partition exactly one member and is balanced: the
members' shares differ by at most one.

sticky moves as few partitions as balance allows: shares of the larger size go to those who hold most, everybody keeps as much as the share
allows, and only the rest moves. That is optimal, since a member can keep at most min(held, share).
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

Strategy = Literal["range", "round_robin", "sticky", "cooperative"]
STRATEGIES: tuple[Strategy, ...] = ("range", "round_robin", "sticky", "cooperative")

M = TypeVar("M")


def assign(strategy: Strategy, partition_count: int, members: Sequence[M], before: Sequence[M | None]) -> list[M | None]:
    """The member of each partition (None without members). ``members``: by age, no two equal; ``before`` may name members that are gone."""
    if not members:
        return [None] * partition_count
    if strategy == "range":
        return _range(partition_count, members)
    if strategy == "round_robin":
        return [members[p % len(members)] for p in range(partition_count)]
    return _sticky(partition_count, members, before)


def _range(partition_count: int, members: Sequence[M]) -> list[M | None]:
    small, larger = divmod(partition_count, len(members))
    plan: list[M | None] = []
    for number, member in enumerate(members):
        plan += [member] * (small + (number < larger))
    return plan


def _sticky(partition_count: int, members: Sequence[M], before: Sequence[M | None]) -> list[M | None]:
    number = {member: i for i, member in enumerate(members)}
    held = [0] * len(members)
    owners: list[int] = []
    for p in range(partition_count):
        member = before[p] if p < len(before) else None
        owner = -1 if member is None else number.get(member, -1)
        owners.append(owner)
        if owner >= 0:
            held[owner] += 1
    small, larger = divmod(partition_count, len(members))
    room = [small] * len(members)
    for i in sorted(range(len(members)), key=lambda i: -held[i])[:larger]:
        room[i] += 1
    plan: list[M | None] = [None] * partition_count
    for p, owner in enumerate(owners):
        if owner >= 0 and room[owner]:
            room[owner] -= 1
            plan[p] = members[owner]
    takers = [i for i in range(len(members)) if room[i]]
    turn = 0
    for p in range(partition_count):
        if plan[p] is None:
            turn %= len(takers)
            taker = takers[turn]
            plan[p] = members[taker]
            room[taker] -= 1
            if room[taker]:
                turn += 1
            else:
                del takers[turn]
    return plan

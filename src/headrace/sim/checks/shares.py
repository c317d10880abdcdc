"""What holds for those who share: the partitions of a cohort, and of a group of readers, are divided, each is served to one member at a time."""

from bisect import bisect_left
from collections.abc import Iterator

from headrace.sim.checks.seen import Seen, Violation

SETTLING_S = 1.0
"""After a change of members somebody may still be sent what was granted before."""


def interleaved(seen: Seen) -> Iterator[Violation]:
    """While nothing changes in a cohort or group, a partition is one member's: nobody's deliveries stand between two of another."""
    groups: dict[tuple[str, str], list[int]] = {}
    for a in seen.history.attached:
        if a.group and a.name not in seen.volatile:
            groups.setdefault((a.name, a.group), []).append(a.number)
    if not groups:
        return
    for (name, group), members in groups.items():
        changes = _changes(seen, name, members)
        rows: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
        for arrival in seen.history.arrivals:
            if arrival.name == name and arrival.consumer in members:
                rows.setdefault((arrival.partition, arrival.epoch), []).append((arrival.at, arrival.consumer, arrival.first))
        for r in seen.history.reads:
            if r.name == name and r.reader in members:
                rows.setdefault((r.partition, r.epoch), []).append((r.at, r.reader, r.offset))
        for (partition, epoch), served in rows.items():
            yield from _between(f"{name}/{partition} of group {group!r}, epoch {epoch}", served, changes)


def _changes(seen: Seen, name: str, members: list[int]) -> list[float]:
    """When somebody of a group came, went, lost or found its connection, or was told of its share; and when the broker started."""
    clients = {seen.attached[number].client: None for number in members}
    # the one that empties a queue at the end needs no group
    others = [a for a in seen.history.attached if a.name == name and not a.group]
    return sorted(
        [at for a in (*(seen.attached[number] for number in members), *others) for at in (a.at, a.leaving, a.until)]
        + [link.at for link in seen.history.links if link.client in clients]
        + [e.at for e in seen.history.events if e.reader in members and e.what in ("assigned", "revoked")]
        + [born for born, _ in seen.lives]
    )


def _between(where: str, served: list[tuple[float, int, int]], changes: list[float]) -> Iterator[Violation]:
    last: dict[int, float] = {}
    holder = -1
    for at, member, offset in served:
        before = last.get(member)
        if member != holder and holder >= 0 and before is not None and not _changed(changes, before - SETTLING_S, at):
            text = f"member {member} was served {before:.4f} s and again {at:.4f} s (offset {offset}), member {holder} between"
            yield Violation("group", f"{where}: {text}")
            return
        last[member], holder = at, member


def _changed(changes: list[float], start: float, end: float) -> bool:
    at = bisect_left(changes, start)
    return at < len(changes) and changes[at] <= end

"""Even load: copies that move to brokers with less, preferred owners chosen anew, a few at a time and only while nothing is broken.

Owns when the cluster is even enough. Each step makes the first of these smaller without making an earlier one larger, so it ends, whatever the order
of events (B1): copies of one partition on one rack, on one host; partitions of an item preferred by one broker (sum of squares); copies of an item on
one broker; copies on one broker beyond the band; preferred owners on one broker beyond the band.

Moves of owners between copies cost nothing and come first; a copy moves only as a learner that replaces a replica (``copies``).
"""

from collections.abc import Iterator
from itertools import product

from msgspec.structs import replace

from headrace.core.control.copies import is_gone
from headrace.core.control.draft import Draft
from headrace.core.control.ownership import is_pinned
from headrace.core.control.picture import Stored
from headrace.core.control.placement import collisions, staying
from headrace.model.cluster import NOBODY, Assignment, BrokerId


def choose_preferred(draft: Draft) -> None:
    """Names a preferred owner where there is none that can be one, then evens preferences out within items and over brokers."""
    for stored in draft.untouched():
        a = stored.assignment
        bad = a.preferred == NOBODY or a.preferred in a.leaving or is_gone(draft, a, a.preferred)
        if bad and draft.served(a):
            _name_preferred(draft, stored)
    if not draft.settings.rebalance:
        return
    quiet = list(_quiet(draft))
    _spread_preferences(draft, quiet)
    _even_preferences(draft, quiet)


def move_copies(draft: Draft) -> None:
    """Begins moves of copies, as many as may be under way at a time, while every broker is alive or given up."""
    if not draft.settings.rebalance or any(b.state == "dead" and not b.lost for b in draft.brokers.values()):
        return
    for step in (_spread_wider, _spread_item, _even_copies):
        step(draft)


def _name_preferred(draft: Draft, stored: Stored) -> None:
    a = stored.assignment
    if is_pinned(a, a.owner):
        choice: BrokerId = a.owner
    else:
        item, number = draft.number[a.partition]
        able = [b for b in staying(a) if b in draft.books.open] or [b for b in staying(a) if not is_gone(draft, a, b)]
        if not able:
            return
        order = draft.books.order(item.id, number)
        choice = min(able, key=lambda b: (draft.books.item_owners[a.item, b], draft.books.owners[b], order.index(b) if b in order else len(order), b))
    if choice != a.preferred:
        reason = f"{draft.broker(choice).name} is now the preferred owner of {draft.label(a)}: the one before it is going or gone"
        draft.change(stored, replace(a, preferred=choice), act="prefer", reason=reason)


def _quiet(draft: Draft) -> Iterator[Stored]:
    """Partitions that are served and in which nothing moves."""
    for stored in draft.untouched():
        a = stored.assignment
        if not a.learners and not a.leaving and draft.served(a):
            yield stored


def _prefer(draft: Draft, stored: Stored, to: BrokerId, why: str) -> None:
    a = stored.assignment
    reason = f"{draft.broker(to).name} is now the preferred owner of {draft.label(a)} instead of {draft.broker(a.preferred).name}: {why}"
    draft.change(stored, replace(a, preferred=to), act="prefer", reason=reason)


def _spread_preferences(draft: Draft, quiet: list[Stored]) -> None:
    """Within each item: no broker preferred twice more often than another that has a copy."""
    owners = draft.books.item_owners
    for stored in quiet:
        a = stored.assignment
        most = owners[a.item, a.preferred] - 2
        if most < 0 or is_pinned(a, a.owner):
            continue
        able = [b for b in a.replicas if owners[a.item, b] <= most and b in draft.books.open and draft.in_sync(a, b)]
        if able:
            to = min(able, key=lambda b: (owners[a.item, b], draft.books.owners[b], b))
            _prefer(draft, stored, to, f"partitions of {a.item} go to distinct brokers")


def _even_preferences(draft: Draft, quiet: list[Stored]) -> None:
    """Over all items: from brokers preferred by too many to such as have copies and are preferred by few."""
    books = draft.books
    bounds = books.owners_band()
    for stored in quiet:
        a = stored.assignment
        at = a.preferred
        if a.partition in draft.touched or is_pinned(a, a.owner) or at not in books.open:
            continue
        able = [
            b
            for b in a.replicas
            if b in books.open
            and (books.owners[at] > bounds.high or books.owners[b] < bounds.low)
            and books.owners[b] <= books.owners[at] - 2
            and books.item_owners[a.item, b] < books.item_owners[a.item, at]
            and draft.in_sync(a, b)
        ]
        if able:
            to = min(able, key=lambda b: (books.owners[b], b))
            _prefer(draft, stored, to, f"they are preferred for {books.owners[to]} and {books.owners[at]} partitions")


def _spread_wider(draft: Draft) -> None:
    """Copies that share a rack or host although there is a better place."""
    books = draft.books
    places = [books.places[b] for b in books.open]
    racks = len({p.rack for p in places if p.rack}) + sum(1 for p in places if not p.rack)
    hosts = len({(p.rack, p.host) for p in places if p.host}) + sum(1 for p in places if not p.host)
    for stored in _quiet(draft):
        a = stored.assignment
        now = collisions(books.places[b] for b in a.replicas)
        if now <= (_pairs(len(a.replicas), racks), _pairs(len(a.replicas), hosts)):
            continue
        if not draft.moves_left():
            return
        best: tuple[tuple[int, ...], BrokerId, BrokerId] | None = None
        for source, target in product(a.replicas, books.open):
            if not _may_move(draft, a, source, target):
                continue
            then = collisions(books.places[b] for b in (*a.replicas, target) if b != source)
            rank = (*then, int(source == a.preferred), books.copies[target] - books.copies[source])
            if then < now and (best is None or (rank, source, target) < best):
                best = (rank, source, target)
        if best is not None:
            _move(draft, stored, best[1], best[2], "so that its copies lie on more racks or hosts")


def _spread_item(draft: Draft) -> None:
    """Items whose partitions prefer one broker twice while another has none and no copy to prefer."""
    owners = draft.books.item_owners
    for stored in _quiet(draft):
        a = stored.assignment
        item = draft.number[a.partition][0]
        at = a.preferred
        if len(item.partitions) == 1 or owners[a.item, at] < 2:
            continue
        if not draft.moves_left():
            return
        able = [b for b in draft.books.open if owners[a.item, b] <= owners[a.item, at] - 2 and _may_move(draft, a, at, b)]
        able = [b for b in able if _no_closer(draft, a, at, b)]
        if able:
            to = min(able, key=lambda b: (draft.books.item_copies[a.item, b], draft.books.copies[b], b))
            _move(draft, stored, at, to, f"so that the partitions of {a.item} go to distinct brokers")


def _even_copies(draft: Draft) -> None:
    books = draft.books
    while draft.moves_left():
        bounds = books.copies_band()
        falling = sorted(books.open, key=lambda b: (-books.copies[b], b))
        held: dict[BrokerId, list[Stored]] = {b: [] for b in books.open}
        if not falling or (books.copies[falling[0]] <= bounds.high and books.copies[falling[-1]] >= bounds.low):
            return
        for stored in _quiet(draft):
            for broker in stored.assignment.replicas:
                if broker in held:
                    held[broker].append(stored)
        uneven = ((source, target) for source in falling for target in reversed(falling) if _uneven(draft, source, target))
        if not any(_even_one(draft, source, target, held[source]) for source, target in uneven):
            return


def _uneven(draft: Draft, source: BrokerId, target: BrokerId) -> bool:
    copies, bounds = draft.books.copies, draft.books.copies_band()
    return copies[source] - copies[target] >= 2 and (copies[source] > bounds.high or copies[target] < bounds.low)


def _even_one(draft: Draft, source: BrokerId, target: BrokerId, held: list[Stored]) -> bool:
    """Moves the one copy from ``source`` whose own order of preference puts ``target`` first, owners only if there are too many of them too."""
    books = draft.books
    owns_more = books.owners[source] > books.owners[target]
    best: tuple[tuple[int, ...], int] | None = None
    for number, stored in enumerate(held):
        a = stored.assignment
        if not _may_move(draft, a, source, target) or books.item_copies[a.item, target] >= books.item_copies[a.item, source]:
            continue
        first = a.preferred == source
        if first and books.item_owners[a.item, target] >= books.item_owners[a.item, source]:
            continue
        if not _no_closer(draft, a, source, target):
            continue
        item, position = draft.number[a.partition]
        rank = (int(first != owns_more), books.order(item.id, position).index(target), a.partition)
        if best is None or rank < best[0]:
            best = (rank, number)
    if best is None:
        return False
    why = f"they have {books.copies[source]} and {books.copies[target]} copies"
    _move(draft, held[best[1]], source, target, why)
    return True


def _may_move(draft: Draft, a: Assignment, source: BrokerId, target: BrokerId) -> bool:
    return target not in a.replicas and draft.books.under_cap(target) and not is_pinned(a, source) and draft.broker(source).alive


def _no_closer(draft: Draft, a: Assignment, source: BrokerId, target: BrokerId) -> bool:
    """Whether the copies lie no closer together after the move."""
    places = draft.books.places
    return collisions(places[b] for b in (*a.replicas, target) if b != source) <= collisions(places[b] for b in a.replicas)


def _move(draft: Draft, stored: Stored, source: BrokerId, target: BrokerId, why: str) -> None:
    a = stored.assignment
    preferred = target if a.preferred == source else a.preferred
    why = why if why.startswith("so that") else f"because {why}"
    reason = f"a copy of {draft.label(a)} moves from {draft.broker(source).name} to {draft.broker(target).name} {why}"
    draft.change(stored, replace(a, learners=(target,), leaving=(source,), preferred=preferred), act="copy", reason=reason)


def _pairs(copies: int, places: int) -> int:
    """Fewest pairs that share a place when ``copies`` are spread over ``places``."""
    if not places:
        return 0
    small, larger = divmod(copies, places)
    return larger * (small + 1) * small // 2 + (places - larger) * small * (small - 1) // 2

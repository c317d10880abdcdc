"""What holds for streams: I1 and I5 against the reading at the end, records without gaps, cursors that neither skip nor fall back.

The reading at the end is by a fresh reader, from the earliest record to marks appended after everything was healed.
"""

from collections.abc import Iterator

from headrace.sim.checks.messages import settled_tier
from headrace.sim.checks.seen import LOCAL, Seen, Violation, reads_by_reader
from headrace.sim.history import CONFIRMED, REFUSED, Attached, Publish, Read, Verb


def finals(seen: Seen) -> dict[tuple[str, int], dict[int, int]]:
    """By partition, what the reading at the end found: offset to id."""
    found: dict[tuple[str, int], dict[int, int]] = {}
    for r in seen.history.reads:
        if seen.attached[r.reader].kind == "final":
            found.setdefault((r.name, r.partition), {})[r.offset] = r.id
    return found


def lost(seen: Seen) -> Iterator[Violation]:
    """I1 and I5: what was confirmed, or shown as certain, is there at the end, unless retention, a trim or compaction account for it."""
    if seen.history.finished is None:
        return
    there = finals(seen)
    last = _last_of_keys(seen)
    told: dict[tuple[str, int, int], tuple[int, str, str]] = {}
    for publish in seen.publishes.values():
        if seen.kept(publish) and publish.offset >= 0 and not seen.is_queue(publish.name):
            told[publish.name, publish.partition, publish.offset] = (publish.id, "I1", f"confirmed {publish.told_at:.4f} s")
    for r in seen.history.reads:
        if settled_tier(seen, r.name) and not r.speculative and seen.attached[r.reader].kind != "final":
            told.setdefault((r.name, r.partition, r.offset), (r.id, "I5", f"read by reader {r.reader} {r.at:.4f} s"))
    for (name, partition, offset), (id, invariant, text) in told.items():
        if not seen.sound(name, partition) or any(n == name for n, _ in sorted(seen.damage)) or not seen.stream_specs(name):
            continue
        found = there.get((name, partition), {})
        owner = seen.publishes.get(id)
        if found.get(offset) == id or owner is None:
            continue
        if offset in found:
            yield Violation(invariant, f"{name}/{partition}/{offset} was message {id} ({text}), at the end it is message {found[offset]}: {owner!r}")
        elif not _may_be_gone(seen, owner, name, partition, offset, found, last):
            yield Violation(invariant, f"{name}/{partition}/{offset} is gone, {text}; the end read {_span(found)}: {owner!r}")


def _last_of_keys(seen: Seen) -> dict[tuple[str, int, str], int]:
    """The highest offset at which a key is known to have been, whether or not that record is still there (a tombstone may be gone as well)."""
    last: dict[tuple[str, int, str], int] = {}
    known = [(p.name, p.partition, p.offset, p.id) for p in seen.publishes.values() if p.offset >= 0]
    known += [(r.name, r.partition, r.offset, r.id) for r in seen.history.reads]
    for name, partition, offset, id in known:
        publish = seen.publishes.get(id)
        if publish is not None and publish.key is not None:
            key = (name, partition, publish.key)
            last[key] = max(offset, last.get(key, -1))
    return last


def _span(found: dict[int, int]) -> str:
    return f"{min(found)}..{max(found)}" if found else "nothing"


def _may_be_gone(
    seen: Seen, publish: Publish, name: str, partition: int, offset: int, found: dict[int, int], last: dict[tuple[str, int, str], int]
) -> bool:
    specs = seen.stream_specs(name)
    if any(spec.compaction for spec in specs) and publish.key is not None:
        if publish.null or last.get((name, partition, publish.key), -1) > offset or _followed(seen, publish):
            return True
    if found and offset > min(found):
        retained = any(spec.retention_ms or spec.retention_bytes or spec.retention_records for spec in specs)
        return retained and offset < _moved_to(seen, name, partition)
    if seen.verbs(name, "trim"):
        return True
    newest = max(found, default=-1)
    for spec in specs:
        if spec.retention_records and offset <= newest - spec.retention_records:
            return True
        if spec.retention_ms and (seen.jumped or seen.end - publish.at >= spec.retention_ms / 1000):
            return True
        if spec.retention_bytes:
            after = sum(_size(seen, id) for o, id in found.items() if o > offset)
            if after >= spec.retention_bytes // 2:  # sizes as published, before headers and compression
                return True
    return False


def _followed(seen: Seen, publish: Publish) -> bool:
    """Whether a later one of its key may be anywhere: nobody was told where it is, and a tombstone may be gone again."""
    return any(
        p.offset < 0 and p.name == publish.name and p.key == publish.key and p.outcome != REFUSED and (p.at, p.id) > (publish.at, publish.id)
        for p in seen.publishes.values()
    )


def _moved_to(seen: Seen, name: str, partition: int) -> int:
    """Up to where retention was ahead of the one who read it all at the end."""
    told = [e for e in seen.history.events if e.what == "moved" and (e.name, e.partition) == (name, partition)]
    return max((e.offset for e in told if e.reader in seen.attached and seen.attached[e.reader].kind == "final"), default=0)


def _size(seen: Seen, id: int) -> int:
    publish = seen.publishes.get(id)
    return 100 + publish.nbytes if publish is not None else 100


def gaps(seen: Seen) -> Iterator[Violation]:
    """Every reader sees every record, in order: offsets of a partition follow each other but for what its reader was told."""
    told: dict[tuple[int, int], list[str]] = {}
    for e in seen.history.events:
        told.setdefault((e.reader, e.partition), []).append(e.what)
    for number, reads in reads_by_reader(seen.history).items():
        attached = seen.attached[number]
        if attached.group or attached.name in seen.volatile:
            continue
        compacted = any(spec.compaction for spec in seen.stream_specs(attached.name))
        last: dict[int, Read] = {}
        for r in reads:
            before = last.get(r.partition)
            last[r.partition] = r
            if before is None or not seen.sound(r.name, r.partition):
                continue
            heard = told.get((number, r.partition), [])
            expected = before.offset + 1
            # a tier that may take records back has a reader with a cursor begin again there under a new epoch; who has none is told
            if r.offset < expected and not heard and (_durable(seen, r.name) or r.epoch == before.epoch or not attached.cursor):
                yield Violation("I4", f"reader {number} of {r.name}/{r.partition} was at {before.offset} and then at {r.offset} {r.at:.4f} s")
            if r.offset > expected and not heard and not attached.filter and not compacted and settled_tier(seen, r.name):
                if attached.cursor and _acked(seen, attached, r, expected):
                    continue
                where = f"reader {number} of {r.name}/{r.partition}"
                yield Violation("I1", f"{where} was at {before.offset} and then at {r.offset} {r.at:.4f} s: it skipped some")


def _acked(seen: Seen, who: Attached, r: Read, first: int) -> bool:
    """Whether all of [first, r.offset) may have been acked with that cursor before."""
    mine = [c for c in seen.history.commits if c.name == r.name and c.cursor == who.cursor and c.partition == r.partition and c.at <= r.at]
    singly = {c.offset: None for c in mine if c.single}
    up_to = max((c.offset for c in mine if not c.single), default=-1)
    return all(offset <= up_to or offset in singly for offset in range(first, r.offset))


def unacked(seen: Seen) -> Iterator[Violation]:
    """I1: who goes on with a cursor is given all that nobody acked with it. (Only of streams that lose nothing, by readers who ack themselves.)"""
    by_cursor: dict[tuple[str, str], list[Attached]] = {}
    for a in seen.history.attached:
        if a.cursor and a.name not in seen.volatile and kept_whole(seen, a.name) and not seen.verbs(a.name, "set_cursor", "trim"):
            by_cursor.setdefault((a.name, a.cursor), []).append(a)
    moved = {(e.name, e.partition): None for e in seen.history.events if e.what == "moved"}
    reads = reads_by_reader(seen.history) if by_cursor else {}
    for (name, cursor), readers in by_cursor.items():
        if any(a.filter or not a.explicit for a in readers):
            continue
        for a in readers:
            firsts: dict[int, Read] = {}
            for r in reads.get(a.number, []):
                if r.partition in firsts or (name, r.partition) in moved or not seen.sound(name, r.partition):
                    continue
                firsts[r.partition] = r
                if not _acked(seen, a, r, 0):
                    where = f"{name}/{r.partition}: reader {a.number} with cursor {cursor!r}"
                    yield Violation("cursor", f"{where} was first given {r.offset} {r.at:.4f} s, and something before it was never acked")
                    return


def kept_whole(seen: Seen, name: str) -> bool:
    """Whether nothing but a deletion removes anything of a stream, and what is read of it stays."""
    specs = seen.stream_specs(name)
    return not any(s.tier != "durable" or s.compaction or s.retention_ms or s.retention_bytes or s.retention_records for s in specs)


def _durable(seen: Seen, name: str) -> bool:
    return all(spec.tier == "durable" for spec in seen.stream_specs(name))


def cursors(seen: Seen) -> Iterator[Violation]:
    """A cursor that was confirmed does not fall back, and a reader that goes on with it misses nothing."""
    by_cursor: dict[tuple[str, str], list[Attached]] = {}
    for a in seen.history.attached:
        if a.cursor and a.name not in seen.volatile and settled_tier(seen, a.name) and not seen.verbs(a.name, "set_cursor"):
            by_cursor.setdefault((a.name, a.cursor), []).append(a)
    if not by_cursor:
        return
    reads = reads_by_reader(seen.history)
    moved = {(e.name, e.partition): None for e in seen.history.events if e.what == "moved"}
    for (name, cursor), readers in by_cursor.items():
        commits = [c for c in seen.history.commits if c.name == name and c.cursor == cursor and c.result == "done"]
        for a in readers:
            firsts: dict[int, Read] = {}
            for r in reads.get(a.number, []):
                firsts.setdefault(r.partition, r)
                for c in commits:
                    passed = r.offset == c.offset if c.single else r.offset <= c.offset
                    if c.partition == r.partition and passed and c.told_at < a.at:
                        yield Violation(
                            "cursor", f"{name}/{r.partition}: cursor {cursor!r} was past {c.offset} {c.told_at:.4f} s, a reader that came "
                            f"{a.at:.4f} s was given {r.offset} {r.at:.4f} s",
                        )  # fmt: skip
                        return
            if not a.group and not a.filter:
                yield from _skipped(seen, a, readers, reads, firsts, moved)


def _skipped(
    seen: Seen, a: Attached, readers: list[Attached], reads: dict[int, list[Read]], firsts: dict[int, Read], moved: dict[tuple[str, int], None]
) -> Iterator[Violation]:
    specs = seen.stream_specs(a.name)
    if any(spec.compaction or spec.retention_ms or spec.retention_bytes or spec.retention_records for spec in specs) or seen.verbs(a.name, "trim"):
        return
    for partition, first in firsts.items():
        if (a.name, partition) in moved or not seen.sound(a.name, partition):
            continue
        others = [other for other in readers if other.at < a.at and not other.filter]
        before = [r.offset for other in others for r in reads.get(other.number, []) if r.partition == partition]
        known = max(before, default=-1)
        if first.offset > known + 1 and not any(o.filter for o in readers):
            yield Violation(
                "cursor", f"{a.name}/{partition}: a reader with cursor {a.cursor!r} came {a.at:.4f} s and was first given {first.offset}; "
                f"nobody with that cursor has seen more than up to {known}",
            )  # fmt: skip


def not_told(seen: Seen) -> Iterator[Violation]:
    """A reader that goes on after records it was shown were taken back is told so."""
    there = finals(seen)
    told = {(e.reader, e.partition): None for e in seen.history.events if e.what == "retracted"}
    for number, reads in reads_by_reader(seen.history).items():
        attached = seen.attached[number]
        if attached.group or any(spec.compaction for spec in seen.stream_specs(attached.name)):
            continue
        for i, r in enumerate(reads):
            found = there.get((r.name, r.partition), {})
            if not r.speculative or (number, r.partition) in told or not found or r.offset < min(found) or found.get(r.offset) == r.id:
                continue
            if r.offset > max(found) or not seen.sound(r.name, r.partition):
                continue
            later = [x for x in reads[i + 1 :] if x.partition == r.partition and x.epoch > r.epoch]
            if later and not attached.cursor and later[0].offset <= r.offset and attached.name not in seen.volatile:
                yield Violation(
                    "I5", f"reader {number} of {r.name}/{r.partition} was shown message {r.id} at {r.offset} {r.at:.4f} s, which was taken back, was "
                    f"set back to {later[0].offset} {later[0].at:.4f} s and was not told",
                )  # fmt: skip
            if later and all(x.offset > r.offset for x in later):
                yield Violation(
                    "I5", f"reader {number} of {r.name}/{r.partition} was shown message {r.id} at {r.offset} {r.at:.4f} s, which was taken back "
                    f"(it is {found.get(r.offset)} at the end), went on at {later[0].offset} {later[0].at:.4f} s and was not told",
                )  # fmt: skip


def starts(seen: Seen) -> Iterator[Violation]:
    """The start of a partition does not go back: what retention or a trim took does not come again."""
    reads = reads_by_reader(seen.history)
    begun: dict[tuple[str, int], tuple[int, int]] = {}
    for a in seen.history.attached:
        fresh = a.kind == "final" or (a.kind == "reader" and a.start == "earliest" and not a.cursor)
        if not fresh or a.filter or not _durable(seen, a.name) or any(spec.compaction for spec in seen.stream_specs(a.name)):
            continue
        firsts: dict[int, Read] = {}
        for r in reads.get(a.number, []):
            firsts.setdefault(r.partition, r)
        for partition, r in firsts.items():
            before, reader = begun.setdefault((a.name, partition), (r.offset, a.number))
            if r.offset < before and seen.sound(a.name, partition):
                yield Violation("trim", f"{a.name}/{partition} began at {before} for reader {reader}, and at {r.offset} for reader {a.number} later")
            begun[a.name, partition] = max((r.offset, a.number), begun[a.name, partition])
            for verb in seen.verbs(a.name, "trim") if a.kind == "final" and kept_whole(seen, a.name) else ():
                told = next((row.start_offset for row in verb.rows or () if row.partition == partition), 0) if verb.outcome == "done" else 0
                if r.offset < told and seen.sound(a.name, partition):
                    text = f"began at {told} once it was trimmed {verb.told_at:.4f} s, at the end at {r.offset}"
                    yield Violation("trim", f"{a.name}/{partition} {text}")


def told_starts(seen: Seen) -> Iterator[Violation]:
    """The start of a partition that an operator was told stays given up, once something that was published later is durable: the log is in order."""
    looks: dict[str, list[Verb]] = {}
    for verb in seen.history.verbs:
        if verb.verb in ("describe", "trim") and verb.outcome == "done" and verb.rows and seen.stream_specs(verb.name):
            looks.setdefault(verb.name, []).append(verb)
    for name, verbs in looks.items():
        if any(spec.tier == "ephemeral" for spec in seen.stream_specs(name)):
            continue
        begun: dict[int, tuple[int, float]] = {}
        for verb in sorted(verbs, key=lambda verb: verb.told_at):
            for row in verb.rows:
                start, told_at = begun.get(row.partition, (0, 0.0))
                if row.state != "serving" or not seen.sound(name, row.partition):
                    continue
                if row.start_offset < start and told_at < verb.at and _kept_since(seen, told_at):
                    text = f"began at {start} {told_at:.4f} s, and at {row.start_offset} {verb.told_at:.4f} s"
                    yield Violation("trim", f"{name}/{row.partition} {text}")
                    return
                if row.start_offset != start:
                    begun[row.partition] = row.start_offset, verb.told_at


def _kept_since(seen: Seen, at: float) -> bool:
    """Whether something was posted after that time and confirmed as durable by the broker's incarnation of then."""
    nexts = [born for born, _ in seen.lives[1:]]
    until = next((min(died, after) for (born, died), after in zip(seen.lives, nexts, strict=False) if born <= at < after), at)
    return any(at < p.at and p.told_at < until for p in seen.publishes.values() if p.outcome == CONFIRMED and p.promised >= LOCAL)

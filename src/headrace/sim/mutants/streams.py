"""Bugs of streams: what is read, how far cursors are, who has which partition, what compaction and retention remove."""

from typing import Final

from headrace.sim.mutants.planting import DEATHS, Edit, Mutant

STREAMS: Final = (
    Mutant(
        name="read-past-the-high-watermark",
        wrong="readers of a durable stream are sent records that are not durable yet",
        notices=("I5",),
        edits=(
            Edit(
                "broker.stream_partition:StreamPartition.__init__",
                'self.tells_appended = item.stream.tier != "durable"',
                "self.tells_appended = True",
            ),
            Edit("core.stream.machine:StreamMachine.__init__", 'self._early = spec.tier != "durable"', "self._early = True"),
        ),
    ),
    Mutant(
        name="speculative-not-marked",
        wrong="records that are not durable yet are delivered without being marked as speculative",
        notices=("I5",),
        stir=DEATHS,
        wants=("tiers",),
        edits=(
            Edit("broker.stream_partition:StreamPartition._emit", "flags = DeliverFlag.SPECULATIVE if reached > high_watermark else 0", "flags = 0"),
        ),
    ),
    Mutant(
        name="retraction-not-told",
        wrong="a reader who had speculative records that a restart took back is not told",
        notices=("I4", "I5", "I3"),
        wants=("speculative readers", "slow flushes"),
        edits=(
            Edit(
                "broker.attach:start_reading",
                "if position > end and wanted is not None:\n    if subscription.sink is not None:",
                "if position > end and wanted is not None:\n    if subscription.sink is None:",
            ),
        ),
        stir=DEATHS,
    ),
    Mutant(
        name="cursor-is-the-highest-ack",
        wrong="a cursor moves to the highest acked record instead of over contiguous ones",
        notices=("I1", "cursor"),
        wants=("cursors", "acks one by one"),
        edits=(
            Edit(
                "core.stream.cursor:Cursor.settle",
                "self.above.add(max(first, here), end)\nself.advance(limit)",
                "self.above.clear()\nself.next_offset = min(end, limit)",
            ),
        ),
    ),
    Mutant(
        name="cursor-not-journalled",
        wrong="the moves of cursors are not journalled",
        notices=("cursor", "I9", "I1"),
        wants=("cursors",),
        edits=(Edit("core.stream.ledger:Ledger._went_on", "if changed:\n    self._dirty[cursor.name] = None", "pass"),),
    ),
    Mutant(
        name="cursor-without-acks-above",
        wrong="a cursor's journal row has no acked ranges above it, so they are read again after a restart",
        notices=("cursor", "I9"),
        wants=("cursors", "acks one by one"),
        edits=(Edit("core.stream.cursor:Cursor.row", "[(first, min(end, limit) - first) for first, end in above if first < limit]", "[]"),),
        stir=DEATHS,
    ),
    Mutant(
        name="commit-confirmed-early",
        wrong="the move of a cursor is confirmed before it is durable",
        notices=("cursor", "I13", "I9"),
        wants=("cursors", "acks one by one"),
        edits=(Edit("broker.stream_partition:StreamPartition.ack", "self.when_committed(answer)", "answer()"),),
        stir=("slow", "sync_error", "sync_error", "sync_error"),
    ),
    Mutant(
        name="reader-skips-what-did-not-fit",
        wrong="a reader whose credit in bytes is used up is taken to the end of what was read, not of what was sent",
        notices=("I1", "I16"),
        edits=(
            Edit(
                "broker.stream_partition:StreamPartition._emit",
                "else:\n    if messages < read.max_messages or not picking:",
                "if True:\n    if messages < read.max_messages or not picking:",
            ),
        ),
    ),
    Mutant(
        name="filter-lets-go-of-the-rest",
        wrong="what a filter passes over counts as read up to the end of the slice, also beyond the last record looked at",
        notices=("I1", "I16"),
        edits=(
            Edit(
                "broker.stream_partition:StreamPartition._emit",
                "reached = max(reached, min(end, last.base_offset + last.record_count))",
                "reached = max(reached, end, read.end)",
            ),
        ),
    ),
    Mutant(
        name="one-partition-two-readers",
        wrong="a member of a reader group keeps the partitions that went to another",
        notices=("group", "I9", "error"),
        wants=("steady groups",),
        edits=(
            Edit(
                "core.groups:Group._change",
                "share = tuple(shares.get(seat.number, ()))",
                "share = tuple(sorted({*shares.get(seat.number, ()), *seat.partitions}))",
            ),
        ),
    ),
    Mutant(
        name="compaction-drops-the-newest",
        wrong="compaction drops the newest record of a key too",
        notices=("I1",),
        wants=("compaction",),
        edits=(
            Edit(
                "core.compaction:Compaction._stays",
                "row.offset < self._keys.get(_name(row.key), -1)",
                "row.offset <= self._keys.get(_name(row.key), -1)",
            ),
        ),
    ),
    Mutant(
        name="trim-not-journalled",
        wrong="a trim is not journalled: after a restart the records are there again",
        notices=("trim", "I5", "I2"),
        wants=("administration", "verb trim", "retention", "overseers"),
        edits=(Edit("core.stream.machine:StreamMachine.trim", "self._trimmed = self._trimmed or journal", "pass"),),
        stir=DEATHS,
    ),
)

"""The stream machine against a naive model that keeps every offset singly; a follower that replays the journal; snapshots at any moment."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, precondition, rule

from headrace.core.stream import StreamMachine
from headrace.core.stream.machine import FILTERED_SPAN
from headrace.model.specs import StreamSpec
from tests.property.effort import effort

CURSORS = ("x", "y")
MANY = 1 << 30


class ModelReader:
    """A reader that counts on its fingers."""

    def __init__(self, position: int, messages: int, cursor: str, auto_commit: bool, filtered: bool) -> None:
        self.position = position
        self.messages = messages
        self.cursor = cursor
        self.fenced = False
        self.fifo = auto_commit or not cursor
        self.held: set[int] = set()
        self.filtered = filtered
        self.parked = False
        self.retractions: list[tuple[int, int]] = []


class ModelCursor:
    """``floor``: everything below is done, whether acked or given up. ``acked``: what is done above it."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.acked: set[int] = set()

    def next(self, limit: int) -> int:
        found = self.floor
        while found < limit and found in self.acked:
            found += 1
        return found

    def done(self, offset: int) -> bool:
        return offset < self.floor or offset in self.acked

    def ahead(self, offset: int, limit: int) -> bool:
        """Acked, but not yet passed by the cursor: never sent again."""
        return offset in self.acked and offset >= self.next(limit)

    def durable(self, limit: int) -> "ModelCursor":
        """What the journal tells of it while the high watermark is ``limit``."""
        copy = ModelCursor(self.next(limit))
        copy.acked = {o for o in self.acked if copy.floor <= o < limit}
        return copy


class StreamAgainstModel(RuleBasedStateMachine):
    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.ids = 0
        self.epoch = 1
        self.start = self.end = self.tail = 0
        self.model_readers: dict[int, ModelReader] = {}
        self.model_cursors: dict[str, ModelCursor] = {}
        self.durable_cursors: dict[str, ModelCursor] = {}
        self.durable_start = 0
        self.history: list[tuple[Any, ...]] = []

    @initialize(tier=st.sampled_from(["durable", "speculative", "ephemeral"]), end=st.integers(0, 30), records=st.sampled_from([0, 20]))
    def begin(self, tier: Any, end: int, records: int) -> None:
        self.tier = tier
        self.spec = StreamSpec(tier=tier, retention_records=records, retention_ms=50)
        self.machine = StreamMachine(self.spec)
        self.follower = StreamMachine(self.spec)
        self.checkpoint = (0, self.machine.snapshot())
        self.commit(end)

    @property
    def visible(self) -> int:
        return self.end if self.tier == "durable" else self.tail

    # ------------------------------------------------------------ the log

    def commit(self, end: int) -> None:
        self.end = max(self.end, end)
        self.tail = max(self.tail, end)
        self.machine.committed(end, 10, 1)
        self.follower.committed(end, 10, 1)
        self.history.append(("committed", end))

    @rule(count=st.integers(1, 12))
    def appends(self, count: int) -> None:
        self.tail += count
        self.machine.appended(self.tail)

    @rule(part=st.floats(0, 1))
    def commits(self, part: float) -> None:
        self.commit(self.end + round((self.tail - self.end) * part))

    @rule(count=st.integers(1, 12))
    def publishes(self, count: int) -> None:
        self.commit(self.tail + count)

    @rule(part=st.floats(0, 1))
    def trims(self, part: float) -> None:
        offset = self.start + round((self.end - self.start) * part)
        behind = {n for n, c in self.model_cursors.items() if c.next(self.end) < offset}
        late = {id for id, r in self.model_readers.items() if r.position < offset}
        moved = self.machine.trim(offset)
        assert {m.cursor for m in moved if m.cursor} == behind
        assert {m.reader_id for m in moved if not m.cursor} == late
        self.start = offset
        for cursor in self.model_cursors.values():
            cursor.floor = max(cursor.floor, offset)
        for reader in self.model_readers.values():
            self.drop(reader, lambda o: o < offset)
            if reader.position < offset:  # and what it had acked right above what is gone is not sent to it again
                passed = reader.cursor in behind and not reader.fenced
                reader.position = self.model_cursors[reader.cursor].next(self.end) if passed else offset

    @rule(wall_ms=st.integers(0, 100))
    def retention_is_asked_for(self, wall_ms: int) -> None:
        wish = self.machine.retention(wall_ms)
        assert wish.before_wall_ms == max(0, wall_ms - 50)
        kept = self.spec.retention_records
        assert wish.before_offset == (max(self.start, self.end - kept) if kept else self.start)

    @rule(part=st.floats(0, 1))
    def new_epoch(self, part: float) -> None:
        offset = self.end + round((self.tail - self.end) * part)
        self.epoch += 1
        told = self.machine.retract(offset, self.epoch)
        assert {t.reader_id for t in told} == {id for id, r in self.model_readers.items() if r.position > offset}
        self.tail = offset
        for cursor in self.model_cursors.values():
            cursor.acked = {o for o in cursor.acked if o < offset}
        for reader in self.model_readers.values():
            if reader.position > offset:
                reader.retractions = [*reader.retractions, (self.epoch, offset)][-16:]
            self.drop(reader, lambda o: o >= offset)
            reader.position = min(reader.position, offset)

    def drop(self, reader: ModelReader, which: Callable[[int], bool]) -> None:
        gone = {o for o in reader.held if which(o)}
        reader.held -= gone
        reader.messages += len(gone)

    # ------------------------------------------------------------ readers

    @rule(
        target=readers,
        cursor=st.sampled_from(["", *CURSORS]),
        auto_commit=st.booleans(),
        resume=st.booleans(),
        start=st.sampled_from(["cursor", "earliest", "latest", "last:3", "offset"]),
        part=st.floats(0, 1),
        messages=st.integers(0, 12),
        filtered=st.booleans(),
    )
    def opens(self, cursor: str, auto_commit: bool, resume: bool, start: str, part: float, messages: int, filtered: bool) -> Any:
        if start == "offset":
            start = f"offset:{round(self.visible * part)}"
        if start == "cursor" and not cursor:
            start = "earliest"
        position = self.machine.resolve_start(start, cursor)
        self.ids += 1
        opened = self.machine.open_reader(
            self.ids, position=position, messages=messages, nbytes=MANY, cursor=cursor, auto_commit=auto_commit, resume=resume, filter=filtered
        )
        reader = self.model_readers[self.ids] = ModelReader(position, messages, cursor, auto_commit, filtered)
        if cursor:
            for id, other in self.model_readers.items():
                if id != self.ids and other.cursor == cursor and not other.fenced:
                    other.fenced = True
                    assert opened.superseded == id
            known = self.model_cursors.get(cursor)
            if known is None:
                known = self.model_cursors[cursor] = ModelCursor(position)
            elif resume:
                reader.held = {o for o in range(known.next(self.end), position) if not known.done(o)}
                reader.messages -= len(reader.held)
            elif known.next(self.end) != position:
                known.floor, known.acked = position, set()
            if known.floor > self.end:
                known.acked = set(range(self.end, known.floor))
                known.floor = self.end
        return self.ids

    @rule(id=consumes(readers))
    def closes(self, id: int) -> None:
        self.machine.close_reader(id)
        self.model_readers.pop(id, None)

    @rule(id=readers, parked=st.booleans())
    def is_parked(self, id: int, parked: bool) -> None:
        self.machine.park(id, parked)
        if id in self.model_readers:
            self.model_readers[id].parked = parked

    @rule(part=st.floats(0, 1), selection=st.none() | st.lists(st.booleans(), min_size=1, max_size=7), limit=st.integers(1, 4))
    def sends(self, part: float, selection: list[bool] | None, limit: int) -> None:
        for read in self.machine.due(limit):
            reader = self.model_readers[read.reader_id]
            end = read.from_offset + max(1, round((read.end - read.from_offset) * part))
            chosen = [o for o in range(read.from_offset, end) if selection is None or selection[o % len(selection)]]
            if len(chosen) > read.max_messages:
                chosen = chosen[: read.max_messages]
                end = chosen[-1] + 1
            selected = None if selection is None else [(o, 1) for o in chosen]
            assert self.machine.valid(read)
            assert self.machine.sent(read.reader_id, end, len(chosen), 7 * len(chosen), selected)
            assert not self.machine.valid(read)
            assert self.start <= reader.position < end <= self.visible
            self.finish(reader, set(range(reader.position, end)) - set(chosen))
            reader.held.update(chosen)
            reader.messages -= len(chosen)
            reader.position = end

    def finish(self, reader: ModelReader, offsets: set[int]) -> None:
        if reader.cursor and not reader.fenced:
            self.model_cursors[reader.cursor].acked |= offsets

    def skip(self, reader: ModelReader) -> None:
        """A reader does not stop before what an earlier one of its cursor acked."""
        if reader.cursor and not reader.fenced:
            while reader.position < self.visible and self.model_cursors[reader.cursor].ahead(reader.position, self.end):
                reader.position += 1

    @rule(
        id=readers,
        first=st.integers(0, 60),
        count=st.integers(-1, 20),
        more=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), max_size=4),
        before=st.none() | st.integers(0, 2),
    )
    def acks(self, id: int, first: int, count: int, more: list[tuple[int, int]], before: int | None) -> None:
        """``before``: the ack was sent so many epochs ago."""
        reader = self.model_readers.get(id)
        epoch = None if before is None else self.epoch - before
        stale = self.machine.ack(id, [(first, count), *more], epoch=epoch)
        if reader is None:
            assert stale == [(first, count), *more]
            return
        expected = set()
        for start, size in [(first, count), *more]:
            offsets = set(range(start, start + size))
            bound = min([reader.position, *(o for newer, o in reader.retractions if epoch is not None and newer > epoch)])
            expected |= {o for o in offsets if o >= bound}
            self.settled(reader, {o for o in offsets & reader.held if o < bound}, credit=True)
        if reader.fenced:
            assert stale == [(first, count), *more]
        else:
            assert {o for start, size in stale for o in range(start, start + size)} == expected

    @rule(id=readers, skip=st.integers(0, 4), count=st.integers(1, 6), before=st.none() | st.integers(0, 2))
    def acks_what_it_holds(self, id: int, skip: int, count: int, before: int | None) -> None:
        reader = self.model_readers.get(id)
        if reader is not None and reader.held:
            self.acks(id, min(reader.held) + skip, count, [], before)

    @precondition(lambda self: self.tier != "durable")
    @rule(id=readers, part=st.floats(0, 1), count=st.integers(1, 8))
    def sent_again_in_a_new_epoch(self, id: int, part: float, count: int) -> None:
        self.sends(1, None, 9)
        self.new_epoch(part)
        self.appends(count)
        self.sends(1, None, 9)
        self.acks_what_it_holds(id, 0, count, 1)

    @precondition(lambda self: self.tier != "durable")
    @rule(id=readers, count=st.integers(1, 8), part=st.floats(0, 1))
    def acked_and_written_before_it_is_committed(self, id: int, count: int, part: float) -> None:
        self.appends(count)
        self.sends(1, None, 9)
        reader = self.model_readers.get(id)
        if reader is not None and reader.held:
            self.acks(id, max(reader.held) - count, count + 1, [], None)
        self.a_tick_ends()
        self.commits(part)
        self.a_tick_ends()

    @rule(id=readers, end=st.integers(0, 70))
    def acks_up_to(self, id: int, end: int) -> None:
        reader = self.model_readers.get(id)
        stale = self.machine.ack(id, [(max(0, end - 1), 1)], up_to=True)
        if reader is not None:
            assert not stale or reader.fenced
            self.settled(reader, {o for o in reader.held if o < max(1, end)}, credit=True)

    @rule(id=readers, messages=st.integers(-5, 15))
    def credits(self, id: int, messages: int) -> None:
        self.machine.credit(id, messages, 0)
        reader = self.model_readers.get(id)
        if reader is not None:
            reader.messages += messages
            if reader.fifo and messages > 0:
                self.settled(reader, set(sorted(reader.held)[:messages]), credit=False)

    def settled(self, reader: ModelReader, offsets: set[int], *, credit: bool) -> None:
        reader.held -= offsets
        self.finish(reader, offsets)
        if credit:
            reader.messages += len(offsets)

    # ------------------------------------------------------------ cursors

    @rule(name=st.sampled_from(CURSORS), part=st.floats(0, 1))
    def sets_cursor(self, name: str, part: float) -> None:
        offset = self.start + round((self.end - self.start) * part)
        self.machine.set_cursor(name, offset)
        if name in self.model_cursors:
            for reader in self.model_readers.values():
                if reader.cursor == name and not reader.fenced:
                    self.drop(reader, lambda o: True)
                    reader.position = offset
        self.model_cursors[name] = ModelCursor(offset)

    @rule(name=st.sampled_from(CURSORS))
    def deletes_cursor(self, name: str) -> None:
        assert self.machine.delete_cursor(name) == (self.model_cursors.pop(name, None) is not None)
        for reader in self.model_readers.values():
            if reader.cursor == name:
                reader.fenced = True

    # ------------------------------------------------------------ what survives

    def rows(self, machine: StreamMachine) -> dict[str, tuple[int, list[tuple[int, int]]]]:
        return {n: (c.row(self.end).next_offset, c.row(self.end).acked_above) for n, c in sorted(machine.cursors.items())}

    @rule()
    def a_tick_ends(self) -> None:
        for kind, payload in self.machine.take_journal(5):
            self.follower.replay(kind, payload)
            self.history.append(("entry", kind, payload))
        self.durable_cursors = {n: c.durable(self.end) for n, c in self.model_cursors.items()}
        self.durable_start = self.start
        assert self.rows(self.follower) == self.rows(self.machine)
        assert self.follower.start_offset == self.machine.start_offset
        self.follower.check()

    @rule()
    def the_follower_restarts(self) -> None:
        data = self.follower.snapshot()
        self.follower = StreamMachine(self.spec)
        self.follower.restore(1, data)
        assert self.follower.snapshot() == data

    @rule()
    def a_checkpoint_is_written(self) -> None:
        self.a_tick_ends()
        self.checkpoint = (len(self.history), self.machine.snapshot())

    @rule(overlap=st.integers(0, 6))
    def snapshot_and_tail_are_replay(self, overlap: int) -> None:
        """From a checkpoint of any age, the entries after it, and some before it once more."""
        self.a_tick_ends()
        at, data = self.checkpoint
        other = StreamMachine(self.spec)
        other.restore(1, data)
        for event in self.history[max(0, at - overlap) :]:
            if event[0] == "committed":
                other.committed(event[1], 10, 1)
            else:
                other.replay(event[1], event[2])
        other.check()
        assert self.rows(other) == self.rows(self.machine)
        assert (other.start_offset, other.end) == (self.start, self.end)

    @precondition(lambda self: self.ids)
    @rule()
    def the_follower_takes_over(self) -> None:
        """The owner is lost with what it had not written: the cursors stand where the journal last saw them."""
        data = self.follower.snapshot()
        self.machine = StreamMachine(self.spec)
        self.machine.restore(1, data)
        self.model_readers.clear()
        self.tail, self.start = self.end, self.durable_start
        self.model_cursors = {n: c.durable(self.end) for n, c in self.durable_cursors.items()}

    @precondition(lambda self: self.ids)
    @rule(target=readers)
    def a_restart(self) -> Any:
        """The owner crashes and comes back from its snapshot: readers are gone, cursors are not."""
        self.a_tick_ends()
        data = self.machine.snapshot()
        self.machine = StreamMachine(self.spec)
        self.machine.restore(1, data)
        self.model_readers.clear()
        self.tail = self.end
        for cursor in self.model_cursors.values():
            cursor.acked = {o for o in cursor.acked if o < self.end}
        return multiple()

    # ------------------------------------------------------------ always

    @invariant()
    def equals_the_model(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.check()
        assert (self.machine.start_offset, self.machine.end) == (self.start, self.end)
        assert set(self.machine.cursors) == set(self.model_cursors)
        for name, cursor in self.model_cursors.items():
            assert self.machine.cursors[name].next_offset == cursor.next(self.end)
        assert set(self.machine.readers) == set(self.model_readers)
        due = {r.reader_id: r for r in self.machine.due()}
        for id, reader in self.model_readers.items():
            self.skip(reader)
            actual = self.machine.readers[id]
            assert (actual.position, actual.messages, actual.held.count) == (reader.position, reader.messages, len(reader.held))
            if not reader.fifo:
                assert actual.nbytes + actual.held_bytes == MANY, "credit in bytes is neither lost nor made"
            expected = reader.messages > 0 and reader.position < self.visible and not reader.parked
            assert (id in due) == expected
            if expected:
                read = due[id]
                span = max(reader.messages, FILTERED_SPAN) if reader.filtered else reader.messages
                assert read.from_offset == reader.position < read.end <= min(self.visible, reader.position + span)
                assert read.max_messages == reader.messages
                if reader.cursor and not reader.fenced:
                    assert not any(self.model_cursors[reader.cursor].ahead(o, self.end) for o in range(read.from_offset, read.end))


StreamAgainstModel.TestCase.settings = effort(60, steps=40)
TestStreamAgainstModel = StreamAgainstModel.TestCase

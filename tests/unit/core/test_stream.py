"""The stream machine: readers, credit, acks, retention, new epochs, and what survives."""

from typing import Any

import msgspec
import pytest

from headrace.core.stream import Read, StreamMachine
from headrace.model import limits
from headrace.model.errors import Damaged, Fenced, Invalid, LimitExceeded
from headrace.model.specs import StreamSpec
from headrace.wire.journal import CursorEntry, Kind, unpack_cursors

MANY = 1 << 30


def stream(end: int = 0, **spec: Any) -> StreamMachine:
    machine = StreamMachine(StreamSpec(**spec))
    machine.committed(end, end * 100, 1)
    return machine


def open_reader(
    machine: StreamMachine, id: int = 1, *, start: str = "cursor", cursor: str = "", messages: int = 10, nbytes: int = MANY, **more: Any
) -> int:
    position = machine.resolve_start(start, cursor)
    return machine.open_reader(id, position=position, messages=messages, nbytes=nbytes, cursor=cursor, **more).position


def spans(machine: StreamMachine) -> list[tuple[int, int, int]]:
    machine.check()
    return [(r.reader_id, r.from_offset, r.end) for r in machine.due()]


def send_all(machine: StreamMachine) -> None:
    """What a runtime with everything in memory does in a tick."""
    while reads := machine.due():
        for read in reads:
            count = min(read.end - read.from_offset, read.max_messages)
            assert machine.sent(read.reader_id, read.from_offset + count, count, count * 100)
    machine.check()


def journalled(machine: StreamMachine, wall_ms: int = 0) -> list[CursorEntry]:
    return [row for kind, payload in machine.take_journal(wall_ms) if kind == Kind.CURSOR for row in unpack_cursors(payload)]


# ---------------------------------------------------------------- reading and credit


def test_a_reader_is_due_as_far_as_its_credit_and_the_high_watermark() -> None:
    machine = stream(25)
    open_reader(machine, start="earliest")
    assert spans(machine) == [(1, 0, 10)]
    machine.sent(1, 10, 10, 1000)
    assert spans(machine) == []
    machine.credit(1, 20, 0)
    assert spans(machine) == [(1, 10, 25)]


def test_it_stays_due_until_sent() -> None:
    machine = stream(5)
    open_reader(machine, start="earliest")
    assert machine.due() == machine.due()
    machine.sent(1, 3, 3, 300)
    assert spans(machine) == [(1, 3, 5)]


def test_nobody_is_due_past_the_high_watermark() -> None:
    machine = stream(5)
    open_reader(machine, start="earliest")
    send_all(machine)
    machine.appended(9)
    assert spans(machine) == []
    machine.committed(7, 200, 2)
    assert spans(machine) == [(1, 5, 7)]
    assert machine.sent(1, 9, 4, 400)
    assert machine.position(1) == 7, "even if more is reported as sent"


def test_readers_at_the_tail_wake_together_and_those_without_credit_do_not() -> None:
    machine = stream(5)
    for id in (1, 2, 3):
        open_reader(machine, id, start="latest", messages=0 if id == 2 else 10)
    assert spans(machine) == []
    machine.committed(6, 100, 2)
    assert spans(machine) == [(1, 5, 6), (3, 5, 6)]


def test_due_readers_of_the_same_records_come_together_and_take_turns() -> None:
    machine = stream(100)
    for id in range(1, 7):
        open_reader(machine, id, start="offset:50" if id % 2 else "earliest")
    assert [r.from_offset for r in machine.due()] == [0, 0, 0, 50, 50, 50]
    seen = [r.reader_id for _ in range(3) for r in machine.due(2)]
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


def test_bytes_are_credit_too_and_one_record_is_always_allowed() -> None:
    machine = stream(10)
    open_reader(machine, start="earliest", nbytes=1)
    assert machine.due()[0].max_bytes == 1
    machine.sent(1, 1, 1, 500)
    assert spans(machine) == []
    machine.ack(1, [(0, 1)])
    assert spans(machine) == [(1, 1, 10)]
    assert machine.readers[1].nbytes == 1


def test_acks_give_back_the_credit_of_what_they_settle() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c", nbytes=5000)
    send_all(machine)
    assert machine.ack(1, [(0, 4), (8, 1)]) == []
    assert spans(machine) == [(1, 10, 15)]
    assert machine.readers[1].nbytes == 4500
    assert machine.ack(1, [(0, 10)]) == [], "acking again is no error"
    assert machine.readers[1].nbytes == 5000
    assert machine.readers[1].messages == 10


def test_credit_in_explicit_mode_acks_nothing() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.credit(1, 5, 0)
    assert spans(machine) == [(1, 10, 15)]
    assert machine.cursors["c"].next_offset == 0


def test_automatic_commit_follows_what_was_delivered_and_credited() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c", auto_commit=True)
    send_all(machine)
    assert machine.cursors["c"].next_offset == 0
    machine.credit(1, 4, 400)
    assert machine.cursors["c"].next_offset == 4
    machine.credit(1, 100, 0)
    assert machine.cursors["c"].next_offset == 10
    assert machine.readers[1].messages == 104


def test_credit_may_be_taken_back_and_is_bounded() -> None:
    machine = stream(20)
    open_reader(machine, start="earliest")
    machine.credit(1, -15, 0)
    assert spans(machine) == []
    for _ in range(3):
        machine.credit(1, 1 << 31, 1 << 62)
    assert machine.readers[1].messages == limits.PREFETCH_MESSAGES_MAX


def test_a_parked_reader_is_not_due() -> None:
    machine = stream(5)
    open_reader(machine, start="earliest")
    machine.park(1)
    machine.committed(8, 0, 2)
    assert spans(machine) == []
    machine.park(1, False)
    assert spans(machine) == [(1, 0, 8)]


def test_unknown_readers_are_answered_not_raised_for() -> None:
    machine = stream(5)
    machine.credit(9, 1, 1)
    machine.close_reader(9)
    machine.park(9)
    assert not machine.sent(9, 3, 3, 3)
    assert machine.ack(9, [(0, 2)]) == [(0, 2)]
    assert machine.position(9) == -1


# ---------------------------------------------------------------- acks and cursors


def test_the_cursor_stops_at_the_first_gap() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.ack(1, [(5, 5)])
    assert machine.cursors["c"].next_offset == 0
    machine.ack(1, [(0, 3)])
    assert machine.cursors["c"].next_offset == 3
    machine.ack(1, [(3, 2)])
    assert machine.cursors["c"].next_offset == 10


def test_up_to_settles_everything_held_below() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    assert machine.ack(1, [(6, 1)], up_to=True) == []
    assert machine.cursors["c"].next_offset == 7
    assert machine.ack(1, [(50, 10)], up_to=True) == [], "what was not sent is not held"
    assert machine.cursors["c"].next_offset == 10


def test_what_was_never_sent_is_stale() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c", messages=5)
    send_all(machine)
    assert machine.ack(1, [(3, 4), (12, 2), (4, 0), (4, -3)]) == [(5, 2), (12, 2)]
    machine.check()
    assert machine.ack(1, [(1 << 70, 1)]) == [(1 << 70, 1)]


def test_more_ranges_than_allowed_are_stale() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    assert machine.ack(1, [(0, 1)] * (limits.SETTLE_RANGES_MAX + 2)) == [(0, 1)] * 2


def test_acks_that_would_fragment_without_bound_are_refused_but_stay_held() -> None:
    count = 2 * limits.CURSOR_RANGES_MAX + 100
    machine = stream(count)
    open_reader(machine, cursor="c", messages=count)
    send_all(machine)
    stale = machine.ack(1, [(n, 1) for n in range(1, count, 2)])
    assert len(machine.cursors["c"].above) == limits.CURSOR_RANGES_MAX
    assert len(stale) == 50
    machine.check()
    assert machine.ack(1, [(count, 1)], up_to=True) == []
    assert machine.cursors["c"].next_offset == count


def test_records_that_the_filter_left_out_count_as_acked() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c", filter=True)
    machine.sent(1, 10, 3, 300, selected=[(2, 2), (7, 1)])
    assert machine.cursors["c"].next_offset == 2
    machine.ack(1, [(2, 2)])
    assert machine.cursors["c"].next_offset == 7
    assert machine.readers[1].messages == 9
    machine.ack(1, [(7, 1)])
    assert machine.cursors["c"].next_offset == 10
    machine.sent(1, 20, 0, 0)
    assert machine.cursors["c"].next_offset == 20
    machine.check()


def test_what_an_earlier_reader_acked_is_not_sent_once_the_filter_has_closed_the_gap_before_it() -> None:
    machine = stream(10)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.ack(1, [(0, 5), (6, 3)])
    machine.close_reader(1)
    open_reader(machine, 2, cursor="c", filter=True)
    assert spans(machine) == [(2, 5, 6)]
    machine.sent(2, 6, 0, 0)
    assert machine.cursors["c"].next_offset == 9
    assert spans(machine) == [(2, 9, 10)]


def test_a_filtered_reader_looks_further_than_its_credit() -> None:
    machine = stream(100)
    open_reader(machine, cursor="c", messages=1, filter=True)
    assert machine.due()[0] == Read(1, 0, 100, 1, MANY, 0)


def test_a_reader_resumes_from_its_durable_cursor_and_is_not_sent_what_was_acked_above() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.ack(1, [(0, 2), (4, 2), (8, 1)])
    machine.close_reader(1)
    assert open_reader(machine, 2, cursor="c") == 2
    seen = []
    while reads := machine.due():
        (read,) = reads
        seen.append((read.from_offset, read.end))
        machine.sent(2, read.end, read.end - read.from_offset, 1)
    assert seen == [(2, 4), (6, 8), (9, 15)]
    machine.ack(2, [(20, 0), (14, 1)], up_to=True)
    assert machine.cursors["c"].next_offset == 15


def test_a_resuming_client_still_holds_what_it_has_not_acked() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.ack(1, [(0, 2), (4, 1)])
    machine.close_reader(1)
    machine.open_reader(2, position=10, messages=10, nbytes=MANY, cursor="c", resume=True)
    machine.check()
    assert machine.cursors["c"].next_offset == 2
    assert spans(machine) == [(2, 10, 13)], "seven of ten are still held"
    machine.ack(2, [(2, 2), (5, 5)])
    assert machine.cursors["c"].next_offset == 10
    assert machine.readers[2].messages == 10


def test_an_explicit_start_sets_the_cursor() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    machine.close_reader(1)
    assert open_reader(machine, 1, start="latest", cursor="c") == 20
    assert machine.cursors["c"].next_offset == 20
    machine.close_reader(1)
    assert open_reader(machine, 1, start="earliest", cursor="c") == 0
    assert machine.cursors["c"].next_offset == 0


def test_the_newest_reader_takes_the_cursor_and_the_old_ones_acks_are_stale() -> None:
    machine = stream(20)
    open_reader(machine, 1, cursor="c")
    send_all(machine)
    opened = machine.open_reader(2, position=0, messages=10, nbytes=MANY, cursor="c")
    assert opened.superseded == 1
    assert machine.ack(1, [(0, 10)]) == [(0, 10)]
    assert machine.cursors["c"].next_offset == 0
    assert machine.readers[1].messages == 10, "it may read on"
    machine.close_reader(1)
    machine.check()
    send_all(machine)
    machine.ack(2, [(0, 10)])
    assert machine.cursors["c"].next_offset == 10


def test_an_older_generation_is_fenced() -> None:
    machine = stream(20)
    open_reader(machine, 1, cursor="c", generation=5)
    with pytest.raises(Fenced, match="generation 5"):
        open_reader(machine, 2, cursor="c", generation=4)
    machine.close_reader(1)
    with pytest.raises(Fenced):
        open_reader(machine, 2, cursor="c", generation=4)
    open_reader(machine, 2, cursor="c", generation=5)
    machine.check()


def test_a_reader_of_no_group_takes_a_cursor_that_no_member_moves_any_more() -> None:
    machine = stream(20)
    open_reader(machine, 1, cursor="c", generation=5)
    assert machine.generation == 5
    with pytest.raises(Fenced):
        open_reader(machine, 2, cursor="c")
    machine.close_reader(1)
    open_reader(machine, 2, cursor="c")
    machine.close_reader(2)
    with pytest.raises(Fenced):
        open_reader(machine, 1, cursor="c", generation=4)
    assert machine.generation == 5, "the next group begins above it"
    machine.check()


def test_set_moves_its_reader_along() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    (read,) = machine.due()
    machine.sent(1, 5, 5, 500)
    assert not machine.valid(read)
    (read,) = machine.due()
    moved = machine.set_cursor("c", 15, 7)
    assert [(m.reader_id, m.cursor, m.from_offset, m.to_offset) for m in moved] == [(-1, "c", 0, 15), (1, "", 5, 15)]
    assert not machine.valid(read)
    assert spans(machine) == [(1, 15, 20)]
    assert machine.readers[1].messages == 10
    machine.set_cursor("c", 99)
    assert machine.cursors["c"].next_offset == 20
    assert machine.set_cursor("new", 3) == []


def test_delete() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    assert machine.delete_cursor("c")
    assert not machine.delete_cursor("c")
    machine.check()
    send_all(machine)
    assert machine.ack(1, [(0, 10)]) == [(0, 10)], "its reader is told that acks lead nowhere"
    assert journalled(machine, 5) == [CursorEntry("c", -1, [], 5)]


def test_bounds_on_cursors_readers_and_names() -> None:
    machine = stream(1)
    with pytest.raises(Invalid, match="control character"):
        open_reader(machine, cursor="a\nb")
    assert machine.readers == {}
    for n in range(limits.CURSORS_PER_PARTITION_MAX):
        machine.set_cursor(f"c{n}", 0)
    with pytest.raises(LimitExceeded, match="cursors"):
        machine.set_cursor("one more", 0)
    with pytest.raises(LimitExceeded, match="cursors"):
        open_reader(machine, cursor="one more")
    machine.check()


# ---------------------------------------------------------------- where to start


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", 10),
        ("latest", 50),
        ("offset:30", 30),
        ("offset:3", 10),
        ("offset:50", 50),
        ("last:7", 43),
        ("last:999", 10),
        ("timestamp:77", 33),
        ("cursor", 20),
    ],
)
def test_starts(start: str, expected: int) -> None:
    machine = stream(50)
    machine.trim(10)
    machine.set_cursor("c", 20)
    assert machine.resolve_start(start, "c", {77: 33}.__getitem__) == expected


@pytest.mark.parametrize(
    "start",
    [
        "",
        "first",
        "offset",
        "offset:",
        "offset:-1",
        "offset:1x",
        "offset:\u0661",
        "last:1.5",
        "offset:51",
        "offset:" + "9" * 30,
        "timestamp:" + "9" * 5000,
    ],
)
def test_bad_starts(start: str) -> None:
    with pytest.raises(Invalid):
        stream(50).resolve_start(start, "c", lambda ms: ms)


def test_a_cursor_that_does_not_exist_begins_at_the_earliest_record() -> None:
    machine = stream(50)
    machine.trim(10)
    assert machine.resolve_start("cursor", "new") == 10
    with pytest.raises(Invalid, match="name of a cursor"):
        machine.resolve_start("cursor")
    with pytest.raises(Invalid, match="timestamp"):
        machine.resolve_start("timestamp:5")


# ---------------------------------------------------------------- retention


def test_trimming_moves_readers_and_cursors_and_says_so() -> None:
    machine = stream(100)
    open_reader(machine, 1, cursor="c")
    open_reader(machine, 2, start="latest")
    send_all(machine)
    machine.set_cursor("idle", 30)
    machine.set_cursor("ahead", 90)
    moved = machine.trim(40)
    assert [(m.reader_id, m.cursor, m.from_offset, m.to_offset) for m in moved] == [(-1, "c", 0, 40), (-1, "idle", 30, 40), (1, "", 10, 40)]
    assert machine.readers[1].messages == 10, "credit for what is gone comes back"
    assert machine.ack(1, [(0, 10)]) == []
    assert spans(machine) == [(1, 40, 50)]
    assert machine.nbytes == 6000
    assert machine.trim(40) == []
    assert machine.trim(20) == []


def test_what_was_acked_above_a_gap_that_is_trimmed_is_not_sent_again() -> None:
    machine = stream(12)
    open_reader(machine, 1, cursor="c")
    send_all(machine)
    assert machine.ack(1, [(4, 4), (9, 1)]) == []
    open_reader(machine, 2, cursor="c", messages=3)
    send_all(machine)
    assert machine.position(2) == 3
    machine.trim(4)
    assert machine.position(2) == 8
    machine.credit(2, 10, 0)
    assert spans(machine) == [(2, 8, 9)]


def test_trimming_stops_at_the_high_watermark() -> None:
    machine = stream(10, tier="speculative")
    machine.appended(15)
    machine.trim(13)
    assert machine.start_offset == 10
    machine.check()


def test_retention_says_what_may_go() -> None:
    machine = stream(100, retention_ms=1000, retention_bytes=5, retention_records=30)
    wish = machine.retention(5000)
    assert (wish.age_ms, wish.bytes_max, wish.records_max, wish.before_wall_ms, wish.before_offset) == (1000, 5, 30, 4000, 70)
    machine.configure(StreamSpec())
    wish = machine.retention(5000)
    assert (wish.age_ms, wish.bytes_max, wish.records_max, wish.before_wall_ms, wish.before_offset) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- speculative and ephemeral tiers


def test_speculative_readers_run_ahead_but_no_cursor_passes_the_high_watermark() -> None:
    machine = stream(10, tier="speculative")
    open_reader(machine, cursor="c", messages=100)
    machine.appended(20)
    send_all(machine)
    assert machine.position(1) == 20
    assert machine.ack(1, [(0, 20)]) == []
    assert machine.cursors["c"].next_offset == 10
    assert journalled(machine)[0] == CursorEntry("c", 10, [], 1)
    machine.committed(15, 500, 3)
    assert machine.cursors["c"].next_offset == 15
    assert journalled(machine)[0].next_offset == 15
    machine.committed(20, 500, 3)
    assert machine.cursors["c"].next_offset == 20
    machine.check()


def test_a_new_epoch_takes_back_what_was_not_committed_and_tells_whom_it_concerns() -> None:
    machine = stream(10, tier="speculative")
    open_reader(machine, 1, cursor="c", messages=100)
    open_reader(machine, 2, start="earliest", messages=5)
    machine.appended(20)
    send_all(machine)
    machine.ack(1, [(0, 14)])
    told = machine.retract(12, 7)
    machine.check()
    assert [(t.reader_id, t.from_offset, t.epoch) for t in told] == [(1, 12, 7)]
    assert machine.position(1) == 12
    machine.appended(18)
    machine.committed(18, 1, 4)
    assert machine.cursors["c"].next_offset == 12, "acks of what was taken back do not count for what came instead"
    send_all(machine)
    assert machine.ack(1, [(12, 3)], epoch=6) == [(12, 3)], "nor do late ones"
    assert machine.ack(1, [(12, 3)], epoch=7) == []
    assert machine.cursors["c"].next_offset == 15


def test_a_read_under_way_is_void_after_a_retraction() -> None:
    machine = stream(5, tier="ephemeral")
    open_reader(machine, start="latest")
    machine.appended(8)
    (read,) = machine.due()
    assert machine.valid(read)
    machine.retract(5, 2)
    machine.appended(8)
    assert not machine.valid(read)


def test_ephemeral_offsets_may_restart() -> None:
    machine = stream(50, tier="ephemeral")
    machine.trim(20)
    machine.set_cursor("c", 30)
    open_reader(machine, 1, start="latest")
    told = machine.retract(0, 2)
    machine.check()
    assert [(t.reader_id, t.from_offset) for t in told] == [(1, 0)]
    assert (machine.start_offset, machine.end, machine.cursors["c"].next_offset) == (0, 0, 0)


# ---------------------------------------------------------------- journal and snapshot


def test_the_journal_holds_one_row_a_cursor_and_tick() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    for n in range(5):
        machine.ack(1, [(n, 1)])
    machine.ack(1, [(8, 2)])
    assert journalled(machine, 77) == [CursorEntry("c", 5, [(8, 2)], 77)]
    assert machine.take_journal(78) == []
    assert machine.cursors["c"].wall_ms == 77


def test_replay_and_snapshot_agree() -> None:
    machine = stream(20)
    open_reader(machine, cursor="c")
    send_all(machine)
    machine.set_cursor("gone", 5)
    machine.set_cursor("kept", 7)
    first = machine.take_journal(5)
    snapshot = machine.snapshot()
    machine.ack(1, [(0, 3), (5, 2)])
    machine.delete_cursor("gone")
    machine.trim(2)
    second = machine.take_journal(6)
    whole, later = stream(20), StreamMachine(StreamSpec())
    later.restore(1, snapshot)
    for entry in first:
        whole.replay(*entry)
    for entry in second:
        whole.replay(*entry)
        later.replay(*entry)
    for other in (whole, later):
        other.check()
        assert other.take_journal() == []
        assert other.start_offset == 2
        assert {n: c.row(20) for n, c in other.cursors.items()} == {n: c.row(20) for n, c in machine.cursors.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(5),
        msgspec.msgpack.encode(((5, 3, 0, 0, 0), [])),
        msgspec.msgpack.encode(((0, 3, 0, 0, 0), [("c", 2, [(1, 1)], 0)])),
    ],
)
def test_damaged_snapshots_are_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        stream().restore(1, data)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x94\xa1\xff\x00\x90\x00", msgspec.msgpack.encode([("c", -5, [], 0)])])
def test_damaged_entries_are_refused(payload: bytes) -> None:
    machine = stream(5)
    for kind in (Kind.CURSOR, Kind.CONFIG):
        with pytest.raises(Damaged):
            machine.replay(kind, payload)
    machine.check()


def test_other_kinds_and_versions() -> None:
    machine = stream(5)
    machine.replay(Kind.EPOCH_START, b"anything")
    machine.replay(Kind.CONFIG, msgspec.msgpack.encode({"partitions": 3}))
    with pytest.raises(Damaged, match="version 9"):
        machine.restore(9, machine.snapshot())
    assert machine.next_deadline_ms() is None


def test_the_view_says_what_each_reader_waits_for() -> None:
    machine = stream(20)
    open_reader(machine, 1, start="earliest")
    open_reader(machine, 2, start="latest")
    open_reader(machine, 3, start="earliest", messages=0)
    open_reader(machine, 4, start="earliest")
    machine.park(4)
    assert [r["waits_for"] for r in machine.view()["readers"]] == ["", "records", "credit", "the socket"]
    machine.set_cursor("c", 5)
    assert machine.view()["cursors"][0]["lag"] == 15

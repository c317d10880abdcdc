"""What a partition's journal keeps of groups."""

import msgspec
import pytest

from headrace.core.group_records import GroupRecords, home
from headrace.core.partitioner import partition_for
from headrace.model import limits
from headrace.model.errors import Damaged, Fenced, Malformed
from headrace.wire.journal import GroupState, Kind, pack_group, unpack_group


def replayed(*entries: tuple[Kind, bytes]) -> GroupRecords:
    made = GroupRecords()
    for kind, payload in entries:
        assert kind == Kind.GROUP
        made.replay(payload)
    return made


def test_a_home_is_chosen_as_a_key_chooses_its_partition() -> None:
    assert [home(name, 8) for name in ("team", "billing", "x")] == [partition_for(name.encode(), 8) for name in ("team", "billing", "x")]
    assert len({home(str(n), 8) for n in range(100)}) == 8


def test_only_the_newest_generation_holds_a_partition() -> None:
    records = GroupRecords()
    records.hold("team", 3, "a")
    records.hold("team", 3, "a")
    for generation, member in ((3, "b"), (2, "a"), (2, "b")):
        with pytest.raises(Fenced):
            records.hold("team", generation, member)
    records.hold("billing", 1, "b")
    records.hold("team", 4, "b")
    with pytest.raises(Fenced):
        records.hold("team", 3, "a")
    assert records.holders == {"billing": (1, "b"), "team": (4, "b")}
    assert len(records.take_journal()) == 3, "what changes nothing is not journalled"


def test_replay_and_snapshot_say_the_same() -> None:
    records = GroupRecords()
    assert not records
    records.put("team", b"1")
    records.put("team", b"2")
    records.put("billing", b"3")
    records.drop("billing", 7)
    records.hold("team", 2, "a")
    journal = records.take_journal()
    assert next(unpack_group(payload) for _, payload in journal) == GroupState("team", b"2"), "only the last state of each"
    assert not records.changed
    again = replayed(*journal)
    restored = GroupRecords()
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(records.snapshot())))
    for other in (again, restored):
        assert (other.homed, other.floor, other.holders) == ({"team": b"2"}, 7, {"team": (2, "a")})
        with pytest.raises(Fenced):
            other.hold("team", 1, "b")


def test_the_holders_that_are_remembered_are_bounded() -> None:
    records = GroupRecords()
    for n in range(limits.GROUPS_PER_PARTITION_MAX + 5):
        records.hold(str(n), 1, "a")
    assert len(records.holders) == limits.GROUPS_PER_PARTITION_MAX
    assert "4" not in records.holders
    assert "5" in records.holders


def test_what_cannot_be_read_is_said() -> None:
    for payload in (b"", b"\xc1", msgspec.msgpack.encode(["other", "x"]), pack_group(GroupState("x", b""))[:-1]):
        with pytest.raises(Malformed):
            GroupRecords().replay(payload)
    for kept in (3, [1, {}], [1, {"x": 3}, {}], ["1", {}, {}]):
        with pytest.raises(Damaged):
            GroupRecords().restore(kept)

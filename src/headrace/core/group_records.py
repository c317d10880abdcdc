"""What the journal of one partition keeps of groups: those that have their home here, and of each group who holds this partition.

A home is the one partition whose owner decides for a group; ``home`` says which. Owns the bytes of those groups, not what they mean
(``core.groups``), and the newest holder of every group, by which a member of an older generation is refused wherever the partition is served.

Invariants: R1 for one group the generation of a holder never goes back. R2 a group that begins anew in its home begins above every generation that
one of its name ever had there. R3 what a holder is granted stands in the journal behind the entry that names it, so whoever has the one has the
other.
"""

from typing import Any

import msgspec

from headrace.core.partitioner import partition_for
from headrace.model import limits
from headrace.model.errors import Damaged, Fenced
from headrace.wire.journal import GroupEntry, GroupGone, GroupHolder, GroupState, Kind, pack_group, unpack_group


def home(name: str, partition_count: int) -> int:
    """The partition whose owner decides for a group: by the hash of the group's name; for a cohort of the queue's, so that one broker sees that
    there is another."""
    return partition_for(name.encode(), partition_count)


class GroupRecords:
    """See the module's head."""

    __slots__ = ("_journal", "floor", "holders", "homed")

    def __init__(self) -> None:
        self.homed: dict[str, bytes] = {}
        """Name to snapshot of the groups that have their home here."""
        self.floor = 0
        """The highest generation of those that are gone."""
        self.holders: dict[str, tuple[int, str]] = {}
        """Group to the newest (generation, member) that held this partition."""
        self._journal: list[GroupEntry] = []

    # ------------------------------------------------------------ decisions

    def put(self, name: str, state: bytes) -> None:
        """The group's state has changed."""
        self._do(GroupState(name, state))

    def drop(self, name: str, generation: int) -> None:
        """Its last member has left in that generation."""
        self._do(GroupGone(name, generation))

    def hold(self, name: str, generation: int, member: str) -> None:
        """``member`` shows the generation in which it was given this partition. Raises ``Fenced``, and changes nothing, if another member had it in
        this generation, or anybody in a later one."""
        newest, before = self.holders.get(name, (-1, ""))
        if generation < newest or (generation == newest and member != before):
            raise Fenced(
                f"generation {newest} of group {name!r} holds this partition, this member is of generation {generation}",
                hint="join the group again: it says what is assigned now",
            )
        if (generation, member) != (newest, before):
            self._do(GroupHolder(name, generation, member))

    def _do(self, entry: GroupEntry) -> None:
        self._journal.append(entry)
        self._apply(entry)

    def _apply(self, entry: GroupEntry) -> None:
        if isinstance(entry, GroupState):
            self.homed[entry.name] = entry.state
        elif isinstance(entry, GroupGone):
            self.homed.pop(entry.name, None)
            self.floor = max(self.floor, entry.generation)
        else:
            self.holders.pop(entry.name, None)
            self.holders[entry.name] = entry.generation, entry.member
            if len(self.holders) > limits.GROUPS_PER_PARTITION_MAX:
                del self.holders[next(iter(self.holders))]

    # ------------------------------------------------------------ durable state

    def __bool__(self) -> bool:
        return bool(self.homed or self.holders or self.floor)

    @property
    def changed(self) -> bool:
        """Whether there is something to journal."""
        return bool(self._journal)

    def take_journal(self) -> list[tuple[Kind, bytes]]:
        """One entry a decision since the last call; of a group's states only the last."""
        taken, self._journal = self._journal, []
        last = {e.name: e for e in taken if not isinstance(e, GroupHolder)}
        return [(Kind.GROUP, pack_group(e)) for e in taken if isinstance(e, GroupHolder) or last[e.name] is e]

    def replay(self, payload: bytes) -> None:
        """Applies an entry of the journal; raises ``Malformed``."""
        self._apply(unpack_group(payload))

    def snapshot(self) -> Any:
        """The state as plain values for msgpack."""
        return [self.floor, self.homed, self.holders]

    def restore(self, kept: Any) -> None:
        """Takes over a snapshot; raises ``Damaged``."""
        try:
            self.floor, self.homed, self.holders = msgspec.convert(kept, tuple[int, dict[str, bytes], dict[str, tuple[int, str]]])
        except msgspec.ValidationError as e:
            raise Damaged(f"what a partition keeps of groups does not decode: {e}") from None

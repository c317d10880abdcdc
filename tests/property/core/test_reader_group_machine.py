"""A reader group over the partitions of a stream against sets of acked offsets: members come, go and hear late, and nothing is skipped.

What a broker does with assignments is done here by hand, but as late as it likes: until a member has heard, its old readers read and ack on, and are
fenced by whoever took the cursor. The model knows of each partition what was acked by the reader that moved its cursor.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.assignment import STRATEGIES, Strategy
from headrace.core.groups import Assignment, Group
from headrace.core.stream import StreamMachine
from headrace.model.errors import Fenced
from headrace.model.specs import StreamSpec
from tests.property.effort import effort

CURSOR = "c"
GRACE_MS, RECONNECT_MS, REVOKE_MS = 100, 40, 60
MANY = 1 << 30
MEMBERS = st.sampled_from(["m1", "m2", "m3", "m4"])
LONER = 99


@dataclass
class Member:
    """``heard``: the generation it was last told and acted on; ``news``: what it was told and has not acted on."""

    number: int
    heard: int = 0
    news: list[Assignment] = field(default_factory=list)
    reading: dict[int, set[int]] = field(default_factory=dict)
    """Partition to what it was sent there and has not acked."""
    parting: dict[int, int] = field(default_factory=dict)
    suspended: bool = False


class ReaderGroup(RuleBasedStateMachine):
    @initialize(strategy=st.sampled_from([*STRATEGIES, "cooperative"]), partitions=st.integers(1, 4))
    def begin(self, strategy: Strategy, partitions: int) -> None:
        self.now = 0
        self.numbers = 0
        self.strategy = strategy
        self.streams = [StreamMachine(StreamSpec()) for _ in range(partitions)]
        self.acked: list[set[int]] = [set() for _ in self.streams]
        self.mover: list[int | None] = [None] * partitions
        """The reader whose acks count, by partition."""
        self.fence = [0] * partitions
        self.new_group()
        self.members: dict[str, Member] = {}

    def new_group(self) -> None:
        self.group = Group(
            len(self.streams),
            strategy=self.strategy,
            grace_ms=GRACE_MS,
            reconnect_grace_ms=RECONNECT_MS,
            revoke_timeout_ms=REVOKE_MS,
            generation=max(stream.generation for stream in self.streams),
        )

    # ------------------------------------------------------------ membership

    def tell(self, told: list[Assignment]) -> None:
        for assignment in told:
            if assignment.member in self.members:
                self.members[assignment.member].news.append(assignment)

    def end(self, name: str) -> None:
        """A member is gone for good: what it read is closed."""
        member = self.members.pop(name)
        for partition in list(member.reading):
            self.close(member, partition)

    @rule(name=MEMBERS)
    def joins(self, name: str) -> None:
        if not self.members:
            self.new_group()
        member = self.members.get(name)
        if member is None:
            self.numbers += 1
            member = self.members[name] = Member(self.numbers)
        member.suspended = False
        self.tell(self.group.join(name, "", self.now))

    @rule(name=MEMBERS)
    def leaves(self, name: str) -> None:
        if name in self.members:
            self.end(name)
            self.tell(self.group.leave(name, self.now))

    @rule(name=MEMBERS)
    def all_but_one_leave(self, name: str) -> None:
        """That one may not be there either."""
        for other in [other for other in self.members if other != name]:
            self.leaves(other)

    @rule(name=MEMBERS)
    def joins_and_hears(self, name: str) -> None:
        self.joins(name)
        while self.members[name].news:
            self.hears(name)

    @rule(name=MEMBERS)
    def loses_its_connection(self, name: str) -> None:
        if name in self.members:
            self.members[name].suspended = True
            self.group.suspend(name, self.now)

    @rule(ms=st.sampled_from([1, 30, 60]))
    def time_passes(self, ms: int) -> None:
        self.now += ms
        told = self.group.tick(self.now)
        for name in [name for name in self.members if self.group.assignment(name) is None]:
            assert self.members[name].suspended, "only who is away loses its seat"
            self.end(name)
        self.tell(told)

    # ------------------------------------------------------------ carrying out, late

    @rule(name=MEMBERS)
    def hears(self, name: str) -> None:
        member = self.members.get(name)
        if member is None or not member.news:
            return
        news = member.news.pop(0)
        assert news.generation >= member.heard
        member.heard = news.generation
        for partition in news.revoked:
            if partition not in member.reading:
                continue
            if self.group.strategy == "cooperative" and member.reading[partition]:
                self.streams[partition].park(member.number)
                member.parting[partition] = news.generation
            else:
                self.close(member, partition)
        if news.revoked and not member.parting:
            self.tell(self.group.released(name, news.generation, self.now))
        for partition in news.partitions:
            if partition not in member.reading:
                self.open(member, partition, news.generation)
            elif partition in member.parting:
                # it was given back before it was given up
                del member.parting[partition]
                self.streams[partition].park(member.number, False)

    def open(self, member: Member, partition: int, generation: int) -> None:
        stream, fence = self.streams[partition], self.fence[partition]
        position = stream.resolve_start("cursor", CURSOR)
        if generation < fence:
            with pytest.raises(Fenced):
                stream.open_reader(member.number, position=position, messages=5, nbytes=MANY, cursor=CURSOR, generation=generation)
            return
        opened = stream.open_reader(member.number, position=position, messages=5, nbytes=MANY, cursor=CURSOR, generation=generation)
        before = self.mover[partition]
        assert opened.superseded == (-1 if before is None else before)
        assert opened.position == next(o for o in range(stream.end + 1) if o not in self.acked[partition])
        self.mover[partition], self.fence[partition] = member.number, generation
        member.reading[partition] = set()

    def close(self, member: Member, partition: int) -> None:
        self.streams[partition].close_reader(member.number)
        member.reading.pop(partition)
        member.parting.pop(partition, None)
        if self.mover[partition] == member.number:
            self.mover[partition] = None

    @rule(name=MEMBERS)
    def gives_up_what_it_finished(self, name: str) -> None:
        member = self.members.get(name)
        if member is None:
            return
        for partition, generation in list(member.parting.items()):
            if not member.reading[partition]:
                self.close(member, partition)
                if not member.parting:
                    self.tell(self.group.released(name, generation, self.now))

    # ------------------------------------------------------------ reading

    @rule(partition=st.integers(0, 3), count=st.integers(1, 6))
    def is_published(self, partition: int, count: int) -> None:
        stream = self.streams[partition % len(self.streams)]
        stream.committed(stream.end + count, 10 * count, self.now)

    @rule()
    def is_sent(self) -> None:
        for partition, stream in enumerate(self.streams):
            for read in stream.due():
                member = next(m for m in self.members.values() if m.number == read.reader_id)
                assert partition not in member.parting, "what is given up is read no further"
                sent = set(range(read.from_offset, read.end))
                if self.mover[partition] == member.number:
                    assert not sent & self.acked[partition], "sent again though acked"
                assert stream.sent(read.reader_id, read.end, len(sent), 10 * len(sent))
                member.reading[partition] |= sent

    @rule(name=MEMBERS, partition=st.integers(0, 3), skip=st.integers(0, 3), count=st.integers(1, 6))
    def is_acked(self, name: str, partition: int, skip: int, count: int) -> None:
        member = self.members.get(name)
        partition %= len(self.streams)
        if member is None or not member.reading.get(partition):
            return
        first = min(member.reading[partition]) + skip
        offsets = {o for o in range(first, first + count) if o in member.reading[partition]}
        ranges = [(o, 1) for o in sorted(offsets)]
        stale = self.streams[partition].ack(member.number, ranges)
        member.reading[partition] -= offsets
        if self.mover[partition] == member.number:
            assert not stale
            self.acked[partition] |= offsets
        else:
            assert stale == ranges, "the acks of a zombie count for nothing"

    @rule()
    def somebody_alone_takes_a_cursor(self) -> None:
        """A reader of no group is refused while a member moves the cursor, and leaves the fence where it was."""
        for partition, stream in enumerate(self.streams):
            position = stream.resolve_start("cursor", CURSOR)
            if self.mover[partition] is not None and self.fence[partition]:
                with pytest.raises(Fenced):
                    stream.open_reader(LONER, position=position, messages=1, nbytes=MANY, cursor=CURSOR)
            else:
                stream.open_reader(LONER, position=position, messages=1, nbytes=MANY, cursor=CURSOR)
                stream.close_reader(LONER)

    # ------------------------------------------------------------ always

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "members"):
            return
        self.group.check()
        for partition, stream in enumerate(self.streams):
            stream.check()
            acked = self.acked[partition]
            cursor = stream.cursors.get(CURSOR)
            first = next(o for o in range(stream.end + 1) if o not in acked)
            assert (cursor.next_offset if cursor is not None else 0) == first, "the cursor stands at the first that nobody acked"
            moving = [id for id, reader in stream.readers.items() if reader.cursor is not None]
            assert moving == ([] if self.mover[partition] is None else [self.mover[partition]])
            assert stream.generation == self.fence[partition]

    @precondition(lambda self: self.members)
    @rule()
    def in_the_end_everything_is_read(self) -> None:
        """Everybody hears what there is to hear and reads and acks what there is."""
        for name in list(self.members):
            self.joins(name)
        for _ in range(8):
            for name in list(self.members):
                while self.members[name].news:
                    self.hears(name)
                for partition in list(self.members[name].reading):
                    while self.members[name].reading.get(partition):
                        self.is_acked(name, partition, 0, 60)
                self.gives_up_what_it_finished(name)
        for partition, stream in enumerate(self.streams):
            holder = self.group.holder(partition)
            assert holder is not None, "all is heard and released, yet nobody may read"
            member = self.members[holder[0]]
            assert self.mover[partition] == member.number, "the holder reads"
            while member.reading[partition] or stream.due():
                self.is_sent()
                self.is_acked(holder[0], partition, 0, 60)
                for other in self.members.values():
                    assert other is member or partition not in other.reading
            assert len(self.acked[partition]) == stream.end


ReaderGroup.TestCase.settings = effort(40, steps=40)
TestReaderGroup = ReaderGroup.TestCase

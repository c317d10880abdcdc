"""Copies that are given as a whole: parts that get lost, checkpoints that grow old on the way, brokers that say what cannot be."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cluster.replication.heads import unpack
from headrace.cluster.replication.installs import Installs
from headrace.cluster.replication.intake import COMING_IN_MAX, Intake
from headrace.cluster.replication.messages import AnyInstall, Offer, Part, Want
from headrace.cluster.replication.throttle import Throttle
from headrace.core.replica.effects import Stage, Transfer
from headrace.core.replica.journal import Recovered
from headrace.core.replica.messages import NewEpoch
from headrace.core.replica.replica import Replica
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.errors import DiskFull, Malformed
from headrace.wire import replication as wire
from headrace.wire.journal import Kind, pack_records_head

PID = 9
A, F = BrokerId("a"), BrokerId("f")


class Snapshot(NamedTuple):
    index: int  # type: ignore[assignment]
    packed: bytes
    first_offset: int
    end_offset: int


class Staging:
    def __init__(self) -> None:
        self.pieces: list[wire.Piece] = []
        self.fails = False
        self.end = ""

    async def add(self, pieces: Sequence[wire.Piece]) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise DiskFull("no room")
        self.pieces += pieces

    async def finish(self, checkpoint: bytes) -> object:
        await asyncio.sleep(0)
        return checkpoint, list(self.pieces)

    def discard(self) -> None:
        self.end = "discarded"

    def handed(self) -> None:
        self.end = "handed"


class Log:
    """Records at each even offset; two offsets and one index each."""

    def __init__(self) -> None:
        self.newest: Snapshot | None = Snapshot(44, b"c" * 250, 10, 88)
        self.stagings: list[Staging] = []
        self.reads: list[int] = []

    def snapshot(self, pid: int) -> Snapshot | None:
        return self.newest

    async def records(self, pid: int, upto: Snapshot, offset: int, bytes_max: int) -> tuple[list[bytes], int]:
        self.reads.append(offset)
        raws: list[bytes] = []
        while offset < upto.end_offset and len(raws) < 4:
            payload = pack_records_head(offset, 2, 2, 1, 0) + b"record"
            body = wire.ENTRY.pack(len(payload), 0, pid, 4, offset // 2 + 1, int(Kind.RECORDS), 0)[8:] + payload
            raws.append(len(payload).to_bytes(4, "big") + crc32c(body).to_bytes(4, "big") + body)
            offset += 2
        return raws, offset

    def staging(self, pid: int) -> Staging:
        self.stagings.append(Staging())
        return self.stagings[-1]


class Box:
    room = 1 << 20

    def __init__(self) -> None:
        self.sent: list[tuple[AnyInstall, bytes]] = []

    def add(self, pid: int, head: bytes, entries: Sequence[bytes] = ()) -> None:
        message = unpack(head)
        assert isinstance(message, (Offer, Want, Part))
        self.sent.append((message, b"".join(entries)))


class Side:
    """What is driver, its turns and tasks, and partition to one end."""

    pid, halted, part_bytes = PID, "", 100

    def __init__(self, me: BrokerId, other: BrokerId, found: Recovered) -> None:
        self.replica = Replica(me, Incarnation("1"), found, {})
        self.log = Log()
        self.box = Box()
        self.links = {other: Incarnation("1")}
        self.intake = Intake()
        self.throttle = Throttle(0, self.now_s)
        self.works: list[asyncio.Task[None]] = []
        self.turns = self.tasks = self
        self.installs = Installs(self, self, self.log)  # type: ignore[arg-type]

    def now_s(self) -> float:
        return 1.0

    def now_ms(self) -> int:
        return 1000

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.works.append(asyncio.ensure_future(work))

    def stir(self, partition: object) -> None: ...

    def outbox(self, peer: BrokerId) -> Box:
        return self.box


def sides() -> tuple[Side, Side]:
    owner = Side(A, F, Recovered(start=41, end=60, high_watermark=50, promised=5, base_epoch=4, runs=((4, 41),)))
    follower = Side(F, A, Recovered(end=8, high_watermark=3, runs=((2, 1),)))
    joined(follower, 1)
    return owner, follower


def joined(follower: Side, session: int) -> None:
    follower.replica.received(A, NewEpoch(epoch=5, session=session), 0)
    follower.replica.promised(5, 0)
    follower.replica.take()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def carried(owner: Side, follower: Side, *, most: int = 1000, lose: int = -1) -> None:
    """Carries messages until there are none, but for the one numbered ``lose``."""
    for number in range(most):
        await settled()
        side, to, sender = (owner, follower, A) if owner.box.sent else (follower, owner, F)
        if not side.box.sent:
            return
        message, blob = side.box.sent.pop(0)
        if number != lose:
            to.installs.received(sender, message, blob)


def staged(follower: Side) -> Stage | None:
    return next((effect for effect in follower.replica.take() if isinstance(effect, Stage)), None)


async def test_a_copy_comes_in_parts() -> None:
    owner, follower = sides()
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    stage = staged(follower)
    assert stage is not None
    assert (stage.end, stage.history_start, stage.base_epoch, stage.runs) == (45, 45, 4, ())
    checkpoint, pieces = stage.data
    assert checkpoint == b"c" * 250
    assert [entry.base_offset for entry, _ in pieces] == list(range(10, 88, 2))
    assert owner.log.reads == list(range(10, 88, 8))
    assert owner.installs.held_index() == 44
    follower.installs.handed()
    assert (follower.log.stagings[0].end, follower.intake.places) == ("handed", {})


@pytest.mark.parametrize("lose", range(0, 27, 3))
async def test_what_was_lost_is_asked_for_again_and_nothing_else(lose: int) -> None:
    owner, follower = sides()
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower, lose=lose)
    assert staged(follower) is None
    joined(follower, 2)
    owner.installs.transfer(Transfer(F, 5, 2, 2))
    await carried(owner, follower)
    stage = staged(follower)
    assert stage is not None
    assert [entry.base_offset for entry, _ in stage.data[1]] == list(range(10, 88, 2))
    assert len(owner.log.reads) <= 11
    assert len(follower.log.stagings) == 1


async def test_a_checkpoint_that_grew_old_on_the_way_is_replaced_and_what_came_is_kept() -> None:
    owner, follower = sides()
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower, most=6)
    assert owner.log.reads
    owner.replica.trimmed(48)
    owner.log.newest = Snapshot(48, b"d" * 30, 20, 96)
    await carried(owner, follower)
    stage = staged(follower)
    assert stage is not None
    checkpoint, pieces = stage.data
    assert (stage.end, checkpoint) == (49, b"d" * 30)
    assert [entry.base_offset for entry, _ in pieces] == list(range(10, 96, 2))
    assert len(owner.log.reads) == len(set(owner.log.reads))


async def test_nothing_is_offered_before_there_is_a_checkpoint_that_fits() -> None:
    owner, _ = sides()
    owner.log.newest = Snapshot(39, b"too old", 0, 10)
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await settled()
    assert owner.box.sent == []
    owner.log.newest = Snapshot(50, b"not committed", 0, 10)
    await asyncio.sleep(0.15)
    assert owner.box.sent == []
    owner.log.newest = Snapshot(40, b"just right", 0, 10)
    await asyncio.sleep(0.15)
    assert len(owner.box.sent) == 1
    owner.installs.clear()
    assert owner.installs.held_index() is None


async def test_a_full_disk_begins_again_and_a_new_life_of_the_sender_too() -> None:
    owner, follower = sides()
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower, most=3)
    follower.log.stagings[0].fails = True
    await carried(owner, follower)
    assert (follower.log.stagings[0].end, follower.intake.places) == ("discarded", {})
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower, most=5)
    follower.links[A] = Incarnation("2")
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    assert [staging.end for staging in follower.log.stagings] == ["discarded", "discarded", ""]
    assert staged(follower) is not None


def _crowded(follower: Side) -> None:
    for pid in range(100, 100 + COMING_IN_MAX):
        assert follower.intake.enter(pid, lambda: None, owned=False)


async def test_an_offer_for_which_there_is_no_place_is_taken_once_there_is_one() -> None:
    owner, follower = sides()
    _crowded(follower)
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    assert follower.log.stagings == []
    follower.intake.leave(101)
    await carried(owner, follower)
    assert staged(follower) is not None, "it need not be offered again"


async def test_the_last_offer_is_taken_and_none_of_a_session_that_is_over() -> None:
    owner, follower = sides()
    _crowded(follower)
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    joined(follower, 2)
    follower.intake.leave(101)
    assert (follower.log.stagings, PID in follower.intake.places) == ([], False)
    _crowded(follower)
    owner.installs.transfer(Transfer(F, 5, 2, 2))
    await carried(owner, follower)
    follower.intake.leave(102)
    await carried(owner, follower)
    assert staged(follower) is not None


@pytest.mark.parametrize("links", [{}, {A: Incarnation("2")}])
async def test_an_offer_of_who_is_gone_or_has_started_again_is_not_taken(links: dict[BrokerId, Incarnation]) -> None:
    owner, follower = sides()
    _crowded(follower)
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    follower.links = links
    follower.intake.leave(101)
    assert follower.log.stagings == []
    assert len(follower.intake.places) == COMING_IN_MAX - 1


async def test_what_is_not_looked_after_any_more_does_not_wait_for_a_place() -> None:
    owner, follower = sides()
    _crowded(follower)
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await carried(owner, follower)
    follower.installs.clear()
    follower.intake.leave(101)
    assert follower.log.stagings == []


async def test_whom_the_machine_does_not_wait_for_is_not_listened_to() -> None:
    owner, follower = sides()
    for epoch, session in ((4, 1), (6, 1), (5, 2)):
        owner.installs.transfer(Transfer(F, epoch, session, 2))
        await carried(owner, follower)
    assert follower.log.stagings == []


async def test_a_checkpoint_that_is_not_what_was_said_is_given_up() -> None:
    owner, follower = sides()
    owner.installs.transfer(Transfer(F, 5, 1, 2))
    await settled()
    offer = owner.box.sent[0][0]
    assert isinstance(offer, Offer)
    follower.installs.received(A, offer, b"")
    for at in range(10, 88, 8):
        raws, upto = await owner.log.records(PID, Snapshot(44, b"", 10, 88), at, 0)
        follower.installs.received(A, Part(epoch=5, number=offer.number, end=45, offset=at, at=0, next_offset=upto), b"".join(raws))
        await settled()
    with pytest.raises(Malformed):
        follower.installs.received(A, Part(epoch=5, number=offer.number, end=45, offset=88, at=0, next_offset=88), b"x" * 250)
    assert follower.log.stagings[0].end == "discarded"
    assert staged(follower) is None


_numbers = st.integers(-3, 100) | st.integers(-(1 << 63), 1 << 63)
_said: dict[str, Any] = {"epoch": st.just(5), "session": st.just(1), "number": st.integers(1, 2), "end": st.sampled_from([1, 2, 45, 49]) | _numbers}
_offers = st.builds(
    Offer, **_said, base_epoch=st.integers(-1, 5), first_offset=_numbers, end_offset=_numbers,
    checkpoint_bytes=st.sampled_from([0, 1, 250]) | _numbers, checkpoint_crc=_numbers,
)  # fmt: skip
_wants = st.builds(Want, **_said, offset=_numbers, at=_numbers)
_parts = st.builds(Part, **_said, offset=st.sampled_from([10, 18, 88]) | _numbers, at=st.integers(0, 3) | _numbers, next_offset=_numbers)


@settings(max_examples=200, deadline=None)
@given(said=st.lists(st.tuples(st.booleans(), _offers | _wants | _parts, st.binary(max_size=80)), max_size=12))
def test_whatever_is_said_is_malformed_or_ignored(said: list[tuple[bool, AnyInstall, bytes]]) -> None:
    async def go() -> None:
        owner, follower = sides()
        owner.installs.transfer(Transfer(F, 5, 1, 2))
        await carried(owner, follower, most=3)
        for to_owner, message, blob in said:
            with suppress(Malformed):
                (owner if to_owner else follower).installs.received(F if to_owner else A, message, blob)
            await settled()
        for side in (owner, follower):
            for task in side.works:
                assert not task.done() or task.exception() is None
                task.cancel()

    asyncio.run(go())

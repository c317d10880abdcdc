"""The small parts of the replication driver: what is in memory, what waits for a peer, what is read for who is behind, marks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from headrace.cluster.replication import marks
from headrace.cluster.replication.catchup import CatchUp
from headrace.cluster.replication.heads import unpack
from headrace.cluster.replication.outbox import ENTRY_BYTES_MAX, Outbox
from headrace.cluster.replication.recent import Memory, Recent
from headrace.cluster.replication.throttle import Throttle
from headrace.model.cluster import BrokerId
from headrace.model.errors import Damaged, Malformed
from headrace.wire import replication as wire
from headrace.wire.peer import Service

B = BrokerId("b")


class Peers:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.takes = True

    def send(self, peer: BrokerId, service: Service, *parts: bytes) -> bool:
        assert (peer, service) == (B, Service.REPLICAS)
        if self.takes:
            self.sent.append(b"".join(parts))
        return self.takes

    def heard_ms(self, peer: BrokerId) -> int:
        return 0


def test_what_is_not_durable_stays_in_memory() -> None:
    memory = Memory(1000)
    one, other = Recent(memory, 1), Recent(memory, 5)
    for _ in range(10):
        one.add(b"h", b"x" * 100)
        other.add(b"h", b"y" * 100)
    memory.evict()
    assert (one.first, one.end, other.first, other.end) == (1, 11, 5, 15)
    one.durable_end, other.durable_end = 11, 8
    memory.evict()
    assert (one.first, other.first) == (5, 8)
    assert one.pieces(4, 9, 1000) == ([], 4)
    assert one.pieces(9, 99, 1000) == ([b"h", b"x" * 100] * 2, 11)
    assert one.pieces(9, 99, 1) == ([b"h", b"x" * 100], 10)
    other.durable_end = 15
    memory.evict()
    assert memory.nbytes <= 1000
    one.cut(3)
    assert (one.first, one.end, one.durable_end) == (3, 3, 3)
    one.add(b"h", b"z")
    assert one.pieces(3, 4, 10) == ([b"h", b"z"], 4)
    other.cut(1)
    one.cut(1)
    assert memory.nbytes == 0
    one.add(b"h", b"x" * 2000)
    one.restart(500)
    assert (one.first, one.end, one.durable_end, memory.nbytes) == (500, 500, 500, 0)
    other.add(b"h", b"y" * 2000)
    other.durable_end = 2
    memory.evict()  # what was cut and is remembered as older keeps nothing back
    assert memory.nbytes == 0


def test_what_was_cut_takes_nothing_newer_along() -> None:
    memory = Memory(1000)
    one, other = Recent(memory, 10), Recent(memory, 5)
    one.add(b"h", b"x" * 300)
    one.add(b"h", b"x" * 300)
    other.add(b"h", b"y" * 2000)
    one.add(b"h", b"x" * 300)
    one.cut(10)
    other.durable_end = 6
    memory.evict()
    assert (memory.nbytes, len(memory.order)) == (0, 1)
    one.add(b"h", b"z" * 600)
    one.add(b"h", b"z" * 600)
    memory.evict()
    assert (one.first, one.end) == (10, 12)


def test_one_frame_a_turn_with_the_last_acknowledgements() -> None:
    peers, box = Peers(), Outbox(B)
    box.flush(peers)
    assert peers.sent == []
    box.acknowledge(1, 2, 3, 10)
    box.add(1, b"head", (b"entry", b"more"))
    box.acknowledge(2, 2, 3, 4)
    box.acknowledge(1, 2, 3, 12)
    box.flush(peers)
    box.flush(peers)
    assert [wire.decode(body) for body in peers.sent] == [([(1, 2, 3, 12), (2, 2, 3, 4)], [wire.Item(1, b"head", (b"entrymore",))])]


def test_a_full_peer_is_sent_what_waits_once_it_is_drained() -> None:
    peers, box = Peers(), Outbox(B)
    peers.takes = False
    box.add(1, b"head")
    box.flush(peers)
    assert box.full
    assert box.room == 0
    peers.takes, box.full = True, False
    box.flush(peers)
    assert len(peers.sent) == 1
    box.add(1, b"head", (b"entry",))
    box.clear()
    box.flush(peers)
    assert len(peers.sent) == 1
    assert box.room > 0


def test_entries_beyond_a_frame_go_in_several() -> None:
    peers, box = Peers(), Outbox(B)
    for _ in range(3):
        box.add(1, b"h", (bytes(ENTRY_BYTES_MAX * 2 // 3),))
    assert box.room == 0
    box.flush(peers)
    assert len(peers.sent) == 3
    assert box.room > 0


async def test_one_read_a_follower_and_what_was_read_before_a_cut_is_forgotten() -> None:
    reads: list[tuple[int, int]] = []
    tasks: list[asyncio.Task[None]] = []
    asked: list[float] = []
    spent: list[int] = []

    async def read(first: int, end: int) -> list[bytes]:
        reads.append((first, end))
        return [b"%d" % index for index in range(first, min(end, first + 3))]

    async def spend(nbytes: int) -> None:
        spent.append(nbytes)

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work))

    behind = CatchUp(read, spend, spawn, asked.append)
    assert behind.pieces(B, 4, 9, 100) == ([], 4)
    assert behind.pieces(B, 4, 9, 100) == ([], 4)
    await asyncio.gather(*tasks)
    assert (reads, asked, spent) == ([(4, 9)], [0.0], [3])
    assert behind.pieces(B, 4, 9, 1) == ([b"4"], 5)
    assert behind.pieces(B, 5, 9, 100) == ([b"5", b"6"], 7)
    assert behind.pieces(B, 7, 9, 100) == ([], 7)
    behind.clear()
    await asyncio.gather(*tasks)
    assert behind.pieces(B, 7, 9, 100) == ([], 7)
    assert len(reads) == 2


async def test_who_lacks_something_is_sent_more_than_comes_in() -> None:
    clock = [0.0]
    throttle = Throttle(1000, lambda: clock[0])
    await throttle.spend(1000)  # what was saved
    waiting = asyncio.ensure_future(throttle.spend(500))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    throttle.came_in(1)
    await asyncio.sleep(0.15)
    assert waiting.done()  # on credit: who comes next pays for it
    clock[0] = 0.4
    waiting = asyncio.ensure_future(throttle.spend(1))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    throttle.came_in(100)
    await asyncio.wait_for(waiting, 1)
    assert throttle.sent == 1501
    free = Throttle(0, lambda: 0.0)
    for _ in range(100):
        await asyncio.wait_for(free.spend(1 << 30), 1)


def test_marks() -> None:
    assert marks.unpack(None) == marks.Marks()
    assert marks.unpack(marks.pack(clean=True, unclean=[3], suspect=[4])) == marks.Marks(True, (3,), (4,))
    with pytest.raises(Damaged):
        marks.unpack(b"\xc1")


def test_no_head_is_believed() -> None:
    for head in (b"", b"\xc1", b"\x90", b"\x92\x63\x01", b"\x93\x01\x07\x02\x00"):
        with pytest.raises(Malformed):
            unpack(head)

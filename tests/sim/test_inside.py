"""What is looked at inside a broker: one that is as it should be is not reported; each rule reports the one thing that is put wrong by hand."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import headrace
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.core.queue.leases import Lease
from headrace.model.config import Config, Storage
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.sim.checks.inside import inside
from headrace.sim.checks.living import alive
from headrace.sim.checks.seen import Seen, Violation
from headrace.sim.history import History
from headrace.sim.world import World

STORAGE = Storage(wal_file_bytes=1 << 20, wal_bytes_max=1 << 23, flush_bytes_max=1 << 18, ballast_bytes=0, disk_free_bytes_min=0)


class Live:
    """A broker at rest with a queue (limit 5) of which three of five messages are settled, and a stream of four records with a cursor at 2."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broker = world.broker("b1", Config(storage=STORAGE))
        self.history = History()
        self.history.finished = 0.0
        world.loop.run_until_complete(self._fill())

    async def _fill(self) -> None:
        await self.broker.start()
        machine = self.world.machine("client")
        await self.world.loop.spawn(machine, self._use(), "use")
        await asyncio.sleep(0.5)

    async def _use(self) -> None:
        async with await headrace.connect(self.broker.url, wait=5) as connected:
            await connected.declare_queue("q", QueueSpec(max_messages=5, lease_ms=60_000))
            await connected.declare_stream("s", StreamSpec())
            for number in range(5):
                await connected.publish("q", b"%d" % number)
            for number in range(4):
                await connected.publish("s", b"%d" % number)
            async with connected.consume("q", prefetch=3) as consumer:
                for _ in range(3):
                    await (await consumer.__anext__()).ack(confirmed=True)
            async with connected.read("s", cursor="c", commit="explicit") as reader:
                await reader.__anext__()
                await (await reader.__anext__()).commit(confirmed=True)

    def _partition(self, name: str) -> Any:
        assert self.broker.running is not None
        live = self.broker.running.broker
        return live.partitions[live.catalogue.get(name).partitions[0]]

    @property
    def queue(self) -> QueuePartition:
        found = self._partition("q")
        assert isinstance(found, QueuePartition)
        return found

    @property
    def stream(self) -> StreamPartition:
        found = self._partition("s")
        assert isinstance(found, StreamPartition)
        return found

    def empty(self) -> None:
        """Settles what is left in the queue."""

        async def take() -> None:
            async with await headrace.connect(self.broker.url, wait=5) as connected, connected.consume("q") as consumer:
                for _ in range(2):
                    await (await consumer.__anext__()).ack(confirmed=True)

        async def taken() -> None:
            await self.world.loop.spawn(self.world.machine("emptier"), take(), "take")
            await asyncio.sleep(0.5)

        self.world.loop.run_until_complete(taken())

    def at_rest(self) -> list[Violation]:
        return list(inside(Seen(self.history), [self.broker]))

    def now(self, *free: str) -> list[Violation]:
        return list(alive([self.broker], frozenset(free)))


@pytest.fixture
def live() -> Iterator[Live]:
    with World(7, rows_max=0) as world:
        yield Live(world)


def kinds(found: list[Violation]) -> set[str]:
    return {violation.invariant for violation in found}


# ---------------------------------------------------------------- at rest


def test_a_broker_that_was_emptied_is_fine(live: Live) -> None:
    live.empty()
    assert live.at_rest() == []


def test_before_the_end_messages_may_be_left(live: Live) -> None:
    live.history.finished = None
    assert live.at_rest() == []


def test_a_queue_that_is_not_empty_at_the_end_is_reported(live: Live) -> None:
    assert kinds(live.at_rest()) == {"I17"}
    assert any("1 ranges ready" in violation.text for violation in live.at_rest())


def _one_more_leased(live: Live) -> None:
    live.queue.machine._state.leases.count += 1


def _watermark_too_high(live: Live) -> None:
    live.queue.high_watermark += 1


def _never_committed(live: Live) -> None:
    live.stream.next_offset += 1


def _a_producer_too_many(live: Live) -> None:
    live.stream.producers.stored(99, 0, 0, 1, 0)


def _a_cursor_moved(live: Live) -> None:
    live.stream.machine.cursors["c"].next_offset = 3


def _a_count_nobody_journalled(live: Live) -> None:
    live.queue.machine._state.set_failures(3, 4, 2, 1)


def _an_index_too_many(live: Live) -> None:
    live.stream.last_index += 1


def _an_expiry_left(live: Live) -> None:
    live.queue.machine._state.expiries.put(0, 1, 5)


def _a_job_left(live: Live) -> None:
    assert live.broker.running is not None
    live.broker.running.broker.outbox._tasks[1] = asyncio.Future(loop=live.world.loop)  # type: ignore[assignment]


def _a_transfer_waits(live: Live) -> None:
    assert live.broker.running is not None
    live.broker.running.broker.outbox._queued[1] = None  # type: ignore[assignment]


def _deadlines_left(live: Live) -> None:
    line = live.queue.machine._state.leases._line
    line.extend((0, 0, 1, Lease(0, 1, 1, 0, 0)) for _ in range(10_000))


@pytest.mark.parametrize(
    ("wrong", "invariant", "text"),
    [
        (_one_more_leased, "I15", "contradicts itself"),
        (_watermark_too_high, "I15", "adds up to 5, the high watermark is 6"),
        (_never_committed, "I16", "given offsets and never committed"),
        (_a_producer_too_many, "I18", "producers is"),
        (_a_cursor_moved, "I18", "cursors is {'c': (3, [])}; rebuilt from the log it is {'c': (2, [])}"),
        (_a_count_nobody_journalled, "I18", "attempts is"),
        (_an_index_too_many, "I18", "its log ends at index"),
        (_an_expiry_left, "I17", "keeps 1 expiries"),
        (_deadlines_left, "I17", "deadlines, at most"),
        (_a_job_left, "I17", "1 jobs that run"),
        (_a_transfer_waits, "I17", "1 transfers under way"),
    ],
)
def test_what_is_wrong_at_rest_is_reported(live: Live, wrong: Callable[[Live], None], invariant: str, text: str) -> None:
    live.empty()
    wrong(live)
    assert any(found.invariant == invariant and text in found.text for found in live.at_rest()), live.at_rest()


def test_a_log_that_cannot_be_replayed_is_reported(live: Live) -> None:
    live.empty()

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("no entries")

    assert live.broker.running is not None
    broker = live.broker.running.broker
    whole = broker.store.replay
    broker.store.replay = lambda pid: Broken()  # type: ignore[method-assign,assignment,return-value]
    assert any("cannot be rebuilt from its log: ValueError" in found.text for found in live.at_rest())
    broker.store.replay = whole  # type: ignore[method-assign]
    assert live.at_rest() == []


def test_what_is_under_way_or_isolated_is_passed_over(live: Live) -> None:
    live.empty()
    live.stream.producers.stored(99, 0, 0, 1, 0)
    live.stream.dirty = True
    assert live.at_rest() == []
    live.stream.dirty = False
    assert live.at_rest()
    live.stream.quarantined = "damaged"
    assert live.at_rest() == []


def test_of_a_cursor_below_what_is_stored_only_its_next_record_counts(live: Live) -> None:
    live.empty()
    cursor = live.stream.machine.cursors["c"]
    cursor.above.add(3, 4)
    live.stream.machine.start_offset = 3
    assert any("start is 3" in found.text for found in live.at_rest())
    assert any("{'c': (4, [])}" in found.text for found in live.at_rest())


# ---------------------------------------------------------------- at any moment


def test_a_broker_at_work_is_fine(live: Live) -> None:
    assert live.now() == []


def test_contradictions_and_sums_are_reported_at_any_moment(live: Live) -> None:
    live.queue.high_watermark += 1
    assert kinds(live.now()) == {"I15"}
    live.queue.high_watermark -= 1
    live.queue.machine._state.leases.count += 1
    assert kinds(live.now()) == {"I15"}


def test_a_queue_beyond_its_limit_is_reported_unless_it_may_be(live: Live) -> None:
    machine = live.queue.machine
    machine.enqueue(5, 4, 40, wall_ms=machine._state.extents.chunk(4)[1], now_ms=0)
    live.queue.high_watermark = live.queue.next_offset = 9
    assert kinds(live.now()) == {"limit"}
    assert live.now("q") == []


def test_a_snapshot_that_leaves_something_out_is_reported(live: Live) -> None:
    from headrace.sim.mutants import MUTANTS

    live.queue.machine._state.set_failures(3, 4, 2, 1)
    assert live.now() == []
    with MUTANTS["attempts-not-in-the-snapshot"].plant():
        assert kinds(live.now()) == {"I18"}
    assert live.now() == []

"""What a replica is answered about a change of its document."""

import asyncio

import pytest

from headrace.cluster.memory import MemoryStore
from headrace.cluster.swapping import Swapping
from headrace.core.replica.effects import Outcome
from headrace.model.cluster import Assignment, BrokerId, encode, partition_key
from headrace.model.ids import Epoch, PartitionId


def document(version: int, epoch: int = 1) -> Assignment:
    a = BrokerId("a")
    return Assignment(
        partition=PartitionId(7), item="orders", version=version, epoch=Epoch(epoch), owner=a, level="local_durable", replicas=(a,)
    )


class Asked:
    def __init__(self) -> None:
        self.store = MemoryStore(timeout_s=0.05)
        self.key = partition_key(PartitionId(7))
        self.swapping = Swapping(self.store.client("a"))

    def record(self, recorded: Assignment) -> None:
        self.store.write({}, {self.key: encode(recorded)}, 0)

    async def swap(self, wanted: Assignment, expected: int) -> tuple[Outcome, Assignment | None]:
        done: asyncio.Future[tuple[Outcome, Assignment | None]] = asyncio.get_running_loop().create_future()
        self.swapping.swap(wanted, expected=expected, answered=lambda outcome, found: done.set_result((outcome, found)))
        assert not done.done(), "it is answered later"
        return await asyncio.wait_for(done, 5)


@pytest.fixture
async def asked() -> Asked:
    return Asked()


async def test_it_is_recorded_under_the_version_that_was_expected(asked: Asked) -> None:
    asked.record(document(1))
    assert await asked.swap(document(2, 2), 1) == (Outcome.APPLIED, document(2, 2))
    recorded = asked.store.document(asked.key)
    assert recorded is not None
    assert recorded.value == encode(document(2, 2))


async def test_the_version_of_the_document_counts_and_not_that_of_the_coordinator(asked: Asked) -> None:
    for _ in range(3):
        asked.record(document(5))  # put back by an operator, say
    assert (await asked.swap(document(6), 5))[0] is Outcome.APPLIED


async def test_whoever_comes_later_is_told_what_is_recorded(asked: Asked) -> None:
    asked.record(document(3, 3))
    assert await asked.swap(document(2, 2), 1) == (Outcome.REFUSED, document(3, 3))


async def test_of_two_at_once_one_is_recorded(asked: Asked) -> None:
    asked.record(document(1))
    answers = await asyncio.gather(asked.swap(document(2, 2), 1), asked.swap(document(2, 3), 1))
    assert sorted(outcome.value for outcome, _ in answers) == ["applied", "refused"]
    won = next(found for outcome, found in answers if outcome is Outcome.APPLIED)
    assert all(found == won for _, found in answers)


async def test_a_lost_answer_is_no_answer(asked: Asked) -> None:
    asked.record(document(1))
    asked.store.lose_answers("a")
    assert await asked.swap(document(2, 2), 1) == (Outcome.UNKNOWN, None)
    asked.store.unreachable("a")
    assert await asked.swap(document(2, 2), 1) == (Outcome.UNKNOWN, None)


async def test_a_document_that_is_gone_or_unreadable_is_not_replaced(asked: Asked) -> None:
    assert await asked.swap(document(2), 1) == (Outcome.REFUSED, None)
    asked.store.write({}, {asked.key: b"\xff"}, 0)
    assert await asked.swap(document(2), 1) == (Outcome.UNKNOWN, None)
    recorded = asked.store.document(asked.key)
    assert recorded is not None
    assert recorded.value == b"\xff"


async def test_after_the_end_nobody_is_answered(asked: Asked) -> None:
    asked.record(document(1))
    answers: list[Outcome] = []
    asked.swapping.swap(document(2), expected=1, answered=lambda outcome, found: answers.append(outcome))
    await asyncio.sleep(0)
    await asked.swapping.stop()
    await asyncio.sleep(0.05)
    assert answers == []

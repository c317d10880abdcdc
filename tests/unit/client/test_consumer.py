import asyncio

import pytest

import headrace
from headrace.model.errors import Conflict, NotConnected, NotFound, StaleSettle
from headrace.wire import control, egress
from headrace.wire.batch import Record
from tests.unit.client.fake import FakeBroker


def stocked(broker: FakeBroker, count: int) -> None:
    broker.stored["orders"] = [Record(key=b"k%d" % i, value=b'{"n":%d}' % i, headers=(("a", b"b"),), timestamp_ms=1500) for i in range(count)]


async def test_a_message_shows_what_was_published() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 1)
        broker.connections[0].deliver(messages.channel, "orders", 0, 1, attempt=3)
        message = await anext(messages)
        assert (message.partition, message.offset, message.attempt, message.redelivered) == (0, 0, 3, True)
        assert (message.value, message.text, message.json()) == (b'{"n":0}', '{"n":0}', {"n": 0})
        assert (message.key, message.raw_key, message.headers, message.timestamp) == ("k0", b"k0", {"a": "b"}, 1.5)
        assert "0/0" in repr(message)


async def test_acks_of_one_burst_are_one_range() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 10)
        broker.connections[0].deliver(messages.channel, "orders", 0, 10)
        for _ in range(10):
            async with await anext(messages):
                pass
        await broker.until(lambda: broker.settles)
        assert broker.settles == [(4, 0, [(0, 10)])]


async def test_an_exception_retries_and_settling_twice_is_a_mistake() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 3)
        broker.connections[0].deliver(messages.channel, "orders", 0, 3)
        with pytest.raises(ZeroDivisionError):
            async with await anext(messages):
                raise ZeroDivisionError
        message = await anext(messages)
        await message.retry(1.5, confirmed=True)
        with pytest.raises(Conflict):
            message.ack()
        await (await anext(messages)).reject(drop=True, confirmed=True)
        assert broker.settles == [(1 | 4, 0, [(0, 1)]), (1 | 4 | 16, 0, [(1, 1)]), (2 | 4 | 32, 0, [(2, 1)])]


async def test_a_lost_lease_is_told_only_where_it_is_awaited() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 2)
        broker.answer_settles = False
        broker.connections[0].deliver(messages.channel, "orders", 0, 2)
        (await anext(messages)).ack()
        waiting = asyncio.ensure_future((await anext(messages)).ack(confirmed=True))
        await broker.until(lambda: broker.settles)
        broker.connections[0].send(egress.settled(messages.channel, 1, 0, [(0, 2)]))
        with pytest.raises(StaleSettle):
            await waiting


async def test_a_resumed_subscription_names_what_it_holds() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 10)
        broker.connections[0].deliver(messages.channel, "orders", 0, 10)
        first, _second = await anext(messages), await anext(messages)
        broker.answer_settles = False
        first.ack()
        await broker.until(lambda: broker.settles)
        broker.answer_settles = True
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.Subscribe)) == 2)
        before, after = broker.asked(control.Subscribe)
        assert (before.resume, after.resume, after.token == before.token) == (False, True, True)
        assert after.held == (control.Held(partition=0, ranges=((0, 10),)),)
        await broker.until(lambda: len(broker.settles) == 2)
        assert broker.settles[1] == (4, 0, [(0, 1)])
        assert (await anext(messages)).offset == 2


async def test_a_lost_session_gives_up_what_was_not_handed_out() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 10)
        broker.connections[0].deliver(messages.channel, "orders", 0, 10)
        await anext(messages)
        broker.resumes = False
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.Subscribe)) == 2)
        assert broker.asked(control.Subscribe)[1].held == (control.Held(partition=0, ranges=((0, 1),)),)
        await broker.until(lambda: broker.connections)
        broker.connections[0].deliver(messages.channel, "orders", 1, 9, epoch=2)
        second = await anext(messages)
        assert (second.offset, second.epoch) == (1, 2)


async def test_what_was_handed_out_and_came_again_is_still_held_when_its_session_is_lost() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        stocked(broker, 10)
        broker.connections[0].deliver(messages.channel, "orders", 0, 3)
        await anext(messages)
        broker.connections[0].deliver(messages.channel, "orders", 0, 2, attempt=2)
        await broker.until(lambda: len(messages._buffer) == 1)
        broker.resumes = False
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.Subscribe)) == 2)
        assert broker.asked(control.Subscribe)[1].held == (control.Held(partition=0, ranges=((0, 1),)),)  # the second may be lost


async def test_stopping_sends_what_was_settled_and_says_what_was_never_looked_at() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        stocked(broker, 10)
        async with client.consume("orders") as messages:
            broker.connections[0].deliver(messages.channel, "orders", 0, 10)
            async for message in messages:
                message.ack()
                if message.offset == 3:
                    break
        assert broker.settles == [(4, 0, [(0, 4)])]
        assert broker.asked(control.Unsubscribe)[0].undelivered == (control.Held(partition=0, ranges=((4, 6),)),)
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_settling_after_the_end_says_so_where_it_is_awaited() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        stocked(broker, 2)
        async with client.consume("orders") as messages:
            broker.connections[0].deliver(messages.channel, "orders", 0, 2)
            first, second = await anext(messages), await anext(messages)
        first.ack()
        with pytest.raises(NotConnected):
            await second.ack(confirmed=True)


async def test_what_the_broker_refuses_is_raised_on_entering() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.reply = lambda m: NotFound("no queue 'x'") if isinstance(m, control.Subscribe) else None
        with pytest.raises(NotFound, match="no queue"):
            async with client.consume("x"):
                pass


async def test_a_deleted_queue_ends_the_iteration_with_the_reason() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders") as messages:
        waiting = asyncio.ensure_future(messages.__anext__())
        await asyncio.sleep(0)
        broker.connections[0].event(control.SubscriptionClosed(channel=messages.channel, code=NotFound.code, message="deleted"))
        with pytest.raises(NotFound, match="deleted"):
            await waiting


async def test_leases_are_extended_on_request_and_by_themselves() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        stocked(broker, 5)
        async with client.consume("orders", lease=0.3, auto_extend=True) as messages:
            broker.connections[0].deliver(messages.channel, "orders", 0, 5)
            message = await anext(messages)
            await broker.until(lambda: any(op == 0x14 for op, _, _ in broker.frames))
            extending = asyncio.ensure_future(message.extend(10))
            await broker.until(lambda: sum(op == 0x14 for op, _, _ in broker.frames) >= 2)
            correlation = max(c for op, _, c in broker.frames if op == 0x14)
            broker.connections[0].send(egress.settled(messages.channel, correlation, 1, []))
            await extending


async def test_auto_acked_messages_are_settled_already() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.consume("orders", auto_ack=True, prefetch=4) as messages:
        stocked(broker, 4)
        broker.connections[0].deliver(messages.channel, "orders", 0, 4, flags=4)
        for _ in range(4):
            async with await anext(messages) as message:
                assert message.settled
        waiting = asyncio.ensure_future(messages.__anext__())
        await broker.until(lambda: any(op == 0x13 for op, _, _ in broker.frames))
        waiting.cancel()
        assert not broker.settles


async def test_fetch_takes_what_is_there() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        assert await client.fetch("orders", 5) == []
        stocked(broker, 3)
        messages = await client.fetch("orders", 5, wait=1)
        assert [m.json()["n"] for m in messages] == [0, 1, 2]
        for message in messages:
            await message.ack(confirmed=True)
        assert broker.settles[0][2] == [(0, 1)]
        assert broker.asked(control.Subscribe)[0].pull


async def test_filters_are_text() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        async with client.consume("orders", filter='type = "order"'):
            assert broker.asked(control.Subscribe)[0].filter == control.Filter(op="eq", header="type", value="order")


async def test_revoked_partitions_are_forgotten() -> None:
    events: list[control.Event] = []
    async with (
        FakeBroker() as broker,
        headrace.connect(broker.url) as client,
        client.consume("orders", cohort="c", on_event=events.append) as messages,
    ):
        stocked(broker, 3)
        broker.connections[0].deliver(messages.channel, "orders", 0, 3)
        broker.connections[0].event(control.Assigned(channel=messages.channel, generation=2, partitions=(1,), revoked=(0,)))
        broker.connections[0].deliver(messages.channel, "orders", 0, 1, partition=1)
        found = {(await anext(messages)).partition}
        while not events:
            await asyncio.sleep(0)
        assert messages.assigned == (1,)
        assert found <= {0, 1}

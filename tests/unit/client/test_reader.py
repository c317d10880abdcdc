import asyncio
from contextlib import suppress

import pytest

import headrace
from headrace.model.errors import Conflict, ConnectionLost
from headrace.wire import control
from headrace.wire.batch import Record
from tests.unit.client.fake import FakeBroker

UP_TO = 8
CONFIRM = 4


def stocked(broker: FakeBroker, count: int) -> None:
    broker.stored["events"] = [Record(key=None, value=b"%d" % i, timestamp_ms=1) for i in range(count)]


async def test_automatic_commit_follows_what_the_application_went_past() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", cursor="c") as records:
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        assert [(await anext(records)).offset for _ in range(4)] == [0, 1, 2, 3]
        await broker.until(lambda: broker.settles)
        assert broker.settles == [(UP_TO | CONFIRM, 0, [(2, 1)])]


async def test_leaving_without_an_exception_commits_the_last_record_with_one_it_does_not() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        stocked(broker, 5)
        async with client.read("events", cursor="c") as records:
            broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
            await anext(records)
        assert broker.settles[-1][2] == [(0, 1)]
        with suppress(ZeroDivisionError):
            async with client.read("events", cursor="c") as records:
                broker.connections[0].deliver(records.channel, "events", 1, 4, attempt=0)
                assert (await anext(records)).offset == 1
                raise ZeroDivisionError
        assert broker.settles[-1][2] == [(0, 1)]


async def test_explicit_commits_and_single_acks() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", cursor="c", commit="explicit") as records:
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        found = [await anext(records) for _ in range(5)]
        await found[1].commit(confirmed=True)
        await found[3].ack(confirmed=True)
        assert broker.settles == [(UP_TO | CONFIRM, 0, [(1, 1)]), (CONFIRM, 0, [(3, 1)])]


async def test_without_a_cursor_there_is_nothing_to_commit_but_credit_returns() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", start="earliest") as records:
        assert broker.asked(control.SubscribeStream)[0].start == "earliest"
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        record = [await anext(records) for _ in range(5)][-1]
        with pytest.raises(Conflict, match="no cursor"):
            record.commit()
        waiting = asyncio.ensure_future(records.__anext__())
        await broker.until(lambda: broker.settles)
        waiting.cancel()
        assert broker.settles == [(UP_TO, 0, [(4, 1)])]


async def test_a_new_connection_reads_on_where_the_application_is() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", start=0) as records:
        assert broker.asked(control.SubscribeStream)[0].start == "offset:0"
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        assert [(await anext(records)).offset for _ in range(2)] == [0, 1]
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.SubscribeStream)) == 2 and broker.connections)
        assert broker.asked(control.SubscribeStream)[1].starts == {0: 2}
        broker.connections[0].deliver(records.channel, "events", 2, 3, attempt=0)
        assert [(await anext(records)).offset for _ in range(3)] == [2, 3, 4]


async def test_with_a_cursor_it_reads_from_there_and_passes_over_what_was_handed_out() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", cursor="c", commit="explicit") as records:
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        found = [await anext(records) for _ in range(3)]
        broker.answer_settles = False
        found[1].commit()
        await broker.until(lambda: broker.settles)
        broker.answer_settles = True
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.SubscribeStream)) == 2 and broker.connections)
        again = broker.asked(control.SubscribeStream)[1]
        assert (again.start, again.starts) == ("cursor", {})
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        assert (await anext(records)).offset == 3
        await broker.until(lambda: len(broker.settles) == 2)
        assert broker.settles[1][2] == [(1, 1)]


async def test_events_are_told_and_positions_follow() -> None:
    events: list[control.Event] = []
    async with (
        FakeBroker() as broker,
        headrace.connect(broker.url) as client,
        client.read("events", start="earliest", on_event=events.append) as records,
    ):
        stocked(broker, 5)
        connection = broker.connections[0]
        connection.deliver(records.channel, "events", 0, 5, attempt=0, flags=2)
        record = await anext(records)
        assert record.speculative
        connection.event(control.Retracted(channel=records.channel, partition=0, from_offset=1, epoch=2))
        connection.deliver(records.channel, "events", 1, 1, attempt=0, epoch=2)
        connection.event(control.CursorMoved(channel=records.channel, partition=0, from_offset=2, to_offset=4))
        while len(events) < 2:
            await asyncio.sleep(0)
        record = await anext(records)
        assert (record.offset, record.epoch) == (1, 2)
        assert [type(e) for e in events] == [control.Retracted, control.CursorMoved]


async def test_a_reader_with_a_cursor_is_told_what_went_while_it_was_away() -> None:
    events: list[control.Event] = []
    async with (
        FakeBroker() as broker,
        headrace.connect(broker.url) as client,
        client.read("events", cursor="c", on_event=events.append) as records,
    ):
        stocked(broker, 9)
        broker.connections[0].deliver(records.channel, "events", 0, 3, attempt=0)
        assert [(await anext(records)).offset for _ in range(3)] == [0, 1, 2]

        def trimmed(message: control.Message) -> control.Message | None:
            if not isinstance(message, control.SubscribeStream):
                return None
            return control.Subscribed(partitions=1, assigned=(0,), starts={0: 7}, epochs={0: 1}, tier="durable")

        broker.reply = trimmed
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.SubscribeStream)) == 2)
        await broker.until(lambda: broker.connections)
        while not events:
            await asyncio.sleep(0)
        assert [(e.from_offset, e.to_offset) for e in events if isinstance(e, control.CursorMoved)] == [(3, 7)]


async def cut(broker: FakeBroker, client: headrace.Client) -> None:
    """Returns once the connection is gone and the broker takes no other for now."""
    await broker.stop()
    while client.connected:
        await asyncio.sleep(0)


async def again(broker: FakeBroker, count: int) -> None:
    await broker.listen()
    await broker.until(lambda: len(broker.asked(control.SubscribeStream)) == count and broker.connections)


async def test_what_is_committed_and_acked_without_a_connection_is_told_once_its_records_have_come_again() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", cursor="c", commit="explicit") as records:
        stocked(broker, 9)
        broker.connections[0].deliver(records.channel, "events", 0, 8, attempt=0)
        found = [await anext(records) for _ in range(8)]
        await cut(broker, client)
        found[6].ack()
        waiting = asyncio.ensure_future(found[4].ack(confirmed=True))
        committed = asyncio.ensure_future(found[2].commit(confirmed=True))
        for count in (2, 3):  # one broken connection more changes nothing
            await again(broker, count)
            if count == 2:
                found[7].ack()  # its record has not come again either
                await asyncio.sleep(0.05)
                await cut(broker, client)
        assert broker.settles == [], "a broker takes none of what it has not sent on this connection"
        link = broker.connections[0]
        link.deliver(records.channel, "events", 0, 6, attempt=0)
        await broker.until(lambda: len(broker.settles) == 2)
        assert broker.settles == [(CONFIRM, 0, [(4, 1)]), (UP_TO | CONFIRM, 0, [(2, 1)])]
        link.deliver(records.channel, "events", 6, 3, attempt=0)
        await broker.until(lambda: len(broker.settles) == 3)
        assert broker.settles[2] == (CONFIRM, 0, [(6, 2)])
        assert (await anext(records)).offset == 8
        for one in (waiting, committed):
            with pytest.raises(ConnectionLost, match="repeated"):
                await one


async def test_who_waits_for_a_commit_made_without_a_connection_is_told_once_it_is_durable() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.read("events", cursor="c") as records:
        stocked(broker, 5)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        found = [await anext(records) for _ in range(4)]
        await cut(broker, client)
        waiting = [asyncio.ensure_future(w) for w in (found[1].commit(confirmed=True), found[3].ack(confirmed=True))]
        await again(broker, 2)
        await asyncio.sleep(0.02)
        assert not any(w.done() for w in waiting)
        broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting)
        assert (await anext(records)).offset == 4


async def test_leaving_waits_for_what_has_to_come_again() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        async with client.read("events", cursor="c", commit="explicit") as records:
            stocked(broker, 5)
            broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
            found = [await anext(records) for _ in range(4)]
            await cut(broker, client)
            found[3].commit()
            await again(broker, 2)
            while not client.connected or not records._open:
                await asyncio.sleep(0)
            leaving = asyncio.ensure_future(records.close())
            await asyncio.sleep(0.02)
            broker.connections[0].deliver(records.channel, "events", 0, 5, attempt=0)
            await leaving
        assert broker.settles == [(UP_TO | CONFIRM, 0, [(3, 1)])]

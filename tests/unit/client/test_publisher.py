import asyncio

import pytest

import headrace
from headrace.core.partitioner import partition_for
from headrace.model.errors import ConfirmTimeout, Invalid, LimitExceeded, NotConnected, NotFound, QueueFull, TooLarge, UnknownOutcome
from headrace.wire import control
from headrace.wire.batch import batch_info
from headrace.wire.frames import ENVELOPE
from tests.unit.client.fake import FakeBroker


async def test_what_is_published_arrives_as_it_was_meant() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        receipt = await client.publish(
            "orders", {"id": 1}, key="k", headers={"a": "b"}, delay=2, ttl=60, priority=3, timestamp_ms=77, confirm="local"
        )
        assert (receipt.partition, receipt.offset, receipt.level.name) == (0, 0, "LOCAL")
        (record,) = broker.stored["orders"]
        assert (record.key, record.value, record.timestamp_ms) == (b"k", b'{"id":1}', 77)
        assert record.headers == (("content-type", b"application/json"), ("a", b"b"))
        _, _, flags, _, _, not_before, expires, priority, _, _ = ENVELOPE.unpack_from(broker.publishes[0])
        assert (flags, not_before, expires, priority) == (2, 2000, 60_000, 3)


async def test_an_own_content_type_wins() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        await client.publish("orders", "<a/>", headers={"content-type": "text/xml"})
        assert broker.stored["orders"][0].headers == (("content-type", b"text/xml"),)


async def test_a_lost_connection_repeats_what_was_not_confirmed_and_it_is_stored_once() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        await client.publish("orders", b"0")
        broker.confirming = False
        publishes = [asyncio.create_task(client.publish("orders", b"%d" % i)) for i in (1, 2)]
        await broker.until(lambda: len(broker.stored["orders"]) == 3)
        broker.confirming = True
        broker.cut()
        receipts = await asyncio.gather(*publishes)
        assert sorted(r.offset for r in receipts) == [1, 2]
        assert all(r.duplicate for r in receipts)
        assert [r.value for r in broker.stored["orders"]] == [b"0", b"1", b"2"]


async def test_many_posts_become_few_frames_in_order() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, confirm_timeout=50) as client:
        async with client.publisher("orders") as publisher:
            receipts = await asyncio.gather(*[publisher.post(b"%d" % i) for i in range(5000)])
        assert [r.offset for r in receipts] == list(range(5000))
        assert [r.value for r in broker.stored["orders"]] == [b"%d" % i for i in range(5000)]
        assert len(broker.publishes) < 50


async def test_sequences_follow_the_records() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.publisher("orders") as publisher:
        await publisher.send_many([b"a", b"b", b"c"])
        await publisher.send(b"d")
        infos = [batch_info(f, ENVELOPE.size) for f in broker.publishes]
        assert [i.base_sequence for i in infos] == [0, 3]
        assert len({i.producer_id for i in infos}) == 1
        assert infos[0].producer_id >= 0


async def test_keys_choose_the_partition_and_values_without_spread() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.partitions, broker.kind = 4, "stream"
        keyed = {key: (await client.publish("events", b"x", key=key)).partition for key in ("a", "b", "c", "d")}
        assert keyed == {key: partition_for(key.encode(), 4) for key in keyed}
        spread = {(await client.publish("events", b"x")).partition for _ in range(8)}
        assert spread == {0, 1, 2, 3}
        assert (await client.publish("events", b"x", partition=2)).partition == 2


async def test_refusals_reach_who_awaits_them() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.refuse = QueueFull("no room")
        with pytest.raises(QueueFull, match="no room"):
            await client.publish("orders", b"x")
        broker.refuse = None
        assert (await client.publish("orders", b"x")).offset == 0


async def test_an_undeclared_name_is_not_found_until_it_is() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.reply = lambda m: NotFound("no queue 'x'") if isinstance(m, control.OpenPublisher) else None
        with pytest.raises(NotFound):
            await client.publish("x", b"1")
        broker.reply = lambda m: None
        assert (await client.publish("x", b"1")).offset == 0


async def test_no_confirm_in_time_is_an_unknown_outcome() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, confirm_timeout=0.1) as client:
        broker.confirming = False
        with pytest.raises(ConfirmTimeout) as e:
            await client.publish("orders", b"x")
        assert not e.value.definite


async def test_without_a_connection_a_publish_waits_no_longer_than_its_timeout() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, confirm_timeout=0.2) as client:
        await broker.stop()
        with pytest.raises(ConfirmTimeout, match="could not be sent"):
            await client.publish("orders", b"x")


async def test_posting_without_receipts_shows_its_error_at_flush() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        publisher = client.publisher("orders")
        assert publisher.post(b"x", receipt=False) is None
        await publisher.flush()
        broker.refuse = QueueFull("no room")
        publisher.post(b"x", receipt=False)
        with pytest.raises(QueueFull):
            await publisher.flush()
        await publisher.flush()
        await publisher.close()
        with pytest.raises(NotConnected):
            publisher.post(b"x")


async def test_room_is_bounded() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        publisher = client.publisher("orders", max_in_flight=2)
        await publisher.send(b"0")
        broker.confirming = False
        publisher.post(b"1", receipt=False)
        publisher.post(b"2", receipt=False)
        with pytest.raises(LimitExceeded) as e:
            publisher.post(b"3")
        assert "room()" in e.value.hint
        blocked = asyncio.create_task(publisher.send(b"3"))
        await broker.until(lambda: len(broker.stored["orders"]) == 3)
        assert not blocked.done()
        broker.confirming = True
        broker.cut()
        assert (await blocked).offset == 3
        assert publisher.in_flight == 0


async def test_what_is_wrong_is_refused_before_anything_is_sent() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        for options in ({"headers": {"headrace.x": "y"}}, {"priority": 10}, {"delay": -1}, {"partition": -1}, {"confirm": "sometimes"}):
            with pytest.raises(Invalid):
                await client.publish("orders", b"x", **options)  # type: ignore[arg-type]
        with pytest.raises(TooLarge):
            await client.publish("orders", bytes(1 << 24))
        with pytest.raises(Invalid):
            client.publisher("orders", compression="rar")  # type: ignore[arg-type]
        assert not broker.publishes


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compression_is_the_producers(codec: str) -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        async with client.publisher("orders", compression=codec) as publisher:  # type: ignore[arg-type]
            await publisher.send_many([b"x" * 1000] * 10)
        assert len(broker.publishes[0]) < 2000
        assert [r.value for r in broker.stored["orders"]] == [b"x" * 1000] * 10


async def test_level_none_returns_at_once() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        receipt = await client.publish("orders", b"x", confirm="none")
        assert receipt.offset == -1
        await broker.until(lambda: broker.publishes)


async def test_a_queue_that_is_deleted_fails_what_waits() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.confirming = False
        publish = asyncio.create_task(client.publish("orders", b"x"))
        await broker.until(lambda: broker.publishes)
        (opened,) = broker.asked(control.OpenPublisher)
        broker.connections[0].event(control.PublisherClosed(channel=opened.channel, code=NotFound.code, message="deleted"))
        with pytest.raises(UnknownOutcome, match="deleted"):  # it was sent: somebody may have had it before the end
            await publish


async def test_what_the_broker_did_not_know_of_a_deleted_queue_is_asked_for_again() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0", partition=0)
        await publisher.send(b"0", partition=1)
        broker.refuse = UnknownOutcome("it was being deleted")
        unknown = publisher.post(b"1", partition=1)
        while len(broker.publishes) < 3:
            await asyncio.sleep(0.005)
        broker.refuse = NotFound("it was deleted")
        with pytest.raises(NotFound):
            await publisher.send(b"1", partition=0)
        broker.refuse = None
        async with asyncio.timeout(20):
            await unknown
        assert len({m.channel for m in broker.asked(control.OpenPublisher)}) > 2


async def test_leaving_waits_for_confirms() -> None:
    async with FakeBroker() as broker:
        async with headrace.connect(broker.url) as client:
            publisher = client.publisher("orders")
            waiting = [publisher.post(b"x") for _ in range(100)]
        assert all(f.result().offset >= 0 for f in waiting)
        assert len(broker.stored["orders"]) == 100


async def test_a_future_that_nobody_wants_any_more_does_no_harm() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client, client.publisher("orders") as publisher:
        first, second = publisher.post(b"1"), publisher.post(b"2")
        first.cancel()
        assert (await second).offset == 1

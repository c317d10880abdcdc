"""A client of several brokers: where its users sit, and what makes them go elsewhere."""

import asyncio
from collections.abc import Callable

import pytest

import headrace
from headrace.client import routing
from headrace.model.errors import Elsewhere, Fenced, NotFound, Unavailable
from headrace.wire import control, egress
from headrace.wire.batch import Record
from tests.unit.client.cluster import FakeCluster
from tests.unit.client.fake import FakeBroker


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def store(broker: FakeBroker, count: int) -> None:
    broker.stored["orders"] = [Record(None, b"%d" % i, (), 0) for i in range(count)]


async def test_a_lone_broker_has_one_connection_and_is_asked_nothing() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        await client.publish("orders", b"x")
        async with client.consume("orders"):
            pass
        assert len(broker.connections) == 1
        assert not broker.asked(control.Topology)


async def test_each_partition_goes_to_its_owner() -> None:
    async with FakeCluster({0: "a", 1: "b"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        publisher = client.publisher("orders")
        for partition in (0, 1, 1):
            assert (await publisher.send(b"x", partition=partition)).partition == partition
        assert [len(cluster[id].stored.get("orders", [])) for id in "abc"] == [1, 2, 0]
        assert cluster.refused == 0
        assert len(cluster["c"].asked(control.Topology)) <= 3
        assert len({h.session for id in "ab" for h in cluster[id].asked(control.Hello)}) == 1


async def test_who_is_told_elsewhere_at_opening_goes_where_the_error_says() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        await client.publish("orders", b"1")
        cluster.moves(0, "b")
        for connection in cluster["a"].connections:
            connection.transport.abort()
        await client.publish("orders", b"2")
        assert [r.value for r in cluster["b"].stored["orders"]] == [b"2"]


async def test_what_is_unconfirmed_is_sent_to_the_new_owner_with_the_same_sequences() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        cluster["a"].drop_publishes = 1
        first = publisher.post(b"1")
        await until(lambda: len(cluster["a"].publishes) == 2)
        cluster["a"].refuse = Elsewhere("not here any more")
        second = publisher.post(b"2")
        await until(lambda: len(cluster["a"].publishes) == 3)
        third = publisher.post(b"3")
        assert not first.done()
        cluster.moves(0, "b")
        (connection,) = cluster["a"].connections
        connection.event(control.PublisherClosed(channel=1, code=Elsewhere.code, message="not here any more"))
        await asyncio.gather(first, second, third)
        assert [r.value for r in cluster["b"].stored["orders"]] == [b"1", b"2", b"3"]
        assert [p[12:] for p in cluster["a"].publishes[1:3]] == [p[12:] for p in cluster["b"].publishes[:2]]


async def test_a_push_moves_who_is_idle() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        await client.publish("orders", b"1")
        cluster.moves(0, "b")
        cluster.push("c")
        await until(lambda: cluster["b"].asked(control.OpenPublisher))
        await until(lambda: cluster["a"].asked(control.ClosePublisher))


async def test_an_older_answer_changes_nothing() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        await client.publish("orders", b"1")
        cluster.epoch = 0
        cluster.owners[0] = "b"
        cluster.push("c")
        await asyncio.sleep(0.1)
        assert not cluster["b"].asked(control.OpenPublisher)


async def test_an_outcome_that_the_broker_does_not_know_is_asked_for_again() -> None:
    async with FakeCluster({0: "a"}, "a") as cluster, headrace.connect(cluster["a"].url) as client:
        from headrace.model.errors import UnknownOutcome

        cluster["a"].refuse = UnknownOutcome("its epoch has ended")
        sent = asyncio.ensure_future(client.publish("orders", b"1"))
        await until(lambda: len(cluster["a"].publishes) == 1)
        cluster["a"].refuse = None
        await sent
        assert len(cluster["a"].publishes) == 2
        assert len(cluster["a"].stored["orders"]) == 1


async def test_who_waits_for_an_owner_is_told_so_in_the_end() -> None:
    async with FakeCluster({0: ""}, "a") as cluster, headrace.connect(cluster["a"].url, confirm_timeout=0.5) as client:
        with pytest.raises(headrace.model.errors.ConfirmTimeout):
            await client.publish("orders", b"1")


async def test_a_refusal_until_the_end_is_what_is_raised() -> None:
    async with FakeCluster({0: "a"}, "a") as cluster, headrace.connect(cluster["a"].url, confirm_timeout=0.5) as client:
        cluster["a"].refuse = Unavailable("fewer copies than the floor")
        with pytest.raises(Unavailable, match="fewer copies"):
            await client.publish("orders", b"1")


async def test_what_was_refused_on_a_channel_that_was_not_closed_is_sent_on_another() -> None:
    async with FakeCluster({0: "a"}, "a") as cluster, headrace.connect(cluster["a"].url) as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        cluster["a"].refuse = Unavailable("its owner has begun another epoch")
        first, second = publisher.post(b"1"), publisher.post(b"2")
        await until(lambda: len(cluster["a"].publishes) == 2)
        cluster["a"].refuse = None
        async with asyncio.timeout(20):
            await asyncio.gather(first, second)
        assert [r.value for r in cluster["a"].stored["orders"]] == [b"0", b"1", b"2"]
        assert len({message.channel for message in cluster["a"].asked(control.OpenPublisher)}) == 2


async def test_a_name_that_nobody_knows_is_not_found() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        with pytest.raises(NotFound):
            await client.publish("nothing", b"1")
        with pytest.raises(NotFound):
            await client.consume("nothing").start()


async def test_a_consumer_takes_from_every_owner_and_shares_its_credit_out() -> None:
    async with FakeCluster({0: "a", 1: "b"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        async with client.consume("orders", prefetch=10) as consumer:
            for number, id in enumerate("ab"):
                (asked,) = cluster[id].asked(control.Subscribe)
                assert (asked.partitions, asked.prefetch) == ((number,), 5)
                store(cluster[id], 2)
                cluster[id].connections[-1].deliver(asked.channel, "orders", 0, 2, partition=number)
            got = [await consumer.__anext__() for _ in range(4)]
            assert sorted((m.partition, m.offset) for m in got) == [(0, 0), (0, 1), (1, 0), (1, 1)]
            await asyncio.gather(*(m.ack(confirmed=True) for m in got))
            assert [len(cluster[id].settles) for id in "abc"] == [1, 1, 0]


async def test_what_is_held_and_settled_goes_along_to_the_new_owner() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        async with client.consume("orders") as consumer:
            (asked,) = cluster["a"].asked(control.Subscribe)
            store(cluster["a"], 3)
            cluster["a"].answer_settles = False
            cluster["a"].connections[-1].deliver(asked.channel, "orders", 0, 3)
            first, second = await consumer.__anext__(), await consumer.__anext__()
            acked = asyncio.ensure_future(first.ack(confirmed=True))
            await until(lambda: cluster["a"].settles)
            cluster.moves(0, "b")
            cluster.push("c")
            await acked
            (again,) = cluster["b"].asked(control.Subscribe)
            assert again.resume
            assert again.token == asked.token
            assert again.held == (control.Held(partition=0, ranges=((0, 2),)),), "the third was not handed out: it comes again"
            await second.ack(confirmed=True)
            assert [ranges for _, _, ranges in cluster["b"].settles] == [[(0, 1)], [(1, 1)]]


async def test_what_is_settled_while_nobody_serves_the_partition_is_told_to_the_next_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "IDLE_S", 0.1)
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        async with client.consume("orders") as consumer:
            (asked,) = cluster["a"].asked(control.Subscribe)
            store(cluster["a"], 2)
            cluster["a"].connections[-1].deliver(asked.channel, "orders", 0, 2)
            first, second = await consumer.__anext__(), await consumer.__anext__()
            cluster.moves(0, "")
            closed = control.SubscriptionClosed(channel=asked.channel, code=Elsewhere.code, message="it is not mine any more")
            cluster["a"].connections[-1].event(closed)
            await until(lambda: not cluster["a"].connections)  # the connection to who served it is closed
            first.ack()
            confirmed = asyncio.ensure_future(second.ack(confirmed=True))
            cluster.moves(0, "b")
            cluster.push("c")
            await confirmed
            assert [ranges for _, _, ranges in cluster["b"].settles] == [[(0, 2)]]


async def test_a_reader_goes_on_where_it_was() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        async with client.read("orders", start="earliest") as reader:
            (asked,) = cluster["a"].asked(control.SubscribeStream)
            store(cluster["a"], 2)
            cluster["a"].connections[-1].deliver(asked.channel, "orders", 0, 2)
            assert [(await reader.__anext__()).offset for _ in range(2)] == [0, 1]
            cluster.moves(0, "b")
            cluster.push("c")
            await until(lambda: cluster["b"].asked(control.SubscribeStream))
            assert cluster["b"].asked(control.SubscribeStream)[0].starts == {0: 2}


async def test_a_subscription_that_is_closed_as_elsewhere_follows() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client, client.consume("orders"):
        (asked,) = cluster["a"].asked(control.Subscribe)
        cluster.moves(0, "b")
        cluster["a"].connections[-1].event(control.SubscriptionClosed(channel=asked.channel, code=Elsewhere.code, message="gone"))
        await until(lambda: cluster["b"].asked(control.Subscribe))


async def test_a_broker_that_goes_away_is_left_once_nothing_sits_there() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client, client.consume("orders"):
        cluster["a"].connections[-1].event(control.GoingAway(grace_ms=60_000, message="upgrade"))
        await asyncio.sleep(0.3)
        assert cluster["a"].connections, "it is needed"
        cluster.moves(0, "b")
        cluster.push("b")
        await until(lambda: not cluster["a"].connections)
        cluster.moves(0, "a")
        cluster.push("b")
        await until(lambda: len(cluster["a"].asked(control.Subscribe)) == 2)
        await asyncio.sleep(0.3)
        assert cluster["a"].connections, "it is back"


async def test_a_reader_whose_cursor_another_took_ends_with_that() -> None:
    async with FakeCluster({0: "a", 1: "b"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        async with client.read("orders", cursor="c") as reader:
            (asked,) = cluster["a"].asked(control.SubscribeStream)
            ended = control.SubscriptionClosed(channel=asked.channel, code=Fenced.code, message="another reader took the cursor")
            cluster["a"].connections[-1].event(ended)
            with pytest.raises(Fenced, match="took the cursor"):
                async with asyncio.timeout(20):
                    await reader.__anext__()


async def test_a_subscription_that_nobody_serves_says_what_it_waits_for() -> None:
    async with FakeCluster({0: "a", 1: ""}, "a") as cluster, headrace.connect(cluster["a"].url, request_timeout=0.5) as client:
        with pytest.raises(Unavailable, match="partition 1"):
            await client.consume("orders").start()


async def test_other_addresses_are_learned() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        await client.publish("orders", b"1")
        await cluster["b"].stop()
        await until(lambda: not client.connected)
        await until(lambda: client.connected)
        await client.publish("orders", b"2")


async def test_a_detail_that_is_nonsense_is_passed_over() -> None:
    async with FakeCluster({0: "a"}, "a") as cluster, headrace.connect(cluster["a"].url) as client:
        assert client._router.learn_detail({"brokers": 3, "partitions": "x"}) == ""
        assert client._router.learn_detail({"brokers": {"z": ["::::"]}, "partitions": []}) == ""
        await client.publish("orders", b"1")


async def test_pulling_asks_every_owner() -> None:
    async with FakeCluster({0: "a", 1: "b"}, "a", "b") as cluster, headrace.connect(cluster["a"].url) as client:
        store(cluster["b"], 3)
        assert len(await client.fetch("orders", 2, wait=1)) == 2


def test_a_frame_names_its_channel_there() -> None:
    from headrace.client.lane import _CHANNEL
    from headrace.wire.frames import Op, frame

    assert frame(Op.PING, channel=0x1234)[_CHANNEL] == b"\x12\x34"




async def test_what_came_again_while_its_settlement_was_under_way_is_not_handed_out() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        async with client.consume("orders") as consumer:
            (asked,) = cluster["a"].asked(control.Subscribe)
            store(cluster["a"], 3)
            cluster["a"].answer_settles = False
            cluster["a"].connections[-1].deliver(asked.channel, "orders", 0, 1)
            acked = asyncio.ensure_future((await consumer.__anext__()).ack(confirmed=True))
            await until(lambda: cluster["a"].settles)
            store(cluster["b"], 3)
            cluster["b"].answer_settles = False
            cluster.moves(0, "b")
            cluster.push("c")
            await until(lambda: cluster["b"].settles)
            (again,) = cluster["b"].asked(control.Subscribe)
            link = cluster["b"].connections[-1]
            link.deliver(again.channel, "orders", 0, 2, attempt=2, epoch=2)
            link.send(egress.settled(again.channel, 1, 1, []))
            link.send(egress.settled(again.channel, 2, 1, []))
            await acked
            assert (await consumer.__anext__()).offset == 1
            cluster["b"].answer_settles = True


async def test_who_waits_for_an_owner_that_stands_still_asks_others_long_before_its_connection_is_lost() -> None:
    async with FakeCluster({0: "a"}, "a", "b", "c") as cluster, headrace.connect(cluster["c"].url) as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        cluster["a"].stands_still = True
        waiting = publisher.post(b"1")
        await until(lambda: cluster["c"].asked(control.Topology)[1:])
        assert not waiting.done()
        cluster.moves(0, "b")
        async with asyncio.timeout(10):
            await waiting
        assert [r.value for r in cluster["b"].stored["orders"]] == [b"1"]


async def test_a_client_whose_own_broker_stands_still_goes_to_another() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(f"{cluster['a'].url},127.0.0.1:{cluster['b'].port}") as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        cluster["a"].stands_still = True
        cluster.moves(0, "b")
        async with asyncio.timeout(10):
            await publisher.send(b"1")
            assert await client.purge("orders") == 7
        assert [r.value for r in cluster["b"].stored["orders"]] == [b"1"]


async def test_an_idle_consumer_of_an_owner_that_stands_still_follows_as_well() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(f"{cluster['a'].url},127.0.0.1:{cluster['b'].port}") as client:
        async with client.consume("orders"):
            cluster["a"].stands_still = True
            cluster.moves(0, "b")
            async with asyncio.timeout(10):
                while not cluster["b"].asked(control.Subscribe):
                    await asyncio.sleep(0.01)


async def test_who_waits_for_the_answer_of_an_owner_that_lives_asks_others_as_it_may_be_cut_off() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(f"{cluster['a'].url},127.0.0.1:{cluster['b'].port}") as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        cluster["a"].confirming = False
        cluster.moves(0, "b")
        async with asyncio.timeout(10):
            await publisher.send(b"1")
        assert b"1" in [r.value for r in cluster["b"].stored["orders"]]


async def test_a_link_to_an_earlier_life_of_an_owner_is_given_up_once_its_next_epoch_is_known() -> None:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url) as client:
        publisher = client.publisher("orders")
        await publisher.send(b"0")
        for link in cluster["a"].connections:
            link.data_received = lambda data: None  # type: ignore[method-assign]
        waiting = publisher.post(b"1")
        await asyncio.sleep(1.5)
        assert not waiting.done()
        assert len(cluster["a"].asked(control.Hello)) == 1  # it may only stand still
        cluster.moves(0, "a")
        async with asyncio.timeout(20):
            await waiting
        assert [r.value for r in cluster["a"].stored["orders"]] == [b"0", b"1"]
        assert len(cluster["a"].asked(control.Hello)) == 2

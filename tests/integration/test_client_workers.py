"""The client against a real broker: workers, request and reply, the blocking facade, the pytest fixtures."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.model.errors import Conflict, NotConnected, NotFound, Refused, StaleSettle, UnknownOutcome
from headrace.testing import TestBroker, blocking_broker, broker
from headrace.testing.brokers import BlockingTestBroker


@pytest.fixture
async def running() -> AsyncIterator[TestBroker]:
    async with broker() as made:
        yield made


@pytest.fixture
async def client(running: TestBroker) -> AsyncIterator[headrace.Client]:
    async with headrace.connect(running.url) as connected:
        yield connected


async def test_workers_handle_ack_and_retry(client: headrace.Client, caplog: pytest.LogCaptureFixture) -> None:
    await client.declare_queue("orders", backoff_ms=(1,))
    handled: list[tuple[int, int]] = []
    caplog.set_level(logging.CRITICAL, "headrace.client.worker")

    @client.worker("orders", concurrency=4)
    async def handle(message: headrace.Message) -> None:
        if message.attempt == 1 and message.json() == 3:
            raise ValueError("not yet")
        handled.append((message.json(), message.attempt))
        if len(handled) == 10:
            client.stop_workers()

    async with client.publisher("orders") as publisher:
        await publisher.send_many(range(10))
    await client.run_workers()
    assert sorted(handled) == [(i, 2 if i == 3 else 1) for i in range(10)]
    assert (await client.describe("orders")).settled == 10


async def test_a_plain_function_runs_in_a_thread(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    threads: list[int] = []

    @client.worker("orders")
    def handle(message: headrace.Message) -> None:
        threads.append(threading.get_ident())
        client.stop_workers()

    await client.publish("orders", b"x")
    await client.run_workers()
    assert threads[0] != threading.get_ident()


async def test_stopping_waits_for_the_handlers_that_run_and_returns_the_rest(client: headrace.Client) -> None:
    await client.declare_queue("orders")
    started, finish = asyncio.Event(), asyncio.Event()

    @client.worker("orders", prefetch=10)
    async def handle(message: headrace.Message) -> None:
        started.set()
        await finish.wait()

    async with client.publisher("orders") as publisher:
        await publisher.send_many(range(10))
    working = asyncio.create_task(client.run_workers())
    await started.wait()
    client.stop_workers()
    await asyncio.sleep(0)
    assert not working.done()
    finish.set()
    await working
    info = await client.describe("orders")
    assert (info.ready, info.leased, info.settled) == (9, 0, 1)


async def test_a_worker_of_an_undeclared_queue_says_so(client: headrace.Client) -> None:
    client.worker("nowhere")(lambda message: None)
    with pytest.raises(NotFound):
        await client.run_workers()


async def test_request_and_reply(running: TestBroker, client: headrace.Client, caplog: pytest.LogCaptureFixture) -> None:
    await client.declare_queue("square")
    caplog.set_level(logging.CRITICAL, "headrace.client.requests")

    @client.responder("square", concurrency=4)
    async def square(message: headrace.Message) -> Any:
        number = message.json()
        if number == 13:
            raise Conflict("13 is refused")
        if number == 14:
            raise ValueError("14 breaks")
        return number * number

    serving = asyncio.create_task(client.run_workers())
    async with headrace.connect(running.url) as asking:
        answers = await asyncio.gather(*[asking.request("square", i) for i in range(10)])
        assert [a.json() for a in answers] == [i * i for i in range(10)]
        with pytest.raises(Conflict, match="13 is refused"):
            await asking.request("square", 13)
        with pytest.raises(Refused, match="14 breaks"):
            await asking.request("square", 14)
        await asking.declare_queue("nobody")
        with pytest.raises(UnknownOutcome, match="no reply"):
            await asking.request("nobody", 1, timeout=0.05)
    client.stop_workers()
    await serving
    assert [i.name for i in await client.list("reply.*")] == []


def test_the_blocking_client(headrace_broker: BlockingTestBroker) -> None:
    with headrace.connect_blocking(headrace_broker.url) as client:
        client.declare_queue("orders")
        assert client.publish("orders", {"id": 0}).offset == 0
        with client.publisher("orders") as publisher:
            futures = [publisher.post({"id": i}) for i in range(1, 1000)]
        assert [f.result().offset for f in futures] == list(range(1, 1000))
        found = []
        with client.consume("orders", prefetch=200) as messages:
            for message in messages:
                with message:
                    found.append(message.json()["id"])
                if len(found) == 500:
                    break
        assert found == list(range(500))
        info = client.describe("orders")
        assert (info.ready, info.leased, info.settled) == (500, 0, 500)
        (message,) = client.fetch("orders", wait=5)
        message.ack(confirmed=True)
        with pytest.raises(Conflict):
            message.ack()
        with client.consume("orders") as messages:
            assert messages.next(5).json() == {"id": 501}
            messages.stop()
        assert client.connected
    assert not [t for t in threading.enumerate() if t.name == "headrace-client"]
    with pytest.raises(NotConnected):
        client.describe("orders")
    client.close()


def test_blocking_streams_and_commits(headrace_blocking_client: headrace.blocking.BlockingClient) -> None:
    client = headrace_blocking_client
    client.declare_stream("events")
    with client.publisher("events") as publisher:
        publisher.send_many(range(100))
    with client.read("events", cursor="c") as records:
        assert [records.next(5).json() for _ in range(10)] == list(range(10))
    assert client.cursors("events")[0].offset == 10
    with client.read("events", cursor="c", commit="explicit") as records:
        for record in records:
            if record.offset == 20:
                record.commit(confirmed=True)
                break
    assert client.cursors("events")[0].offset == 21
    with client.read("events") as records:
        assert records.next(0.01) is None


def test_blocking_clients_reconnect_too(headrace_broker: BlockingTestBroker) -> None:
    with headrace.connect_blocking(headrace_broker.url) as client:
        client.declare_queue("orders")
        client.publish("orders", b"1")
        headrace_broker.restart()
        assert client.publish("orders", b"2").offset == 1
        headrace_broker.cut()
        assert client.publish("orders", b"3").offset == 2


def test_a_stale_settle_is_typed_in_the_blocking_client(headrace_blocking_client: headrace.blocking.BlockingClient) -> None:
    client = headrace_blocking_client
    client.declare_queue("orders", lease_ms=100)
    client.publish("orders", b"x")
    (first,) = client.fetch("orders", wait=5)
    client.alter_queue("orders", lease_ms=60_000)  # the second lease is not to run out as well
    (second,) = client.fetch("orders", wait=5)
    second.ack(confirmed=True)
    with pytest.raises(StaleSettle):
        first.ack(confirmed=True)


async def test_the_fixtures_serve_async_tests(headrace_connect: Callable[..., Any]) -> None:
    async with headrace_connect() as client:
        await client.declare_queue("orders")
        assert (await client.publish("orders", b"x")).offset == 0


async def test_brokers_for_tests_leave_nothing_behind() -> None:
    before = set(threading.enumerate())
    async with broker() as made:
        directory = Path(made.config.broker.data_dir)
        assert directory.exists()
        await made.restart()
        assert made.running
    assert not directory.exists()
    with blocking_broker():
        pass
    assert set(threading.enumerate()) <= before

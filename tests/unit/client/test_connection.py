import asyncio

import pytest

import headrace
from headrace.model.errors import ConnectionLost, Draining, NotConnected, NotFound, Unauthorized, UnknownOutcome, WrongProtocol
from headrace.wire import control
from tests.unit.client.fake import FakeBroker


async def test_hello_says_who_is_there() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, name="till", user="ann", password="pw") as client:
        (hello,) = broker.asked(control.Hello)
        assert (hello.name, hello.user, hello.password, hello.session) == ("till", "ann", "pw", "")
        assert client.connected
        assert client.session == "0123456789abcdef0123456789abcdef"


async def test_awaiting_gives_the_client_too() -> None:
    async with FakeBroker() as broker:
        client = await headrace.connect(broker.url)
        assert client.connected
        await client.close()
        await client.close()
        with pytest.raises(NotConnected, match="closed"):
            await client.status()


async def test_no_broker_is_said_with_what_to_do() -> None:
    async with FakeBroker() as broker:
        url = broker.url
    with pytest.raises(NotConnected, match="no broker answers") as e:
        await headrace.connect(url)
    assert "headrace start" in e.value.hint


async def test_waiting_for_a_broker_that_comes_later() -> None:
    broker = FakeBroker()
    await broker.listen()
    await broker.stop()
    opening = asyncio.ensure_future(headrace.connect(broker.url, wait=10)._connect())
    await asyncio.sleep(0)
    await broker.listen()
    client = await opening
    await client.close()
    await broker.stop()


async def test_the_next_address_is_tried() -> None:
    async with FakeBroker() as gone:
        pass
    async with FakeBroker() as broker, headrace.connect(f"headrace://127.0.0.1:{gone.port},127.0.0.1:{broker.port}") as client:
        assert client.connected


async def test_another_protocol_is_named() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    with pytest.raises(WrongProtocol, match="HTTP"):
        await headrace.connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


async def test_a_refused_hello_is_raised_as_it_is() -> None:
    async with FakeBroker() as broker:
        broker.reply = lambda m: Unauthorized("wrong password") if isinstance(m, control.Hello) else None
        with pytest.raises(Unauthorized, match="wrong password"):
            await headrace.connect(broker.url)


async def test_reconnecting_resumes_the_session() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        states: list[bool] = []
        client.on_connection(states.append)
        broker.cut()
        await broker.until(lambda: len(broker.asked(control.Hello)) == 2)
        await client.wait_connected(20)
        assert broker.asked(control.Hello)[1].session == client.session
        assert states == [False, True]


async def test_a_request_is_repeated_on_the_next_connection() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.reply = lambda m: broker.cut() if isinstance(m, control.Pause) and len(broker.asked(control.Pause)) == 1 else None
        await client.pause("orders")
        assert len(broker.asked(control.Pause)) == 2


async def test_a_request_that_must_not_be_done_twice_is_not() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.reply = lambda m: broker.cut() if isinstance(m, control.Move) else None
        with pytest.raises(ConnectionLost) as e:
            await client.move("a", "b")
        assert not e.value.definite
        assert len(broker.asked(control.Move)) == 1


async def test_refusals_keep_their_type_and_hint() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.reply = lambda m: NotFound("no queue 'x'", hint="declare it") if isinstance(m, control.Describe) else None
        with pytest.raises(NotFound, match="no queue") as e:
            await client.describe("x")
        assert e.value.hint == "declare it"


async def test_no_answer_is_an_unknown_outcome() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, request_timeout=0.05) as client:
        broker.answer = lambda m: None  # type: ignore[method-assign]
        for connection in broker.connections:
            connection.answer = lambda m: None  # type: ignore[method-assign]
        with pytest.raises(UnknownOutcome, match=r"queue\.pause"):
            await client.pause("x")


async def test_while_there_is_no_connection_requests_wait_and_then_say_so() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url, request_timeout=0.05) as client:
        lost = asyncio.Event()
        client.on_connection(lambda up: lost.set())
        await broker.stop()
        await lost.wait()
        with pytest.raises(NotConnected, match="no connection"):
            await client.pause("x")


async def test_a_silent_broker_is_given_up() -> None:
    async with FakeBroker() as broker:
        broker.heartbeat_ms = 100
        async with headrace.connect(broker.url) as client:
            for connection in broker.connections:
                connection.data_received = lambda data: None  # type: ignore[method-assign]
            await broker.until(lambda: len(broker.asked(control.Hello)) == 2)
            await client.wait_connected(20)


async def test_heartbeats_keep_an_idle_connection() -> None:
    async with FakeBroker() as broker:
        broker.heartbeat_ms = 100
        async with headrace.connect(broker.url):
            await broker.until(lambda: sum(op == 0x20 for op, _, _ in broker.frames) >= 5)
            assert len(broker.asked(control.Hello)) == 1


async def test_going_away_is_told() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        told: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        client.on_going_away(lambda grace_ms, message: told.set_result((grace_ms, message)))
        broker.connections[0].event(control.GoingAway(grace_ms=700, message="upgrade"))
        assert await told == (700, "upgrade")


async def test_publishes_refused_by_a_broker_that_goes_away_reach_its_successor() -> None:
    async with FakeBroker() as broker, headrace.connect(broker.url) as client:
        broker.refuse = Draining("going away")
        publish = asyncio.create_task(client.publish("orders", b"x"))
        await broker.until(lambda: broker.publishes)
        broker.refuse = None
        broker.cut()
        assert (await publish).offset == 0
        assert broker.publishes[0] == broker.publishes[1]

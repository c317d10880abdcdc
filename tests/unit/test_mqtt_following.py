"""Consuming for one MQTT connection of a cluster, against scripted brokers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

import headrace
from headrace.ambient import ambient
from headrace.client.client import Client
from headrace.core.mqtt.lending import Lent
from headrace.core.mqtt.subscription import Subscription
from headrace.gateways.mqtt.following import Following
from headrace.model.errors import HeadraceError, Quarantined, Refused, Unavailable, UnknownOutcome
from headrace.wire import control
from headrace.wire.batch import Record
from headrace.wire.mqtt import properties as prop
from tests.unit.client.cluster import FakeCluster

ACK, RETRY = 0, 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Sending:
    """What waits for room."""

    def __init__(self) -> None:
        self.lent: deque[Lent] = deque()

    def take_back(self, consumed: object) -> list[Lent]:
        found = [lent for lent in self.lent if lent.consumed is consumed]
        self.lent = deque(lent for lent in self.lent if lent.consumed is not consumed)
        return found


class World:
    """A connection, and a queue of one partition at broker a. ``refusals`` are raised, one each time a client is asked for."""

    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.refusals: list[HeadraceError] = []
        self.told: list[HeadraceError | None] = []
        self.ends: list[str] = []
        self.users = 0
        self.sending = Sending()
        limits = SimpleNamespace(prefetch_messages_max=1000)
        broker: Any = SimpleNamespace(
            spawn=asyncio.get_running_loop().create_task, refresh=lambda: None, touch=lambda shell: None, ambient=ambient(),
            config=SimpleNamespace(limits=limits),
        )  # fmt: skip
        machine: Any = SimpleNamespace(client_id="me", session=object(), sending=self.sending, natives=SimpleNamespace(ended=self._ended))
        shell: Any = SimpleNamespace(blocked=False)
        pool: Any = self
        self.following = Following(broker, pool, shell, machine)

    async def take(self) -> Any:
        if self.refusals:
            raise self.refusals.pop(0)
        self.users += 1
        return self

    def give_back(self, shared: Any) -> None:
        self.users -= 1

    def _ended(self, session: object, subscription: Subscription, why: str) -> None:
        self.ends.append(why)

    def begin(self, qos: int = 1, *, again: bool = False, **options: str) -> None:
        path = "$queue/orders"
        subscription = Subscription(path, path, "", qos, identifier=7, options=tuple(options.items()))
        self.following.begin(subscription, self.told.append, again=again)

    async def deliver(self, first: int, count: int, attempt: int = 1, flags: int = 0) -> None:
        a = self.cluster["a"]
        a.stored["orders"] = [Record(b"k", b"%d" % i, (("kind", b"x"),), 0) for i in range(100)]
        have = len(self.sending.lent)
        asked = a.asked(control.Subscribe)[-1]
        a.connections[-1].deliver(asked.channel, "orders", first, count, attempt=attempt, flags=flags)
        await until(lambda: len(self.sending.lent) > have)

    def sent(self) -> Lent:
        """The next delivery, as it goes out to the client."""
        return self.sending.lent.popleft()

    @property
    def settles(self) -> list[Any]:
        return self.cluster["a"].settles


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with FakeCluster({0: "a"}, "a", "b") as cluster, headrace.connect(cluster["b"].url, request_timeout=1) as client:
        made = World(cluster, client)
        yield made
        made.following.end()
        await until(lambda: not made.users)


async def test_acknowledgements_settle(world: World) -> None:
    world.begin()
    await until(lambda: world.told == [None])
    await world.deliver(0, 3)
    first, second = world.sent(), world.sent()
    assert (first.payload, first.qos, first.topic) == (b"0", 1, "$queue/orders")
    assert first.properties[prop.SUBSCRIPTION_IDENTIFIER] == [7]
    assert first.properties[prop.USER_PROPERTY] == [
        ("message-id", "0-1-0"), ("queue", "orders"), ("delivery-count", "1"), ("key", "k"), ("kind", "x")
    ]  # fmt: skip
    world.following.acked(first, failed=False)
    world.following.acked(second, failed=True)
    world.following.acked(first, failed=False)  # once only
    await until(lambda: len(world.settles) == 2)
    assert [(flags & 3, ranges) for flags, _, ranges in world.settles] == [(ACK, [(0, 1)]), (RETRY, [(1, 1)])]


async def test_who_withdraws_gives_back_what_it_holds(world: World) -> None:
    world.begin()
    await until(lambda: world.told)
    await world.deliver(0, 4)
    sent = world.sent()
    world.following.cease("$queue/orders")
    assert not world.sending.lent, "what was not sent is not sent any more"
    await until(lambda: not world.users)
    (goodbye,) = world.cluster["a"].asked(control.Unsubscribe)
    assert goodbye.undelivered == (control.Held(partition=0, ranges=((1, 3),)),), "nobody has seen these: no attempt is counted"
    world.following.acked(sent, failed=False)
    await asyncio.sleep(0.05)
    assert not world.settles


async def test_one_that_is_not_open_yet_is_answered_when_it_is_withdrawn(world: World) -> None:
    world.begin()
    world.following.cease("$queue/orders")
    assert world.told == [None]
    await asyncio.sleep(0.05)
    assert not world.users
    assert not world.cluster["a"].asked(control.Subscribe)


async def test_explicit_settlements_are_answered_once_durable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.begin(settle="explicit")
    await until(lambda: world.told)
    await world.deliver(0, 3)
    for _ in range(3):
        world.following.acked(world.sent(), failed=False)
    told: list[HeadraceError | None] = []
    world.following.settle("orders", "0-1-1", 2, told.append)
    await until(lambda: told)
    world.following.settle("orders", "0-1-1", 0, told.append)
    world.following.settle("orders", "0-9-0", 0, told.append)
    await until(lambda: len(told) == 3)
    assert told[0] is None
    assert isinstance(told[1], Refused)
    assert isinstance(told[2], Refused), "of another epoch"
    assert [ranges for _, _, ranges in world.settles] == [[(1, 1)]]
    monkeypatch.setattr("headrace.gateways.mqtt.following.SETTLE_S", 0.05)
    world.cluster["a"].answer_settles = False
    world.following.settle("orders", "0-1-2", 1, told.append)
    await until(lambda: len(told) == 4)
    assert isinstance(told[3], UnknownOutcome)
    world.cluster["a"].answer_settles = True
    world.following.settle("other", "0-1-2", 1, told.append)
    world.following.settle("orders", "nonsense", 1, told.append)
    assert [type(e).__name__ for e in told[4:]] == ["NotFound", "Invalid"]


async def test_of_qos_0_no_more_is_taken_than_was_sent(world: World) -> None:
    world.begin(0, prefetch="2")
    await until(lambda: world.told)
    await world.deliver(0, 5, flags=1)
    await asyncio.sleep(0.05)
    assert len(world.sending.lent) == 2
    world.following.given(world.sent())
    await until(lambda: len(world.sending.lent) == 2)
    world.following.block()
    world.following.given(world.sent())
    await asyncio.sleep(0.05)
    assert len(world.sending.lent) == 1
    world.following.unblock()
    await until(lambda: len(world.sending.lent) == 2)


async def test_a_subscribe_is_refused_where_a_session_that_comes_back_waits(world: World) -> None:
    world.refusals = [Unavailable("nobody serves it")]
    world.begin()
    await until(lambda: world.told)
    assert isinstance(world.told[0], Unavailable)
    world.refusals = [Unavailable("nobody serves it")] * 3
    world.begin(again=True)
    await until(lambda: len(world.told) == 2)
    assert (world.told[1], world.refusals, world.ends) == (None, [], [])


async def test_it_goes_on_after_what_passes_and_ends_with_what_does_not(world: World) -> None:
    world.begin()
    await until(lambda: world.told)
    await world.deliver(0, 1)
    a = world.cluster["a"]
    await world.client.close()  # the way there is lost
    world.client = await headrace.connect(world.cluster["b"].url)
    await until(lambda: len(a.asked(control.Subscribe)) == 2)
    assert not world.sending.lent, "it comes again"
    assert not world.ends
    channel = a.asked(control.Subscribe)[-1].channel
    a.connections[-1].event(control.SubscriptionClosed(channel=channel, code=Quarantined.code, message="damaged"))
    await until(lambda: world.ends)
    assert world.ends == ["damaged"]
    await world.client.close()

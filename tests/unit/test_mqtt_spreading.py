"""Retained messages on their way to a new subscription, while session partitions of other brokers come and go."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.core.mqtt.cluster_router import ClusterRouter
from headrace.core.mqtt.shard import Shard
from headrace.gateways.mqtt.spreading import FETCH_AGAIN_MS, Spreading
from headrace.wire import mqtt_peer as notes
from tests.unit.core.mqtt.routers import BOUNDS, SHARDS, Client, Net, sub

HERE, STAYS, MOVES = range(SHARDS)


class World:
    """A broker that serves a session, and those of the other partitions; ``STAYS`` is served by b, ``MOVES`` by whoever says so."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        router = self.router = ClusterRouter(BOUNDS, SHARDS, Net.shard_of)
        router.lead(Shard(HERE), 0)
        self.broker = SimpleNamespace(id="a", now_ms=100, touch=lambda written: None)
        peers = SimpleNamespace(handlers={}, put=lambda peer, note, nbytes=0: self.said.append((peer, note)))
        relays = SimpleNamespace(served=lambda number, peer: None)
        hub: Any = SimpleNamespace(
            broker=self.broker, peers=peers, relays=relays, router=router, partitions={}, wall_ms=0, serving=self._serving, committed=_at_once
        )  # fmt: skip
        self.spreading = Spreading(hub)
        self.spreading.start()
        self.hear = peers.handlers
        self.serves("b", STAYS)
        session, self.client = _connected(router)
        wanted = sub("r/#", 0)
        router.subscribe(session, wanted)
        self.spreading.fetch(session, wanted)

    def _serving(self, number: int) -> str:
        return self.spreading.holders.get(number, (0, ""))[1]

    def serves(self, peer: str, number: int, epoch: int = 1) -> None:
        self.hear[notes.Wants](peer, notes.Wants(1, number, epoch, True, {}))

    def asked(self, after_ms: int = 0) -> list[tuple[str, list[int]]]:
        """Who was asked what since the last call, up to the tick so much later."""
        self.broker.now_ms += after_ms
        self.spreading.tick(self.broker.now_ms)
        said, self.said = self.said, []
        return [(peer, note.partitions) for peer, note in said if isinstance(note, notes.Fetch)]

    def answers(self, peer: str, number: int) -> None:
        topic = next(topic for topic in (f"r/{i}" for i in range(SHARDS)) if Net.shard_of(topic) == number)
        message = notes.Message(topic, peer.encode(), 0, True, None, 0, "", [])
        self.hear[notes.Fetched](peer, notes.Fetched(1, [message], True, [number]))

    def got(self) -> list[bytes]:
        return [payload for _, payload, _, _ in self.client.now]


def _connected(router: ClusterRouter) -> tuple[Any, Client]:
    client = Client()
    client_id = next(id for id in "xyz" if router.serves(id))
    return router.connect(client_id, client, clean=True, expiry_s=0, will=None, receive_maximum=10, wall_ms=0)[0], client


def _at_once(answer: Callable[[], None]) -> None:
    answer()


@pytest.fixture
def world() -> World:
    return World()


def test_who_comes_to_serve_a_partition_is_asked_at_once_although_others_were_asked_just_now(world: World) -> None:
    assert world.asked() == [("b", [STAYS])], "nobody serves the other one"
    world.serves("c", MOVES)
    assert world.asked(1) == [("c", [MOVES])]
    world.answers("b", STAYS)
    world.answers("c", MOVES)
    assert world.asked(FETCH_AGAIN_MS) == []
    assert world.got() == [b"b", b"c"]


def test_the_next_owner_is_asked_at_once_although_the_last_one_was_just_now(world: World) -> None:
    world.serves("c", MOVES)
    assert world.asked() == [("b", [STAYS]), ("c", [MOVES])]
    world.serves("b", MOVES, 2)
    assert world.asked(1) == [("b", [MOVES])]
    world.answers("c", MOVES)
    world.answers("b", MOVES)
    assert world.got() == [b"c"], "it comes once"


def test_who_does_not_answer_is_asked_again_after_a_while_or_when_the_conversation_begins_anew(world: World) -> None:
    assert world.asked() == [("b", [STAYS])]
    assert world.asked(FETCH_AGAIN_MS - 1) == []
    assert world.asked(1) == [("b", [STAYS])]
    world.spreading.lost("b")
    assert world.asked(1) == []
    world.serves("b", STAYS)
    assert world.asked(1) == [("b", [STAYS])]

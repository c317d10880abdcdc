"""The fuzzer of MQTT, for as many inputs as a test run can spare; ``python -m tests.fuzz.mqtt`` runs campaigns."""

import random

from tests.fuzz.mqtt import one, talk


def test_hostile_streams_raise_nothing_and_come_to_the_same_in_pieces() -> None:
    rng = random.Random(7)
    faults = sum(one(rng) for _ in range(6000))
    assert 1000 < faults < 6000


def test_conversations_raise_nothing_and_keep_the_books() -> None:
    rng = random.Random(8)
    assert sum(talk(rng) for _ in range(400)) > 400

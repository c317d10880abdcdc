"""Who waits for the journals of several session partitions, one of which goes to another broker."""

from headrace.gateways.mqtt.hub import _Round
from headrace.model.errors import Elsewhere


def test_who_has_to_hear_of_a_doubt_does_at_once_and_the_others_wait_for_the_rest() -> None:
    said: list[str] = []
    round = _Round()
    round.answers = [(lambda: said.append("sure"), lambda: said.append("unsure")), (lambda: said.append("the rest"), None)]
    round.shards = {1: None, 2: None}
    round.lost(Elsewhere("it is served by another broker"))
    assert said == ["unsure"], "who was not told would go on, and what he does next would come before what he does again"
    round.landed()
    assert said == ["unsure", "the rest"]

"""What proves a broker dead, what does not, and when the picture is not believed."""

import pytest

from headrace.core.control.liveness import frozen, judged, secluded, verdict
from headrace.core.control.picture import Picture, Seen
from headrace.core.control.planning import plan
from headrace.model.cluster import Placement
from tests.unit.core.control.clusters import NOW, A, B, C, D, E, dead, owned, picture, seen

SETTINGS = Placement()
RESET = NOW - 300


@pytest.mark.parametrize(
    ("broker", "state"),
    [
        (seen(A), "alive"),
        (seen(A, swim="unknown"), "alive"),
        (seen(A, swim="suspect"), "doubted"),
        (seen(A, swim="dead"), "doubted"),
        (seen(A, probe_failed=True), "doubted"),
        (seen(A, swim="dead", probe_failed=True), "dead"),
        (seen(A, present=False, since_ms=NOW - 1_999), "doubted"),
        (seen(A, present=False, since_ms=NOW - 2_000), "dead"),
        (seen(A, swim="left"), "doubted"),
        (seen(A, swim="left", present=False, since_ms=NOW), "dead"),
        (seen(A, reset_ms=RESET), "doubted"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 100,)), "doubted"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 100, NOW - 51)), "doubted"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 100, NOW - 50)), "dead"),
        (seen(A, refused_ms=(NOW - 100, NOW - 50)), "alive"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 400, NOW - 50)), "doubted"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 100, NOW - 50), frame_ms=NOW - 199), "doubted"),
        (seen(A, reset_ms=RESET, refused_ms=(NOW - 100, NOW - 50), frame_ms=NOW - 200), "dead"),
    ],
)
def test_evidence(broker: Seen, state: str) -> None:
    judgement = verdict(broker, SETTINGS, NOW)
    assert judgement.state == state, judgement.reason
    assert judgement.until_ms is None or judgement.until_ms > NOW


def test_a_frame_seen_elsewhere_only_delays_the_verdict() -> None:
    broker = seen(A, reset_ms=RESET, refused_ms=(NOW - 100, NOW - 50), frame_ms=NOW - 150)
    until = verdict(broker, SETTINGS, NOW).until_ms
    assert until == NOW + 50
    assert verdict(broker, SETTINGS, until).state == "dead"


def test_a_broker_known_only_from_an_assignment_has_been_gone_since_the_controller_began() -> None:
    unknown = owned(replicas=(A, B, C, D), isr=(A, B, C))
    brokers, moments = judged(picture(unknown, began_ms=NOW - 500))
    assert brokers[D].state == "doubted"
    assert NOW + 1_500 in moments
    assert judged(picture(unknown, began_ms=NOW - 2_000))[0][D].state == "dead"


def vanish(*alive: bool, apart_ms: int = 0, present: int = 0) -> Picture:
    names = (A, B, C, D, E)
    gone = [
        seen(b, present=False, since_ms=NOW - 20_000 + n * apart_ms, swim="alive" if is_alive else "dead", probe_failed=not is_alive)
        for n, (b, is_alive) in enumerate(zip(names, alive, strict=False))
    ]
    return Picture(now_ms=NOW, brokers=(*gone, *(seen(b) for b in names[len(gone) : len(gone) + present])))


@pytest.mark.parametrize(
    ("shown", "is_frozen"),
    [
        (vanish(True, True, present=3), True),
        (vanish(True, present=1), False),
        (vanish(True, False, present=3), False),
        (vanish(False, False, False), False),
        (vanish(True, True, present=3, apart_ms=10_000), True),
        (vanish(True, True, present=3, apart_ms=10_001), False),
        (vanish(True, True, True, apart_ms=6_000, present=2), True),
    ],
)
def test_planning_freezes_when_the_coordinator_loses_those_who_live(shown: Picture, is_frozen: bool) -> None:
    assert bool(frozen(shown)) == is_frozen


def test_a_third_is_not_over_a_third() -> None:
    names = [f"n{n}" for n in range(6)]
    few = tuple(seen(n, present=n not in names[:2], since_ms=NOW - 5_000) for n in names)  # type: ignore[arg-type]
    assert not frozen(Picture(now_ms=NOW, brokers=few))
    assert frozen(Picture(now_ms=NOW, brokers=few[:-1]))


def test_a_frozen_plan_changes_nothing_and_says_why() -> None:
    gone = [seen(b, present=False, since_ms=NOW - 5_000) for b in (A, B)]
    made = plan(picture(owned(), *gone))
    assert not made.changes
    (finding,) = made.findings
    assert finding.kind == "frozen"
    assert "broker-a, broker-b (2 of 3) vanished" in finding.reason


def test_whoever_hears_of_most_others_nothing_but_silence_judges_nobody() -> None:
    silent = [seen(broker, swim="dead") for broker in (B, C)]
    assert "gossip hears nothing of broker-b, broker-c (2 of 2 others)" in secluded([seen(A), *silent])
    assert frozen(Picture(now_ms=NOW, brokers=(seen(A), *silent))).startswith("planning is frozen: gossip hears nothing")
    assert not secluded([seen(A), seen(B, swim="dead"), seen(C)])
    assert secluded([seen(A), seen(B, swim="dead"), seen(C, swim="dead"), seen(D, swim="dead"), seen(E)])
    assert not secluded([seen(A), seen(B, swim="dead"), seen(C, swim="dead"), seen(D), seen(E)])


def test_those_who_refuse_connections_or_are_not_registered_are_no_sign_of_a_cut() -> None:
    refuses = {"swim": "dead", "reset_ms": NOW - 500, "refused_ms": (NOW - 400, NOW - 300)}
    assert not secluded([seen(A), seen(B, **refuses), seen(C, **refuses)])
    assert not secluded([seen(A), dead(B), dead(C)])

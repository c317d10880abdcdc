"""Records and messages as bytes; a machine that is told nonsense."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.formation import messages, records
from headrace.core.formation.books import Found
from headrace.core.formation.effects import State
from headrace.core.formation.machine import Formation
from headrace.core.formation.parsing import parse_voters
from headrace.core.formation.records import (
    Acceptance,
    Applied,
    Aside,
    Bootstrap,
    Charter,
    Directory,
    Enrolled,
    Held,
    Identity,
    Promise,
    Record,
    Records,
    charter_of,
    decode,
    decode_charter,
    encode,
)
from headrace.core.formation.recovering import recover
from headrace.model.errors import Damaged, Malformed, UnsupportedVersion
from headrace.model.formation import Declared
from tests.property.effort import effort


def declared() -> Declared:
    parsed = parse_voters("a,b,c")
    assert parsed.config is not None
    return parsed.config


INC = Directory("i" * 32)
VOTERS = tuple(Enrolled(name=n, incarnation=Directory(n * 32), seat=1, address=f"{n}:1") for n in "abc")
BOOTSTRAP = Bootstrap(cluster_id="x", config=declared(), ballot=1, seed="a", seed_incarnation=INC, voters=VOTERS)
CHARTER: Charter = charter_of(BOOTSTRAP)
ALL: list[Record] = [
    Identity(node_id="n", incarnation=INC, ordered_by=CHARTER),
    Held(config=declared(), of="x"),
    Promise(version=1, hash="h", ballot=1, seed="a", seed_incarnation=INC, voters=(("a", "a:1"),)),
    BOOTSTRAP,
    Acceptance(bootstrap=BOOTSTRAP),
    Applied(charter=CHARTER),
    Aside(id="1", cluster_id="x", version=1, reason="r", keep_ms=1),
]


@pytest.mark.parametrize("record", ALL, ids=lambda r: type(r).__name__)
def test_every_record_comes_back_and_every_damage_is_seen(record: Record) -> None:
    data = encode(record)
    assert decode(data) == record
    assert getattr(Records().stored(record), records.slot_of(record)) == record
    for at in range(0, len(data), 3):
        with pytest.raises((Damaged, UnsupportedVersion)):
            decode(data[:at] + bytes((data[at] ^ 0x41,)) + data[at + 1 :])
    with pytest.raises(Damaged):
        decode(data[:-1])
    with pytest.raises(UnsupportedVersion):
        decode(bytes((9,)) + data[1:])


def test_the_charter_comes_back() -> None:
    assert decode_charter(encode(CHARTER)) == CHARTER


HELLO = messages.Hello(boot="b", sequence=1, incarnation=INC, condition="fresh")
MESSAGES: list[messages.AnyMessage] = [
    HELLO,
    messages.Proposal(config=declared()),
    messages.Tidings(charter=CHARTER),
    messages.Ask(version=1, hash="h", ballot=1, incarnation=INC),
    messages.Promised(version=1, hash="h", ballot=1, seed_incarnation=INC, incarnation=INC),
    messages.Declined(version=1, ballot=1, reason="no"),
    messages.Offer(bootstrap=BOOTSTRAP),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back(message: messages.AnyMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@effort(100)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        messages.decode(data)
    with pytest.raises((Damaged, UnsupportedVersion)):
        decode(data)


@effort(60)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(MESSAGES), st.integers(0, 3000)), max_size=20), st.data())
def test_no_order_of_messages_makes_it_raise(heard: list[tuple[str, messages.AnyMessage, int]], data: st.DataObject) -> None:
    formation = Formation(Found(name="a", address="a:1", entropy=bytes(16)), 0)
    now_ms = 0
    for sender, message, passed_ms in heard:
        now_ms += passed_ms
        formation.heard(sender, message, now_ms)
        for effect in formation.take():
            record = getattr(effect, "record", None)
            if record is not None and data.draw(st.booleans()):
                formation.stored(record, now_ms)
        formation.check()
        assert formation.next_deadline_ms() >= now_ms
        assert formation.view()["reason"]


def test_data_without_identity_is_left_alone() -> None:
    formation = Formation(Found(name="a", address="a:1", entropy=bytes(16), has_data=True), 0)
    assert (formation.standing.state, formation.standing.code) == (State.HALTED, "unidentified")
    damaged = Formation(Found(name="a", address="a:1", entropy=bytes(16), damaged="the identity is torn"), 0)
    assert (damaged.standing.state, damaged.standing.code) == (State.HALTED, "damaged")


def test_recovery_is_refused_but_for_a_confirmed_voter() -> None:
    member = Identity(node_id="n", incarnation=INC, cluster_id="x", formed=True, seat=1, settled=True)
    full = Records(identity=member, applied=Applied(charter=CHARTER))
    assert "never been" in recover(Records(), name="a", address="a:1", confirm="x", entropy=bytes(16)).refusal
    assert "confirm" in recover(full, name="a", address="a:1", confirm="", entropy=bytes(16)).refusal
    assert "list" in recover(full, name="z", address="z:1", confirm="x", entropy=bytes(16)).refusal
    done = recover(full, name="a", address="a:1", confirm="x", entropy=bytes(16))
    assert len(done.records) == 2
    assert done.cluster_id not in ("", "x")

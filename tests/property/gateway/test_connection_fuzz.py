"""Any bytes, in any pieces, into a connection of a real broker: a clean close at most, bounded buffers, and a broker that goes on serving."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.gateways.native.connection import NativeConnection
from headrace.wire import control
from headrace.wire.frames import HEADER, PREAMBLE, Op, frame
from tests.fuzz.native import HELLO, OPENING, PUBLISHES, Rig, Wire, campaign, frames, hostile_hot, hostile_request, mutated, request

QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    """``test`` with a broker of its own, which must serve a healthy client afterwards and have logged no error."""

    async def main() -> None:
        async with Rig() as rig:
            await test(rig)
            await rig.turn(5)
            await rig.healthy()
            assert not rig.watch.found, "\n".join(rig.watch.first.values())

    asyncio.run(main())


async def talk(rig: Rig, data: bytes, cuts: list[int]) -> tuple[NativeConnection, Wire]:
    """Feeds ``data`` cut at those positions."""
    connection, wire = rig.connect(keep=True)
    at = 0
    for cut in [*sorted(min(c, len(data)) for c in cuts), len(data)]:
        if at < cut and not rig.feed(connection, wire, data[at:cut]):
            break
        at = cut
        await rig.turn(2)
    await rig.turn(3)
    return connection, wire


CUTS = st.lists(st.integers(0, 4000), max_size=8)


@QUICK
@given(st.binary(max_size=300), CUTS)
def test_noise_before_hello_is_answered_with_an_error_at_most(data: bytes, cuts: list[int]) -> None:
    async def test(rig: Rig) -> None:
        _, wire = await talk(rig, data, cuts)
        assert wire.kept is not None
        assert all(op in (Op.ERROR, Op.REPLY, Op.PONG) for op, _ in frames(b"".join(wire.kept)))
        if len(data) >= len(PREAMBLE) and not data.startswith(PREAMBLE):
            assert wire.closed

    run(test)


@QUICK
@given(st.binary(max_size=300), CUTS)
def test_noise_after_hello(data: bytes, cuts: list[int]) -> None:
    async def test(rig: Rig) -> None:
        connection, wire = await talk(rig, PREAMBLE + HELLO, [])
        for at in range(0, len(data), 50):
            rig.feed(connection, wire, data[at : at + 50])
            await rig.turn()

    run(test)


@QUICK
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 5), min_size=1, max_size=30), CUTS)
def test_mutated_conversations(seed: int, kinds: list[int], cuts: list[int]) -> None:
    rng = random.Random(seed)

    async def test(rig: Rig) -> None:
        parts = [PREAMBLE + HELLO]
        setup = list(OPENING)
        rng.shuffle(setup)
        pool = [*setup, *PUBLISHES]
        for kind in kinds:
            frame = rng.choice(pool) if kind < 3 else hostile_hot(rng) if kind == 3 else hostile_request(rng)
            parts.append(mutated(rng, frame) if kind in (2, 5) else frame)
        await talk(rig, b"".join(parts), cuts)

    run(test)


@QUICK
@given(st.permutations(range(len(OPENING))), st.booleans())
def test_reordered_and_doubled_openings_are_answered_one_by_one(order: list[int], doubled: bool) -> None:
    async def test(rig: Rig) -> None:
        data = PREAMBLE + HELLO + b"".join([OPENING[i] * (1 + doubled) for i in order])
        # the hello must be answered before anything else may be said
        _, wire = await talk(rig, data, [len(PREAMBLE + HELLO)])
        await rig.turn(100)
        assert wire.kept is not None
        answers = [f for op, f in frames(b"".join(wire.kept)) if op in (Op.REPLY, Op.ERROR)]
        assert len(answers) == 1 + len(OPENING) * (1 + doubled)
        assert not wire.closed

    run(test)


def test_a_conversation_byte_by_byte_is_the_same_conversation() -> None:
    async def test(rig: Rig) -> None:
        opening, publish = OPENING[0], PUBLISHES[0]
        connection, wire = rig.connect(keep=True)
        for data in (PREAMBLE + HELLO, opening, publish):
            for i in range(len(data)):
                assert rig.feed(connection, wire, data[i : i + 1])
            await rig.turn(10)
        assert wire.kept is not None
        assert [op for op, _ in frames(b"".join(wire.kept))] == [Op.REPLY, Op.REPLY, Op.CONFIRM]

    run(test)


def test_a_frame_in_tiny_pieces_takes_no_more_memory_than_its_bytes() -> None:
    async def test(rig: Rig) -> None:
        connection, wire = await talk(rig, PREAMBLE + HELLO, [])
        rig.feed(connection, wire, HEADER.pack(8 + 1_000_000, Op.REQUEST, 0, 0, 1))
        for _ in range(100_000):
            rig.feed(connection, wire, b"x")
        assert len(connection._parts) < 10
        assert connection._have < 110_000

    run(test)


def test_requests_in_a_burst_are_all_answered_in_linear_time() -> None:
    async def test(rig: Rig) -> None:
        connection, wire = await talk(rig, PREAMBLE + HELLO, [])
        assert wire.kept is not None
        wire.kept.clear()
        burst = b"".join([request(i, control.Unsubscribe(channel=1) if i % 2 else control.Status()) for i in range(2, 10_002)])
        began = asyncio.get_running_loop().time()
        for at in range(0, len(burst), 64 * 1024):
            while not wire.reading:  # held back: a socket would keep the rest for later
                await rig.turn()
            assert rig.feed(connection, wire, burst[at : at + 64 * 1024])
            await rig.turn(2)
        while connection.requests._count:
            await rig.turn()
        await rig.turn(2)
        answered = [int.from_bytes(f[8:12], "big") for op, f in frames(b"".join(wire.kept)) if op in (Op.REPLY, Op.ERROR)]
        assert sorted(answered) == list(range(2, 10_002))
        assert asyncio.get_running_loop().time() - began < 20

    run(test)


def test_a_short_campaign_of_the_fuzzer() -> None:
    totals, watch = asyncio.run(campaign(20_000, 77))
    assert totals.closes > 100
    assert not watch.found, "\n".join(watch.first.values())


def test_a_peer_that_is_sent_much_is_asked_for_a_sign_of_life_before_it_is_taken_for_dead() -> None:
    """A broker that answers without a pause has no reason of its own to say PING, and its peer may have nothing to say either."""

    async def test(rig: Rig) -> None:
        for answers in (True, False):
            connection, wire = rig.connect(keep=True)
            assert rig.feed(connection, wire, PREAMBLE + HELLO)
            await rig.turn(3)
            assert wire.kept is not None
            beat_ms, now_ms, ended = connection.heartbeat_ms, rig.broker.now_ms, False
            for _ in range(12):
                now_ms += beat_ms
                connection.sent_ms = now_ms  # something was written just now
                wire.kept.clear()
                connection.beat(now_ms)
                ops = [op for op, _ in frames(b"".join(wire.kept))]
                ended = ended or Op.ERROR in ops
                if answers and Op.PING in ops:
                    assert rig.feed(connection, wire, frame(Op.PONG))
            assert ended != answers
            connection.close(None)

        connection, wire = rig.connect(keep=True)
        assert rig.feed(connection, wire, PREAMBLE + HELLO)
        await rig.turn(3)
        assert wire.kept is not None
        connection.beat(rig.broker.now_ms + 100 * connection.heartbeat_ms)  # the broker stood still: nobody was asked
        assert Op.ERROR not in [op for op, _ in frames(b"".join(wire.kept))]
        connection.close(None)

    run(test)

"""What every coordinator promises, asked of each kind."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from headrace.cluster.coordinator import (
    REQUEST_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX,
    Change,
    Changes,
    Coordinator,
    Document,
    Reread,
    Snapshot,
    WatchEvent,
    follow,
    read_all,
)
from headrace.errors import Conflict, Invalid, RevisionGone
from tests.integration.coordination.places import Place

pytestmark = [pytest.mark.timeout(60)]
SOON_S = 10


async def seen(events: AsyncGenerator[WatchEvent, None], count: int) -> list[Change]:
    """The first ``count`` changes."""
    found: list[Change] = []
    async with asyncio.timeout(SOON_S):
        while len(found) < count:
            event = await anext(events)
            assert isinstance(event, Changes), event
            assert event.changes[-1].revision <= event.revision
            found += event.changes
    assert len(found) == count
    return found


async def revision_of(coordinator: Coordinator) -> int:
    return (await coordinator.range("")).revision


async def test_a_document_is_created_changed_deleted_and_created_again(place: Place) -> None:
    c = await place.client()
    assert await c.get("a/x") is None
    assert await c.transact({"a/x": 0}, {"a/x": b"one"})
    assert await c.get("a/x") == Document("a/x", b"one", 1)
    assert not await c.transact({"a/x": 0}, {"a/x": b"again"})
    assert await c.transact({"a/x": 1}, {"a/x": b"two"})
    assert not await c.transact({"a/x": 1}, {"a/x": b"late"})
    assert await c.get("a/x") == Document("a/x", b"two", 2)
    assert await c.transact({"a/x": 2}, {"a/x": None})
    assert await c.get("a/x") is None
    assert await c.transact({"a/x": 0}, {"a/x": b""})
    assert await c.get("a/x") == Document("a/x", b"", 1)


async def test_several_keys_change_together_or_not_at_all(place: Place) -> None:
    c = await place.client()
    assert await c.transact({"a": 0, "b": 0}, {"a": b"1", "b": b"1"})
    assert not await c.transact({"a": 1, "b": 2}, {"a": b"2", "b": b"2", "c": b"2"})
    assert [d.value for d in (await c.range("")).documents] == [b"1", b"1"]
    assert await c.transact({"a": 1, "b": 1, "c": 0}, {"a": None, "c": b"3"})
    assert [(d.key, d.version) for d in (await c.range("")).documents] == [("b", 1), ("c", 1)]


async def test_of_many_who_write_the_same_version_one_succeeds(place: Place) -> None:
    c = await place.client()
    for version in range(5):
        outcomes = await asyncio.gather(*(c.transact({"k": version}, {"k": str(n).encode()}) for n in range(20)))
        assert outcomes.count(True) == 1
        document = await c.get("k")
        assert document == Document("k", str(outcomes.index(True)).encode(), version + 1)


async def test_many_at_once_each_have_their_own_outcome(place: Place) -> None:
    c = await place.client()
    assert await c.transact({}, {f"m/{n}": b"old" for n in range(100)})
    registration = await c.register("brokers/a", b"", ttl_ms=5000)

    async def one(n: int) -> bool:
        if n % 7 == 3:
            return await c.transact({f"m/{n % 100}": 1}, {f"m/{n % 100}": str(n).encode()}, under=registration)
        return await c.transact({f"m/{n % 100}": 1 + n % 2, f"only/{n}": 0}, {f"m/{n % 100}": str(n).encode(), f"only/{n}": b"x"})

    outcomes = await asyncio.gather(*(one(n) for n in range(300)))
    documents = {d.key: d for d in (await read_all(c, "")).documents}
    for key in (f"m/{n}" for n in range(100)):
        won = [n for n in range(300) if f"m/{n % 100}" == key and outcomes[n]]
        assert documents[key].version == 1 + len(won)
        assert documents[key].value.decode() in ([str(n) for n in won] or ["old"])
    for n in range(300):
        assert (f"only/{n}" in documents) == (outcomes[n] and n % 7 != 3)
    await registration.release()


async def test_a_comparison_alone_writes_nothing(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {"k": b"v"})
    before = await revision_of(c)
    assert await c.transact({"k": 1, "absent": 0}, {})
    assert not await c.transact({"k": 2}, {})
    assert await c.transact({}, {"absent": None})
    assert await revision_of(c) == before
    await c.transact({}, {"k": b"w", "l": b"w"})
    assert await revision_of(c) == before + 1


async def test_a_range_is_in_order_within_its_prefix_and_in_pages(place: Place) -> None:
    c = await place.client()
    keys = ["names/a", "names/aa", "names/b", "names/ä", "names/😀", "name", "nameszz", "other", "names/"]
    await c.transact({}, {k: k.encode() for k in keys})
    within = sorted(k for k in keys if k.startswith("names/"))
    assert [d.key for d in (await c.range("names/")).documents] == within
    assert [d.key for d in (await c.range("")).documents] == sorted(keys)
    assert [d.key for d in (await c.range("names/", after="names/aa")).documents] == within[3:]
    page = await c.range("names/", limit=2)
    assert ([d.key for d in page.documents], page.more) == (within[:2], True)
    page = await c.range("names/", after=within[1], limit=4)
    assert ([d.key for d in page.documents], page.more) == (within[2:], False)
    assert (await c.range("nothing/")).documents == ()


async def test_pages_are_of_one_revision_or_that_revision_is_gone(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {f"k{n}": b"old" for n in range(6)})
    first = await c.range("k", limit=3)
    await c.transact({}, {"k5": b"new", "k9": b"new", "k4": None})
    try:
        rest = await c.range("k", after="k2", revision=first.revision)
    except RevisionGone:
        assert not place.shared
    else:
        assert [(d.key, d.value) for d in rest.documents] == [("k3", b"old"), ("k4", b"old"), ("k5", b"old")]
        assert rest.revision == first.revision
    snapshot = await read_all(c, "k")
    assert [d.key for d in snapshot.documents] == ["k0", "k1", "k2", "k3", "k5", "k9"]


async def test_thousands_are_read_at_one_revision(place: Place) -> None:
    c = await place.client()
    for start in range(0, 2500, 125):
        assert await c.transact({}, {f"many/{n:05}": b"x" * 100 for n in range(start, start + 125)})
    page = await c.range("many/", limit=1_000_000)
    assert (len(page.documents), page.more) == (1000, True)
    snapshot = await read_all(c, "many/")
    assert [d.key for d in snapshot.documents] == [f"many/{n:05}" for n in range(2500)]


async def test_a_revision_of_the_future_is_not_there(place: Place) -> None:
    c = await place.client()
    with pytest.raises(RevisionGone):
        await c.range("", revision=await revision_of(c) + 100)


async def test_the_bounds_of_a_transaction(place: Place) -> None:
    c = await place.client()
    full: dict[str, bytes | None] = {f"k{n}": b"v" for n in range(TRANSACTION_OPERATIONS_MAX)}
    assert await c.transact(dict.fromkeys(full, 0), full)
    assert await c.transact(dict.fromkeys(full, 1), dict.fromkeys(full, None))
    with pytest.raises(Invalid, match="128"):
        await c.transact({}, {**full, "more": b""})
    with pytest.raises(Invalid, match="128"):
        await c.transact({**dict.fromkeys(full, 0), "more": 0}, {})
    with pytest.raises(Invalid, match="bytes"):
        await c.transact({}, {"big": bytes(REQUEST_BYTES_MAX)})
    with pytest.raises(Invalid, match="empty"):
        await c.transact({}, {"": b""})
    assert await c.get("big") is None
    largest = bytes(REQUEST_BYTES_MAX - 100)
    assert await c.transact({}, {"big": largest})
    assert await c.get("big") == Document("big", largest, 1)


async def test_a_watch_shows_every_change_from_its_revision_in_order(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {"w/a": b"0", "w/gone": b"0"})
    start = await revision_of(c)
    await c.transact({}, {"w/a": b"1", "w/b": b"1", "other": b"1"})
    async with aclosing(c.watch("w/", from_revision=start + 1)) as events:
        await c.transact({}, {"other": b"2"})
        await c.transact({}, {"w/gone": None, "w/absent": None})
        await c.transact({}, {"w/a": b"3"})
        changes = await seen(events, 4)
        assert sorted(changes[:2], key=lambda x: x.key) == [
            Change("w/a", Document("w/a", b"1", 2), start + 1),
            Change("w/b", Document("w/b", b"1", 1), start + 1),
        ]
        assert changes[2:] == [Change("w/gone", None, start + 3), Change("w/a", Document("w/a", b"3", 3), start + 4)]
        await c.transact({}, {"w/z": b"live"})
        assert (await seen(events, 1))[0].key == "w/z"
    async with aclosing(c.watch("w/", from_revision=start + 4)) as events:
        assert [x.revision for x in await seen(events, 2)] == [start + 4, start + 5]


async def test_a_watch_from_now_shows_what_comes(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {"n/old": b""})
    async with aclosing(c.watch("n/")) as events:
        first = asyncio.ensure_future(anext(events))
        async with asyncio.timeout(SOON_S):
            while not first.done():  # nobody tells from when on it watches
                await c.transact({}, {"n/new": b""})
                await asyncio.wait((first,), timeout=0.1)
        event = await first
        assert isinstance(event, Changes)
        assert {x.key for x in event.changes} == {"n/new"}


async def test_a_cancelled_wait_for_a_change_loses_nothing(place: Place) -> None:
    c = await place.client()
    revision = await revision_of(c)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with aclosing(c.watch("c/", from_revision=revision + 1)) as events, asyncio.timeout(0.05):
                await anext(events)
    await c.transact({}, {"c/1": b""})
    async with aclosing(c.watch("c/", from_revision=revision + 1)) as events:
        assert len(await seen(events, 1)) == 1


async def test_a_compacted_watch_demands_a_full_read(place: Place) -> None:
    c = await place.client()
    start = await revision_of(c)
    for n in range(5):
        await c.transact({}, {"k": str(n).encode()})
    await place.compact(start + 5)
    async with aclosing(c.watch("k", from_revision=start + 1)) as events, asyncio.timeout(SOON_S):
        assert [e async for e in events] == [Reread("compacted")]
    with pytest.raises(RevisionGone):
        await c.range("k", revision=start + 1)
    assert (await read_all(c, "k")).documents == (Document("k", b"4", 5),)


async def test_a_watch_that_is_ahead_of_the_store_is_told_of_the_restore(place: Place) -> None:
    c = await place.client()
    revision = await revision_of(c)
    async with aclosing(c.watch("k", from_revision=revision + 50)) as events, asyncio.timeout(SOON_S):
        assert [e async for e in events] == [Reread("restored")]


async def test_a_watch_ends_when_the_coordinator_is_closed(place: Place) -> None:
    c = await place.client()
    registration = await c.register("brokers/a", b"", ttl_ms=5000)
    revision = await revision_of(c)
    async with aclosing(c.watch("k", from_revision=revision + 1)) as events:
        await c.transact({}, {"k": b""})
        assert len(await seen(events, 1)) == 1
        waiting = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0.1)
        await c.close()
        async with asyncio.timeout(SOON_S):
            assert await waiting is None
            assert await registration.lost()


async def test_following_begins_with_everything_and_begins_again_after_a_gap(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {"f/a": b"1"})
    async with aclosing(follow(c, "f/")) as steps, asyncio.timeout(SOON_S):
        first = await anext(steps)
        assert isinstance(first, Snapshot)
        assert [d.key for d in first.documents] == ["f/a"]
        await c.transact({}, {"f/b": b"2"})
        second = await anext(steps)
        assert isinstance(second, Changes)
        assert [x.key for x in second.changes] == ["f/b"]


async def test_a_registration_is_seen_until_it_is_released(place: Place) -> None:
    c = await place.client()
    registration = await c.register("brokers/a", b"here", ttl_ms=5000)
    assert registration.alive
    assert registration.key == "brokers/a"
    assert await c.get("brokers/a") == Document("brokers/a", b"here", 1)
    assert [d.key for d in (await c.range("brokers/")).documents] == ["brokers/a"]
    revision = await revision_of(c)
    await registration.update(b"leaving")
    await registration.release()
    async with asyncio.timeout(SOON_S):
        assert "released" in await registration.lost()
    assert not registration.alive
    async with aclosing(c.watch("brokers/", from_revision=revision + 1)) as events:
        assert [x.document and x.document.value for x in await seen(events, 2)] == [b"leaving", None]
    assert await c.get("brokers/a") is None
    with pytest.raises(Conflict):
        await registration.update(b"ghost")
    await registration.release()


async def test_another_incarnation_takes_the_registration_over(place: Place) -> None:
    old = await (await place.client("a")).register("brokers/a", b"old", ttl_ms=5000)
    c = await place.client("b")
    new = await c.register("brokers/a", b"new", ttl_ms=5000)
    async with asyncio.timeout(SOON_S):
        assert await old.lost()
    assert not old.alive
    assert new.alive
    assert old.incarnation != new.incarnation
    await old.release()
    await asyncio.sleep(0.05)
    document = await c.get("brokers/a")
    assert document is not None
    assert document.value == b"new"
    await new.release()


async def test_what_is_put_under_a_registration_goes_with_it(place: Place) -> None:
    c = await place.client()
    await c.transact({}, {"stays": b"", "controller": b"nobody"})
    registration = await c.register("brokers/a", b"", ttl_ms=5000)
    assert not await c.transact({"controller": 0}, {"controller": b"a"}, under=registration)
    assert await c.transact({"controller": 1}, {"controller": b"a", "extra": b""}, under=registration)
    assert await c.get("controller") == Document("controller", b"a", 2)
    assert await c.transact({}, {"extra": b"free"})
    await registration.release()
    assert [d.key for d in (await c.range("")).documents] == ["extra", "stays"]
    with pytest.raises(Conflict):
        await c.transact({}, {"controller": b"a"}, under=registration)
    assert await c.get("controller") is None


async def test_a_registration_that_is_lost_though_its_broker_lives_is_told(shared: Place) -> None:
    c = await shared.client()
    registration = await c.register("brokers/a", b"", ttl_ms=30_000)
    await shared.drop_lease(registration)
    async with asyncio.timeout(SOON_S):
        assert await registration.lost()
    assert not registration.alive
    assert await c.get("brokers/a") is None
    with pytest.raises(Conflict):
        await c.transact({}, {"k": b""}, under=registration)
    again = await c.register("brokers/a", b"", ttl_ms=5000)
    assert again.incarnation != registration.incarnation
    assert again.alive


async def test_a_registration_outlives_its_time_as_long_as_it_is_renewed(shared: Place) -> None:
    c = await shared.client()
    registration = await c.register("brokers/a", b"", ttl_ms=shared.ttl_ms)
    await asyncio.sleep(shared.ttl_ms / 1000 * 3)
    assert registration.alive
    assert registration.silent_ms < shared.ttl_ms
    assert await c.get("brokers/a") is not None


async def test_a_registration_of_one_who_is_cut_off_expires(shared: Place) -> None:
    lost = await (await shared.client("a")).register("brokers/a", b"", ttl_ms=shared.ttl_ms)
    c = await shared.client("b")
    revision = await revision_of(c)
    await shared.stop_renewing("a")
    async with aclosing(c.watch("brokers/", from_revision=revision + 1)) as events, asyncio.timeout(30):
        event = await anext(events)
        assert isinstance(event, Changes)
        assert [(x.key, x.document) for x in event.changes] == [("brokers/a", None)]
    assert lost.silent_ms >= shared.ttl_ms // 2


async def test_two_brokers_see_each_other(shared: Place) -> None:
    a, b = await shared.client("a"), await shared.client("b")
    revision = await revision_of(b)
    async with aclosing(b.watch("k", from_revision=revision + 1)) as events:
        assert await a.transact({"k": 0}, {"k": b"a"})
        assert (await seen(events, 1))[0].document == Document("k", b"a", 1)
    assert not await b.transact({"k": 0}, {"k": b"b"})
    assert await b.transact({"k": 1}, {"k": b"b"})
    assert await a.get("k") == Document("k", b"b", 2)


async def test_members_and_status_are_told(place: Place) -> None:
    c = await place.client()
    members = await c.members()
    status = await c.status()
    assert status.reachable
    assert status.leader in [m.id for m in members]
    assert [e.reachable for e in status.endpoints] == [True] * len(status.endpoints)
    await c.transact({}, {"k": b""})
    assert (await c.status()).revision > status.revision

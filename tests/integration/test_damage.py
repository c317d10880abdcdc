"""Damage under a whole broker: bytes flipped, files cut or gone. What is damaged is isolated and listed, everything else is complete and served.

One data directory is made (twice: stopped cleanly, and as a kill leaves it); each test damages a copy.
The truth is what the copy without damage serves.
"""

import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

import headrace
from headrace.client.reader import Strategy
from headrace.core.group_records import home
from headrace.errors import Damaged, HeadraceError, Quarantined
from headrace.model.config import MIB, Broker, Config, Limits, Listen, Recovery, Storage
from headrace.storage.walfiles import id_of
from headrace.storage.walformat import HEADER_BLOCK, decode_header
from headrace.testing.brokers import TestBroker
from headrace.wire import control
from tests.plain import ANSWER_S, PLAIN

pytestmark = [pytest.mark.timeout(120)]

KIB = 1024
STORAGE = Storage(
    wal_file_bytes=MIB, wal_bytes_max=4 * MIB, flush_bytes_max=512 * KIB, segment_own_bytes_min=64 * KIB, segment_file_bytes=MIB,
    tail_cache_bytes=MIB, disk_free_bytes_min=0, ballast_bytes=0, state_map_bytes=64 * MIB,
)  # fmt: skip
LIMITS = Limits(frame_bytes_max=512 * KIB, message_bytes_max=448 * KIB)
QUEUES = {"small": 1, "big": 1, "two": 2, "worked": 1}
STREAMS = {"log": 1, "pair": 2}
FLIPS = 64

Place = tuple[str, int]
Contents = dict[Place, dict[int, bytes]]
"""By name and partition: offset to value."""


class Made(NamedTuple):
    folder: Path
    stopped: Path
    killed: Path
    truth: Contents
    settled: dict[str, int]


def config(folder: Path, policy: str = "quarantine", admin: str = "off") -> Config:
    return Config(
        broker=Broker(data_dir=str(folder)), listen=Listen(native="127.0.0.1:0", admin=admin), storage=STORAGE, limits=LIMITS,
        recovery=Recovery(on_mismatch=policy),  # type: ignore[arg-type]
    )  # fmt: skip


async def make(folder: Path) -> Made:
    """Queues and a stream with messages in segments, archives and the log, some of them settled."""
    broker = TestBroker(config(folder / "live"))
    await broker.start()
    filler = random.Random(1).randbytes(3000)
    async with headrace.connect(broker.url) as client:
        for name, partitions in QUEUES.items():
            await client.declare_queue(name, partitions=partitions)
        for name, partitions in STREAMS.items():
            await client.declare_stream(name, partitions=partitions)
        await client.declare_queue("empty")
        publishers = {name: client.publisher(name) for name in (*QUEUES, *STREAMS)}
        for lap in range(12):
            posted = []
            for name, publisher in publishers.items():
                count, size = {"small": (2, 100), "big": (40, 3000)}.get(name, (40, 1000))
                posted += [publisher.post(f"{name}-{lap}-{i}-".encode() + filler[:size], key=str(i)) for i in range(count)]
            await asyncio.gather(*posted)
            async with client.consume("worked", prefetch=20, lease=2) as messages:  # short: a lost log may forget that they were acked
                for _ in range(20):
                    await (await anext(aiter(messages))).ack(confirmed=True)
        assert broker._running is not None
        for _ in range(100):
            if broker._running.broker.store.stats()["segment_files"] >= 2:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("nothing was moved into segments")
        await asyncio.sleep(1.2)
    shutil.copytree(folder / "live", folder / "killed")
    await broker.stop()
    (folder / "live").rename(folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "copy")
    async with running(folder / "copy") as broker, headrace.connect(broker.url) as client:
        settled = {name: (await client.describe(name)).settled for name in QUEUES}
        truth, _ = await contents(client, damaged=set())
    shutil.rmtree(folder / "copy")
    assert {name: sum(len(v) for place, v in truth.items() if place[0] == name) for name in (*QUEUES, *STREAMS)} == {
        "small": 24, "big": 480, "two": 480, "worked": 240, "log": 480, "pair": 480,
    }  # fmt: skip
    return Made(folder, folder / "stopped", folder / "killed", truth, settled)


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    with tempfile.TemporaryDirectory(prefix="headrace-damage-") as folder:
        yield asyncio.run(make(Path(folder)))


class running:  # noqa: N801 - a context manager
    """A broker on that directory, in this process."""

    def __init__(self, folder: Path, policy: str = "quarantine", admin: str = "off") -> None:
        self.broker = TestBroker(config(folder, policy, admin))

    async def __aenter__(self) -> TestBroker:
        await self.broker.start()
        return self.broker

    async def __aexit__(self, *_: object) -> None:
        await self.broker.stop()


async def met(client: headrace.Client) -> None:
    """Returns once somebody who reads has come to what is damaged."""
    async with asyncio.timeout(20):
        while not await client.quarantine():
            await asyncio.sleep(0.02)


@contextmanager
def copied(made: Made, which: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="copy-", dir=made.folder))
    try:
        shutil.copytree(which, folder / "data")
        yield folder / "data"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def contents(client: headrace.Client, *, damaged: set[Place]) -> tuple[Contents, set[Place]]:
    """Everything that partitions in service hold, and what is quarantined in the end: segments are verified when read. Queues are emptied."""
    found: Contents = {}
    damaged = set(damaged)
    for name in (*QUEUES, *STREAMS):
        info = await client.describe(name)
        for row in info.partitions:
            assert (row.state == "quarantined") == ((name, row.partition) in damaged), (name, row)
            if row.state != "quarantined":
                found[name, row.partition] = {}
        waiting = {r.partition: r.ready if name in QUEUES else r.next_offset - r.start_offset for r in info.partitions}
        if not any(waiting.values()):
            continue
        ends = {r.partition: r.next_offset for r in info.partitions}
        async with client.consume(name, prefetch=500) if name in QUEUES else client.read(name, start="earliest") as messages:
            if name in STREAMS:
                for number in ends:
                    with suppress(Quarantined):  # a repaired partition may have gaps: the end is where a later offset comes
                        await client.publish(name, b"the end", partition=number)
            waited = 0
            while any(waiting.values()):
                try:
                    message = await asyncio.wait_for(anext(aiter(messages)), 0.3)
                except (TimeoutError, HeadraceError):
                    new = {(i.name, i.partition) for i in await client.quarantine()} - damaged
                    damaged |= new
                    for other, partition in new:
                        if other == name:
                            waiting[partition] = 0
                    if name in QUEUES:  # what a repair could not keep is settled once it is met
                        for row in (await client.describe(name)).partitions:
                            if not row.ready and not row.leased:
                                waiting[row.partition] = 0
                    waited += 1
                    assert waited < 30, f"{name}: {waiting} never came: {(await client.describe(name)).partitions}"
                    continue
                if name in STREAMS:
                    if message.offset >= ends[message.partition]:
                        waiting[message.partition] = 0
                        continue
                else:
                    waiting[message.partition] -= 1
                    await message.ack(confirmed=not any(waiting.values()))
                found[name, message.partition][message.offset] = message.value
    return found, damaged


async def verify(broker: TestBroker, made: Made, *, repair: str = "client") -> set[Place]:
    """What is not listed is complete, what is listed is refused; after a repair it serves what it holds, unchanged. Answers what was listed."""
    async with headrace.connect(broker.url) as client:
        for name in (*QUEUES, *STREAMS):
            await client.describe(name)  # a partition without entries in the log is looked at when it is first used
        listed = await client.quarantine()
        damaged = {(item.name, item.partition) for item in listed if item.name != "empty"}
        assert "?" not in {name for name, _ in damaged}, listed
        names = {item.name for item in (await client.list())}
        assert names >= {*QUEUES, *STREAMS, "empty"}, names
        before = {name: await client.describe(name) for name in QUEUES}
        for name, info in before.items():
            if not any(place[0] == name for place in damaged):
                assert info.settled == made.settled[name], (name, info)
        found, damaged = await contents(client, damaged=damaged)
        for place, values in found.items():
            if place in damaged:
                assert values.items() <= made.truth[place].items(), f"{place}: other contents than there were"
            else:
                assert values == made.truth[place], f"{place}: {len(values)} of {len(made.truth[place])}, {listed}"
        listed = await client.quarantine()
        assert {(item.name, item.partition) for item in listed if item.name != "empty"} == damaged
        for item in listed:
            dry = await client.repair(item.name, partition=item.partition, dry_run=True)
            assert isinstance(dry, control.Done)
            if repair == "client":
                await client.repair(item.name, partition=item.partition)
            elif repair == "cli":
                command = [sys.executable, "-m", "headrace.cli", "quarantine", "repair", item.name, "--partition", str(item.partition), "--yes"]
                done = await asyncio.to_thread(subprocess.run, [*command, "--url", broker.url, "--json"], capture_output=True, check=False)
                assert done.returncode == 0, done
                assert json.loads(done.stdout)["count"] == 1
            else:
                async with httpx.AsyncClient(verify=PLAIN, timeout=ANSWER_S, base_url=broker.admin_url) as http:
                    shown = (await http.get("/admin/api/quarantine")).json()["items"]
                    assert (item.name, item.partition) in {(i["name"], i.get("partition", 0)) for i in shown}
                    answer = await http.post("/admin/api/quarantine/repair", json={"name": item.name, "partition": item.partition})
                    assert answer.status_code == 200, answer.text
        assert await client.quarantine() == ()
        if listed:
            found, later = await contents(client, damaged=set())
            assert not later, "a repaired partition is damaged still"
            for place in damaged:
                truth = made.truth[place]
                wrong = [offset for offset, value in found[place].items() if offset in truth and truth[offset] != value]
                assert not wrong, f"{place}: other contents at {wrong[:5]}"
        for name in (*QUEUES, *STREAMS):
            for key in range(4):
                await client.publish(name, b"after", key=str(key))
    await broker.restart()
    async with headrace.connect(broker.url) as client:
        assert await client.quarantine() == ()
        for name in QUEUES:
            assert (await client.describe(name)).ready == 4, name
    return damaged


def data_files(folder: Path) -> list[Path]:
    return sorted([*(folder / "wal").glob("wal-*"), *(folder / "segments").glob("*.seg")])


def in_use(path: Path) -> bool:
    """Whether a log file is one: those that wait to be used again have another one's header."""
    header = decode_header(path.read_bytes()[:HEADER_BLOCK])
    return header is not None and header.file_id == id_of(path.name)


def flip(path: Path, at: int, count: int = 1, *, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(count)
        file.seek(at)
        file.write(bytes(b ^ chance.randrange(1, 256) for b in old))


def hurt(folder: Path, chance: random.Random) -> str:
    """One piece of damage at a random place where something is written."""
    path = chance.choice(data_files(folder))
    size = len(path.read_bytes().rstrip(b"\0"))
    what = chance.choices(["flip", "burst", "cut", "zeros"], [6, 2, 1, 1])[0]
    at = chance.randrange(max(1, size))
    if what == "flip":
        flip(path, at, chance=chance)
    elif what == "burst":
        flip(path, at, chance.randrange(2, 5000), chance=chance)
    elif what == "cut":
        with path.open("r+b") as file:
            file.truncate(at)
    else:
        with path.open("r+b") as file:
            file.seek(at & ~4095)
            file.write(bytes(4096))
    return f"{what} {path.name} at {at} of {size}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FLIPS))
async def test_damage_at_random_places(made: Made, seed: int) -> None:
    chance = random.Random(seed)
    with copied(made, made.stopped if seed % 2 else made.killed) as folder:
        done = [hurt(folder, chance) for _ in range(chance.choice([1, 1, 1, 3]))]
        print(seed, done)
        async with running(folder) as broker:
            print(await verify(broker, made))


def place_of(folder: Path, value: bytes) -> tuple[Path, int]:
    """File and position where those bytes are stored: in a segment if they were moved there, else in the log."""
    for path in data_files(folder):
        if path.parent.name == "wal" and not in_use(path):
            continue  # what was in it is elsewhere
        at = path.read_bytes().find(value)
        if at >= 0:
            return path, at
    raise AssertionError(f"{value[:20]!r} is nowhere")


@pytest.mark.parametrize(("value", "place", "repair"), [
    (b"big-11-7-", ("big", 0), "cli"), (b"big-0-7-", ("big", 0), "http"), (b"log-11-1-", ("log", 0), "http"), (b"log-0-1-", ("log", 0), "client"),
    (b"small-0-1-", ("small", 0), "cli"), (b"worked-11-39-", ("worked", 0), "http"),
])  # fmt: skip
async def test_one_flipped_byte_isolates_one_partition(made: Made, value: bytes, place: Place, repair: str) -> None:
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, value)
        flip(path, at + 3, chance=random.Random(1))
        async with running(folder, admin="127.0.0.1:0") as broker:
            assert await verify(broker, made, repair=repair) == {place}


async def test_messages_that_a_repair_could_not_keep_are_settled_when_they_are_met(made: Made) -> None:
    """They stayed leased to whoever was granted them, until the lease ran out; a filter asked for them for ever."""
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, b"big-0-7-")
        flip(path, at + 3, chance=random.Random(1))
        async with running(folder) as broker, headrace.connect(broker.url) as client:
            await client.publish("big", b"new")
            with suppress(HeadraceError):
                async with client.consume("big", prefetch=500, filter="not exists trace"):
                    await met(client)
            [item] = await client.quarantine()
            await client.repair(item.name)
            had = (await client.describe("big")).ready
            async with client.consume("big", prefetch=500, filter="not exists trace"), asyncio.timeout(20):
                while (await client.describe("big")).ready + (await client.describe("big")).leased == had:
                    await asyncio.sleep(0.02)
            info = await client.describe("big")
            assert (info.leased, info.delayed) == (0, 0)
            assert 0 < had - info.ready < 100, "the lost ones are settled"


@pytest.mark.parametrize("which", ["stopped", "killed"])
@pytest.mark.parametrize("what", ["state", "data.mdb", "a log file", "the last log file"])
async def test_what_is_gone(made: Made, which: str, what: str) -> None:
    with copied(made, getattr(made, which)) as folder:
        logs = sorted((folder / "wal").glob("wal-*"))
        used = [p for p in logs if any(p.read_bytes()[:128])]
        if what == "state":
            shutil.rmtree(folder / "state")
        elif what == "data.mdb":
            (folder / "state" / "data.mdb").unlink()
        elif what == "a log file":
            used[0].unlink()
        else:
            used[-1].unlink()
        async with running(folder) as broker:
            damaged = await verify(broker, made)
            print(which, what, damaged)
            if what in ("state", "data.mdb"):
                assert not damaged, "segments and log have everything"


async def test_refuse_does_not_start_and_changes_nothing(made: Made) -> None:
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, b"big-11-7-")
        assert path.parent.name == "wal"
        flip(path, at + 3, chance=random.Random(1))
        for _ in range(2):
            with pytest.raises(Damaged, match="partition"):
                await TestBroker(config(folder, "refuse")).start()
        async with running(folder) as broker:
            assert await verify(broker, made) == {("big", 0)}


async def test_truncate_cuts_and_serves(made: Made) -> None:
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, b"big-11-7-")
        flip(path, at + 3, chance=random.Random(1))
        async with running(folder, "truncate") as broker:
            async with headrace.connect(broker.url) as client:
                assert await client.quarantine() == ()
                found, damaged = await contents(client, damaged=set())
                assert not damaged
                for place, values in found.items():
                    if place == ("big", 0):
                        assert values.items() < made.truth[place].items()
                        assert len(values) >= 400, "all before the cut is kept"
                    else:
                        assert values == made.truth[place]


async def test_a_publisher_that_was_there_before_a_repair_publishes_after_it(made: Made) -> None:
    """It held on to the partition as it was, and was refused as quarantined until it reconnected."""
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, b"log-0-1-")
        flip(path, at + 3, chance=random.Random(1))
        async with running(folder) as broker, headrace.connect(broker.url) as client:
            publisher = client.publisher("log")
            await publisher.send(b"before")
            with suppress(HeadraceError):
                async with client.read("log", start="earliest"):
                    await met(client)
            assert len(await client.quarantine()) == 1
            with pytest.raises(HeadraceError, match="quarantined"):
                await publisher.send(b"meanwhile")
            await client.repair("log")
            await asyncio.wait_for(publisher.send(b"after"), 5)


@pytest.mark.parametrize("group", ["", "auditors"])
async def test_readers_go_on_without_a_damaged_partition_until_it_is_repaired(tmp_path: Path, group: str) -> None:
    """One damaged partition of three stopped every reader of the stream."""
    async with running(tmp_path) as broker, headrace.connect(broker.url) as client:
        await client.declare_stream("s", partitions=3)
        for number in range(3):
            for n in range(50):
                await client.publish("s", f"old-{number}-{n}-".encode() * 100, partition=number)
    path, at = place_of(tmp_path, b"old-1-20-")
    flip(path, at + 3, chance=random.Random(1))
    async with running(tmp_path) as broker, headrace.connect(broker.url) as client:
        with suppress(HeadraceError):
            async with client.read("s", start="earliest", partitions=[1]):
                await met(client)
        [item] = await client.quarantine()
        assert (item.name, item.partition) == ("s", 1)
        with pytest.raises(Quarantined):
            await client.read("s", partitions=[1]).start()
        isolated: list[int] = []

        def hear(event: object) -> None:
            if isinstance(event, control.PartitionIsolated):
                isolated.append(event.partition)

        async with client.read("s", start="earliest", group=group, on_event=hear) as records, asyncio.timeout(10):
            before = [await anext(records) for _ in range(100)]
            assert {r.partition for r in before} == {0, 2}
            assert isolated == [1]
            await client.repair("s")
            while (await anext(records)).partition != 1:
                pass
            await client.publish("s", b"new", partition=1)
            while (record := await anext(records)).value != b"new":
                pass
            assert record.partition == 1
            assert isolated == [1]


async def hurt_while_stopped(folder: Path, kind: str) -> None:
    """Partition 1 of the three of ``s`` loses one entry of fifty, and no broker of that folder has it loaded."""
    async with running(folder) as broker, headrace.connect(broker.url) as client:
        if kind == "stream":
            await client.declare_stream("s", partitions=3)
        else:
            await client.declare_queue("s", partitions=3)
        for number in range(3):
            for n in range(50):
                await client.publish("s", f"old-{number}-{n}-".encode() * 100, partition=number)
    path, at = place_of(folder, b"old-1-20-")
    flip(path, at + 3, chance=random.Random(1))


@pytest.mark.parametrize("group", ["", "auditors", "billing"])
async def test_a_repair_keeps_the_same_whoever_reads_the_rest_of_a_stream(tmp_path: Path, group: str) -> None:
    """The state of a group whose home was damaged took the place of the home's own entries."""
    assert (home("auditors", 3), home("billing", 3)) == (1, 0)
    await hurt_while_stopped(tmp_path, "stream")
    async with running(tmp_path) as broker, headrace.connect(broker.url) as client, asyncio.timeout(20):
        before = await client.repair("s", dry_run=True)
        async with client.read("s", start="earliest", group=group) as records:
            assert {(await anext(records)).partition for _ in range(100)} == {0, 2}
        with pytest.raises(Quarantined):
            await client.trim("s", offset=1, partition=1)
        assert isinstance(before, control.Done)
        assert await client.repair("s", dry_run=True) == before
        await client.repair("s")
        async with client.read("s", start="earliest", partitions=[1]) as records:
            assert len([await anext(records) for _ in range(49)]) == 49


@pytest.mark.parametrize("cohort", ["", "auditors"])
async def test_a_repair_keeps_the_same_whoever_consumes_the_rest_of_a_queue(tmp_path: Path, cohort: str) -> None:
    """A consumer made a new epoch begin in the damaged partition, in the place of all that was there."""
    await hurt_while_stopped(tmp_path, "queue")
    async with running(tmp_path) as broker, headrace.connect(broker.url) as client, asyncio.timeout(20):
        before = await client.repair("s", dry_run=True)
        async with client.consume("s", cohort=cohort) as messages:
            for _ in range(100):
                message = await anext(aiter(messages))
                assert not message.value.startswith(b"old-1-")
                await message.ack(confirmed=True)
            assert await client.repair("s", dry_run=True) == before
            with pytest.raises(Quarantined):
                await client.purge("s")
            await client.repair("s")
            for _ in range(49):
                message = await anext(aiter(messages))
                assert message.value.startswith(b"old-1-")
                await message.ack(confirmed=True)


@pytest.mark.parametrize("strategy", ["sticky", "cooperative"])
@pytest.mark.parametrize("group", ["auditors", "billing"])
async def test_a_group_goes_on_while_its_home_is_damaged(tmp_path: Path, group: str, strategy: Strategy) -> None:
    """Two members share what is sound, hand over to each other, and share out all of it after the repair, and after a restart."""
    await hurt_while_stopped(tmp_path, "stream")

    async def read(members: list[headrace.Reader], wanted: set[bytes]) -> None:
        async def one(member: headrace.Reader) -> None:
            while wanted:
                wanted.discard((await anext(member)).value)

        tasks = [asyncio.create_task(one(member)) for member in members]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def publish(client: headrace.Client, text: str, partitions: tuple[int, ...]) -> set[bytes]:
        for number in partitions:
            await client.publish("s", f"{text}-{number}".encode(), partition=number)
        return {f"{text}-{number}".encode() for number in partitions}

    async with running(tmp_path) as broker, headrace.connect(broker.url) as client, headrace.connect(broker.url) as other, asyncio.timeout(40):
        async with client.read("s", start="earliest", group=group, strategy=strategy) as first:
            await read([first], await publish(client, "alone", (0, 2)))
            async with other.read("s", start="earliest", group=group, strategy=strategy) as second:
                await read([first, second], await publish(client, "both", (0, 2)))
                await client.repair("s")
                await read([first, second], await publish(client, "repaired", (0, 1, 2)))
            await read([first], await publish(client, "left", (0, 1, 2)))
    async with running(tmp_path) as broker, headrace.connect(broker.url) as client, asyncio.timeout(40):
        async with client.read("s", start="earliest", group=group, strategy=strategy) as first:
            await read([first], await publish(client, "restarted", (0, 1, 2)))


async def test_readers_at_work_when_a_partition_is_found_damaged(made: Made) -> None:
    with copied(made, made.stopped) as folder:
        path, at = place_of(folder, b"pair-0-1-")
        flip(path, at + 3, chance=random.Random(1))
        async with running(folder) as broker, headrace.connect(broker.url) as client:
            isolated: list[int] = []

            def hear(event: object) -> None:
                if isinstance(event, control.PartitionIsolated):
                    isolated.append(event.partition)

            everything = client.read("pair", start="latest", on_event=hear)
            each = [client.read("pair", start="latest", partitions=[number]) for number in range(2)]
            async with everything, each[0], each[1], asyncio.timeout(10):
                async with client.read("pair", start="earliest") as records:
                    for _ in range(480):
                        if await client.quarantine():
                            break
                        await anext(records)
                [damaged] = await client.quarantine()
                sound = 1 - damaged.partition
                await client.publish("pair", b"new", partition=sound)
                assert (await anext(everything)).value == b"new"
                assert (await anext(each[sound])).value == b"new"
                assert isolated == [damaged.partition]
                with pytest.raises(Quarantined):
                    await anext(each[damaged.partition])

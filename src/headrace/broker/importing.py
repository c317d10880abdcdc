"""The data of a lone broker becomes those of the first member of a cluster: whose they are, and what the cluster is told of them.

Owns the way of a lone broker's catalogue into the coordinator, once. What lies in log, segments and checkpoints stays as it is: a replica of one
copy begins with it, in a later epoch.

I1 A name enters the cluster together with who has its partitions, or after that: nobody is given an empty copy of what is here. I2 Partition ids are
taken over as they are, before anybody else in the cluster is given any. I3 It may be broken off at any step and is begun again; nothing of the data
directory is changed but by a note that it is done, at the end. I4 A name enters once: with it the cluster is told how far this has come, so what was
deleted or altered there before it was begun again stays so.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from headrace.broker.broker import ID_KEY, Broker
from headrace.broker.catalogue import COUNTER, NAMES, Item
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.coordinator import TRANSACTION_OPERATIONS_MAX, Coordinator, Document
from headrace.cluster.local import LocalCoordinator
from headrace.log import get_logger
from headrace.model.cluster import Assignment, BrokerId, encode, partition_key
from headrace.model.config import Config
from headrace.model.errors import CoordinatorUnavailable, Damaged, Refused, StorageError, UnknownOutcome
from headrace.model.ids import Epoch, PartitionId
from headrace.storage.files import OsFiles
from headrace.storage.state import read_one

DONE_KEY: Final = b"broker/imported"
IMPORTED: Final = "imported/"
"""Documents of the coordinator: whose catalogue was taken over, and how far."""
BEGUN: Final = b"begun"
GENERATION: Final = 2
"""Of the assignments: above what a lone broker obeys."""
AGAIN_S: Final = 0.5
_log = get_logger("import")
_decode = msgspec.msgpack.Decoder(Item).decode


def lone_id(config: Config) -> str:
    """The id of the lone broker whose data lie in the data directory, "" = it holds no such data. ``DataDirLocked`` while one runs there. Blocks."""
    root = Path(config.broker.data_dir).absolute()
    if not (root / "FORMAT").exists() or not (root / "state").is_dir():
        return ""
    files = OsFiles()
    lock = files.lock(f"{root}/LOCK")
    try:
        raw = read_one(f"{root}/state", ID_KEY)
    finally:
        files.close(lock)
    return "" if raw is None else raw.decode()


async def carry_over(broker: Broker, coordinator: Coordinator) -> str:
    """Brings the catalogue of the lone broker that this one was into the cluster, however long the coordinator is away. At once if there is none, or
    it was done. The key of the last name, or "". ``Refused``: the cluster has names of its own already."""
    store = broker.store
    local = LocalCoordinator(store.state, store.commit_state)
    if store.state.get(DONE_KEY) is not None or local.peek(COUNTER) is None:
        return ""
    while True:
        try:
            count, last = await _carry(broker, coordinator, local)
            break
        except (CoordinatorUnavailable, UnknownOutcome) as e:
            _log.info("the import waits: %s", e)
            await asyncio.sleep(AGAIN_S)
    await store.commit_state({DONE_KEY: b"1"})
    _log.info("%d queues and streams of this broker's time alone belong to the cluster now", count)
    return last


async def _check_settled(local: LocalCoordinator) -> None:
    """Raises ``Refused`` if a repartition is under way: brokers of a cluster would not end it."""
    after = ""
    while True:
        page = await local.range(NAMES, after=after)
        for document in page.documents:
            item = _decode(document.value)
            if item.change is not None:
                raise Refused(
                    f"queue {item.name!r} is being repartitioned from {item.change.before} to {item.change.after} partitions",
                    hint="start this broker alone, without the cluster's settings, until `headrace queue describe` says that it is done",
                )
        if not page.more:
            return
        after = page.documents[-1].key


async def _carry(broker: Broker, coordinator: Coordinator, local: LocalCoordinator) -> tuple[int, str]:
    await _check_settled(local)
    mine = await _begun(broker, coordinator, local)
    for document in (await local.range("deleted/")).documents:
        await broker.store.delete(_decode(document.value).partitions)
    count, after, last = 0, "", ""
    while True:
        page = await local.range(NAMES, after=after)
        for document in page.documents:
            if mine.value == BEGUN or document.key.encode() > mine.value:
                mine = await _name(broker, coordinator, document, mine)
            count, last = count + 1, document.key
        if not page.more:
            return count, last
        after = page.documents[-1].key


async def _begun(broker: Broker, coordinator: Coordinator, local: LocalCoordinator) -> Document:
    """The cluster's note of this import: ``BEGUN``, or the key of the last name that has entered."""
    key = IMPORTED + broker.id
    found = await coordinator.get(key)
    if found is not None:
        return found
    counter = local.peek(COUNTER)
    assert counter is not None
    if not await coordinator.transact({COUNTER: 0, key: 0}, {COUNTER: counter.value, key: BEGUN}):
        found = await coordinator.get(key)  # an attempt whose outcome was not known
        if found is not None:
            return found
        raise Refused(
            "this broker holds queues and streams of its time alone, and the cluster has names of its own already: partitions of both have the"
            " same numbers, so it is left alone",
            hint="start it alone, without the cluster's settings, and move the messages through a client",
        )
    return Document(key, BEGUN, 1)


async def _name(broker: Broker, coordinator: Coordinator, document: Document, mine: Document) -> Document:
    """Brings one name in; the note that says so."""
    item, key = _decode(document.value), document.key
    puts = {partition_key(PartitionId(pid)): encode(_assignment(broker, item, pid)) for pid in item.partitions}
    keys = list(puts)
    while len(keys) > TRANSACTION_OPERATIONS_MAX - 2:  # partitions first: the name makes them known
        part, keys = keys[:TRANSACTION_OPERATIONS_MAX], keys[TRANSACTION_OPERATIONS_MAX:]
        if not await coordinator.transact(dict.fromkeys(part, 0), {k: puts[k] for k in part}) and await coordinator.get(part[0]) is None:
            raise CoordinatorUnavailable(f"partitions of {item.name!r} are being changed by others")
    noted = Document(mine.key, key.encode(), mine.version + 1)
    # clients of a cluster look for the homes of groups among all partitions
    value = document.value if not item.home_count else msgspec.msgpack.encode(msgspec.structs.replace(item, home_count=0))
    named = {key: value, **{k: puts[k] for k in keys}}
    if await coordinator.transact({key: 0, **dict.fromkeys(keys, 0), mine.key: mine.version}, {**named, mine.key: noted.value}):
        await asyncio.sleep(0)
        return noted
    found, there = await coordinator.get(mine.key), await coordinator.get(key)
    if found is not None and found.version > mine.version:  # an attempt whose outcome was not known
        return found
    if there is None:
        raise CoordinatorUnavailable(f"{item.name!r} is being changed by others")
    if _decode(there.value).id != item.id:
        _log.error("another %r was declared in the cluster before this broker's came in: the messages of this one stay here, unused", item.name)
    if not await coordinator.transact({mine.key: mine.version}, {mine.key: noted.value}):
        raise CoordinatorUnavailable("how far the import has come is being changed by others")
    return noted


def _assignment(broker: Broker, item: Item, pid: int) -> Assignment:
    """This broker has the one copy, in the epoch that it was in; it takes the next one at the first use. What the settings ask for beyond that is
    done as after an alteration."""
    try:
        epoch = broker.store.replay(pid).last_epoch
    except Damaged as e:
        raise Refused(f"partition {pid} of {item.name!r} is damaged: {e}", hint="start the broker alone and repair it first") from None
    me = BrokerId(broker.id)
    reason = "it was served here before there was a cluster"
    return Assignment(
        partition=PartitionId(pid), item=item.name, generation=GENERATION, epoch=Epoch(max(1, epoch)), owner=me, level="local_durable",
        replicas=(me,), reason=reason,
    )  # fmt: skip


async def keep_carrying(broker: Broker, coordinator: Coordinator, mirror: Mirror, done: asyncio.Event) -> None:
    """``carry_over``; ``done`` is set once names may be asked for: once ``mirror``, which is asked, has been told of the last one. What forbids it is
    said, and nothing of the cluster's names is known here then."""
    try:
        last = await carry_over(broker, coordinator)
    except (Refused, StorageError) as e:
        _log.error("%s%s", e, f" ({e.hint})" if e.hint else "")
        return
    while last and not await mirror.moved({last: 0}, timeout_s=AGAIN_S):
        with suppress(CoordinatorUnavailable):
            if await coordinator.get(last) is None:
                break  # it was deleted already
    done.set()

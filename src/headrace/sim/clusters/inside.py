"""K9: what a follower has in memory of a partition is what its log says, and nothing that it decided by itself when it was the owner. The owner
of MQTT sessions has nothing in memory either that the next one would not find in the log.

Owns what is compared: everything that a checkpoint keeps, but for the moments at which a broker learnt of something, and what follows from them: in
which chunks a queue counts the bytes of messages that nobody has asked for yet. A message has the mean of its chunk. Nor is it compared which
deliveries of an MQTT session were sent: what may have been sent is taken for sent by all but its owner.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.broker.cluster import Cluster
from headrace.broker.copies import Copy
from headrace.broker.queue_partition import QueuePartition
from headrace.core.mqtt import ops
from headrace.core.mqtt.shard import Shard
from headrace.core.queue.snapshots import Snapshot
from headrace.gateways.mqtt.partition import SessionPartition

if TYPE_CHECKING:
    from headrace.broker.copies import Partition
    from headrace.storage.api import PartitionLog, StoredEntry


def strayed(name: str, cluster: Cluster) -> list[str]:
    """How the broker of that name breaks K9."""
    found = []
    for pid, copy in cluster.copies.items():
        if wrong := _strayed(copy):
            found.append(f"K9 {name} follows partition {pid} and has what nobody told it: {wrong}")
        if wrong := _unwritten(copy):
            found.append(f"K9 {name} owns partition {pid} and has not written down what it did: {wrong}")
    return found


def _strayed(copy: Copy) -> str:
    """In what a follower's partition is not what a broker that had just started would make of the same entries; "" if in nothing."""
    partition = copy.partition
    if partition is None or partition.quarantined or copy.serving or not copy.applied:
        return ""
    broker = copy.broker
    log = broker.store.replay(copy.pid)
    entries = [entry for entry in log.entries if entry.index <= copy.applied]
    if _reached(log, entries) != copy.applied:
        return ""  # what is not in its log yet
    fresh = _fresh(partition, log._replace(entries=entries, next_offset=0))
    return _unlike(_kept(partition, copy.applied), _kept(fresh, copy.applied))


def _unwritten(copy: Copy) -> str:
    """The same of a session partition that is served here, with all that its log has; "" while something is on its way there."""
    partition: Any = copy.partition
    if not isinstance(partition, SessionPartition) or partition.quarantined or not copy.serving or partition.shard.journalling:
        return ""
    log = copy.broker.store.replay(copy.pid)
    if _reached(log, log.entries) != partition.last_index:
        return ""
    fresh = _fresh(partition, log)
    return _unlike(_sessions(partition.shard), _sessions(fresh.shard))


def _reached(log: "PartitionLog", entries: "Sequence[StoredEntry]") -> int:
    """Index of the last entry that can be read."""
    return entries[-1].index if entries else log.checkpoint.index if log.checkpoint is not None else 0


def _fresh(partition: Any, log: "PartitionLog") -> Any:
    """What a broker that had just started would make of that log."""
    broker = partition.broker
    make = broker.makers.get(partition.item.name)
    fresh = make(partition.item, partition.number) if make is not None else type(partition)(broker, partition.item, partition.number, partition.pid)
    fresh.recover(log, broker.now_ms, broker.wall_ms)
    return fresh


def _unlike(has: dict[str, Any], should: dict[str, Any]) -> str:
    wrong = [f"{name} is {has.get(name)!r}, not {should.get(name)!r}" for name in {**has, **should} if has.get(name) != should.get(name)]
    return "; ".join(wrong)[:1000]


def _sessions(shard: Shard) -> dict[str, Any]:
    """What clients are promised: their sessions, wills, and retained messages; and what of others was taken."""
    image = ops.unpack_image(shard.snapshot())
    kept: dict[str, Any] = {f"session {s.client_id}": _unsent(s) for s in image.sessions}
    for session in kept.values():
        session.deliveries.sort(key=lambda d: d[1].sequence)
        session.deliveries[:] = [(image.messages[number], *rest) for number, *rest in session.deliveries]
    kept |= {f"retained {m.topic}": m for m in image.retained}
    return kept | {"taken": image.taken, "publishers": image.publishers, "wills": image.wills, "epochs": image.epochs}


def _unsent(session: ops.SessionImage) -> ops.SessionImage:
    """Without what its owner knew of each delivery: whether it was really sent."""
    return msgspec.structs.replace(session, deliveries=[(number, to, False, released) for number, to, _, released in session.deliveries])


def _kept(partition: "Partition", index: int) -> dict[str, Any]:
    kept: dict[str, Any] = msgspec.msgpack.decode(partition.state(0, index).data, strict=False)
    if isinstance(partition, QueuePartition):
        partition.machine.check()  # its bytes are those of its messages, by its own chunks
        kept["machine"] = msgspec.structs.replace(msgspec.msgpack.decode(kept["machine"], type=Snapshot), extents=[], nbytes=0)
    elif "shard" in kept:
        image = ops.unpack_image(kept["shard"])
        kept["shard"] = msgspec.structs.replace(image, sessions=[_unsent(session) for session in image.sessions])
    else:
        (start, end, nbytes, epoch, _learnt_ms), cursors = msgspec.msgpack.decode(kept["machine"])
        kept["machine"] = (start, end, nbytes, epoch, cursors)
    return kept

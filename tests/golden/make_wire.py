"""Makes the byte vectors of the wire: ``python -m tests.golden.make_wire`` shows what would change, with ``--write`` it writes them.

A vector that changes means that old clients, or what is on disk, are not understood any more: look twice before writing. New vectors are harmless.
"""

import json
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from headrace.model.errors import QueueFull
from headrace.wire import control, egress, journal
from headrace.wire.batch import Record, encode_batch, encode_publish, encode_publish_one
from headrace.wire.frames import PREAMBLE, Level, Op, PublishFlag, Settle, SettleFlag, frame

FILE = Path(__file__).parent / "wire" / "frames.json"
T0 = 1_700_000_000_000
RECORDS = [
    Record(b"key", b"value", (), T0),
    Record(None, b"text", (("content-type", b"text/plain"), ("empty", b"")), T0 + 70),
    Record(b"", None, (), T0 - 5),
]


def control_types() -> list[type[control.Message]]:
    """Every control message, in the order of the unions."""
    return [*get_args(control.Request), *get_args(control.Reply), *get_args(control.Event), control.Failure]


def least(kind: type[control.Message]) -> control.Message:
    """A message with nothing but its required fields."""
    return kind(**{f.name: _sample(inspect.type_info(f.type), i) for i, f in enumerate(msgspec.structs.fields(kind)) if f.required})


def most(kind: type[control.Message]) -> control.Message:
    """A message with every field set to something that is not its default."""
    return kind(**{f.name: _sample(inspect.type_info(f.type), i) for i, f in enumerate(msgspec.structs.fields(kind))})


def vectors() -> dict[str, bytes]:
    """Name to bytes."""
    made = {
        "preamble": PREAMBLE,
        "publish.one": encode_publish_one(
            Record(b"key", b"hello", (("a", b"b"),), T0),
            channel=1, correlation=7, flags=Level.QUEUE, producer_id=9, producer_epoch=1, base_sequence=41,
        ),
        "publish.timed": encode_publish_one(
            RECORDS[0],
            channel=65_535, correlation=(1 << 32) - 1, flags=Level.LOCAL, not_before_ms=1000, expires_at_ms=60_000, priority=9, key_slot=4711,
        ),
        "publish.batch": encode_publish(encode_batch(RECORDS, base_timestamp_ms=T0), channel=1, correlation=8, flags=Level.ACCEPTED),
        "publish.stamped": encode_publish(
            encode_batch(RECORDS[:1], base_timestamp_ms=T0), channel=0, correlation=0, flags=Level.QUEUE | PublishFlag.STAMPED
        ),
        "publish.compacted": encode_publish(encode_batch([], base_timestamp_ms=T0, last_offset_delta=4), channel=1, correlation=1, flags=Level.NONE),
        "confirm": egress.confirm(1, 7, 100, Level.LOCAL, 1 << 40),
        "confirm.duplicate": egress.confirm(1, 7, 1, Level.MAJORITY, 5, True),
        "publish_error": egress.publish_error(1, 7, 2, QueueFull("the queue holds 10 messages, its limit")),
        "settle.ack": egress.settle(2, [(5, 1), (9, 10)], partition=1, epoch=3),
        "settle.up_to": egress.settle(2, [(0, 100)], partition=0, epoch=3, flags=Settle.ACK | SettleFlag.UP_TO | SettleFlag.CONFIRM, correlation=5),
        "settle.retry": egress.settle(2, [(5, 1)], partition=0, epoch=3, flags=Settle.RETRY | SettleFlag.DELAY, delay_ms=5000),
        "settle.reject": egress.settle(2, [(5, 1)], partition=0, epoch=3, flags=Settle.REJECT | SettleFlag.DROP),
        "settled": egress.settled(2, 5, 99, [(17, 1)]),
        "credit": egress.credit(2, 100, -1),
        "extend": egress.extend(2, [(5, 2)], partition=1, epoch=3, lease_ms=30_000, correlation=6),
        "fetch": egress.fetch(2, 7, messages=10, nbytes=1 << 20, wait_ms=1000),
        "fetch_end": egress.fetch_end(2, 7, 4),
        "ping": frame(Op.PING, correlation=1),
        "pong": frame(Op.PONG, correlation=1),
        "request": frame(Op.REQUEST, control.encode(control.Status()), correlation=2),
        "reply": frame(Op.REPLY, control.encode(control.Done(count=3)), correlation=2),
        "event": frame(Op.EVENT, control.encode(control.GoingAway(grace_ms=5000, message="upgrade"))),
        "error": egress.failure(2, QueueFull("full", hint="wait")),
        "journal.records_head": journal.pack_records_head(1 << 40, 3, 2, T0, 1),
        "journal.leases": journal.pack_leases([(5, 10, 1, 30_000, 77)]),
        "journal.settlements": journal.pack_settlements([(journal.Action.DELAY, journal.Reason.RETRY, 3, 10, 5, T0)]),
        "journal.cursors": journal.pack_cursors([journal.CursorEntry("a", 7, [(9, 2)], T0)]),
        "journal.transfer": journal.pack_transfer(journal.TransferStart(3, "dead", journal.Reason.REJECTED, [(5, 2, 1)], T0, {"x": 1})),
        "journal.transfer_done": journal.pack_transfer(journal.TransferDone(3)),
    }
    blob = made["publish.one"] + made["publish.batch"]
    head = egress.deliver_header(2, 2, partition=1, epoch=3, attempt=1, first_offset=101, base_offset=100, blob_bytes=len(blob))
    made["deliver"] = head + blob
    for kind in control_types():
        tag = str(kind.__struct_config__.tag)
        made[f"control.{tag}.least"] = control.encode(least(kind))
        made[f"control.{tag}.most"] = control.encode(most(kind))
    return made


def _sample(info: inspect.Type, at: int) -> Any:
    match info:
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 100 + at
        case inspect.FloatType():
            return 100.5 + at
        case inspect.StrType() | inspect.AnyType():
            return f"text {at}"
        case inspect.BytesType():
            return b"bytes %d" % at
        case inspect.LiteralType(values=values):
            return values[-1]
        case inspect.VarTupleType(item_type=item):
            return (_sample(item, at), _sample(item, at + 1))
        case inspect.TupleType(item_types=items):
            return tuple(_sample(item, at + i) for i, item in enumerate(items))
        case inspect.DictType(key_type=key, value_type=value):
            return {_sample(key, at): _sample(value, at + 1)}
        case inspect.UnionType(types=types):
            return _sample(types[0], at)
        case inspect.StructType(cls=cls, fields=found):
            # a filter holds filters: one level is enough
            own = [f for f in found if cls is not control.Filter or f.name != "terms"]
            return cls(**{f.name: _sample(f.type, at + i) for i, f in enumerate(own)})
    raise NotImplementedError(f"no sample for {info}")


def main() -> int:
    made = {name: data.hex() for name, data in vectors().items()}
    old: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}
    changed = []
    for name in sorted({*made, *old}):
        if made.get(name) != old.get(name):
            changed.append(f"{name}: {'new' if name not in old else 'gone' if name not in made else 'CHANGED'}")
    print("\n".join(changed) or "nothing changed")
    if "--write" not in sys.argv:
        return bool(changed)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(made, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

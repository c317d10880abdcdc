"""A broker of a few lines for tests of what lies in front of it: a catalogue in memory, and every request noted."""

import msgspec

from headrace.broker.metrics import Counters, NameMetrics, Snapshot
from headrace.model.errors import Conflict, DiskFull, HeadraceError, NotFound
from headrace.model.specs import check_name
from headrace.wire import control
from headrace.wire.topology import BrokerRow, CopyRow


class StubBroker:
    """Answers every verb plausibly; ``requests`` holds what was asked, ``fail`` is raised once if set."""

    def __init__(self) -> None:
        self.verbs = self
        self.requests: list[control.Request] = []
        self.items: dict[str, control.Info] = {}
        self.state = "serving"
        self.fail: HeadraceError | None = None
        self.counters = Counters()
        self.formation = None

    def metrics(self) -> Snapshot:
        names = tuple(NameMetrics(name=i.name, kind=i.kind, ready=i.ready, published=7) for i in self.items.values())
        return Snapshot(counters=self.counters, gauges={"connections": 3.0, "disk_free_bytes": 1e9}, names=names)

    def info(self, name: str, kind: str = "") -> control.Info:
        found = self.items.get(name)
        if found is None or (kind and found.kind != kind):
            raise NotFound(f"no {kind or 'queue or stream'} {name!r}")
        return found

    async def call(self, request: control.Request) -> control.Reply:
        # What arrives must survive the wire: the admin interface and the protocol give the same messages.
        request = control.decode_request(control.encode(request))
        self.requests.append(request)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        return control.decode_reply(control.encode(self._answer(request)))

    def _answer(self, r: control.Request) -> control.Reply:
        match r:
            case control.Status():
                kinds = [i.kind for i in self.items.values()]
                return control.BrokerStatus(
                    broker="b1", incarnation="i1", release="0.1.0", state=self.state, uptime_ms=1500, mode="standalone", storage="disk",
                    compiled=False, listeners={"url": "headrace://127.0.0.1:1"}, connections=3, sessions=3, queues=kinds.count("queue"),
                    streams=kinds.count("stream"), loaded_partitions=1, publish_rate=10.0, deliver_rate=9.0,
                    settle_rate=8.0, bytes_in_rate=1.0, bytes_out_rate=2.0, wal_bytes=64 << 20, disk_free_bytes=10 << 30, memory_bytes=50 << 20,
                    flush_p50_us=150, flush_p99_us=400, attention=("the disk is slow",),
                )  # fmt: skip
            case control.ForceElection():
                rows = (
                    CopyRow(broker="1d", name="a", state="alive", index=1234, epoch=3, committed=1200, next_offset=70),
                    CopyRow(broker="2d", name="b", state="dead", why="it is gone", in_sync=True),
                )
                return control.Election(
                    name=r.name, partition=r.partition, version=7, chosen="1d", reason="a holds it up to entry 1234", given_up=("2d",), copies=rows,
                    elected=r.accept_data_loss, epoch=9 if r.accept_data_loss else 0,
                )  # fmt: skip
            case control.DeclareQueue() | control.DeclareStream():
                check_name(r.name)
                kind = "queue" if isinstance(r, control.DeclareQueue) else "stream"
                spec = msgspec.to_builtins(r.spec)
                old = self.items.get(r.name)
                if old is not None and (old.kind != kind or old.spec != spec):
                    raise Conflict(f"{r.name!r} exists with other settings")
                self.items[r.name] = control.Info(name=r.name, kind=kind, id="x" * 32, spec=spec, partitions=(_partition(0),), oldest_ms=1234)
                return self.items[r.name]
            case control.AlterQueue() | control.AlterStream():
                old = self.info(r.name)
                self.items[r.name] = msgspec.structs.replace(old, spec={**old.spec, **r.changes})
                return self.items[r.name]
            case control.List():
                names = sorted(n for n, i in self.items.items() if n > r.after and r.kind in ("", i.kind))
                return control.Listing(items=tuple(self.items[n] for n in names[: r.limit]), more=len(names) > r.limit)
            case control.Describe():
                return self.info(r.name)
            case control.Delete():
                self.info(r.name, r.kind)
                del self.items[r.name]
                return control.Done(count=1)
            case control.Inspect():
                self.info(r.name, "queue")
                message = control.Peeked(
                    partition=0, offset=4, state="ready", key=b"k", value=b"\xff\x00", size=2, headers=(("content-type", b"x"),), attempts=2
                )
                return control.Inspected(messages=(message, msgspec.structs.replace(message, offset=5, value=b'{"a":1}', key=None)))
            case control.Pause():
                self.items[r.name] = msgspec.structs.replace(self.info(r.name), paused=r.paused)
                return control.Done()
            case control.Repartition():
                return self.info(r.name, "queue")
            case control.Move() | control.Redrive():
                return control.Progress(id=7, done=3, total=3, state="finished")
            case control.TransferStatus():
                return control.Progress(id=r.id, done=1, total=3, state="cancelled" if r.cancel else "running")
            case control.OffsetForTime():
                return control.Offsets(offsets={0: 12})
            case control.CursorsList():
                return control.Cursors(cursors=(control.CursorInfo(cursor="c", partition=0, offset=5, lag=2, updated_ms=1),))
            case control.QuarantineList():
                return control.Quarantine(
                    items=(
                        control.QuarantineItem(
                            name="q", partition=0, id=9, why="checksum", since_ms=1, last_valid_index=4, last_valid_offset=9, lost_entries_max=2
                        ),
                    )
                )
            case control.ConnectionsList():
                one = control.ConnectionInfo(
                    id=1, peer="127.0.0.1:5", client="py", name="w", protocol="native", since_ms=1, publishers=1, subscriptions=0, bytes_in=5,
                    bytes_out=6, buffered_bytes=0,
                )  # fmt: skip
                return control.Connections(connections=(one,))
            case control.Topology():
                return control.TopologyInfo(brokers={"b1": ("headrace://127.0.0.1:1",)})
            case control.ClusterTopology():
                return control.ClusterTopologyInfo(broker="b1", state="serving", brokers=(BrokerRow(id="b1", name="one", state="alive"),))
            case control.CursorSet():
                return control.Offsets(offsets={0: 4, 1: 0})
            case control.QuarantineRepair():
                damage = {"why": "checksum", "last_valid_index": 4, "last_valid_offset": 9, "lost_entries_max": 2}
                return control.Done(count=1, detail={"0": damage})
            case control.Drain() | control.Purge() | control.Trim() | control.CursorDelete():
                return control.Done(count=2)
        raise DiskFull("unexpected in the stub")


def _partition(number: int) -> control.PartitionInfo:
    return control.PartitionInfo(partition=number, id=number + 1, epoch=1, state="serving", oldest_ms=1234)

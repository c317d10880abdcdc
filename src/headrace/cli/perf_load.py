"""The load generator: one run of a plan over as many connections as it names.

Owns the loop and the totals. Does not know the command line, nor how results are shown.
"""

import contextlib
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace.cli.perf_ends import Consumer, Publisher
from headrace.cli.perf_histogram import Histogram
from headrace.cli.perf_link import Link
from headrace.cli.perf_plan import Plan, Result, Ring
from headrace.model.errors import NotConnected
from headrace.model.specs import QueueSpec, StreamSpec, meant
from headrace.wire import control
from headrace.wire.frames import Op

CLUSTER = "cluster"
"""The feature of a broker that is one of several."""
SERVED_S = 60.0
LOOK_S = 0.05
SLACK = Path("/proc/self/timerslack_ns")
NAMES_AT_ONCE = 1000


@contextlib.contextmanager
def punctual() -> Iterator[None]:
    """Linux wakes a sleeping process up to 50 us late, so that timers go off together: what a message is sent late would count as the broker's."""
    with contextlib.suppress(OSError):
        SLACK.write_text("1")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            SLACK.write_text("0")  # the default again


class Run:
    """One measured run of a plan: set up, ``go``, account, clean up."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.names = [plan.name] if plan.queues == 1 else [f"{plan.name}-{i:05d}" for i in range(plan.queues)]
        self.admin = Link(plan.url, name="headrace perf admin")
        self.publishers: list[Publisher] = []
        self.consumers: list[Consumer] = []
        self.result = Result()
        self.publish_latency = Histogram()
        self.deliver_latency = Histogram()
        self.began_ns = self.counted_ns = self.last_ns = 0
        self.base = 0
        self.base_bytes = 0

    def declare(self) -> None:
        """Declares what the run works on."""
        plan = self.plan
        settings: dict[str, Any] = {"partitions": plan.partitions}
        if plan.replication_factor:
            settings["replication_factor"] = plan.replication_factor
        if plan.replication_factor > 1:
            settings |= {"durability": "replica_durable", "min_in_sync_replicas": min(2, plan.replication_factor - 1)}
        requests: list[control.Message]
        if plan.kind == "queue":
            queue = QueueSpec(**settings)
            requests = [control.DeclareQueue(name=name, spec=queue, given=meant(queue, settings)) for name in self.names]
        else:
            stream = StreamSpec(**settings)
            requests = [control.DeclareStream(name=name, spec=stream, given=meant(stream, settings)) for name in self.names]
        self.admin.drain_calls(requests, control.Message)

    def delete(self) -> None:
        """Deletes it again."""
        self.admin.drain_calls([control.Delete(name=name) for name in self.names], control.Message)

    def connect(self) -> None:
        """Opens every connection, publisher channel and subscription."""
        plan = self.plan
        owners = owners_of(self.admin, plan.url, self.names, plan.partitions)
        if plan.publish:
            shared = msgspec.structs.replace(plan, window=max(plan.batch, plan.window // len(owners)))
            for url, targets in owners.items():
                ring = Ring(shared, len(targets))
                for _ in range(plan.connections):
                    link = Link(url)
                    link.drain_calls(
                        [control.OpenPublisher(channel=i + 1, name=name, partition=partition) for i, (name, partition) in enumerate(targets)],
                        control.PublisherOpened,
                    )
                    rate = plan.rate / plan.connections * len(targets) / sum(map(len, owners.values()))
                    self.publishers.append(Publisher(link, ring, shared, len(targets), rate))
        if plan.consume:
            for i in range(plan.consumers):
                for url, targets in owners.items():
                    link = Link(url)
                    for channel, name in enumerate(self.names, start=1):
                        mine = tuple(partition for of, partition in targets if of == name)
                        if mine and (channel % plan.consumers == i % plan.consumers or plan.queues == 1):
                            link.call(self._subscription(channel, name, mine), control.Subscribed)
                    self.consumers.append(Consumer(link, plan))
        if plan.publish and plan.consume and plan.connections == 1 and plan.queues == plan.partitions == 1:
            self.publishers[0].born = self.consumers[0].born = deque() if plan.consumers == 1 else None
        for link in self._links():
            link.begin()

    def go(self, progress: Callable[[float, str], None] = lambda _done, _text: None) -> Result:
        """Runs the plan. ``progress`` is told a fraction done and the rate so far, ten times a second."""
        plan = self.plan
        cpu = time.process_time()
        self.began_ns = self.counted_ns = self.last_ns = now = time.monotonic_ns()
        warming = plan.warm_s > 0 and not plan.count
        stop_ns = now + int((plan.secs + plan.warm_s) * 1e9) if not plan.count else 1 << 62
        quota = -(-plan.count // plan.batch) if plan.count else 1 << 62
        for publisher in self.publishers:
            publisher.began_ns = now
        for consumer in self.consumers:
            self._take_consumer(consumer, now)
        idle_ns, mark, shown_ns = now, -1, now
        while True:
            now = time.monotonic_ns()
            publishing = plan.publish and now < stop_ns and sum(p.queued for p in self.publishers) < quota
            if publishing:
                self._pump(now, quota)
            self._turn(now, publishing)
            now = time.monotonic_ns()
            if warming and now - self.began_ns > plan.warm_s * 1e9:
                warming = False
                self._start_counting(now)
            done = self._done()
            if done != mark:
                mark, idle_ns = done, now
                self.last_ns = now
            if not publishing and self._finished(now, stop_ns):
                break
            if now - idle_ns > plan.idle_s * 1e9 and not (publishing and plan.rate):
                self.result.why = self.result.why or f"nothing came for {plan.idle_s:g} s"
                break
            if any(link.closed for link in self._links()):
                self.result.why = next(link.closed for link in self._links() if link.closed)
                break
            if now - shown_ns > 100_000_000:
                shown_ns = now
                self._show(progress, now)
        self._finish_settling()
        self.result.generator_cpu = time.process_time() - cpu
        return self._account()

    def close(self) -> None:
        """Closes every connection."""
        for link in [*self._links(), self.admin]:
            link.close()

    def depth(self) -> int:
        """Messages of all queues that are ready or leased, as the broker counts them."""
        total = 0
        for name in self.names if len(self.names) <= 1000 else []:
            info = self.admin.call(control.Describe(name=name), control.Info)
            total += info.ready + info.leased
        return total

    # ------------------------------------------------------------ the loop

    def _pump(self, now: int, quota: int) -> None:
        most = quota - sum(p.queued for p in self.publishers)
        if self.plan.consume and self.plan.ahead:
            out = sum(p.queued for p in self.publishers) * self.plan.batch - sum(c.delivered for c in self.consumers)
            most = min(most, (self.plan.ahead - out) // self.plan.batch)
        for publisher in self.publishers:
            before = publisher.queued
            publisher.pump(now, most)
            most -= publisher.queued - before

    def _turn(self, now: int, publishing: bool) -> None:
        timeout = 0.02
        if publishing and self.plan.rate:
            timeout = min(timeout, max(0.0, (min(p.due_ns() for p in self.publishers) - now) / 1e9))
        links = self._links()
        writers = [p.link.socket for p in self.publishers if p.blocked] + [c.link.socket for c in self.consumers if c.link.out]
        readable, writable, _ = select.select([link.socket for link in links], writers, [], timeout)
        if readable or writable:
            ready = set(readable)
            now = time.monotonic_ns()
            for publisher in self.publishers:
                if publisher.link.socket in ready:
                    self._take_publisher(publisher, now)
                if publisher.blocked:
                    publisher.push()
            for consumer in self.consumers:
                if consumer.link.socket in ready:
                    if not consumer.link.receive():
                        consumer.link.closed = f"a connection was closed {consumer.link.closed}"
                    self._take_consumer(consumer, now)
                elif consumer.link.out:
                    consumer.link.flush()

    def _take_publisher(self, publisher: Publisher, now: int) -> None:
        link = publisher.link
        if not link.receive():
            link.closed = f"a connection was closed {link.closed}"
            return
        publisher.take_confirms(now)
        for op, _flags, channel, correlation, at, end in link.frames():
            if op == Op.CONFIRM:
                link.start = at - 12
                publisher.take_confirms(now)
            elif op == Op.PUBLISH_ERROR:
                publisher.on_refused(channel, correlation, at, end)
            else:
                link.unasked(op, at, end)

    def _take_consumer(self, consumer: Consumer, now: int) -> None:
        for op, flags, channel, correlation, at, end in consumer.link.frames():
            if op == Op.DELIVER:
                consumer.on_deliver(flags, channel, correlation, at, end, now)
            elif op == Op.SETTLED:
                consumer.on_settled(at)
            else:
                consumer.link.unasked(op, at, end)
        last = bool(self.plan.count) and not self.plan.publish and sum(c.delivered for c in self.consumers) >= self.plan.count
        consumer.acknowledge(confirm=last)

    # ------------------------------------------------------------ counting

    def _done(self) -> int:
        if self.consumers:
            return sum(c.delivered for c in self.consumers)
        return sum(p.confirmed for p in self.publishers) * self.plan.batch

    def _bytes(self) -> int:
        if self.consumers:
            return sum(c.blob_bytes for c in self.consumers)
        return sum(p.sent_bytes for p in self.publishers)

    def _start_counting(self, now: int) -> None:
        self.counted_ns = self.last_ns = now
        self.base, self.base_bytes = self._done(), self._bytes()
        for publisher in self.publishers:
            publisher.latency.clear()
        for consumer in self.consumers:
            consumer.latency.clear()

    def _finished(self, now: int, stop_ns: int) -> bool:
        if any(p.waiting for p in self.publishers):
            return False
        if not self.consumers:
            return True
        wanted = sum(p.confirmed for p in self.publishers) * self.plan.batch if self.plan.publish else self.plan.count
        if not self.plan.publish and not self.plan.count:
            return now >= stop_ns
        return sum(c.delivered for c in self.consumers) >= wanted

    def _finish_settling(self) -> None:
        """Asks for a confirmed settle of nothing on each subscription: it answers when all before it was taken."""
        for consumer in self.consumers:
            if not consumer.acks or consumer.link.closed:
                continue
            consumer.link.socket.setblocking(True)
            consumer.acknowledge()
            while not consumer.link.flush():
                pass
            consumer.link.call(control.Status(), control.BrokerStatus)

    def _show(self, progress: Callable[[float, str], None], now: int) -> None:
        plan, done = self.plan, self._done()
        fraction = done / plan.count if plan.count else (now - self.began_ns) / 1e9 / (plan.secs + plan.warm_s)
        rate = (done - self.base) / max((now - self.counted_ns) / 1e9, 0.001)
        progress(min(fraction, 1.0), f"{rate:,.0f}/s")

    def _account(self) -> Result:
        plan, result = self.plan, self.result
        result.sent = sum(p.queued for p in self.publishers) * plan.batch
        result.confirmed = sum(p.confirmed for p in self.publishers) * plan.batch
        result.refused = sum(p.refused for p in self.publishers) * plan.batch
        result.misorder = sum(p.misorder for p in self.publishers) + sum(c.misorder for c in self.consumers)
        result.dup = sum(p.dup for p in self.publishers)
        result.gaps = sum(p.gaps for p in self.publishers)
        result.delivered = sum(c.delivered for c in self.consumers)
        result.redelivered = sum(c.redelivered for c in self.consumers)
        result.settled = sum(c.settled for c in self.consumers)
        result.lost = result.sent - result.confirmed - result.refused
        if self.consumers:
            distinct, doubled, holes = self._cover()
            result.dup += doubled
            result.gaps += holes
            if plan.publish:
                result.lost += result.confirmed - distinct
            elif plan.count:
                result.lost += max(0, plan.count - distinct)
        result.messages = self._done() - self.base
        result.bytes = self._bytes() - self.base_bytes
        result.secs = (self.last_ns - self.counted_ns) / 1e9
        result.why = result.why or next((p.why for p in self.publishers if p.why), "")
        for publisher in self.publishers:
            self.publish_latency.merge(publisher.latency)
        for consumer in self.consumers:
            self.deliver_latency.merge(consumer.latency)
        return result

    def _cover(self) -> tuple[int, int, int]:
        """(distinct offsets delivered, delivered more than once, holes) over all consumers."""
        merged: dict[tuple[int, int], list[list[int]]] = {}
        for consumer in self.consumers:
            for key, runs in consumer.runs.items():
                merged.setdefault(key, []).extend(runs)
        distinct = doubled = holes = 0
        for runs in merged.values():
            reach = -1
            for first, end in sorted(runs):
                if reach >= 0 and first > reach:
                    holes += 1
                new = max(0, end - max(first, reach))
                distinct += new
                doubled += end - first - new
                reach = max(reach, end)
        return distinct, doubled, holes

    def _subscription(self, channel: int, name: str, partitions: tuple[int, ...]) -> control.Message:
        plan = self.plan
        some = () if len(partitions) == plan.partitions else partitions
        if plan.kind == "queue":
            return control.Subscribe(channel=channel, name=name, prefetch=plan.prefetch, auto_ack=plan.auto_ack, partitions=some)
        return control.SubscribeStream(
            channel=channel, name=name, start="earliest", prefetch=plan.prefetch, prefetch_bytes=64 * 1024 * 1024, auto_commit=True, partitions=some
        )

    def _links(self) -> list[Link]:
        return [p.link for p in self.publishers] + [c.link for c in self.consumers]


def owners_of(admin: Link, url: str, names: list[str], partitions: int) -> dict[str, list[tuple[str, int]]]:
    """Where to connect for which (name, partition)s: a lone broker at ``url``, in a cluster who serves them, once all are served. ``NotConnected``:
    they are not."""
    if CLUSTER not in admin.welcome.features:
        return {url: [(name, partition) for name in names for partition in range(partitions)]}
    end = time.monotonic() + SERVED_S
    while True:
        owners: dict[str, list[tuple[str, int]]] = {}
        served = 0
        for at in range(0, len(names), NAMES_AT_ONCE):
            info = admin.call(control.Topology(names=tuple(names[at : at + NAMES_AT_ONCE])), control.TopologyInfo)
            for row in info.partitions:
                for address in info.brokers.get(row.owner, ())[:1] if row.epoch else ():
                    owners.setdefault(address, []).append((row.name, row.partition))
                    served += 1
        if served == len(names) * partitions:
            return owners
        if time.monotonic() > end:
            raise NotConnected(f"{len(names) * partitions - served} of {len(names) * partitions} partitions are served by nobody")
        time.sleep(LOOK_S)


def run(
    plan: Plan, progress: Callable[[float, str], None] = lambda _done, _text: None, *, declare: bool = True, delete: bool = True
) -> dict[str, Any]:
    """Carries out a plan and returns its figures as plain values."""
    work = Run(plan)
    try:
        if declare:
            work.declare()
        work.connect()
        with punctual() if plan.rate else contextlib.nullcontext():
            result = work.go(progress)
        figures: dict[str, Any] = msgspec.to_builtins(result) | {"rate": round(result.messages / result.secs, 1) if result.secs > 0 else 0.0}
        figures |= {
            "mbs": round(figures["rate"] * plan.size / 1e6, 2),
            "latency": work.publish_latency.summary(),
            "delivery": work.deliver_latency.summary(),
        }
        if plan.consume and plan.kind == "queue" and not plan.auto_ack:
            figures["depth"] = work.depth()
        if delete:
            work.delete()
        return figures
    finally:
        work.close()

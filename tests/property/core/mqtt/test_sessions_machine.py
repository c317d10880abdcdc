"""Sessions, their journals and restarts against a model that keeps one list of messages for each client."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.core.mqtt.session import Delivery, Session
from headrace.core.mqtt.topics import matches
from tests.property.effort import effort
from tests.unit.core.mqtt.routers import Client, Net, sub, will

clients = st.sampled_from(["a", "b", "c", "d"])
topics = st.sampled_from(["x", "x/y", "z", "w/a", "w/b"])
filters = st.sampled_from(["x", "x/#", "+", "#", "z", "w/+"])


class Sessions(RuleBasedStateMachine):
    """A model of a client: its filters, what it must get of QoS 1 and 2 in order, and what of it it may have got."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.live: dict[str, tuple[Session, Client]] = {}
        self.expiry: dict[str, int] = {}
        self.filters: dict[str, dict[str, int]] = {}
        self.owed: dict[str, list[tuple[bytes, int]]] = {}
        self.released: dict[str, dict[bytes, None]] = {}
        self.flying: dict[str, list[Delivery]] = {}
        self.wills: dict[str, tuple[str, int]] = {}
        self.waiting: dict[str, tuple[str, int]] = {}
        self.away: dict[str, int] = {}
        self.retained: dict[str, bytes] = {}
        self.number = 0

    # the model

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        for client, filters in self.filters.items():
            granted = [q for f, q in filters.items() if matches(f, topic)]
            if granted and min(qos, max(granted)):
                self.owed[client].append((payload, min(qos, max(granted))))

    def _forget(self, client: str) -> None:
        for book in (self.expiry, self.filters, self.owed, self.released, self.away):
            book.pop(client, None)

    def _gone(self, client: str, with_will: bool, expiry_s: int) -> None:
        self.expiry[client] = expiry_s
        self.live.pop(client, None)
        self.flying.pop(client, None)
        asked = self.wills.pop(client, None)
        self.away[client] = self.net.wall_ms
        if with_will and asked is not None:
            topic, delay_s = asked
            if delay_s and expiry_s:
                self.waiting[client] = topic, self.net.wall_ms + delay_s * 1000
            else:
                self._publish(topic, b"gone", 1)
        if not expiry_s:
            self._forget(client)

    def _end(self, client: str) -> None:
        asked = self.waiting.pop(client, None)
        if asked is not None:
            self._publish(asked[0], b"gone", 1)
        self._forget(client)

    # what happens

    @rule(
        client=clients, clean=st.booleans(), expiry_s=st.sampled_from([0, 20, 100]), delay_s=st.sampled_from([-1, 0, 10]), maximum=st.integers(1, 3)
    )
    def connect(self, client: str, clean: bool, expiry_s: int, delay_s: int, maximum: int) -> None:
        asked = will(f"w/{client}", delay_s) if delay_s >= 0 else None
        old = self.live.get(client)
        if old is not None:
            self._gone(client, True, self.expiry[client])
        if clean and client in self.filters:
            self._end(client)
        session, outlet, present = self.net.connect(client, clean=clean, expiry_s=expiry_s, will=asked, receive_maximum=maximum)
        assert present is (client in self.filters)
        assert old is None or old[1].was_replaced
        self.waiting.pop(client, None)
        self.away.pop(client, None)
        self.filters.setdefault(client, {})
        self.owed.setdefault(client, [])
        self.released.setdefault(client, {})
        self.flying[client] = list(session.in_flight.values())
        self.expiry[client] = expiry_s
        self.live[client] = session, outlet
        if asked is not None:
            self.wills[client] = f"w/{client}", delay_s

    @rule(client=clients, with_will=st.booleans())
    def disconnect(self, client: str, with_will: bool) -> None:
        if client in self.live:
            session, _ = self.live[client]
            self._gone(client, with_will, self.expiry[client])
            self.net.lose(session, with_will=with_will)

    @rule(client=clients, filter=filters, qos=st.integers(0, 2))
    def subscribe(self, client: str, filter: str, qos: int) -> None:
        if client in self.live:
            existed = self.net.router.subscribe(self.live[client][0], sub(filter, qos))
            assert existed is (filter in self.filters[client])
            self.filters[client][filter] = qos

    @rule(client=clients, filter=filters)
    def unsubscribe(self, client: str, filter: str) -> None:
        if client in self.live:
            assert self.net.router.unsubscribe(self.live[client][0], filter) is (filter in self.filters[client])
            self.filters[client].pop(filter, None)

    @rule(topic=topics, qos=st.integers(0, 2), retain=st.booleans(), empty=st.booleans())
    def publish(self, topic: str, qos: int, retain: bool, empty: bool) -> None:
        self.number += 1
        payload = b"" if empty and retain else b"%d" % self.number
        self.net.publish(topic, payload, qos=qos, retain=retain)
        self._publish(topic, payload, qos)
        if retain:
            self.retained.pop(topic, None)
            if payload:
                self.retained[topic] = payload

    @rule(client=clients)
    def send(self, client: str) -> None:
        if client in self.live:
            session, _ = self.live[client]
            for delivery in self.net.pump(session):
                delivery.sent = True
                self.flying[client].append(delivery)

    @rule(client=clients, which=st.integers(0, 5))
    def acknowledge(self, client: str, which: int) -> None:
        flying = self.flying.get(client)
        if not flying:
            return
        delivery = flying[which % len(flying)]
        session, _ = self.live[client]
        router = self.net.router
        if delivery.qos == 2 and not delivery.released:
            assert session.released(delivery.packet_id) is delivery
            router.released(session, delivery)
            return
        done = session.acked(delivery.packet_id) if delivery.qos == 1 else session.completed(delivery.packet_id)
        assert done is delivery
        router.done(session, [delivery.sequence])
        flying.remove(delivery)
        self.owed[client].remove((delivery.message.payload, delivery.qos))

    @rule(seconds=st.integers(1, 30))
    def time(self, seconds: int) -> None:
        end_ms = self.net.wall_ms + seconds * 1000
        due = [(at, client, topic) for client, (topic, at) in self.waiting.items() if at <= end_ms]
        ends = [(self.away[c] + self.expiry[c] * 1000, c, "") for c in self.away if self.away[c] + self.expiry[c] * 1000 <= end_ms]
        for at, client, topic in sorted([*due, *ends]):
            self.net.wall_ms = at
            if topic and client in self.waiting:
                self.waiting.pop(client)
                self._publish(topic, b"gone", 1)
            elif not topic:
                self._end(client)
            self.net.router.tick(at)
        self.net.wall_ms = end_ms
        self.net.router.tick(end_ms)

    @rule()
    def snapshot(self) -> None:
        self.net.snapshot()

    @rule()
    def restart(self) -> None:
        wills = dict(self.wills)
        for client in list(self.live):
            self._gone(client, False, self.expiry[client])
        brief = [c for c in wills if c not in self.expiry]
        for client, (topic, delay_s) in wills.items():
            if client not in brief:
                self.waiting[client] = topic, self.net.wall_ms + delay_s * 1000
        # the wills of sessions that ended come in the order of the partitions, those that have no delay at the next look
        for shard in range(len(self.net.shards)):
            for client in [c for c in self.net.shards[shard].sessions if c in brief]:
                self._publish(wills[client][0], b"gone", 1)
        self.net.restart()
        for client, (topic, at) in sorted(self.waiting.items()):
            if at <= self.net.wall_ms:
                del self.waiting[client]
                self._publish(topic, b"gone", 1)
        self.net.router.tick(self.net.wall_ms)

    @invariant()
    def books(self) -> None:
        self.net.router.check()
        self.net.write()
        known = {c: s for shard in self.net.shards for c, s in shard.sessions.items()}
        assert known.keys() == self.filters.keys()
        for client, session in known.items():
            assert {f: s.qos for f, s in session.subscriptions.items()} == self.filters[client]
            here = sorted([*session.in_flight.values(), *session.inbox], key=lambda d: d.sequence)
            assert [(d.message.payload, d.qos) for d in here] == self.owed[client]
            assert len(session.in_flight) <= max(session.receive_maximum, sum(d.released for d in session.in_flight.values()))
        assert {m.topic: m.payload for m in self.net.router.retained.match("#")} == self.retained

    @invariant()
    def a_restart_would_know_it(self) -> None:
        self.net.write()
        for live, again in zip(self.net.shards, self.net.replayed(), strict=True):
            durable = {c: s for c, s in live.sessions.items() if s.durable}
            kept = {c: s for c, s in again.sessions.items() if s.durable}
            assert durable.keys() == kept.keys()
            for client, session in durable.items():
                other = kept[client]
                assert other.subscriptions == session.subscriptions
                assert other.received == session.received
                assert other.next_sequence == session.next_sequence
                mine, its = (sorted([*s.in_flight.values(), *s.inbox], key=lambda d: d.sequence) for s in (session, other))
                assert [(d.sequence, d.message.payload, d.qos, d.released) for d in its] == [
                    (d.sequence, d.message.payload, d.qos, d.released) for d in mine
                ]
            assert again.wills.keys() == live.wills.keys()
            assert again.wills_due == live.wills_due
            assert {t: m.payload for t, m in again.retained.items()} == {t: m.payload for t, m in live.retained.items()}


Sessions.TestCase.settings = effort(60, 40)
TestSessions = Sessions.TestCase

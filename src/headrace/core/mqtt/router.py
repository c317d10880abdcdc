"""Who gets what: from a message to the sessions whose subscriptions it matches, retained messages, wills, and the ends of sessions.

Owns the subscription tree, the shared groups, the index of retained messages, and what is due when. Sessions and what is durable of them are the
shards'. Knows connections only as ``Outlet``. Times are wall clock: they go on while the broker is down.

Invariants: R1 one copy for each session, however many of its filters match [MQTT-3.3.4-2], with the highest of their QoS, and one for each
shared subscription. R2 the messages of one publisher to one topic reach a session in their order [MQTT-4.6.0-5]. R3 a will is published once, when
its delay is over or its session ends, whichever comes first [MQTT-3.1.2-10]; of a client whom the broker has sent away, or whose session has moved,
neither is so while the client has the time to come back. R4 the routes that are kept are those of the tree's present version.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Final

from headrace.core.mqtt.bounds import Bounds
from headrace.core.mqtt.capture import addressed, is_native
from headrace.core.mqtt.captured import Capture, Kind
from headrace.core.mqtt.held import Moved
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.ops import StoredWill, message_of
from headrace.core.mqtt.origins import UNFINISHED_MAX, WILL, Origin
from headrace.core.mqtt.routes import Outlet, Remote, Route, Routes
from headrace.core.mqtt.session import NEVER, Delivery, Session
from headrace.core.mqtt.shard import Shard
from headrace.core.mqtt.shared import Group
from headrace.core.mqtt.subscription import Subscription
from headrace.core.mqtt.tree import NameTree, TopicTree
from headrace.model.errors import HeadraceError, LimitExceeded
from headrace.wire.mqtt.reasons import Reason

ROUTES_MAX: Final = 10_000
_Entry = tuple[Session, Subscription] | Group | Capture | Remote
Stored = Callable[[HeadraceError | None], None]
"""Told once all queues and streams that get a publish have it, or why one has not."""


class Router:
    """See the module's head."""

    def __init__(self, bounds: Bounds, shards: list[Shard], shard_of: Callable[[str], int]) -> None:
        """``shard_of``: which of ``shards`` has a client id or a topic."""
        self.bounds = bounds
        self.shards = shards
        self.tree: TopicTree[str, _Entry] = TopicTree()
        self.groups: dict[str, Group] = {}
        self.retained: NameTree[Message] = NameTree()
        self.retained_bytes = 0
        self.subscriptions = 0
        self.dropped = 0
        """Messages that an inbox had no room for."""
        self.changed: dict[int, None] = {}
        """Shards that have something to journal since the caller last looked."""
        self.keep: Callable[[Message, Sequence[Capture], Stored | None], None] = _nowhere
        """Takes a publish into queues and streams; its owner's."""
        self._shard_of = shard_of
        self._bindings: dict[str, tuple[str, ...]] = {}
        self._routes: dict[str, Routes] = {}
        self._routes_version = -1
        self._due: list[tuple[int, str]] = []

    # ------------------------------------------------------------ start

    def recovered(self, wall_ms: int, shards: Sequence[Shard] | None = None, *, back_ms: int = 0) -> None:
        """The shards (None: all) hold what the journal says: whoever was connected when it ended is not any more. ``back_ms``: as long has its
        client to come back before its session ends or its will is published."""
        shards = self.shards if shards is None else shards
        for shard in shards:
            for client_id in list(shard.unclosed):
                session = shard.sessions[client_id]
                self._close(shard, session, shard.wills.get(client_id), wall_ms, session.expiry_s, back_ms)
                self._touched(shard)
            for session in list(shard.sessions.values()):
                for subscription in session.subscriptions.values():
                    self._enter(session, subscription)
                self._wake_at(session.expires_ms(), session.client_id)
            for client_id, due_ms in shard.wills_due.items():
                self._wake_at(due_ms, client_id)
            for message in shard.retained.values():
                self._index(message)
        for shard in shards:  # now that everybody is there who may get their wills
            for session in list(shard.sessions.values()):
                if not session.durable and session.expires_ms() <= wall_ms:
                    self._over(shard, session, wall_ms)

    def shard(self, key: str) -> Shard:
        return self.shards[self._shard_of(key)]

    def home(self, session: Session) -> Shard:
        return self.shards[session.number]

    def holds(self, session: Session) -> bool:
        """Whether it is still one of those that are kept here."""
        return self.home(session).sessions.get(session.client_id) is session

    def serves(self, client_id: str) -> bool:
        """Whether the session of that client is kept here."""
        return True

    def _touched(self, shard: Shard) -> None:
        if shard.journalling:
            self.changed[shard.number] = None

    # ------------------------------------------------------------ connections

    def connect(
        self, client_id: str, outlet: Outlet, *, clean: bool, expiry_s: int, will: StoredWill | None, receive_maximum: int, wall_ms: int
    ) -> tuple[Session, bool]:
        """The session that the client has from now on, and whether it was there before. Whoever had it is replaced."""
        shard = self.shard(client_id)
        if self.bounds.session_expiry_s_max:
            expiry_s = min(expiry_s, self.bounds.session_expiry_s_max)
        old = shard.sessions.get(client_id)
        if old is not None and old.outlet is not None:
            replaced = old.outlet
            self.disconnected(old, with_will=True, wall_ms=wall_ms)
            replaced.replaced(Reason.SESSION_TAKEN_OVER)
            old = shard.sessions.get(client_id)
        if old is not None and (clean or (not old.durable)):
            if not old.durable:
                shard.will_done(client_id)  # it had the time to come back, and has
            self._end(shard, old, wall_ms)  # [MQTT-3.1.2-4]
            old = None
        session = shard.open(client_id, expiry_s, anew=old is None, will=will)
        session.outlet = outlet
        session.back_ms = 0
        session.receive_maximum = receive_maximum
        self._touched(shard)
        return session, old is not None

    def rebind(self, moved: Moved, outlet: Outlet, *, receive_maximum: int, wall_ms: int) -> Session | None:
        """The session of a connection that goes on here after another broker had it; None: it cannot any more."""
        return None

    def let_go(self, session: Session, wall_ms: int) -> None:
        """The session's connection is not served any more, but goes on soon, or its client comes back."""

    def disconnected(self, session: Session, *, with_will: bool, wall_ms: int, expiry_s: int | None = None, back_ms: int = 0) -> None:
        """The session's connection is gone. ``with_will``: as a failure, so that its will is published (later, if it has a delay); ``expiry_s``: as
        the client said in its DISCONNECT; ``back_ms`` as of ``recovered``: the broker has sent the client to another."""
        shard = self.home(session)
        if expiry_s is None:
            expiry_s = session.expiry_s
        elif self.bounds.session_expiry_s_max:
            expiry_s = min(expiry_s, self.bounds.session_expiry_s_max)
        will = shard.wills.get(session.client_id) if with_will else None
        session.outlet = None
        self._close(shard, session, will, wall_ms, expiry_s, back_ms)
        if not session.durable and session.expires_ms() <= wall_ms:
            self._over(shard, session, wall_ms)
        else:
            self._wake_at(session.expires_ms(), session.client_id)
            if will is not None:
                if shard.wills_due[session.client_id] > wall_ms:
                    self._wake_at(shard.wills_due[session.client_id], session.client_id)
                else:
                    self._publish_will(shard, session.client_id, wall_ms)
        self._touched(shard)

    def _close(self, shard: Shard, session: Session, will: StoredWill | None, wall_ms: int, expiry_s: int, back_ms: int) -> None:
        away_ms = wall_ms + max(0, back_ms - expiry_s * 1000)  # a session that would end sooner counts as connected so long
        shard.close(session, away_ms, expiry_s, wall_ms + max(will.delay_s * 1000, back_ms) if will is not None else 0)

    def end(self, session: Session, wall_ms: int) -> None:
        """Ends a session whose client is away."""
        assert session.outlet is None
        self._end(self.home(session), session, wall_ms)

    def _over(self, shard: Shard, session: Session, wall_ms: int) -> None:
        """Its client has not come back in time."""
        self._end(shard, session, wall_ms)

    def _end(self, shard: Shard, session: Session, wall_ms: int) -> None:
        for subscription in session.subscriptions.values():
            self._leave(session, subscription)
        # Of a shared subscription another member gets what this one has not; but for QoS 2 that was sent [MQTT-4.8.2-5].
        left: list[Delivery] = []
        if session.in_flight or session.inbox:
            left = [d for d in [*session.in_flight.values(), *session.inbox] if d.group and not (d.qos == 2 and d.sent)]
        if session.client_id in shard.wills_due:
            self._publish_will(shard, session.client_id, wall_ms)
        shard.end(session)
        self._touched(shard)
        for delivery in left:
            group = self.groups.get(delivery.group)
            if group is not None:
                self._to_group(group, delivery.message.unmarked())

    # ------------------------------------------------------------ subscriptions

    def subscribe(self, session: Session, subscription: Subscription) -> bool | None:
        """Whether the session had that filter before; None: it may have no more."""
        before = session.subscriptions.get(subscription.filter)
        if before is None and len(session.subscriptions) >= self.bounds.subscriptions_max:
            return None
        if before is not None:
            self._leave(session, before)
        shard = self.home(session)
        shard.subscribe(session, subscription)
        self._enter(session, subscription)
        self._touched(shard)
        return before is not None

    def unsubscribe(self, session: Session, filter: str) -> bool:
        """Whether there was such a subscription."""
        subscription = session.subscriptions.get(filter)
        if subscription is None:
            return False
        self._leave(session, subscription)
        shard = self.home(session)
        shard.unsubscribe(session, filter)
        self._touched(shard)
        return True

    def _enter(self, session: Session, subscription: Subscription) -> None:
        self.subscriptions += 1
        if is_native(subscription.path):
            return  # its connection consumes
        if not subscription.group:
            self.tree.put(subscription.path, session.client_id, (session, subscription))
            return
        group = self.groups.get(subscription.filter)
        if group is None:
            group = self._found(subscription.filter, subscription.path)
        group.members[session.client_id] = (session, subscription)

    def _leave(self, session: Session, subscription: Subscription) -> None:
        self.subscriptions -= 1
        if is_native(subscription.path):
            return
        if not subscription.group:
            self.tree.remove(subscription.path, session.client_id)
            return
        group = self.groups[subscription.filter]
        del group.members[session.client_id]
        if group.empty:
            self._dissolve(subscription.filter, subscription.path)

    def _found(self, name: str, path: str) -> Group:
        group = self.groups[name] = self.make_group(name)
        self.tree.put(path, name + "\0", group)
        return group

    def _dissolve(self, name: str, path: str) -> None:
        del self.groups[name]
        self.tree.remove(path, name + "\0")

    def make_group(self, name: str) -> Group:
        """Without members."""
        return Group(name)

    # ------------------------------------------------------------ queues and streams

    def bind(self, kind: Kind, name: str, filters: tuple[str, ...]) -> None:
        """A queue or stream captures what these filters match, and nothing else any more."""
        for filter in self._bindings.pop(name, ()):
            self.tree.remove(filter, name + "\1")
        if filters:
            self._bindings[name] = tuple(dict.fromkeys(filters))
        for filter in self._bindings.get(name, ()):
            self.tree.put(filter, name + "\1", Capture(kind, name, bound=True))

    def unheard(self, topic: str) -> bool:
        """Whether a message to ``topic`` that is not retained changes nothing, since nobody gets it."""
        return self._routes_of(topic).nobody

    def awaits(self, topic: str, retain: bool) -> bool:
        """Whether ``publish`` has to say when others than the sessions here have a message to ``topic``."""
        return bool(self._routes_of(topic).captures)

    def spreads(self, topic: str, retain: bool) -> bool:
        """Whether other brokers are among them."""
        return False

    def captures(self, topic: str) -> Sequence[Capture]:
        """The queues and streams that get what is published to ``topic``, each once."""
        return self._routes_of(topic).captures

    # ------------------------------------------------------------ publishing

    def publish(self, message: Message, wall_ms: int, stored: Stored | None = None) -> int:
        """Gives a message to all whose subscriptions it matches, and to the queues and streams that capture it; how many that are. Shards that must
        be durable before it may be acknowledged are in ``changed``; ``stored`` is told of queues and streams, if there are any. Retaining is
        ``retain``'s."""
        routes = self._routes_of(message.topic)
        if message.origin is not None:
            routes = self._untaken(routes, message.origin)
        count = len(routes.captures)
        if count:
            self.keep(message, routes.captures, stored)
        for route in routes.routes:
            session = route.session
            if not route.local and session.client_id == message.publisher:
                others = [s for s in route.subscriptions if not s.no_local]
                if not others:
                    continue  # [MQTT-3.8.3-3]
                route = Route(session, others)
            count += 1
            retain = message.retain and route.retain  # [MQTT-3.3.1-12] [MQTT-3.3.1-13]
            if message.qos and route.qos:
                self._queue(session, message, min(message.qos, route.qos), retain, route.ids, "")
            elif session.outlet is not None:
                session.outlet.send(message, retain, route.ids)
        for group in routes.groups:
            if self._to_group(group, message):
                count += 1
        return count

    def _untaken(self, routes: Routes, origin: Origin) -> Routes:
        """Without those who have a message of that origin already."""
        return routes

    def _to_group(self, group: Group, message: Message) -> bool:
        chosen = group.choose()
        if chosen is None:
            return False
        session, subscription = chosen
        ids = (subscription.identifier,) if subscription.identifier else ()
        retain = message.retain and subscription.retain_as_published
        if message.qos and subscription.qos:
            self._queue(session, message, min(message.qos, subscription.qos), retain, ids, group.name)
        elif session.outlet is not None:
            session.outlet.send(message, retain, ids)
        else:
            return False
        return True

    def _routes_of(self, topic: str) -> Routes:
        if self._routes_version != self.tree.version:
            self._routes.clear()
            self._routes_version = self.tree.version
        routes = self._routes.get(topic)
        if routes is None:
            found: dict[str, tuple[Session, list[Subscription]]] = {}
            groups: list[Group] = []
            captured: dict[str, Capture] = {}
            remotes: dict[int, None] = {}
            own = addressed(topic)
            if own is not None:
                captured[own.name] = own
            for entry in self.tree.match(topic):
                if isinstance(entry, Group):
                    groups.append(entry)
                    continue
                if isinstance(entry, Capture):
                    captured[entry.name] = entry
                    continue
                if isinstance(entry, Remote):
                    remotes[entry.number] = None
                    continue
                session, subscription = entry
                known = found.get(session.client_id)
                if known is None:
                    found[session.client_id] = (session, [subscription])
                else:
                    known[1].append(subscription)
            matched = [Route(session, subscriptions) for session, subscriptions in found.values()]
            routes = Routes(matched, groups, list(captured.values()), list(remotes))
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[topic] = routes
        return routes

    def _queue(self, session: Session, message: Message, qos: int, retain: bool, ids: tuple[int, ...], group: str) -> None:
        bounds = self.bounds
        if len(session.inbox) >= bounds.inbox_messages_max or session.inbox_bytes + message.nbytes > bounds.inbox_bytes_max:
            if not self._make_room(session, message.nbytes):
                self.dropped += 1
                session.dropped += 1
                return
        shard = self.home(session)
        shard.queue(session, message, qos, retain, ids, group)
        self._touched(shard)
        if session.outlet is not None:
            session.outlet.wake()

    def _make_room(self, session: Session, nbytes: int) -> bool:
        """Whether a message of that size has a place in the inbox now."""
        bounds = self.bounds
        if bounds.inbox_overflow == "drop_newest" or nbytes > bounds.inbox_bytes_max:
            return False
        gone: list[int] = []
        inbox = session.inbox
        while inbox and not inbox[0].sent and (len(inbox) >= bounds.inbox_messages_max or session.inbox_bytes + nbytes > bounds.inbox_bytes_max):
            gone.append(session.oldest().sequence)
        self.dropped += len(gone)
        session.dropped += len(gone)
        self.done(session, gone)
        if gone and session.outlet is not None:
            session.outlet.skip(gone)
        return len(inbox) < bounds.inbox_messages_max and session.inbox_bytes + nbytes <= bounds.inbox_bytes_max

    def done(self, session: Session, sequences: list[int]) -> None:
        """Deliveries that the session has given up already."""
        shard = self.home(session)
        shard.done(session, sequences)
        self._touched(shard)

    def released(self, session: Session, delivery: Delivery) -> None:
        """The client has a delivery of QoS 2."""
        shard = self.home(session)
        shard.released(session, delivery)
        self._touched(shard)

    def intends(self, session: Session) -> bool:
        """Whether its QoS 2 publishes are given out under a number that is durable before (``once``)."""
        return False

    def intend(self, session: Session, packet_id: int) -> Origin:
        """That number of a QoS 2 publish; to be durable before it is used. A client sends what it has not finished again when it connects
        [MQTT-4.4.0-1]: what it never does is forgotten, as all who had it would have to remember everything since."""
        shard = self.shard(session.client_id)
        if packet_id not in session.intents:
            left = [id for id in session.intents if id not in session.receiving]
            session.passed_over = session.passed_over + 1 if left else 0
            for id in left if session.passed_over > UNFINISHED_MAX else ():
                shard.complete(session, id)
        shard.intend(session, packet_id)
        self._touched(shard)
        return Origin(session.client_id, session.intents[packet_id], min(session.intents.values()))

    def receive(self, session: Session, packet_id: int) -> None:
        """A QoS 2 publish of the client was taken."""
        shard = self.home(session)
        shard.receive(session, packet_id)
        self._touched(shard)

    def await_session(self, session: Session) -> None:
        """What is acknowledged next of a session waits until all that was journalled of it is durable, though nothing of it has changed."""
        if session.durable:
            self.changed[self.home(session).number] = None

    def complete(self, session: Session, packet_id: int) -> bool:
        """The client's PUBREL came; whether its publish was known."""
        shard = self.home(session)
        known = shard.complete(session, packet_id)
        self._touched(shard)
        return known

    # ------------------------------------------------------------ retained messages

    def retain(self, message: Message) -> HeadraceError | None:
        """Keeps a message as the last of its topic, or clears the topic if it has no payload [MQTT-3.3.1-6]. Or says why not."""
        topic = message.topic
        before = self.shard(topic).retained.get(topic)
        if not message.payload:
            if before is not None:
                self._forget(topic)
            return None
        grown = message.nbytes - (before.nbytes if before is not None else 0)
        full = before is None and self.retained.count >= self.bounds.retained_messages_max
        if full or self.retained_bytes + grown > self.bounds.retained_bytes_max:
            hint = "see mqtt.retained_messages_max and mqtt.retained_bytes_max"
            return LimitExceeded("there is no room for one more retained message", hint=hint)
        shard = self.shard(topic)
        shard.retain(topic, message)
        self._touched(shard)
        self._index(message)
        return None

    def _index(self, message: Message) -> None:
        before = self.retained.put(message.topic, message)
        self.retained_bytes += message.nbytes - (before.nbytes if before is not None else 0)
        if message.expires_ms:
            self._wake_at(message.expires_ms, "\0" + message.topic)

    def _forget(self, topic: str) -> None:
        before = self.retained.remove(topic)
        assert before is not None
        self.retained_bytes -= before.nbytes
        shard = self.shard(topic)
        shard.retain(topic, None)
        self._touched(shard)

    def send_retained(self, session: Session, subscription: Subscription, wall_ms: int) -> None:
        """What a new subscription gets at once [MQTT-3.3.1-9]; a shared one gets nothing."""
        if subscription.group:
            return
        for message in list(self.retained.match(subscription.path)):
            self.send_kept(session, subscription, message, wall_ms)

    def send_kept(self, session: Session, subscription: Subscription, message: Message, wall_ms: int) -> None:
        """One retained message of a new subscription."""
        if message.expired(wall_ms) or (subscription.no_local and message.publisher == session.client_id):
            return
        ids = (subscription.identifier,) if subscription.identifier else ()
        qos = min(message.qos, subscription.qos)
        if qos:
            self._queue(session, message, qos, True, ids, "")  # [MQTT-3.3.1-8]
        elif session.outlet is not None:
            session.outlet.send(message, True, ids)

    # ------------------------------------------------------------ wills, and what is due

    def _publish_will(self, shard: Shard, client_id: str, wall_ms: int) -> None:
        will = shard.wills[client_id]
        shard.will_done(client_id)
        self._touched(shard)
        self._give_will(will, wall_ms, None)

    def _give_will(self, will: StoredWill, wall_ms: int, stored: Stored | None) -> None:
        message = message_of(will.message)
        if will.number:
            message.origin = Origin(message.publisher, will.number, WILL)
        if will.expiry_s:
            message.expires_ms = wall_ms + will.expiry_s * 1000
        if message.retain and not is_native(message.topic):
            self.retain(message)
        self.publish(message, wall_ms, stored)

    def next_deadline_ms(self) -> int:
        """Wall clock at which ``tick`` has something to do, 0 = never."""
        return self._due[0][0] if self._due else 0

    def tick(self, wall_ms: int) -> None:
        """Publishes the wills, ends the sessions and drops the retained messages that are due."""
        while self._due and self._due[0][0] <= wall_ms:
            _, key = heapq.heappop(self._due)
            if key[:1] == "\0":
                message = self.shard(key[1:]).retained.get(key[1:])
                if message is not None and message.expired(wall_ms):
                    self._forget(key[1:])
                continue
            shard = self.shard(key)
            due_ms = shard.wills_due.get(key)
            if due_ms is not None and due_ms <= wall_ms:
                self._publish_will(shard, key, wall_ms)
            session = shard.sessions.get(key)
            if session is not None and session.outlet is None and session.expiry_s != NEVER and session.expires_ms() <= wall_ms:
                self._over(shard, session, wall_ms)

    def _wake_at(self, due_ms: int, key: str) -> None:
        if due_ms:
            heapq.heappush(self._due, (due_ms, key))

    def check(self) -> None:
        """Asserts the invariants."""
        for shard in self.shards:
            shard.check()
        sessions = [s for shard in self.shards for s in shard.sessions.values()]
        assert self.subscriptions == sum(len(s.subscriptions) for s in sessions)
        assert self.retained.count == sum(len(shard.retained) for shard in self.shards)
        assert self.retained_bytes == sum(m.nbytes for shard in self.shards for m in shard.retained.values())
        assert not any(group.empty for group in self.groups.values())


def _nowhere(message: Message, captures: Sequence[Capture], stored: Stored | None) -> None:
    raise AssertionError("nobody has said where queues and streams are")

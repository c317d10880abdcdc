"""One MQTT connection: bytes in, bytes out, and what has to be decided between them. Both versions; the first packet says which.

Owns the rules of the protocol that are about a connection: CONNECT and its answer, keep-alive, topic aliases, the order of acknowledgements, how it
ends. What a publish or a subscription does is the router's; when something is durable the host says. Does no I/O and reads no clock.

Invariants: C1 nothing is sent before CONNACK, nor after DISCONNECT [MQTT-3.2.0-1] [MQTT-3.14.4-2]. C2 what acknowledges something is sent once
everything it caused is durable, in the order in which it was asked for [MQTT-4.6.0-2] [MQTT-4.6.0-4]. C3 a delivery of a durable session is
sent once it is durable. C4 hostile input ends the connection with the reason the specification names, and raises nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from headrace.core.mqtt.message import Message
from headrace.core.mqtt.ops import Stored, StoredWill
from headrace.core.mqtt.router import Router
from headrace.core.mqtt.session import NEVER, Session, Subscription
from headrace.core.mqtt.terms import Terms
from headrace.core.mqtt.topics import filter_fault, matches, split_shared
from headrace.model.errors import MqttFault
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Auth, Connect, Disconnect, Pingreq, Subscribe, Unsubscribe
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.properties import Properties
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import ALLOWED, ALLOWED_BY_CLIENT, CONNACK_3, Reason, Type

PUMP_COUNT: Final = 64
"""Deliveries that are taken at a time while the connection has room."""
_ENDLESS: Final = 1 << 62
_OWN_TOPICS: Final = ("$queue/", "$stream/")


class Host(Protocol):
    """What a connection needs of its broker."""

    router: Router

    @property
    def wall_ms(self) -> int:
        """The wall clock of this turn."""

    def committed(self, answer: Callable[[], None]) -> None:
        """Calls ``answer`` once all that the router has changed so far is durable; at once, if it is."""

    def touch(self, connection: Any) -> None:
        """The connection has something to send: ``output`` is called at the end of this turn."""

    def assigned_id(self) -> str:
        """A client id for a client without one, different each time [MQTT-3.1.3-6]."""

    def refusing(self) -> bool:
        """Nothing can be stored now: the disk is nearly full, the log has failed, or the broker is going away."""

    def authenticate(self, asked: Connect) -> int:
        """The reason with which a CONNECT is answered: 0 = it may."""


class _Answer:
    """Replies of one read, which wait until what they acknowledge is durable."""

    __slots__ = ("done", "replies", "retained", "unacked")

    def __init__(self, replies: list[bytes], unacked: int, retained: list[Subscription]) -> None:
        self.replies = replies
        self.unacked = unacked
        self.retained = retained
        self.done = False


class Connection:
    """See the module's head. ``shell`` is what the host knows it by."""

    def __init__(self, host: Host, terms: Terms, shell: Any) -> None:
        self.host = host
        self.router = host.router
        self.terms = terms
        self.shell = shell
        self.parser = Parser(terms.packet_bytes_max, terms.connect_bytes_max)
        self.version = 0
        self.client_id = ""
        self.session: Session | None = None
        self.closed = False
        """Nothing more is taken; what ``output`` still gives is the last."""
        self.blocked = False
        """The peer reads too slowly: it is given no deliveries."""
        self.keep_alive_ms = 0
        self.dropped = 0
        """Messages of QoS 0 for which there was no room, and deliveries too large for the client."""
        self.published = self.delivered = 0
        self._accepted = False
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._replies: list[bytes] = []
        self._retained: list[Subscription] = []
        self._done: list[int] = []
        self._unacked = 0
        self._unacked_now = 0
        self._waiting: deque[_Answer] = deque()
        self._aliases: dict[int, str] = {}
        self._aliases_out: dict[str, int] = {}
        self._alias_max = 0
        self._packet_bytes_max = 0
        self._problems = True
        self._expiry_s = 0
        self._ready = 0
        self._waking = False
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Publish: self._on_publish,
            Ack: self._on_ack,
            Subscribe: self._on_subscribe,
            Unsubscribe: self._on_unsubscribe,
            Pingreq: self._on_ping,
            Disconnect: self._on_disconnect,
            Auth: self._on_auth,
        }

    # ------------------------------------------------------------ in

    def feed(self, data: bytes) -> None:
        """Takes what was read."""
        if self._ended():
            return
        parser = self.parser
        try:
            for packet in parser.feed(data):
                if type(packet) is Publish:
                    self._on_publish(packet)
                elif self.version == 0:
                    self._on_connect(packet)
                else:
                    handler = self._handlers.get(type(packet))
                    if handler is None:
                        raise MqttFault(f"a client sends no {type(packet).__name__.upper()}", reason=Reason.PROTOCOL_ERROR)
                    handler(packet)
                if self._ended():
                    break
            if parser.fault is not None and not self._ended():
                raise parser.fault
        except MqttFault as fault:
            self._end_read()
            self.fail(fault.reason, str(fault))
            return
        self._end_read()

    def _ended(self) -> bool:
        return self.closed

    def _end_read(self) -> None:
        """One answer for all that the read asked for."""
        if self._done and self.session is not None:
            done, self._done = self._done, []
            self.router.done(self.session, done)
            if self.session.inbox:
                self.host.touch(self.shell)
        if self._replies:
            answer = _Answer(self._replies, self._unacked_now, self._retained)
            self._replies, self._unacked_now, self._retained = [], 0, []
            self._waiting.append(answer)

            def durable() -> None:
                answer.done = True
                self._answer()

            self.host.committed(durable)

    def _answer(self) -> None:
        """Sends the replies whose turn it is (C2)."""
        waiting = self._waiting
        while waiting and waiting[0].done:
            answer = waiting.popleft()
            self._unacked -= answer.unacked
            if self.session is None:
                continue
            self._out.extend(answer.replies)
            for subscription in answer.retained:
                if self.session.subscriptions.get(subscription.filter) is subscription:
                    self.router.send_retained(self.session, subscription, self.host.wall_ms)
        self.host.touch(self.shell)

    # ------------------------------------------------------------ CONNECT

    def _on_connect(self, asked: Connect) -> None:
        self.version = asked.version
        if asked.version not in (4, 5):
            self._refuse_version(asked.version)
            return
        found = asked.properties
        client_id, properties = asked.client_id, Properties()
        if prop.AUTHENTICATION_METHOD in found:
            self._refuse(Reason.BAD_AUTHENTICATION_METHOD, "there is no such authentication method here")
            return
        if not client_id:
            if asked.version == 4 and not asked.clean_start:
                self._refuse(Reason.CLIENT_IDENTIFIER_NOT_VALID, "")  # 3.1.1 [MQTT-3.1.3-8]
                return
            client_id = self.host.assigned_id()
            properties[prop.ASSIGNED_CLIENT_IDENTIFIER] = client_id  # [MQTT-3.2.2-16]
        reason = self.host.authenticate(asked)
        if reason:
            self._refuse(reason, "the user name or password is not known, or not allowed here")
            return
        will = None
        if asked.will is not None:
            if asked.will.topic.startswith("$"):
                self._refuse(Reason.TOPIC_NAME_INVALID, "topics that begin with $ are the broker's own")
                return
            will = _stored_will(asked, client_id)
        self.client_id = client_id
        expiry_s = found.get(prop.SESSION_EXPIRY_INTERVAL, 0) if asked.version == 5 else 0 if asked.clean_start else NEVER
        self._expiry_s = expiry_s
        self._keep_alive(asked, properties)
        self._packet_bytes_max = found.get(prop.MAXIMUM_PACKET_SIZE, 0)
        self._alias_max = min(found.get(prop.TOPIC_ALIAS_MAXIMUM, 0), self.terms.topic_alias_maximum)
        self._problems = bool(found.get(prop.REQUEST_PROBLEM_INFORMATION, 1))
        self.session, present = self.router.connect(
            client_id,
            self,
            clean=asked.clean_start,
            expiry_s=expiry_s,
            will=will,
            receive_maximum=found.get(prop.RECEIVE_MAXIMUM, 65_535),
            wall_ms=self.host.wall_ms,
        )
        if self.session.expiry_s != expiry_s and asked.version == 5:
            properties[prop.SESSION_EXPIRY_INTERVAL] = self.session.expiry_s
        properties[prop.RECEIVE_MAXIMUM] = self.terms.receive_maximum
        properties[prop.MAXIMUM_PACKET_SIZE] = self.terms.packet_bytes_max
        if self.terms.topic_alias_maximum:
            properties[prop.TOPIC_ALIAS_MAXIMUM] = self.terms.topic_alias_maximum
        connack = encoding.connack(asked.version, present, Reason.SUCCESS, properties)
        session, ready = self.session, self.session.next_sequence

        def durable() -> None:
            if self.session is session:
                self._accept(connack, ready)

        self.host.committed(durable)

    def _accept(self, connack: bytes, ready: int) -> None:
        assert self.session is not None
        self._accepted = True
        self._ready = ready if self.session.durable else _ENDLESS
        again = [encoding.ack(encoding.PUBREL, packet_id) for packet_id in self.session.in_flight]  # [MQTT-4.4.0-1]
        self._out[:0] = [connack, *again]
        if self.session.durable and self.session.next_sequence > ready:
            self.wake()
        self.host.touch(self.shell)

    def _keep_alive(self, asked: Connect, properties: Properties) -> None:
        seconds, most = asked.keep_alive_s, self.terms.keep_alive_s_max
        if asked.version == 5:
            if most and (not seconds or seconds > most):
                properties[prop.SERVER_KEEP_ALIVE] = seconds = most  # [MQTT-3.2.2-21]
        self.keep_alive_ms = seconds * 1500  # [MQTT-3.1.2-22]

    def _refuse_version(self, version: int) -> None:
        if version < 4:
            self._last(encoding.connack(4, False, CONNACK_3[Reason.UNSUPPORTED_PROTOCOL_VERSION]))
        else:
            self._last(encoding.connack(5, False, Reason.UNSUPPORTED_PROTOCOL_VERSION))

    def _refuse(self, reason: int, why: str) -> None:
        """Answers a CONNECT that it may not, and closes [MQTT-3.2.2-7]."""
        if self.version == 5:
            self._last(encoding.connack(5, False, reason, {prop.REASON_STRING: why} if why else None))
        elif reason in CONNACK_3:
            self._last(encoding.connack(4, False, CONNACK_3[reason]))
        else:
            self._last(b"")

    # ------------------------------------------------------------ PUBLISH and acknowledgements

    def _on_publish(self, publish: Publish) -> None:
        session, qos = self.session, publish.qos
        if session is None:
            return
        found, topic = publish.properties, publish.topic
        wall_ms = self.host.wall_ms
        forwarded: Properties | None = None
        expires_ms = 0
        if found is not None:
            if prop.SUBSCRIPTION_IDENTIFIER in found:
                raise MqttFault("a client's PUBLISH has no subscription identifier", reason=Reason.PROTOCOL_ERROR)  # [MQTT-3.3.4-6]
            topic = self._named(topic, found)
            forwarded = {id: value for id, value in found.items() if id != prop.TOPIC_ALIAS} or None
            if prop.MESSAGE_EXPIRY_INTERVAL in found:
                expires_ms = wall_ms + found[prop.MESSAGE_EXPIRY_INTERVAL] * 1000
        if qos:
            if qos == 2 and publish.packet_id in session.received:
                self.router.await_session(session)
                self._replies.append(encoding.ack(encoding.PUBREC, publish.packet_id))  # [MQTT-4.3.3-10]
                return
            if self.version == 5 and self._unacked + len(session.received) >= self.terms.receive_maximum:
                raise MqttFault("more publishes are in flight than the receive maximum allows", reason=Reason.RECEIVE_MAXIMUM_EXCEEDED)
        self.published += 1
        reason = int(Reason.SUCCESS)
        if (qos or publish.retain) and self.host.refusing():
            reason = Reason.QUOTA_EXCEEDED
            if qos and self.version == 4:
                raise MqttFault("nothing can be stored now", reason=reason)  # 3.1.1 cannot say it otherwise
        elif topic.startswith("$"):
            reason = Reason.TOPIC_NAME_INVALID  # the broker's own
        else:
            message = Message(topic, publish.payload, qos, publish.retain, forwarded, expires_ms, session.client_id)
            if not qos and not publish.retain and found is None:
                message.known_as(publish.frame, self.version)
            if publish.retain and not self.router.retain(message):
                reason = Reason.QUOTA_EXCEEDED
            elif not self.router.publish(message, wall_ms):
                reason = Reason.NO_MATCHING_SUBSCRIBERS
        if qos == 1:
            self._unacked += 1
            self._unacked_now += 1
            self._replies.append(encoding.ack(encoding.PUBACK, publish.packet_id, reason, self.version))
        elif qos == 2:
            if reason < 0x80:
                self.router.receive(session, publish.packet_id)
            self._replies.append(encoding.ack(encoding.PUBREC, publish.packet_id, reason, self.version))

    def _named(self, topic: str, found: Properties) -> str:
        """The topic that an alias stands for."""
        alias = found.get(prop.TOPIC_ALIAS)
        if alias is None:
            return topic
        if alias > self.terms.topic_alias_maximum:
            raise MqttFault(f"topic alias {alias} is above the maximum", reason=Reason.TOPIC_ALIAS_INVALID)  # [MQTT-3.3.2-9]
        if topic:
            self._aliases[alias] = topic
            return topic
        known = self._aliases.get(alias)
        if known is None:
            raise MqttFault(f"topic alias {alias} was never given a topic", reason=Reason.PROTOCOL_ERROR)
        return known

    def _on_ack(self, ack: Ack) -> None:
        session, packet_id = self.session, ack.packet_id
        if session is None:
            return
        if ack.type == Type.PUBACK:
            delivery = session.acked(packet_id)
        elif ack.type == Type.PUBCOMP:
            delivery = session.completed(packet_id)
        elif ack.type == Type.PUBREL:
            known = self.router.complete(session, packet_id)
            if not known:
                self.router.await_session(session)
            self._replies.append(encoding.ack(encoding.PUBCOMP, packet_id, 0 if known else Reason.PACKET_IDENTIFIER_NOT_FOUND, self.version))
            return
        elif ack.reason >= 0x80:
            delivery = session.refused(packet_id)  # [MQTT-4.3.3-4]: not to be released
        else:
            released = session.released(packet_id)
            if released is not None:
                self.router.released(session, released)
            reason = 0 if released is not None else Reason.PACKET_IDENTIFIER_NOT_FOUND
            self._replies.append(encoding.ack(encoding.PUBREL, packet_id, reason, self.version))
            return
        if delivery is not None:
            self._done.append(delivery.sequence)

    # ------------------------------------------------------------ SUBSCRIBE and the rest

    def _on_subscribe(self, asked: Subscribe) -> None:
        if self.session is None:
            return
        identifier = asked.properties.get(prop.SUBSCRIPTION_IDENTIFIER, [0])[0]
        reasons: list[int] = []
        for f in asked.filters:
            group, path = split_shared(f.filter)
            fault = filter_fault(path) if path or not group else "a shared subscription has a group and a filter"
            if fault:
                raise MqttFault(fault, reason=Reason.MALFORMED_PACKET)
            if group and f.no_local:
                raise MqttFault("a shared subscription with no local", reason=Reason.PROTOCOL_ERROR)  # [MQTT-3.8.3-4]
            if any(f.filter == refused or matches(refused, path) for refused in self.terms.refused_filters):
                reasons.append(Reason.UNSPECIFIED_ERROR)
                continue
            if path.startswith(_OWN_TOPICS):
                reasons.append(Reason.TOPIC_FILTER_INVALID)
                continue
            subscription = Subscription(f.filter, path, group, f.qos, f.no_local, f.retain_as_published, identifier)
            existed = self.router.subscribe(self.session, subscription)
            if existed is None:
                reasons.append(Reason.QUOTA_EXCEEDED)
                continue
            reasons.append(f.qos)
            if f.retain_handling == 0 or (f.retain_handling == 1 and not existed):
                self._retained.append(subscription)  # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        self._replies.append(encoding.suback(self.version, asked.packet_id, reasons))

    def _on_unsubscribe(self, asked: Unsubscribe) -> None:
        if self.session is None:
            return
        reasons = [0 if self.router.unsubscribe(self.session, f) else int(Reason.NO_SUBSCRIPTION_EXISTED) for f in asked.filters]
        self._replies.append(encoding.unsuback(self.version, asked.packet_id, reasons))

    def _on_ping(self, _: Pingreq) -> None:
        self._out.append(encoding.PINGRESP)  # [MQTT-3.12.4-1]
        self.host.touch(self.shell)

    def _on_auth(self, _: Auth) -> None:
        raise MqttFault("AUTH without an authentication method in CONNECT", reason=Reason.PROTOCOL_ERROR)  # [MQTT-4.12.0-6]

    def _on_disconnect(self, said: Disconnect) -> None:
        expiry_s = said.properties.get(prop.SESSION_EXPIRY_INTERVAL)
        if said.reason not in ALLOWED_BY_CLIENT or prop.SERVER_REFERENCE in said.properties:
            raise MqttFault("a client's DISCONNECT has no such reason or property", reason=Reason.PROTOCOL_ERROR)
        if expiry_s and not self._expiry_s:
            raise MqttFault("a session without expiry is given one by DISCONNECT", reason=Reason.PROTOCOL_ERROR)
        self._end_read()
        self.lost(with_will=said.reason != 0, expiry_s=expiry_s)  # [MQTT-3.14.4-3]
        self._last(b"")

    # ------------------------------------------------------------ deliveries (``router.Outlet``)

    def send(self, message: Message, retain: bool, ids: tuple[int, ...]) -> None:
        """A message of QoS 0, now or never."""
        if self.blocked or self._out_bytes > self.terms.write_bytes_high:
            self.dropped += 1
            return
        if self._alias_max:
            frame = self._aliased(message, 0, retain, False, ids, 0)
        else:
            frame = message.frame(self.version, retain, ids, self.host.wall_ms)
        if self._packet_bytes_max and len(frame) > self._packet_bytes_max:
            self.dropped += 1  # [MQTT-3.1.2-24]
            return
        self.delivered += 1
        if not self._out:
            self.host.touch(self.shell)
        self._out.append(frame)
        self._out_bytes += len(frame)

    def wake(self) -> None:
        """There is something in the session's inbox; it is sent once it is durable (C3)."""
        session = self.session
        if session is None or not session.durable:
            self.host.touch(self.shell)
            return
        if self._waking or not self._accepted:
            return
        self._waking = True
        bound = session.next_sequence

        def durable() -> None:
            self._waking = False
            if self.session is session:
                self._ready = bound
                if session.next_sequence > bound:
                    self.wake()
                self.host.touch(self.shell)

        self.host.committed(durable)

    def replaced(self) -> None:
        """Another connection has the session: its own books are closed already."""
        self.session = None
        self._last(encoding.disconnect(5, Reason.SESSION_TAKEN_OVER) if self.version == 5 and self._accepted else b"")
        self.host.touch(self.shell)

    def _aliased(self, message: Message, qos: int, retain: bool, dup: bool, ids: tuple[int, ...], packet_id: int) -> bytes:
        """A PUBLISH with an alias, while there are aliases."""
        aliases = self._aliases_out
        alias = aliases.get(message.topic, 0)
        named = not alias
        if named and len(aliases) < self._alias_max:
            alias = len(aliases) + 1
        if not alias:
            head, tail = message.parts(self.version, qos, retain, dup, ids, self.host.wall_ms) if qos else (b"", b"")
            return head + packet_id.to_bytes(2, "big") + tail if qos else message.frame(self.version, retain, ids, self.host.wall_ms)
        frame = message.aliased(self.version, qos, retain, dup, ids, self.host.wall_ms, alias, named, packet_id)
        if not self._packet_bytes_max or len(frame) <= self._packet_bytes_max:
            aliases[message.topic] = alias  # it will be sent, so the client knows it
        return frame

    def _pump(self) -> None:
        session = self.session
        if session is None or not self._accepted or self.blocked:
            return
        wall_ms, version, most = self.host.wall_ms, self.version, self._packet_bytes_max
        gone: list[int] = []
        while self._out_bytes <= self.terms.write_bytes_high:
            due, expired = session.take(wall_ms, PUMP_COUNT, self._ready)
            gone.extend(d.sequence for d in expired)
            for delivery in due:
                message, packet_id = delivery.message, delivery.packet_id
                if self._alias_max:
                    frame = self._aliased(message, delivery.qos, delivery.retain, delivery.sent, delivery.ids, packet_id)
                else:
                    head, tail = message.parts(version, delivery.qos, delivery.retain, delivery.sent, delivery.ids, wall_ms)
                    frame = head + packet_id.to_bytes(2, "big") + tail
                if most and len(frame) > most:
                    self.dropped += 1
                    session.remove(delivery.sequence)  # [MQTT-3.1.2-25]
                    gone.append(delivery.sequence)
                    continue
                delivery.sent = True
                self._out.append(frame)
                self._out_bytes += len(frame)
                self.delivered += 1
            if not due:
                break
        if gone:
            self.router.done(session, gone)

    # ------------------------------------------------------------ out

    def output(self) -> list[bytes]:
        """What is to be written now, deliveries included."""
        self._pump()
        if not self._accepted and not self.closed:
            return []
        out, self._out = self._out, []
        self._out_bytes = 0
        return out

    @property
    def more(self) -> bool:
        """Whether deliveries wait that could be sent if there were room."""
        session = self.session
        return session is not None and bool(session.inbox) and len(session.in_flight) < session.receive_maximum

    # ------------------------------------------------------------ the end

    def fail(self, reason: int, why: str = "", reference: str = "") -> None:
        """Ends the connection for that reason; its will is published."""
        if self.closed:
            return
        accepted, version = self._accepted, self.version
        self.lost()
        if version == 5:
            properties: Properties = {}
            if reference:
                properties[prop.SERVER_REFERENCE] = reference
            if why and self._problems:
                properties[prop.REASON_STRING] = why
            if reason not in ALLOWED[Type.DISCONNECT if accepted else Type.CONNACK]:
                reason = Reason.UNSPECIFIED_ERROR
            packet = encoding.disconnect(5, reason, properties) if accepted else encoding.connack(5, False, reason, properties)
            if self._packet_bytes_max and len(packet) > self._packet_bytes_max:
                packet = encoding.disconnect(5, reason) if accepted else encoding.connack(5, False, reason)  # [MQTT-3.14.2-3] [MQTT-3.2.2-19]
            self._last(packet)
        elif version == 0 and reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            self._last(encoding.connack(4, False, 1))
        else:
            self._last(b"")
        self.host.touch(self.shell)

    def lost(self, *, with_will: bool = True, expiry_s: int | None = None) -> None:
        """The connection is gone, or about to go; safe to call again."""
        session, self.session = self.session, None
        if session is not None:
            self.router.disconnected(session, with_will=with_will, wall_ms=self.host.wall_ms, expiry_s=expiry_s)
            self.host.committed(_nothing)

    def _last(self, packet: bytes) -> None:
        self.closed = True
        if not self._accepted:
            self._out.clear()
        if packet:
            self._out.append(packet)
        self.host.touch(self.shell)


def _nothing() -> None:
    pass


def _stored_will(asked: Connect, client_id: str) -> StoredWill:
    assert asked.will is not None
    will = asked.will
    forwarded = {id: value for id, value in will.properties.items() if id != prop.WILL_DELAY_INTERVAL} or None
    kept = Stored(will.topic, will.payload, will.qos, will.retain, forwarded, 0, client_id)
    return StoredWill(kept, will.properties.get(prop.WILL_DELAY_INTERVAL, 0), will.properties.get(prop.MESSAGE_EXPIRY_INTERVAL, 0))

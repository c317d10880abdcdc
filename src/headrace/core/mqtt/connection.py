"""One MQTT connection: bytes in, and what has to be decided about them. Both versions; the first packet says which.

Owns what each packet of a client does, topic aliases of the client, and how the connection ends. What is granted to a CONNECT is ``opening``'s,
when an acknowledgement goes out ``answers``', what goes out ``sending``'s; what a publish or a subscription does is the router's; when something is
durable the host says. Does no I/O and reads no clock.

Invariants, beside C1 to C3 and C5 of those: nothing is sent after DISCONNECT [MQTT-3.14.4-2]. C4 hostile input ends the connection with the reason
the specification names, and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from headrace.core.mqtt.answers import Answer, Answers, puback_reason
from headrace.core.mqtt.capture import addressed, is_native
from headrace.core.mqtt.captured import Capture
from headrace.core.mqtt.granted import Granted, Refusal
from headrace.core.mqtt.host import Host
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.natives import Natives
from headrace.core.mqtt.once import Once
from headrace.core.mqtt.opening import grant
from headrace.core.mqtt.sending import Sending
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.subscription import Subscription
from headrace.core.mqtt.terms import Terms
from headrace.core.mqtt.topics import filter_fault, matches, split_shared
from headrace.model.errors import HeadraceError, MqttFault, UnknownOutcome
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Ack, Auth, Connect, Disconnect, Pingreq, Subscribe, Unsubscribe
from headrace.wire.mqtt.parser import Parser
from headrace.wire.mqtt.properties import Properties
from headrace.wire.mqtt.publish import Publish
from headrace.wire.mqtt.reasons import ALLOWED, ALLOWED_BY_CLIENT, CONNACK_3, Reason, Type

_NO_MATCHING_SUBSCRIBERS: Final = 0x10
_PUBACK: Final = 4
_PUBREL: Final = 6
_PUBCOMP: Final = 7
_SHORT_PUBACK: Final = b"\x40\x02"
_UNASKED: Final = -1
"""Of the reasons and types those that are asked about for each message: a member of an enumeration is looked up each time."""


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
        self.keep_alive_ms = 0
        self.published = 0
        self.sending = Sending(host, terms.write_bytes_high, shell, self.replaced)
        self.answers = Answers(self._answer, self.unsure)
        self._natives: Natives | None = None
        self.astray: Callable[[], None] | None = None
        """Called when the session is another broker's and the connection goes on there; None: it ends."""
        self.again = False
        """What is fed another broker had already, and did not answer."""
        self._place = 0
        self._done: list[int] = []
        self._aliases: dict[int, str] = {}
        self._problems = True
        self._expiry_s = 0
        self._carried: dict[int, None] = {}
        """Packet identifiers of QoS 2 that an earlier connection has left: they do not count for the receive maximum of this one."""
        self._wall_ms = 0
        """The wall clock of this read."""
        self._refusing = _UNASKED
        """Whether nothing can be stored in this read."""

    # ------------------------------------------------------------ in

    def feed(self, data: bytes) -> None:
        """Takes what was read."""
        if self._ended():
            return
        parser = self.parser
        self._place += len(data)
        self._wall_ms = self.host.wall_ms
        self._refusing = _UNASKED
        try:
            for packet in parser.feed(data):
                if type(packet) is Publish:
                    self._on_publish(packet)
                elif self.version == 0:
                    self._on_connect(packet)
                elif type(packet) is Ack:
                    self._on_ack(packet)
                else:
                    handler = _HANDLERS.get(type(packet))
                    if handler is None:
                        raise MqttFault(f"a client sends no {type(packet).__name__.upper()}", reason=Reason.PROTOCOL_ERROR)
                    handler(self, packet)
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
            if self.sending.more:
                self.host.touch(self.shell)
        self.answers.end_read(self.host.committed, self._place - self.parser.buffered if self.astray is not None else 0)

    def _answer(self, answer: Answer) -> None:
        """Sends what is durable now."""
        session = self.session
        if session is not None:
            bound = self.sending.packet_bytes_max
            if not bound:
                self.sending.out.extend(answer.replies)
            else:  # [MQTT-3.1.2-24]; PUBACKs without a reason are four bytes each, and CONNACK has more
                self.sending.out.extend([reply for reply in answer.replies if len(reply) <= bound or reply.startswith(_SHORT_PUBACK)])
            for subscription in answer.retained:
                if session.subscriptions.get(subscription.filter) is subscription:
                    self.router.send_retained(session, subscription, self.host.wall_ms)
        self.host.touch(self.shell)

    def unsure(self) -> None:
        """Whether what was asked for is durable nobody will know: it is not acknowledged."""
        if self.movable:
            self.leave()
            self._astray()  # what is not acknowledged is taken again
            return
        self.fail(Reason.SERVER_BUSY, "a session partition has just moved to another broker")

    # ------------------------------------------------------------ CONNECT

    def _on_connect(self, asked: Connect) -> None:
        self.version = self.sending.version = asked.version
        if asked.version not in (4, 5):
            self._refuse_version(asked.version)
            return
        self.sending.packet_bytes_max = asked.properties.get(prop.MAXIMUM_PACKET_SIZE, 0)
        granted = grant(asked, self.host, self.terms)
        if isinstance(granted, Refusal):
            self._refuse(granted.reason, granted.why)
            return
        if not self.router.serves(granted.client_id):
            self._refuse(Reason.SERVER_UNAVAILABLE, "nobody serves the partition of this client's session now")
            return
        sending, properties = self.sending, granted.properties
        session, present = self.router.connect(
            granted.client_id,
            sending,
            clean=asked.clean_start,
            expiry_s=granted.expiry_s,
            will=granted.will,
            receive_maximum=granted.receive_maximum,
            wall_ms=self.host.wall_ms,
        )
        self.go_on(session, granted, {})
        if session.expiry_s != granted.expiry_s and asked.version == 5:
            properties[prop.SESSION_EXPIRY_INTERVAL] = session.expiry_s
        connack = encoding.connack(asked.version, present, Reason.SUCCESS, properties)
        ready = session.next_sequence

        def durable() -> None:
            if self.session is session:
                again = [encoding.ack(encoding.PUBREL, packet_id) for packet_id in session.in_flight]  # [MQTT-4.4.0-1]
                sending.begin([connack, *again], ready)
                if present:
                    self.natives.resume(session)

        self.host.committed(durable)

    def go_on(self, session: Session, granted: Granted, aliases: dict[int, str]) -> None:
        """It has a session."""
        self.client_id = granted.client_id
        self.keep_alive_ms = granted.keep_alive_ms
        self._expiry_s, self._problems = granted.expiry_s, granted.problems
        self.sending.alias_max = granted.alias_max
        self.session = self.sending.session = session
        if session.received or session.receiving or session.intents:
            self._carried = dict.fromkeys([*session.received, *session.receiving, *session.intents])
        self._aliases.update(aliases)

    def from_place(self, place: int) -> None:
        """What is fed next of the client begins there."""
        self._place = self.answers.heard = place

    def _refuse_version(self, version: int) -> None:
        if version < 4:
            self._last(encoding.connack(4, False, CONNACK_3[Reason.UNSUPPORTED_PROTOCOL_VERSION]))
        else:
            self._last(encoding.connack(5, False, Reason.UNSUPPORTED_PROTOCOL_VERSION))

    def _refuse(self, reason: int, why: str) -> None:
        """Answers a CONNECT that it may not, and closes [MQTT-3.2.2-7]."""
        if self.version == 5:
            self._last(self._farewell(reason, {prop.REASON_STRING: why} if why else {}))
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
        wall_ms = self._wall_ms
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
            if qos == 2 and publish.packet_id in session.receiving:
                session.receiving[publish.packet_id].append(self._awaiting(publish.packet_id))
                return
            if qos == 2 and publish.packet_id in session.received:
                self.router.await_session(session)
                self.answers.reply(encoding.ack(encoding.PUBREC, publish.packet_id))  # [MQTT-4.3.3-10]
                return
            under_way = self.answers.unacked + len(session.received) + len(session.receiving) - len(self._carried)
            if self.version == 5 and under_way >= self.terms.receive_maximum:
                raise MqttFault("more publishes are in flight than the receive maximum allows", reason=Reason.RECEIVE_MAXIMUM_EXCEEDED)
        elif self.again:
            return  # at most once
        self.published += 1
        reason = 0
        if (qos or publish.retain) and self._refuses():
            reason = Reason.QUOTA_EXCEEDED
            if qos and self.version == 4:
                raise MqttFault("nothing can be stored now", reason=reason)  # 3.1.1 cannot say it otherwise
        elif topic.startswith("$") and addressed(topic) is None:
            reason = Reason.TOPIC_NAME_INVALID  # the broker's own
        elif topic.startswith("$queue/") and (target := addressed(topic)) is not None and target.settles >= 0:
            self._capture(session, publish, None, target)
            return
        elif (session.once is not None and session.once.waiting) or (qos == 2 and self.router.intends(session)):
            message = Message(topic, publish.payload, qos, publish.retain, forwarded, expires_ms, session.client_id)
            if session.once is None:
                session.once = Once(session)
            session.once.take(self, message, publish.packet_id)
            return
        elif not publish.retain and self.router.unheard(topic):
            reason = _NO_MATCHING_SUBSCRIBERS
        elif qos and self.router.awaits(topic, publish.retain):
            self._capture(session, publish, Message(topic, publish.payload, qos, publish.retain, forwarded, expires_ms, session.client_id))
            return
        else:
            message = Message(topic, publish.payload, qos, publish.retain, forwarded, expires_ms, session.client_id)
            if not qos and not publish.retain and found is None:
                message.known_as(publish.frame, self.version)
            if publish.retain and not is_native(topic) and self.router.retain(message) is not None:
                reason = Reason.QUOTA_EXCEEDED
            elif not self.router.publish(message, wall_ms):
                reason = _NO_MATCHING_SUBSCRIBERS
        if qos == 1 and (reason == 0 or self.version == 4):
            self.answers.acknowledge(publish.packet_id)
        elif qos == 1:
            self.answers.acknowledge_with(encoding.ack(encoding.PUBACK, publish.packet_id, reason, self.version))
        elif qos == 2:
            if reason < 0x80:
                self.router.receive(session, publish.packet_id)
            self.answers.reply(encoding.ack(encoding.PUBREC, publish.packet_id, reason, self.version))

    def _refuses(self) -> bool:
        if self._refusing == _UNASKED:
            self._refusing = 1 if self.host.refusing() else 0
        return self._refusing == 1

    def _capture(self, session: Session, publish: Publish, message: Message | None, target: Capture | None = None) -> None:
        """A publish of QoS 1 or 2 that queues or streams get, or (``target``) of any QoS that settles what one has delivered: acknowledged once
        that is durable, too."""
        version, qos, packet_id, router = self.version, publish.qos, publish.packet_id, self.router
        if not qos:
            assert target is not None
            self.natives.settle(target.name, target.settles, publish, _whatever)
            return
        known = self.answers.later(counts=qos == 1)
        kind = encoding.PUBACK if qos == 1 else encoding.PUBREC
        after = qos == 2 and message is not None and router.spreads(message.topic, message.retain)
        if after:  # what a crash keeps of it here must not be more than what other brokers have
            session.receiving[packet_id] = []
        elif qos == 2:
            router.receive(session, packet_id)

        def stored(error: HeadraceError | None) -> None:
            if after:
                waiting = session.receiving.pop(packet_id)
                if error is None and router.holds(session):
                    router.receive(session, packet_id)
                    waiting.append(lambda _: known(encoding.ack(kind, packet_id, 0, version)))
                    self.host.committed(lambda: _tell(waiting), self.unsure)
                    return
                for again in waiting:
                    again(error or UnknownOutcome("its session has moved"))
            if error is not None and (version == 4 or not error.definite):
                if session.once is not None:
                    session.once.give_up(error)
                self.fail(error.mqtt, str(error))  # 3.1.1 cannot say it otherwise; what nobody knows is not said
                return
            reason = puback_reason(error)
            if error is not None and qos == 2 and not after and self.session is session:
                self.router.complete(session, packet_id)
            known(encoding.ack(kind, packet_id, reason, version))

        if message is None:
            assert target is not None
            self.natives.settle(target.name, target.settles, publish, stored)
            return
        refused = self.router.retain(message) if publish.retain and not is_native(message.topic) else None
        if refused is not None:
            stored(refused)
            return
        self.router.publish(message, self.host.wall_ms, stored)

    def _awaiting(self, packet_id: int) -> Callable[[HeadraceError | None], None]:
        """The same QoS 2 publish has come before, on another connection of the session, and other brokers do not have it yet."""
        known = self.answers.later()

        def resolved(error: HeadraceError | None) -> None:
            if error is None or (self.version == 5 and error.definite):
                known(encoding.ack(encoding.PUBREC, packet_id, puback_reason(error), self.version))
            else:
                self.fail(Reason.SERVER_BUSY, str(error))

        return resolved

    def _named(self, topic: str, found: Properties) -> str:
        """The topic that an alias stands for."""
        alias = found.get(prop.TOPIC_ALIAS)
        if alias is None:
            return topic
        if alias > self.terms.topic_alias_maximum:
            raise MqttFault(f"topic alias {alias} is above the maximum", reason=Reason.TOPIC_ALIAS_INVALID)  # [MQTT-3.3.2-9]
        if topic:
            self._aliases[alias] = topic
            if self.astray is not None:
                self.answers.aliased(alias, topic)
            return topic
        known = self._aliases.get(alias)
        if known is None:
            raise MqttFault(f"topic alias {alias} was never given a topic", reason=Reason.PROTOCOL_ERROR)
        return known

    def _on_ack(self, ack: Ack) -> None:
        session, packet_id = self.session, ack.packet_id
        if session is None:
            return
        if ack.type == _PUBACK:
            if session.lent and self.natives.acked(session, packet_id, ack.reason):
                return
            delivery = session.acked(packet_id)
        elif ack.type == _PUBCOMP:
            delivery = session.completed(packet_id)
        elif ack.type == _PUBREL:
            known = self.router.complete(session, packet_id)
            self._carried.pop(packet_id, None)
            if not known:
                self.router.await_session(session)
            self.answers.reply(encoding.ack(encoding.PUBCOMP, packet_id, 0 if known else Reason.PACKET_IDENTIFIER_NOT_FOUND, self.version))
            return
        elif ack.reason >= 0x80:
            delivery = session.refused(packet_id)  # [MQTT-4.3.3-4]: not to be released
        else:
            released = session.released(packet_id)
            if released is not None:
                self.router.released(session, released)
            reason = 0 if released is not None else Reason.PACKET_IDENTIFIER_NOT_FOUND
            self.answers.reply(encoding.ack(encoding.PUBREL, packet_id, reason, self.version))
            return
        if delivery is not None:
            self._done.append(delivery.sequence)

    # ------------------------------------------------------------ SUBSCRIBE and the rest

    def _on_subscribe(self, asked: Subscribe) -> None:
        if self.session is None:
            return
        identifier = asked.properties.get(prop.SUBSCRIPTION_IDENTIFIER, [0])[0]
        reasons: list[int] = []
        opening: dict[int, Subscription] = {}
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
            native = is_native(path)
            subscription = Subscription(f.filter, path, group, f.qos, f.no_local, f.retain_as_published, identifier)
            if native:
                own = self.natives.subscription(path, f.qos, identifier, asked) if not group else None
                if own is None:
                    reasons.append(Reason.TOPIC_FILTER_INVALID)
                    continue
                subscription = own
            existed = self.router.subscribe(self.session, subscription)
            if existed is None:
                reasons.append(Reason.QUOTA_EXCEEDED)
                continue
            reasons.append(subscription.qos)
            if native:
                opening[len(reasons) - 1] = subscription
            elif f.retain_handling == 0 or (f.retain_handling == 1 and (self.again or not existed)):
                self.answers.retained(subscription)  # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        if opening:
            self.natives.subscribed(asked, reasons, opening)
        else:
            known = self.answers.later()
            self.host.announced(lambda: known(encoding.suback(self.version, asked.packet_id, reasons)))

    def _on_unsubscribe(self, asked: Unsubscribe) -> None:
        if self.session is None:
            return
        reasons = [0 if self.router.unsubscribe(self.session, f) else int(Reason.NO_SUBSCRIPTION_EXISTED) for f in asked.filters]
        if self._natives is not None:
            for f in asked.filters:
                self._natives.unsubscribed(f)
        self.answers.reply(encoding.unsuback(self.version, asked.packet_id, reasons))

    def _on_ping(self, _: Pingreq) -> None:
        self.sending.put(encoding.PINGRESP)  # [MQTT-3.12.4-1]

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

    def replaced(self, reason: int) -> None:
        """Another connection has the session, or (0) another broker."""
        if not reason and self.movable:
            self.session = None
            self._astray()
            return
        reason = reason or Reason.SERVER_BUSY
        self.session = None
        self._natives_lost()
        self._last(encoding.disconnect(5, reason) if self.version == 5 and self.sending.accepted else b"")

    @property
    def movable(self) -> bool:
        """Whether it goes on where its session goes."""
        session = self.session
        kept = session is not None and session.durable and self.sending.accepted
        return self.astray is not None and kept and (self._natives is None or not self._natives.used)

    def leave(self) -> None:
        """The connection goes on elsewhere, or its session's next one comes soon."""
        session, self.session, self.sending.session = self.session, None, None
        if session is not None:
            self._natives_lost()
            self.router.let_go(session, self.host.wall_ms)
            self.host.committed(_nothing)
        self.closed = True

    def _astray(self) -> None:
        assert self.astray is not None
        self.closed = True
        self.astray()

    # ------------------------------------------------------------ out

    def output(self) -> list[bytes]:
        """What is to be written now, deliveries included."""
        if not self.sending.accepted and not self.closed:
            return []
        return self.sending.output()

    # ------------------------------------------------------------ the end

    def fail(self, reason: int, why: str = "", reference: str = "") -> None:
        """Ends the connection for that reason; its will is published, if the broker goes away only after the client had the time to come back."""
        if self.closed:
            return
        accepted, version = self.sending.accepted, self.version
        self.lost(back_ms=self.terms.back_ms if reason == Reason.SERVER_SHUTTING_DOWN else 0)
        if version == 5:
            properties: Properties = {}
            if reference:
                properties[prop.SERVER_REFERENCE] = reference
            if why and self._problems:
                properties[prop.REASON_STRING] = why
            if reason not in ALLOWED[Type.DISCONNECT if accepted else Type.CONNACK]:
                reason = Reason.UNSPECIFIED_ERROR
            self._last(self._farewell(reason, properties))
        elif version == 0 and reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            self._last(encoding.connack(4, False, 1))
        else:
            self._last(b"")
        self.host.touch(self.shell)

    def _farewell(self, reason: int, properties: Properties) -> bytes:
        """The last packet to a client of 5.0, without properties where they are too much for it [MQTT-3.14.2-3] [MQTT-3.2.2-19]."""
        bound = self.sending.packet_bytes_max
        for said in (properties, Properties()):
            packet = encoding.disconnect(5, reason, said) if self.sending.accepted else encoding.connack(5, False, reason, said)
            if not bound or len(packet) <= bound:
                return packet
        return b""

    def lost(self, *, with_will: bool = True, expiry_s: int | None = None, back_ms: int = 0) -> None:
        """The connection is gone, or about to go; safe to call again."""
        session, self.session = self.session, None
        self.sending.session = None
        self._natives_lost()
        if session is not None:
            self.router.disconnected(session, with_will=with_will, wall_ms=self.host.wall_ms, expiry_s=expiry_s, back_ms=back_ms)
            self.host.committed(_nothing)

    def over(self, nobody: Any) -> None:
        """It is closed, and nobody reads ``output`` any more. What refers to itself is let go, so that no collection of garbage has to find it;
        ``nobody`` is what the host is told of where it was told ``shell``."""
        self.lost()
        self.closed = True
        self.shell = nobody
        self.astray = None
        self.sending.over(nobody)
        self.answers.over()

    @property
    def natives(self) -> Natives:
        """Made when it is needed first: most connections have nothing to do with queues and streams."""
        if self._natives is None:
            self._natives = Natives(self)
        return self._natives

    def _natives_lost(self) -> None:
        if self._natives is not None:
            self._natives.lost()
            self._natives = None

    def _last(self, packet: bytes) -> None:
        self.closed = True
        self.sending.last(packet)


_HANDLERS: Final[dict[type[Any], Callable[[Connection, Any], None]]] = {
    Subscribe: Connection._on_subscribe,
    Unsubscribe: Connection._on_unsubscribe,
    Pingreq: Connection._on_ping,
    Disconnect: Connection._on_disconnect,
    Auth: Connection._on_auth,
}
"""What a client says beside CONNECT, PUBLISH and acknowledgements."""


def _nothing() -> None:
    pass


def _tell(waiting: list[Callable[[HeadraceError | None], None]]) -> None:
    for resolved in waiting:
        resolved(None)


def _whatever(error: HeadraceError | None) -> None:
    """QoS 0: nobody is told."""

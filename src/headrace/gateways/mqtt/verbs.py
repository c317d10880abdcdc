"""What operators ask about MQTT: sessions, subscriptions, retained messages; kicking a client, publishing.

Owns nothing: it reads the router's books and changes them as a client's packet would. What changes something is answered once that is durable.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.core.mqtt.capture import addressed, is_native
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.topics import filter_fault, name_fault, text_fault
from headrace.model.config import glob_matches
from headrace.model.errors import HeadraceError, Invalid, NotFound, Unavailable
from headrace.wire import control
from headrace.wire.control import mqtt as asked
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.properties import Properties
from headrace.wire.mqtt.reasons import Reason

if TYPE_CHECKING:
    from headrace.gateways.mqtt.hub import Hub

LIMIT_MAX = 10_000
T = TypeVar("T")


class MqttVerbs:
    """See the module's head."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def handlers(self) -> dict[type, Callable[[Any], Awaitable[control.Reply]]]:
        return {
            asked.MqttSessions: self._sessions,
            asked.MqttSubscriptions: self._subscriptions,
            asked.MqttRetained: self._retained,
            asked.MqttClear: self._clear,
            asked.MqttKick: self._kick,
            asked.MqttPublish: self._publish,
        }

    # ------------------------------------------------------------ looking

    async def _sessions(self, r: asked.MqttSessions) -> control.Reply:
        found = (s for s in self._all(r.pattern) if s.client_id > r.after)
        page, more = _page(found, r.limit, lambda s: s.client_id)
        return asked.MqttSessionList(items=tuple(self._row(s) for s in page), more=more)

    async def _subscriptions(self, r: asked.MqttSubscriptions) -> control.Reply:
        after = (r.after_client_id, r.after_filter)
        found = (
            (session.client_id, subscription)
            for session in self._all(r.pattern)
            if session.client_id >= r.after_client_id
            for subscription in session.subscriptions.values()
            if (session.client_id, subscription.filter) > after and glob_matches(r.filter, subscription.filter)
        )
        page, more = _page(found, r.limit, lambda row: (row[0], row[1].filter))
        rows = [
            asked.MqttSubscription(
                client_id=client_id,
                filter=s.filter,
                qos=s.qos,
                no_local=s.no_local,
                retain_as_published=s.retain_as_published,
                identifier=s.identifier,
            )
            for client_id, s in page
        ]
        return asked.MqttSubscriptionList(items=tuple(rows), more=more)

    async def _retained(self, r: asked.MqttRetained) -> control.Reply:
        found = (m for m in self._matching(r.filter) if m.topic > r.after)
        page, more = _page(found, r.limit, lambda m: m.topic)
        return asked.MqttRetainedList(items=tuple(_shown(m, max(0, r.payload_bytes_max)) for m in page), more=more)

    def _all(self, pattern: str) -> Iterable[Session]:
        for partition in self.hub.partitions.values():
            for session in partition.shard.sessions.values():
                if glob_matches(pattern, session.client_id):
                    yield session

    def _matching(self, filter: str) -> list[Message]:
        fault = filter_fault(filter)
        if fault:
            raise Invalid(fault, hint="an MQTT topic filter, for instance sensors/+/temperature or #")
        wall_ms = self.hub.wall_ms
        return [m for m in self.hub.router.retained.match(filter) if not m.expired(wall_ms)]

    def _row(self, session: Session) -> asked.MqttSession:
        shell = session.outlet.shell if session.outlet is not None else None
        return asked.MqttSession(
            client_id=session.client_id,
            connected=shell is not None,
            peer=shell.peer if shell is not None else "",
            version="" if shell is None else "5.0" if shell.machine.version == 5 else "3.1.1",
            expiry_s=session.expiry_s,
            away_ms=min(session.away_ms, self.hub.wall_ms) if shell is None else 0,
            expires_ms=session.expires_ms(),
            subscriptions=len(session.subscriptions),
            waiting=len(session.inbox),
            waiting_bytes=session.inbox_bytes,
            in_flight=len(session.in_flight),
            dropped=session.dropped,
            will=session.client_id in self.hub.router.shard(session.client_id).wills,
        )

    # ------------------------------------------------------------ changing

    async def _clear(self, r: asked.MqttClear) -> control.Reply:
        found = self._matching(r.filter)
        self._may_store()
        for message in found:
            self.hub.router.retain(Message(message.topic, b"", 0, True))
        await self._durable()
        return control.Done(count=len(found))

    async def _kick(self, r: asked.MqttKick) -> control.Reply:
        router = self.hub.router
        session = router.shard(r.client_id).sessions.get(r.client_id)
        if session is None:
            raise NotFound(f"no MQTT client {r.client_id!r} has a session here", hint="`headrace mqtt sessions list` shows those that have")
        if session.outlet is None and not r.forget:
            raise NotFound(f"MQTT client {r.client_id!r} is not connected", hint="with --forget its session ends")
        if session.outlet is not None:
            session.outlet.shell.machine.fail(Reason.ADMINISTRATIVE_ACTION, "an operator ended this connection")
        if r.forget and router.shard(r.client_id).sessions.get(r.client_id) is session:
            router.end(session, self.hub.wall_ms)
        await self._durable()
        return control.Done(count=1)

    async def _publish(self, r: asked.MqttPublish) -> control.Reply:
        own = r.topic.startswith("$") and addressed(r.topic) is None
        fault = name_fault(r.topic) or ("topics that begin with $ are the broker's own" if own else "")
        if fault:
            raise Invalid(fault, hint="an MQTT topic name has no wildcards")
        if not 0 <= r.qos <= 2 or not 0 <= r.expiry_s < 1 << 32:
            raise Invalid("qos is 0, 1 or 2, and expiry_s an unsigned 32-bit number")
        texts = (r.content_type, *(text for pair in r.user_properties for text in pair))
        fault = next(filter(None, map(text_fault, texts)), "")
        if fault:
            raise Invalid(fault)
        self._may_store()
        properties = Properties()
        if r.content_type:
            properties[prop.CONTENT_TYPE] = r.content_type
        if r.user_properties:
            properties[prop.USER_PROPERTY] = [(name, value) for name, value in r.user_properties]
        wall_ms = self.hub.wall_ms
        message = Message(r.topic, r.payload, r.qos, r.retain, properties or None, wall_ms + r.expiry_s * 1000 if r.expiry_s else 0)
        refused = self.hub.router.retain(message) if r.retain and not is_native(r.topic) else None
        if refused is not None:
            raise refused
        kept: asyncio.Future[HeadraceError | None] = self.hub.broker.loop.create_future()
        awaited = self.hub.router.awaits(r.topic, r.retain)
        count = self.hub.router.publish(message, wall_ms, lambda why: None if kept.done() else kept.set_result(why))
        await self._durable()
        if awaited and (error := await kept) is not None:
            raise error
        return control.Done(count=count)

    def _may_store(self) -> None:
        if self.hub.refusing():
            raise Unavailable("nothing can be stored now: the disk is nearly full, the log has failed, or the broker is going away")

    async def _durable(self) -> None:
        done: asyncio.Future[None] = self.hub.broker.loop.create_future()
        self.hub.committed(lambda: None if done.done() else done.set_result(None))
        await done


def _page(found: Iterable[T], limit: int, key: Callable[[T], Any]) -> tuple[list[T], bool]:
    """The first of them in their order, and whether there are more."""
    count = min(max(1, limit), LIMIT_MAX)
    page = heapq.nsmallest(count + 1, found, key=key)
    return page[:count], len(page) > count


def _shown(message: Message, payload_bytes_max: int) -> asked.MqttRetainedMessage:
    found = message.properties or {}
    return asked.MqttRetainedMessage(
        topic=message.topic,
        payload=message.payload[:payload_bytes_max],
        payload_bytes=len(message.payload),
        qos=message.qos,
        publisher=message.publisher,
        expires_ms=message.expires_ms,
        content_type=found.get(prop.CONTENT_TYPE, ""),
        response_topic=found.get(prop.RESPONSE_TOPIC, ""),
        user_properties=tuple((name, value) for name, value in found.get(prop.USER_PROPERTY, ())),
    )

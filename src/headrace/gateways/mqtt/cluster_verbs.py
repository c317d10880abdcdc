"""What operators ask about MQTT in a cluster: asked of every broker, each about the session partitions that it serves.

Owns nothing. A list is whole or is refused: a broker that does not answer is named. What is about one client goes to the owner of its session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from headrace.gateways.mqtt.cluster import ClusterHub
from headrace.gateways.mqtt.verbs import LIMIT_MAX, MqttVerbs
from headrace.model.cluster import BrokerId
from headrace.model.errors import HeadraceError, Malformed, Unavailable
from headrace.wire import control
from headrace.wire.control import mqtt as asked
from headrace.wire.peer import Service

if TYPE_CHECKING:
    from headrace.gateways.mqtt.hub import Hub

ASK_MS = 5_000
T = TypeVar("T")
Handlers = dict[type, Callable[[Any], Awaitable[control.Reply]]]


class ClusterVerbs:
    """See the module's head. Answers other brokers from when it is made."""

    def __init__(self, hub: Hub) -> None:
        assert isinstance(hub, ClusterHub)
        self.hub = hub
        self.cluster = hub.cluster
        self._local: Handlers = MqttVerbs(hub).handlers()
        self.cluster.transport.on_request(Service.MQTT, self._answer)

    def handlers(self) -> Handlers:
        return {
            **self._local,
            asked.MqttSessions: self._sessions,
            asked.MqttSubscriptions: self._subscriptions,
            asked.MqttRetained: self._retained,
            asked.MqttClear: self._clear,
            asked.MqttKick: self._kick,
        }

    # ------------------------------------------------------------ all brokers

    async def _sessions(self, r: asked.MqttSessions) -> control.Reply:
        found = await self._all(r, asked.MqttSessionList)
        items, more = _joined(found, r.limit, lambda row: row.client_id)
        return asked.MqttSessionList(items=items, more=more)

    async def _subscriptions(self, r: asked.MqttSubscriptions) -> control.Reply:
        found = await self._all(r, asked.MqttSubscriptionList)
        items, more = _joined(found, r.limit, lambda row: (row.client_id, row.filter))
        return asked.MqttSubscriptionList(items=items, more=more)

    async def _retained(self, r: asked.MqttRetained) -> control.Reply:
        found = await self._all(r, asked.MqttRetainedList)
        items, more = _joined(found, r.limit, lambda row: row.topic)
        return asked.MqttRetainedList(items=items, more=more)

    async def _clear(self, r: asked.MqttClear) -> control.Reply:
        return control.Done(count=sum(done.count for done in await self._all(r, control.Done)))

    async def _all(self, request: control.Request, kind: type[T]) -> list[T]:
        """What each broker says of what it serves, all at the same time."""
        told = await asyncio.gather(self._local[type(request)](request), *(self._ask(other, request) for other in self.cluster.others()))
        found: list[T] = [answer for answer in told if isinstance(answer, kind)]
        if len(found) < len(told):
            raise Malformed("another broker answered with something else than it was asked for")
        return found

    # ------------------------------------------------------------ one client

    async def _kick(self, r: asked.MqttKick) -> control.Reply:
        owner = self.hub.owner_of(r.client_id)
        if not owner:
            raise Unavailable(f"nobody serves the session partition of {r.client_id!r} now", hint="try again in a moment")
        return await (self._local[asked.MqttKick](r) if owner == self.hub.broker.id else self._ask(owner, r))

    # ------------------------------------------------------------ between brokers

    async def _ask(self, other: str, request: control.Request) -> control.Reply:
        try:
            body = await self.cluster.request(BrokerId(other), control.encode(request), timeout_ms=ASK_MS, service=Service.MQTT)
            reply: control.Reply = control.decode_reply(body)
            return reply
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Malformed(f"the answer of broker {other} cannot be read: {e}") from None
        except HeadraceError as e:
            if e.family == "unavailable":
                raise Unavailable(f"broker {other} cannot be asked now: {e}", hint="try again in a moment") from e
            raise

    async def _answer(self, peer: BrokerId, body: bytes) -> bytes:
        try:
            request = control.decode_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Malformed(f"what broker {peer} asks about MQTT cannot be read: {e}") from None
        handler = self._local.get(type(request))
        if handler is None:
            raise Malformed(f"{type(request).__name__} is no question about MQTT")
        self.hub.broker.refresh()
        return control.encode(await handler(request))


def _joined(found: Sequence[Any], limit: int, key: Callable[[Any], Any]) -> tuple[tuple[Any, ...], bool]:
    """The first of all lists in their order, and whether there are more."""
    count = min(max(1, limit), LIMIT_MAX)
    rows = sorted((row for one in found for row in one.items), key=key)
    return tuple(rows[:count]), len(rows) > count or any(one.more for one in found)

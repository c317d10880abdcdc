"""Consumers of queues and readers of streams for one MQTT connection of a cluster: the partitions are wherever their owners are, and move.

Owns which subscriptions the connection has open and how its acknowledgements become settlements. What follows partitions, keeps leases and sends
settlements again is the client's (``headrace.client``, docs/decisions/013 and 018). Invariants: N1 what is lent was handed out to this connection and
is not settled but as its client said. N2 when a subscription or the connection ends, all that it holds returns at once. N3 a subscription ends for
good only for a reason that waiting does not mend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, Never

from headrace.client.backoff import Backoff
from headrace.client.consumer import Consumer
from headrace.client.message import Message
from headrace.client.reader import Reader, Record
from headrace.core.mqtt.connection import Connection
from headrace.core.mqtt.lending import Lent, Opened
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.subscription import Subscription
from headrace.gateways.mqtt.asked import Asked, asked_of, message_id, parse_message_id
from headrace.gateways.mqtt.clients import Clients
from headrace.gateways.mqtt.records import properties_of
from headrace.log import get_logger
from headrace.model.errors import (
    Conflict,
    Fenced,
    HeadraceError,
    Invalid,
    Malformed,
    NotConnected,
    NotFound,
    Refused,
    StaleSettle,
    UnknownOutcome,
)
from headrace.wire.batch import Record as Stored
from headrace.wire.frames import Settle
from headrace.wire.mqtt import properties as prop

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.gateways.mqtt.connection import MqttConnection

TURN: Final = 64
"""So many deliveries are taken at a time."""
SETTLE_S: Final = 10.0
"""So long an explicit settlement may wait for the owner of its partition."""
HELD_FACTOR: Final = 4
"""Of what was handed out so many windows are remembered: what is older has lost its lease."""
_log = get_logger("mqtt")
Key = tuple[int, int, int]
"""Partition, epoch and offset of a delivery."""


class Followed:
    """One subscription, and what consumes for it."""

    def __init__(self, owner: Following, subscription: Subscription, told: Opened, again: bool) -> None:
        self.owner = owner
        self.subscription = subscription
        self.explicit = ("settle", "explicit") in subscription.options
        self.asked: Asked | None = None
        self.over = False
        self.held: dict[Key, Message | Record] = {}
        """Handed out with QoS 1 and not settled here."""
        self.under_way = 0
        """Handed out with QoS 0 and not sent."""
        self.may_go_on = asyncio.Event()
        self._told: Opened | None = told
        self._again = again
        self._backoff = Backoff(0.05, 2.0)
        self._unused: list[Message] = []

    # ------------------------------------------------------------ its life

    async def run(self, before: asyncio.Task[None] | None) -> None:
        """Until it is withdrawn or ends for good. ``before``: what consumed for the same filter, and is being withdrawn."""
        if before is not None:
            await asyncio.wait([before])
        while True:
            why = await self._until_lost()
            if self.over:
                return
            passing = why.retriable and not isinstance(why, Fenced)
            if not passing or (self._told is not None and not self._again):
                self.over = True
                self.owner.ended(self, why)
                return
            _log.info("%s is consumed again soon: %s", self.subscription.filter, why)
            await asyncio.sleep(self._backoff.next_s(self.owner.broker.ambient.random()))

    def tell(self, error: HeadraceError | None) -> bool:
        """Says how opening it went; whether that was still to be said."""
        told, self._told = self._told, None
        if told is None:
            return False
        self.owner.broker.refresh()
        told(error)
        return True

    def withdraw(self) -> None:
        """Consumes no more; what it holds goes back. Its task is to be cancelled after this."""
        self.over = True
        self.tell(None)
        self._take_back()

    # ------------------------------------------------------------ consuming

    async def _until_lost(self) -> HeadraceError:
        try:
            await self._consume()
        except HeadraceError as e:
            return e

    async def _consume(self) -> Never:
        owner = self.owner
        asked = self.asked = asked_of(self.subscription, owner.machine.client_id, owner.broker.config.limits.prefetch_messages_max)
        shared = await owner.clients.take()
        try:
            source: Consumer | Reader
            if asked.kind == "queue":
                source = shared.client.consume(asked.name, prefetch=asked.prefetch, auto_ack=not asked.acks, cohort=asked.group)
            else:
                source = shared.client.read(
                    asked.name, start=asked.start, cursor=asked.cursor, group=asked.group, prefetch=asked.prefetch, commit="explicit"
                )
            try:
                await source.start()
                self.tell(None)
                self._backoff.reset()
                await self._hand_out(source, asked)
            finally:
                self._forget()
                await (source.close(self._unused) if isinstance(source, Consumer) else source.close())
                self._unused.clear()
        finally:
            owner.clients.give_back(shared)

    async def _hand_out(self, source: Consumer | Reader, asked: Asked) -> Never:
        owner = self.owner
        while True:
            while owner.blocked or self.under_way >= asked.prefetch:
                self.may_go_on.clear()
                await self.may_go_on.wait()
            try:
                found = await source.take(TURN if asked.acks else min(TURN, asked.prefetch - self.under_way))
            except Malformed as e:  # a publisher's nonsense: it comes back when its lease is over, until it has been delivered often enough
                _log.warning("%s has a batch that cannot be read: %s", self.subscription.filter, e)
                continue
            if not found:
                raise NotConnected("the client that consumes was closed")
            owner.broker.refresh()
            for one in found:
                self._lend(one, asked)
            owner.broker.touch(owner.shell)
            await asyncio.sleep(0)  # others have their turn

    def _lend(self, one: Message | Record, asked: Asked) -> None:
        subscription, key = self.subscription, (one.partition, one.epoch, one.offset)
        about = [("message-id", message_id(*key)), (asked.kind, asked.name)]
        if isinstance(one, Message):
            about.append(("delivery-count", str(one.attempt)))
        properties = properties_of(Stored(one.raw_key, None, one.raw_headers, one.timestamp_ms), about)
        if subscription.identifier:
            properties[prop.SUBSCRIPTION_IDENTIFIER] = [subscription.identifier]
        if asked.acks:
            self.held.pop(key, None)
            self.held[key] = one
            if len(self.held) > HELD_FACTOR * asked.prefetch + TURN:
                del self.held[next(iter(self.held))]
        else:
            self.under_way += 1
        self.owner.machine.sending.lent.append(Lent(subscription.path, one.value, properties, subscription.qos, self, *key))

    def _forget(self) -> None:
        """What was handed out is not settled any more: it comes again."""
        self._take_back()
        self.held.clear()
        self.under_way = 0

    def _take_back(self) -> None:
        """What was not sent: nobody has seen it, so no attempt is counted."""
        for lent in self.owner.machine.sending.take_back(self):
            kept = self.held.pop((lent.partition, lent.epoch, lent.offset), None)
            if isinstance(kept, Message):
                self._unused.append(kept)

    # ------------------------------------------------------------ settling

    def settle(self, key: Key, action: Settle) -> None:
        """As its client has acknowledged; of a stream: the cursor moves over it."""
        one = self.held.pop(key, None)
        try:
            if isinstance(one, Record) or (one is not None and action == Settle.ACK):
                one.ack()
            elif one is not None:
                one.retry()
        except HeadraceError:
            pass  # another has its partition, or its cursor, and gets it again

    async def confirmed(self, key: Key, action: Settle, settled: Opened) -> None:
        """As its client has said explicitly: ``settled`` is told once that is durable."""
        error: HeadraceError | None = None
        try:
            one = self.held.pop(key, None)
            if not isinstance(one, Message):
                raise StaleSettle
            async with asyncio.timeout(SETTLE_S):
                if action == Settle.ACK:
                    await one.ack(confirmed=True)
                elif action == Settle.RETRY:
                    await one.retry(confirmed=True)
                else:
                    await one.reject(confirmed=True)
        except TimeoutError:
            error = UnknownOutcome("nobody who serves the partition has answered in time")
        except StaleSettle:
            error = Refused("that delivery is not held any more: its lease has run out, or it was settled")
        except HeadraceError as e:
            error = e
        self.owner.broker.refresh()
        settled(error)


class Following:
    """See the module's head; a ``core.mqtt.lending.Consumers``."""

    def __init__(self, broker: Broker, clients: Clients, shell: MqttConnection, machine: Connection) -> None:
        self.broker = broker
        self.clients = clients
        self.shell = shell
        self.machine = machine
        self.blocked = shell.blocked
        self._followed: dict[str, tuple[Followed, asyncio.Task[None]]] = {}
        """By filter; those that are being withdrawn too."""

    # ------------------------------------------------------------ opening and closing

    def begin(self, subscription: Subscription, opened: Opened, *, again: bool = False) -> None:
        self.cease(subscription.filter)
        before = self._followed.get(subscription.filter)
        followed = Followed(self, subscription, opened, again)
        task = self._spawn(followed.run(before[1] if before is not None else None))
        self._followed[subscription.filter] = (followed, task)
        task.add_done_callback(lambda task: self._done(subscription.filter, task))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.broker.spawn(work)

    def _done(self, filter: str, task: asyncio.Task[None]) -> None:
        if filter in self._followed and self._followed[filter][1] is task:
            del self._followed[filter]

    def cease(self, filter: str) -> None:
        found = self._followed.get(filter)
        if found is not None and not found[0].over:
            found[0].withdraw()
            found[1].cancel()

    def end(self) -> None:
        for filter in list(self._followed):
            self.cease(filter)

    def ended(self, followed: Followed, error: HeadraceError) -> None:
        """It can never be consumed again as it was asked for."""
        session: Session | None = self.machine.session
        self.broker.refresh()
        if not followed.tell(error) and session is not None:
            self.machine.natives.ended(session, followed.subscription, str(error))

    # ------------------------------------------------------------ from the client

    def given(self, lent: Lent) -> None:
        followed: Followed = lent.consumed
        followed.under_way = max(0, followed.under_way - 1)
        followed.may_go_on.set()

    def acked(self, lent: Lent, failed: bool) -> None:
        followed: Followed = lent.consumed
        if not lent.qos:
            self.given(lent)
        elif failed or not followed.explicit:
            followed.settle((lent.partition, lent.epoch, lent.offset), Settle.RETRY if failed else Settle.ACK)

    def settle(self, name: str, id: str, action: int, settled: Opened) -> None:
        open = [f for f, _ in self._followed.values() if not f.over and f.asked is not None]
        followed = next((f for f in open if f.asked is not None and (f.asked.kind, f.asked.name) == ("queue", name)), None)
        if followed is None:
            settled(NotFound(f"this connection has not subscribed to $queue/{name}"))
            return
        if not followed.explicit:
            settled(Conflict("PUBACK settles here: subscribe with the user property settle = explicit"))
            return
        try:
            key = parse_message_id(id)
        except Invalid as e:
            settled(e)
            return
        self._spawn(followed.confirmed(key, Settle(action), settled))

    # ------------------------------------------------------------ back-pressure

    def block(self) -> None:
        self.blocked = True

    def unblock(self) -> None:
        self.blocked = False
        for followed, _ in self._followed.values():
            followed.may_go_on.set()

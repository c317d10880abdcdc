"""What session partitions of several brokers tell each other: what they want, messages for them, and retained messages for new subscriptions.

Owns when that is said and who waits for it. What is wanted by whom, and what waits to be sent, are ``core.mqtt.cluster_router``'s.

Invariants: N1 one batch a peer and tick. N2 a message is acknowledged once all it caused here is durable. N3 who waits until others know a
subscription waits for those with whom there is a conversation, and at most ``KNOWN_MS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

from headrace.core.mqtt import ops
from headrace.core.mqtt.cluster_router import DECLINED, REFUSED, Target
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.origins import Origin
from headrace.core.mqtt.outward import Part
from headrace.core.mqtt.session import Session
from headrace.core.mqtt.subscription import Subscription
from headrace.gateways.mqtt.partition import SessionPartition
from headrace.gateways.mqtt.peers import NOTE_BYTES
from headrace.log import get_logger
from headrace.wire import mqtt_peer as notes

if TYPE_CHECKING:
    from headrace.gateways.mqtt.cluster import ClusterHub

KNOWN_MS = 1_000
"""So long a SUBACK waits for brokers that do not answer."""
AGAIN_S = 0.05
PIECE_BYTES = 256 * 1024
"""Filters in one note."""
FETCH_MS = 5_000
FETCH_AGAIN_MS = 1_000
_log = get_logger("mqtt")


class _Fetching:
    """Retained messages on their way to one subscription."""

    __slots__ = ("again_ms", "began_ms", "left", "seen", "session", "subscription")

    def __init__(self, session: Session, subscription: Subscription, left: set[int], now_ms: int) -> None:
        self.session = session
        self.subscription = subscription
        self.left = left
        self.seen: set[str] = set()
        self.began_ms = now_ms
        self.again_ms: dict[int, int] = {}
        """Of each partition whose owner was asked: when it is asked again."""


class _Arrived:
    """What became of the messages of one batch."""

    __slots__ = ("declined", "durable", "partitions", "refused")

    def __init__(self) -> None:
        self.durable: dict[int, int] = {}
        self.partitions: dict[int, SessionPartition] = {}
        self.declined: list[tuple[int, int]] = []
        self.refused: dict[int, None] = {}


class Spreading:
    """See the module's head. A ``broker.sink.Written``: flushed in each tick in which there is something to say."""

    def __init__(self, hub: ClusterHub) -> None:
        self.hub = hub
        self.peers = hub.peers
        self.dirty = False
        self.unknown = 0
        """Subscriptions that were acknowledged before every broker knew them."""
        self.unfetched = 0
        """Subscriptions that did not get all retained messages."""
        self._version = 0
        self._known: dict[str, int] = {}
        """What each peer has taken."""
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        """(version, until when, who)."""
        self.holders: dict[int, tuple[int, str]] = {}
        """Epoch of each partition of which a broker has said that it serves it, and which one; "" = this one did."""
        self._partial: dict[tuple[str, int], dict[str, int]] = {}
        """Filters of which the rest has not come yet, by peer and partition."""
        self._arrived: dict[str, _Arrived] = {}
        self._fetching: dict[int, _Fetching] = {}
        self._request = 0
        self._again = False
        self.peers.handlers.update({
            notes.Wants: self._wants, notes.Knows: self._knows, notes.Message: self._message, notes.Took: self._took,
            notes.Fetch: self._fetch, notes.Fetched: self._fetched,
        })  # fmt: skip

    def start(self) -> None:
        """Once there is a router."""
        router = self.hub.router
        router.own.stir = router.outward.stir = self.stir
        router.now_ms = lambda: self.hub.broker.now_ms
        router.fetch = self.fetch
        router.durable = self._durable

    def stir(self) -> None:
        """There is something to say in this tick."""
        self.hub.broker.touch(self)

    # ------------------------------------------------------------ peers

    def met(self, peer: str) -> None:
        self._known[peer] = 0
        for number in self.hub.partitions:
            self._tell_whole(number, [peer])
        self.stir()

    def lost(self, peer: str) -> None:
        self._known.pop(peer, None)
        self._arrived.pop(peer, None)
        self.holders = {number: held for number, held in self.holders.items() if held[1] != peer}
        self._partial = {key: filters for key, filters in self._partial.items() if key[0] != peer}
        self.hub.router.outward.lost(peer)
        self._look()
        self.stir()

    def served(self, number: int) -> None:
        """A partition is served here from now on."""
        self.holders[number] = self.hub.partitions[number].epoch, ""  # who had it before, and gets it back, has to say so again
        self._version += 1
        self._tell_whole(number, self._known)
        self.flush()

    def _tell_whole(self, number: int, peers: Iterable[str]) -> None:
        self._tell(number, True, self.hub.router.own.wants[number], peers)

    def _tell(self, number: int, whole: bool, filters: dict[str, int], peers: Iterable[str]) -> None:
        epoch = self.hub.partitions[number].epoch
        pieces = list(_pieces(filters))
        for i, piece in enumerate(pieces):
            note = notes.Wants(self._version, number, epoch, whole, piece, i + 1 < len(pieces))
            for peer in peers:
                self.peers.put(peer, note, NOTE_BYTES * len(piece) + sum(map(len, piece)))

    # ------------------------------------------------------------ each tick

    def flush(self) -> None:
        router = self.hub.router
        news = router.own.take_news()
        if news:
            self._version += 1
            for number, changes in news.items():
                self._tell(number, False, changes, self._known)
        for owner, parts in router.outward.flush(self.hub.serving).items():
            if owner == self.hub.broker.id:
                self._take_own(parts)
            else:
                self._send(owner, parts)
        self._look()
        if router.outward.dirty and not self._again:
            self._again = True
            self.hub.broker.loop.call_later(AGAIN_S, self._once_more)

    def _once_more(self) -> None:
        self._again = False
        self.hub.broker.refresh()
        self.hub.router.outward.release()
        self.stir()

    def tick(self, now_ms: int) -> None:
        """Several times a second: what has waited for too long."""
        self.hub.router.outward.expire(now_ms)
        self._look()
        for request, fetching in list(self._fetching.items()):
            self._ask(request, fetching)

    def _durable(self, then: Callable[[], None], unsure: Callable[[], None]) -> None:
        """Calls one of them, and has what it changes journalled."""

        def known(what: Callable[[], None]) -> None:
            what()
            self.hub.committed(_nothing)

        self.hub.committed(partial(known, then), partial(known, unsure))

    # ------------------------------------------------------------ what is wanted

    def announced(self, answer: Callable[[], None]) -> None:
        """Calls ``answer`` once every peer knows what is wanted now."""
        version = self._version if self.hub.router.own.told else self._version + 1
        if all(known >= version for known in self._known.values()):
            answer()
        else:
            self._waiting.append((version, self.hub.broker.now_ms + KNOWN_MS, answer))

    def _look(self) -> None:
        if not self._waiting:
            return
        least = min(self._known.values(), default=self._version)
        now_ms = self.hub.broker.now_ms
        waiting, self._waiting = self._waiting, []
        for version, until_ms, answer in waiting:
            if least >= version:
                answer()
            elif now_ms >= until_ms:
                self.unknown += 1
                answer()
            else:
                self._waiting.append((version, until_ms, answer))

    def _wants(self, peer: str, note: notes.Wants) -> None:
        key = peer, note.partition
        if note.more:
            self._partial.setdefault(key, {}).update(note.filters)
            return
        filters = {**self._partial.pop(key, {}), **note.filters}
        if note.whole and note.epoch >= self.holders.get(note.partition, (0, ""))[0]:
            self.holders[note.partition] = note.epoch, peer
            self.hub.relays.served(note.partition, peer)
            for fetching in self._fetching.values():
                fetching.again_ms.pop(note.partition, None)  # whoever was asked before may never answer
        self.hub.router.told(note.partition, note.epoch, note.whole, filters)
        self.peers.put(peer, notes.Knows(note.version))

    def _knows(self, peer: str, note: notes.Knows) -> None:
        self._known[peer] = max(self._known[peer], note.version)
        self._look()

    # ------------------------------------------------------------ messages

    def _send(self, owner: str, parts: list[Part]) -> None:
        at = 0
        while at < len(parts):
            message, end = parts[at].message, at
            while end < len(parts) and parts[end].message is message:
                end += 1
            self.peers.put(owner, _note(message, parts[at:end]), len(message.payload) + len(message.topic))
            at = end

    def _take_own(self, parts: list[Part]) -> None:
        """Partitions that others had when the messages were published."""
        broker = self.hub.broker
        arrived = _Arrived()
        for part in parts:
            self._take(arrived, broker.incarnation, part.message, [(part.number, part.sequence, part.kind, part.group, part.after)])
        self._when_durable(arrived, partial(self._came_back, broker.id))

    def _message(self, peer: str, note: notes.Message) -> None:
        stored = ops.Stored(note.topic, note.payload, note.qos, note.retain, note.properties, note.expires_ms, note.publisher)
        arrived = self._arrived.get(peer)
        if arrived is None:
            arrived = self._arrived[peer] = _Arrived()
        message = ops.message_of(stored)
        message.origin = Origin(*note.origin) if note.origin is not None else None
        message.epoch = note.epoch
        targets = [(*target, after) for target, after in zip(note.targets, note.after or repeat(0), strict=False)]
        self._take(arrived, self.peers.incarnation(peer), message, targets)

    def _take(self, arrived: _Arrived, incarnation: str, message: Message, targets: list[Target]) -> None:
        for (number, sequence, *_), became in zip(targets, self.hub.router.arrived(incarnation, message, targets), strict=True):
            if not sequence:
                continue
            if became == REFUSED:
                arrived.refused[number] = None
            elif became == DECLINED:
                arrived.declined.append((number, sequence))
            else:
                arrived.durable[number] = sequence
                arrived.partitions[number] = self.hub.partitions[number]

    def heard(self, peer: str) -> None:
        """All of one batch was taken."""
        arrived = self._arrived.pop(peer, None)
        if arrived is not None:
            self._when_durable(arrived, partial(self.peers.put, peer))

    def _when_durable(self, arrived: _Arrived, say: Callable[[notes.Took], None]) -> None:
        def durable() -> None:
            for number, partition in arrived.partitions.items():
                if self.hub.partitions.get(number) is not partition:
                    del arrived.durable[number]
                    arrived.refused[number] = None
            if arrived.durable or arrived.declined or arrived.refused:
                say(notes.Took(list(arrived.durable.items()), arrived.declined, list(arrived.refused)))

        self.hub.committed(durable)

    def _took(self, peer: str, note: notes.Took) -> None:
        self._came_back(peer, note)

    def _came_back(self, owner: str, note: notes.Took) -> None:
        router = self.hub.router
        for number, sequence in note.declined:
            router.declined(owner, number, sequence)
        for number in note.refused:
            router.outward.refused(owner, number)
        for number, sequence in note.durable:
            router.outward.acked(owner, number, sequence)
        self.hub.committed(_nothing)
        if router.outward.dirty:
            self.stir()

    # ------------------------------------------------------------ retained messages

    def fetch(self, session: Session, subscription: Subscription) -> None:
        """Brings the retained messages of other brokers to a new subscription."""
        router = self.hub.router
        left = {number for number in range(len(router.shards)) if number not in router.led}
        if left:
            self._request += 1
            fetching = self._fetching[self._request] = _Fetching(session, subscription, left, self.hub.broker.now_ms)
            router.retained_now.append(fetching.seen)
            self._ask(self._request, fetching)

    def _ask(self, request: int, fetching: _Fetching) -> None:
        """Asks, or asks again, who serves what is lacking."""
        hub, now_ms = self.hub, self.hub.broker.now_ms
        here = fetching.left & hub.router.led
        if here:  # they have come here since
            fetching.left -= here
            self._give(fetching, self._matching(fetching.subscription.path, here))
        if not fetching.left or not self._wanted(fetching):
            self._end_fetch(request)
            return
        if now_ms - fetching.began_ms >= FETCH_MS:
            self.unfetched += 1
            _log.warning("a subscription to %r does not get the retained messages of %d partitions", fetching.subscription.path, len(fetching.left))
            self._end_fetch(request)
            return
        by_owner: dict[str, list[int]] = {}
        for number in sorted(fetching.left):
            owner = hub.serving(number) if now_ms >= fetching.again_ms.get(number, 0) else ""
            if owner:
                fetching.again_ms[number] = now_ms + FETCH_AGAIN_MS
                by_owner.setdefault(owner, []).append(number)
        for owner, numbers in by_owner.items():
            self.peers.put(owner, notes.Fetch(request, fetching.subscription.path, numbers))

    def _end_fetch(self, request: int) -> None:
        fetching = self._fetching.pop(request)
        seen = self.hub.router.retained_now
        seen[:] = [other for other in seen if other is not fetching.seen]

    def _wanted(self, fetching: _Fetching) -> bool:
        session, subscription = fetching.session, fetching.subscription
        return self.hub.router.holds(session) and session.subscriptions.get(subscription.filter) is subscription

    def _give(self, fetching: _Fetching, messages: Iterable[Message]) -> None:
        if self._wanted(fetching):
            for message in messages:
                if message.topic not in fetching.seen:
                    self.hub.router.send_kept(fetching.session, fetching.subscription, message, self.hub.wall_ms)
            self.hub.committed(_nothing)

    def _matching(self, filter: str, numbers: set[int]) -> list[Message]:
        router = self.hub.router
        return [m for m in router.retained.match(filter) if router.number_of(m.topic) in numbers]

    def _fetch(self, peer: str, note: notes.Fetch) -> None:
        served = self.hub.router.led & set(note.partitions)
        some: list[notes.Message] = []
        nbytes = 0
        for message in self._matching(note.filter, served):
            if nbytes > notes.BATCH_BYTES_MAX // 2:
                self.peers.put(peer, notes.Fetched(note.request, some, False, []), nbytes)
                some, nbytes = [], 0
            some.append(_note(message, []))
            nbytes += len(message.payload) + len(message.topic) + NOTE_BYTES
        self.peers.put(peer, notes.Fetched(note.request, some, True, sorted(served)), nbytes)

    def _fetched(self, peer: str, note: notes.Fetched) -> None:
        fetching = self._fetching.get(note.request)
        if fetching is None:
            return
        kept = (ops.Stored(m.topic, m.payload, m.qos, m.retain, m.properties, m.expires_ms, m.publisher) for m in note.messages)
        self._give(fetching, [m for m in map(ops.message_of, kept) if self.hub.router.number_of(m.topic) in fetching.left])
        if note.last:
            fetching.left -= set(note.partitions)
            self._ask(note.request, fetching)


def _pieces(filters: dict[str, int]) -> Iterator[dict[str, int]]:
    """At least one."""
    piece: dict[str, int] = {}
    nbytes = 0
    for filter, state in filters.items():
        if nbytes > PIECE_BYTES:
            yield piece
            piece, nbytes = {}, 0
        piece[filter] = state
        nbytes += len(filter) + NOTE_BYTES
    yield piece


def _note(message: Message, parts: list[Part]) -> notes.Message:
    m = message
    targets = [(part.number, part.sequence, part.kind, part.group) for part in parts]
    origin = (m.origin.client_id, m.origin.number, m.origin.floor) if m.origin is not None else None
    after = [part.after for part in parts]
    return notes.Message(m.topic, m.payload, m.qos, m.retain, m.properties, m.expires_ms, m.publisher, targets, origin, m.epoch, after)


def _nothing() -> None:
    pass

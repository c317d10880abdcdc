"""A session partition: the sessions whose client ids hash here, and the retained messages whose topics do. Its durable part is journalled.

Owns every change of a session, so that what a replay makes is what was there; ``router`` decides who gets what. Knows no connection.

Invariants: P1 snapshot and replay of the rest is what replay of everything makes. P2 a change of a durable session is in the journal before anybody
is told of it (the caller waits for the journal). P3 a session without expiry leaves nothing in the journal but its will.
P4 a message that another broker sends again, to whoever serves the partition then, is taken once: its number stands in the entry that it causes.
None is taken before what was sent before it. One that causes none is known to this owner alone, and stands in no snapshot (P1).
P5 so is one that has an origin, whichever broker gives it. P6 what an earlier owner of its publisher's session gives to be retained is not, once
something of a later owner was.
"""

from collections.abc import Callable
from typing import Any, Final

from headrace.core.mqtt import ops
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.ops import (
    AnyOp,
    Closed,
    Completed,
    Done,
    Ended,
    Epoch,
    Image,
    Opened,
    Queued,
    Received,
    Receiving,
    Released,
    Retained,
    SessionImage,
    StoredWill,
    Subscribed,
    To,
    Unsubscribed,
    WillDone,
)
from headrace.core.mqtt.origins import EPOCH_BITS, RETAINED, Origin, Origins
from headrace.core.mqtt.session import Delivery, Session
from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import Damaged

ENTRY_BYTES: Final = 1024 * 1024
OP_BYTES: Final = 128
"""What an operation counts for beside its payload."""
SENDERS_MAX: Final = 64
"""Lives of other brokers whose messages are told apart; who has not sent for longest is forgotten first."""


class Shard:
    """See the module's head. ``number`` is its place among the session partitions."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sessions: dict[str, Session] = {}
        self.wills: dict[str, StoredWill] = {}
        """By client id, of clients that are connected or whose will waits."""
        self.wills_due: dict[str, int] = {}
        """Wall clock at which a will that waits is due."""
        self.retained: dict[str, Message] = {}
        self.unclosed: dict[str, None] = {}
        """Sessions that had a connection when the journal ended (after a replay), or have one."""
        self._journal: list[AnyOp] = []
        self._queue: list[tuple[Message, list[To], tuple[str, int] | None]] = []
        self._fenced = False
        self.taken: dict[str, int] = {}
        """Number of the last message of each other broker that has caused an entry, by its incarnation."""
        self._seen: dict[str, int] = {}
        """As ``taken``, of all that were taken by this owner."""
        self.source: tuple[str, int] | None = None
        """Where the message comes from that is being taken."""
        self.origins = Origins()
        """Of what has caused an entry; ``_met`` of all that was taken by this owner."""
        self._met = Origins()
        self.epochs: dict[int, int] = {}
        """Of session partitions: the latest in which a client published what is to be retained here."""
        self.epoch = 0
        """In which it is served here, in a cluster."""
        self._last_number = 0

    @property
    def journalling(self) -> bool:
        """Whether there is something to journal."""
        return bool(self._journal or self._queue or self._fenced)

    # ------------------------------------------------------------ changes, as they happen

    def open(self, client_id: str, expiry_s: int, *, anew: bool, will: StoredWill | None, again: bool = False) -> Session:
        """A client has connected; an old session of it is gone if ``anew``. The caller has dealt with the old connection and will. ``again``: the
        connection is the one that it had."""
        old = self.sessions.get(client_id)
        epoch = (old.epoch if old is not None else 0) + (not again)
        journalled = expiry_s > 0 or will is not None or (old is not None and old.durable)
        op = Opened(client_id, epoch, expiry_s, anew or old is None, will)
        self._opened(op)
        if journalled:
            self._note(op)
        return self.sessions[client_id]

    def fence(self) -> None:
        """Something is journalled, be it an entry of nothing: only who serves the partition can do that."""
        self._fenced = True

    def close(self, session: Session, wall_ms: int, expiry_s: int, will_ms: int) -> None:
        """Its connection is gone; ``will_ms`` 0: there is no will, or none any more. The session goes on until ``end``."""
        journalled = session.durable or session.client_id in self.wills
        op = Closed(session.client_id, wall_ms, expiry_s, will_ms)
        self._closed(op)
        if journalled:
            self._note(op)

    def end(self, session: Session) -> None:
        """A will of it that waits is the caller's to publish, before."""
        self._ended(Ended(session.client_id))
        if session.durable or session.client_id in self.wills:
            self._note(Ended(session.client_id))

    def will_done(self, client_id: str) -> None:
        if client_id in self.wills:
            self._will_done(WillDone(client_id))
            self._note(WillDone(client_id))

    def subscribe(self, session: Session, subscription: Subscription) -> None:
        session.subscriptions[subscription.filter] = subscription
        if session.durable:
            self._note(Subscribed(session.client_id, subscription))

    def unsubscribe(self, session: Session, filter: str) -> None:
        del session.subscriptions[filter]
        if session.durable:
            self._note(Unsubscribed(session.client_id, filter))

    def queue(self, session: Session, message: Message, qos: int, retain: bool, ids: tuple[int, ...], group: str) -> None:
        """A message of QoS 1 or 2 for a session."""
        sequence = session.next_sequence
        session.queue(Delivery(message, qos, retain, ids, group, sequence))
        if session.durable:
            if not self._queue or self._queue[-1][0] is not message:  # another one came between: the order of each session is kept
                self._queue.append((message, [], self.source))
                self._caused(self.source)
            if message.origin is not None:
                self.origins.take(message.origin, group)
            self._queue[-1][1].append(To(session.client_id, sequence, qos, retain, ids, group))

    def done(self, session: Session, sequences: list[int]) -> None:
        """Deliveries that the session has given up already."""
        if session.durable and sequences:
            self._note(Done(session.client_id, sequences))

    def released(self, session: Session, delivery: Delivery) -> None:
        if session.durable:
            self._note(Released(session.client_id, delivery.sequence))

    def receive(self, session: Session, packet_id: int) -> None:
        session.intents.pop(packet_id, None)
        session.received[packet_id] = None
        if session.durable:
            self._note(Received(session.client_id, packet_id))

    def origin_number(self) -> int:
        """A number for an ``Origin``, which nobody has had or will have."""
        self._last_number += 1
        return (self.epoch << EPOCH_BITS) + self._last_number

    def intend(self, session: Session, packet_id: int) -> None:
        """A QoS 2 publish of a durable session gets its number, if it has none."""
        if packet_id not in session.intents:
            number = session.intents[packet_id] = self.origin_number()
            self._note(Receiving(session.client_id, packet_id, number))

    def complete(self, session: Session, packet_id: int) -> bool:
        """Whether it was known."""
        if packet_id not in session.received and packet_id not in session.intents:
            return False
        session.received.pop(packet_id, None)
        session.intents.pop(packet_id, None)
        if session.durable:
            self._note(Completed(session.client_id, packet_id))
        return True

    def outdated(self, partition: int, epoch: int) -> bool:
        """Whether what a client of that session partition published in ``epoch`` comes too late to be retained (P6). 0: it is not known when."""
        latest = self.epochs.get(partition, 0)
        if epoch > latest:
            self.epochs[partition] = epoch
            self._note(Epoch(partition, epoch))
        return 0 < epoch < latest

    def retain(self, topic: str, message: Message | None) -> None:
        origin = message.origin if message is not None else None
        op = Retained(topic, ops.stored(message) if message is not None else None, self.source, origin)
        self._caused(self.source)
        if origin is not None:
            self.origins.take(origin, RETAINED)
        if message is not None:
            self.retained[topic] = message
        else:
            self.retained.pop(topic, None)
        self._note(op)

    def has(self, incarnation: str, sequence: int) -> bool:
        """Whether all messages of another broker up to that one were taken here, as far as they are not acknowledged."""
        return self.taken.get(incarnation, 0) >= sequence or self._seen.get(incarnation, 0) >= sequence

    def take(self, incarnation: str, sequence: int) -> bool:
        """Whether a message of another broker is new here; it is not from now on (P4)."""
        if self.has(incarnation, sequence):
            return False
        _remember(self._seen, incarnation, sequence)
        return True

    def _caused(self, source: tuple[str, int] | None) -> None:
        """What comes from there causes an entry."""
        if source is not None and self.taken.get(source[0], 0) < source[1]:
            _remember(self.taken, *source)

    def knows(self, origin: Origin, tag: str) -> bool:
        """Whether a message of that origin was taken."""
        return self._met.known(origin, tag) or self.origins.known(origin, tag)

    def meet(self, origin: Origin, tag: str) -> None:
        """It is taken from now on (P5)."""
        self._met.take(origin, tag)

    def _note(self, op: AnyOp) -> None:
        self._gather()
        self._journal.append(op)

    def _gather(self) -> None:
        """What was queued comes before what is noted after it."""
        if self._queue:
            queue, self._queue = self._queue, []
            self._journal.extend(Queued(ops.stored(message), to, source, message.origin) for message, to, source in queue)

    def take_journal(self) -> list[bytes]:
        """The changes since the last call, as the payloads of entries: each of ``ENTRY_BYTES`` or little more, or of one message that is larger."""
        self._gather()
        journal, self._journal = self._journal, []
        payloads: list[bytes] = []
        begun = size = 0
        for i, op in enumerate(journal):
            if type(op) is Queued or type(op) is Retained:
                nbytes = len(op.message.payload) if op.message is not None else 0
                if size and size + nbytes > ENTRY_BYTES:
                    payloads.append(ops.pack(journal[begun:i]))
                    begun, size = i, 0
                size += nbytes
            size += OP_BYTES
        if begun < len(journal) or (self._fenced and not payloads):
            payloads.append(ops.pack(journal[begun:]))
        self._fenced = False
        return payloads

    # ------------------------------------------------------------ replay

    def replay(self, payload: bytes) -> None:
        """Takes an entry in. Raises ``Malformed`` or ``Damaged``."""
        for op in ops.unpack(payload):
            _APPLY[type(op)](self, op)

    def _opened(self, op: Opened) -> None:
        session = self.sessions.get(op.client_id)
        if session is None or op.anew:
            session = self.sessions[op.client_id] = Session(op.client_id, op.expiry_s, self.number)
        session.epoch = op.epoch
        session.expiry_s = op.expiry_s
        session.away_ms = 0
        self.wills.pop(op.client_id, None)
        self.wills_due.pop(op.client_id, None)
        if op.will is not None:
            self.wills[op.client_id] = op.will
        self.unclosed[op.client_id] = None

    def _closed(self, op: Closed) -> None:
        session = self._session(op.client_id)
        session.away_ms = op.wall_ms
        session.expiry_s = op.expiry_s
        session.parked()
        self.unclosed.pop(op.client_id, None)
        if op.will_ms:
            self.wills_due[op.client_id] = op.will_ms
        else:
            self.wills.pop(op.client_id, None)

    def _ended(self, op: Ended) -> None:
        self.sessions.pop(op.client_id, None)
        self.unclosed.pop(op.client_id, None)

    def _will_done(self, op: WillDone) -> None:
        self.wills.pop(op.client_id, None)
        self.wills_due.pop(op.client_id, None)

    def _subscribed(self, op: Subscribed) -> None:
        self._session(op.client_id).subscriptions[op.subscription.filter] = op.subscription

    def _unsubscribed(self, op: Unsubscribed) -> None:
        self._session(op.client_id).subscriptions.pop(op.filter, None)

    def _queued(self, op: Queued) -> None:
        message = ops.message_of(op.message)
        self._caused(op.source)
        for to in op.to:
            if op.origin is not None:
                self.origins.take(op.origin, to.group)
            session = self._session(to.client_id)
            session.next_sequence = to.sequence
            delivery = Delivery(message, to.qos, to.retain, tuple(to.ids), to.group, to.sequence)
            delivery.sent = to.client_id in self.unclosed  # it may have been: then it is sent again as such
            session.queue(delivery)

    def _done(self, op: Done) -> None:
        session = self._session(op.client_id)
        for sequence in op.sequences:
            session.remove(sequence)

    def _released(self, op: Released) -> None:
        session = self._session(op.client_id)
        delivery = session.by_sequence(op.sequence)
        if delivery is not None:
            session.remove(op.sequence)
            delivery.sent = delivery.released = True
            session.in_flight[delivery.packet_id] = delivery

    def _receiving(self, op: Receiving) -> None:
        self._session(op.client_id).intents[op.packet_id] = op.number

    def _received(self, op: Received) -> None:
        session = self._session(op.client_id)
        session.intents.pop(op.packet_id, None)
        session.received[op.packet_id] = None

    def _completed(self, op: Completed) -> None:
        session = self._session(op.client_id)
        session.received.pop(op.packet_id, None)
        session.intents.pop(op.packet_id, None)

    def _retained(self, op: Retained) -> None:
        self._caused(op.source)
        if op.origin is not None:
            self.origins.take(op.origin, RETAINED)
        if op.message is None:
            self.retained.pop(op.topic, None)
        else:
            self.retained[op.topic] = ops.message_of(op.message)

    def _epoch(self, op: Epoch) -> None:
        self.epochs[op.partition] = op.epoch

    def _session(self, client_id: str) -> Session:
        session = self.sessions.get(client_id)
        if session is None:
            raise Damaged(f"the journal of sessions speaks of {client_id!r}, which it never opened")
        return session

    # ------------------------------------------------------------ snapshots

    def snapshot(self) -> bytes:
        """The durable state, all of it. What was not journalled yet must be journalled first."""
        assert not self.journalling, "a snapshot holds what the journal holds"
        numbers: dict[int, int] = {}
        messages: list[ops.Stored] = []
        sessions = []
        for session in self.sessions.values():
            if not session.durable and session.client_id not in self.wills:
                continue
            deliveries = []
            for delivery in [*session.in_flight.values(), *session.inbox] if session.durable else []:
                number = numbers.get(id(delivery.message))
                if number is None:
                    number = numbers[id(delivery.message)] = len(messages)
                    messages.append(ops.stored(delivery.message))
                to = To(session.client_id, delivery.sequence, delivery.qos, delivery.retain, delivery.ids, delivery.group)
                deliveries.append((number, to, delivery.sent or session.client_id in self.unclosed, delivery.released))
            sessions.append(self._image(session, deliveries))
        origins = self.origins
        retained = [ops.stored(m) for m in self.retained.values()]
        taken, epochs = list(self.taken.items()), list(self.epochs.items())
        return ops.pack_image(Image(messages, sessions, retained, taken, origins.image(), list(origins.wills), epochs))

    def _image(self, session: Session, deliveries: list[tuple[int, To, bool, bool]]) -> SessionImage:
        client_id = session.client_id
        return SessionImage(
            client_id,
            session.epoch,
            session.expiry_s,
            session.away_ms,
            session.next_sequence if session.durable else 0,
            client_id in self.unclosed,
            self.wills.get(client_id),
            self.wills_due.get(client_id, 0),
            list(session.subscriptions.values()) if session.durable else [],
            list(session.received) if session.durable else [],
            deliveries,
            list(session.intents.items()) if session.durable else [],
        )

    def restore(self, data: bytes) -> None:
        """The state of a snapshot. Raises ``Malformed``."""
        image = ops.unpack_image(data)
        messages = [ops.message_of(m) for m in image.messages]
        for kept in image.sessions:
            if kept.will is not None:
                self.wills[kept.client_id] = kept.will
                if kept.will_ms:
                    self.wills_due[kept.client_id] = kept.will_ms
            session = self.sessions[kept.client_id] = Session(kept.client_id, kept.expiry_s, self.number)
            session.epoch, session.away_ms = kept.epoch, kept.away_ms
            session.subscriptions = {s.filter: s for s in kept.subscriptions}
            session.received = dict.fromkeys(kept.received)
            session.intents = dict(kept.intents)
            for number, to, sent, released in kept.deliveries:
                delivery = Delivery(messages[number], to.qos, to.retain, tuple(to.ids), to.group, to.sequence)
                delivery.sent, delivery.released = sent, released
                if released:
                    session.in_flight[delivery.packet_id] = delivery
                else:
                    session.inbox.append(delivery)
                    session.inbox_bytes += delivery.message.nbytes
            session.next_sequence = kept.next_sequence
            if kept.connected:
                self.unclosed[kept.client_id] = None
        self.taken = dict(image.taken)
        self.origins.restore(image.publishers, image.wills)
        self.epochs = dict(image.epochs)
        for message in image.retained:
            self.retained[message.topic] = ops.message_of(message)

    def check(self) -> None:
        """Asserts the invariants."""
        for client_id, session in self.sessions.items():
            assert session.client_id == client_id
            session.check()
        assert self.wills_due.keys() <= self.wills.keys() <= self.sessions.keys()
        assert self.unclosed.keys() <= self.sessions.keys()


def _remember(last: dict[str, int], incarnation: str, sequence: int) -> None:
    if last.pop(incarnation, None) is None and len(last) >= SENDERS_MAX:
        del last[next(iter(last))]
    last[incarnation] = sequence


_APPLY: Final[dict[type[Any], Callable[[Shard, Any], None]]] = {
    Opened: Shard._opened,
    Closed: Shard._closed,
    Ended: Shard._ended,
    WillDone: Shard._will_done,
    Subscribed: Shard._subscribed,
    Unsubscribed: Shard._unsubscribed,
    Queued: Shard._queued,
    Done: Shard._done,
    Released: Shard._released,
    Receiving: Shard._receiving,
    Received: Shard._received,
    Completed: Shard._completed,
    Retained: Shard._retained,
    Epoch: Shard._epoch,
}

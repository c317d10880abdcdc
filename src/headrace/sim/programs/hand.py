"""A consumer's hand: what it takes is noted, and what becomes of it is decided by chance.

Owns no subscription: ``consuming`` has one, and so has whoever empties a queue at the end.
"""

from collections.abc import Callable
from typing import Final

from headrace.client.consumer import Consumer
from headrace.client.message import Message
from headrace.sim.chance import Chance
from headrace.sim.history import Arrival, Attached, Delivery, Settle, id_of
from headrace.sim.plan import Client
from headrace.sim.programs.stage import Stage, noted
from headrace.wire.frames import DeliverFlag

AUTO_ACK: Final = int(DeliverFlag.AUTO_ACK)


class Hand:
    """A consumer's hand: takes messages, settles them, notes both."""

    def __init__(self, stage: Stage, attached: Attached, consumer: Consumer, client: Client, chance: Chance) -> None:
        self.history = stage.history
        self.now = stage.loop.time
        self.attached = attached
        self.consumer = consumer
        self.client = client
        self.chance = chance
        self.late: list[tuple[float, Message, int, str]] = []
        """When, which, its id, and what is to be done then."""
        self.taken = 0
        self.arrived = 0
        self._epochs: dict[tuple[int, int, int], int] = {}
        """Partition, offset, attempt: under which epoch it came."""
        consumer.delivered = self._arrived(consumer.delivered)  # type: ignore[method-assign]  # everything that reaches the client is noted

    def _arrived(self, deliver: Callable[..., None]) -> Callable[..., None]:
        arrivals, epochs, now, number, name = self.history.arrivals, self._epochs, self.now, self.attached.number, self.attached.name
        keeps = self.history.keeps

        def delivered(partition: int, epoch: int, attempt: int, first: int, count: int, base: int, blob: bytes, flags: int) -> None:
            kept = keeps(name, partition, epoch)
            arrivals.append(Arrival(now(), number, name, partition, first, count, attempt, epoch, bool(flags & AUTO_ACK), kept))
            self.arrived += count
            for offset in range(first, first + count):
                epochs[partition, offset, attempt] = epoch
            deliver(partition, epoch, attempt, first, count, base, blob, flags)

        return delivered

    def take(self, message: Message) -> int:
        """Notes what was handed out, and says which message it is."""
        id = id_of(message)
        reason = origin = ""
        for name, text in message.raw_headers:
            if name == "headrace.reason":
                reason = text.decode()
            elif name == "headrace.origin":
                origin = text.decode()
        self.history.deliveries.append(
            Delivery(
                self.now(), self.attached.number, self.attached.name, message.partition, message.offset, message.attempt,
                self._epochs.get((message.partition, message.offset, message.attempt), 0), id, message.auto_acked, reason, origin,
            )
        )  # fmt: skip
        self.taken += 1
        return id

    def handle(self, message: Message) -> None:
        """Decides what becomes of a message."""
        id = self.take(message)
        if message.auto_acked:
            return
        client, chance = self.client, self.chance
        others = (
            (client.forget, "forget"), (client.late, "late"), (client.retry, "retry"), (client.reject, "reject"), (client.drop, "drop"),
            (client.extend, "extend"),
        )  # fmt: skip
        what = chance.pick([*others, (max(0.0, 1.0 - sum(share for share, _ in others)), "ack")])
        if what == "late":
            self.late.append((self.now() + client.late_ms / 1000, message, id, "ack"))
        elif what == "extend":
            self.late.append((self.now() + client.extend_ms / 1000, message, id, "extend"))
        elif what != "forget":
            self.settle(message, id, what)

    def settle(self, message: Message, id: int, action: str, *, confirmed: bool | None = None) -> None:
        client = self.client
        delay_ms = client.retry_delay_ms if action == "retry" else -1
        note = Settle(
            self.now(), self.attached.number, self.attached.name, message.partition, message.offset, message.attempt, id, action, delay_ms
        )
        note.leased = self.history.leased(note.name, note.partition, note.offset)
        self.history.settles.append(note)
        asked = self.chance.happens(client.confirmed) if confirmed is None else confirmed
        if action == "ack":
            answer = message.ack(confirmed=asked)
        elif action == "retry":
            answer = message.retry(None if delay_ms < 0 else delay_ms / 1000, confirmed=asked)
        elif action == "extend":
            answer, asked = message.extend(), True
        else:
            answer = message.reject(drop=action == "drop", confirmed=asked)
        if asked:
            noted(note, answer, self.now)

    def settle_late(self, everything: bool = False) -> float:
        """Settles what is due and says when the next is (0 = nothing waits)."""
        now, waiting = self.now(), []
        for due, message, id, action in self.late:
            if not everything and due > now:
                waiting.append((due, message, id, action))
            elif action == "extend" and not everything:
                self.settle(message, id, "extend")
                waiting.append((now + self.client.extend_ms / 1000, message, id, "ack"))
            else:
                self.settle(message, id, "ack", confirmed=True)
        self.late = waiting
        return min((due for due, *_ in waiting), default=0.0)

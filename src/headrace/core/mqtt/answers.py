"""What a connection answers, and when: one answer for all that a read asked for, sent once everything that it caused is durable.

Owns the order of acknowledgements. Invariant: C2 what acknowledges something is sent once all it caused is durable, in the order in which it was
asked for [MQTT-4.6.0-2] [MQTT-4.6.0-4].
"""

from collections import deque
from collections.abc import Callable

from headrace.core.mqtt.session import Subscription


class Answer:
    """Replies of one read."""

    __slots__ = ("done", "replies", "retained", "unacked")

    def __init__(self, replies: list[bytes], unacked: int, retained: list[Subscription]) -> None:
        self.replies = replies
        self.unacked = unacked
        self.retained = retained
        """Subscriptions that get the retained messages after their SUBACK."""
        self.done = False


class Answers:
    """See the module's head. ``durable`` is told of the answers whose turn it is, in their order."""

    def __init__(self, durable: Callable[[Answer], None]) -> None:
        self.replies: list[bytes] = []
        """Of this read."""
        self.retained: list[Subscription] = []
        self.unacked = 0
        """Publishes of QoS 1 whose acknowledgement was not sent yet."""
        self._durable = durable
        self._unacked_now = 0
        self._waiting: deque[Answer] = deque()

    def reply(self, packet: bytes) -> None:
        self.replies.append(packet)

    def acknowledge(self, packet: bytes) -> None:
        """A PUBACK: it counts for the receive maximum until it is sent."""
        self.unacked += 1
        self._unacked_now += 1
        self.replies.append(packet)

    def end_read(self, committed: Callable[[Callable[[], None]], None]) -> None:
        """Closes the answer of this read; ``committed`` calls back once what it acknowledges is durable."""
        if not self.replies:
            return
        answer = Answer(self.replies, self._unacked_now, self.retained)
        self.replies, self._unacked_now, self.retained = [], 0, []
        self._waiting.append(answer)

        def done() -> None:
            answer.done = True
            self._send()

        committed(done)

    def _send(self) -> None:
        waiting = self._waiting
        while waiting and waiting[0].done:
            answer = waiting.popleft()
            self.unacked -= answer.unacked
            self._durable(answer)

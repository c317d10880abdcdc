"""What a connection answers, and when: one answer for all that a read asked for, sent once everything that it caused is durable.

Owns the order of acknowledgements. Invariant: C2 what acknowledges something is sent once all it caused is durable, in the order in which it was
asked for [MQTT-4.6.0-2] [MQTT-4.6.0-4].
"""

from collections import deque
from collections.abc import Callable

from headrace.core.mqtt.subscription import Subscription
from headrace.model.errors import HeadraceError, LimitExceeded, Unavailable
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt.reasons import ALLOWED, Reason, Type


class Answer:
    """Replies of one read."""

    __slots__ = ("acked", "aliases", "replies", "retained", "unacked", "upto", "waits")

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.acked: list[int] = []
        """Packet identifiers of the PUBACKs without a reason that come after ``replies`` and are not among them yet."""
        self.unacked = 0
        self.retained: list[Subscription] = []
        """Subscriptions that get the retained messages after their SUBACK."""
        self.upto = 0
        """Place in what was read of the client up to which it answers."""
        self.aliases: dict[int, str] = {}
        """Of the client that were new."""
        self.waits = 1
        """For the end of its read and what that caused, and for each reply that is not known yet."""

    def gather(self) -> None:
        """Makes one piece of the PUBACKs that nothing has come between."""
        if self.acked:
            acked, self.acked = self.acked, []
            self.replies.append(encoding.acks(encoding.PUBACK, acked))


class Answers:
    """See the module's head. ``durable`` is told of the answers whose turn it is, in their order."""

    def __init__(self, durable: Callable[[Answer], None], unsure: Callable[[], None]) -> None:
        """``unsure``: called instead, when whether something is durable will not be known."""
        self.heard = 0
        """Everything of the client below this place is answered, if it is to be, and durable."""
        self.aliases: dict[int, str] = {}
        """Of the client there, as far as nobody has taken them."""
        self.unacked = 0
        """Publishes of QoS 1 whose acknowledgement was not sent yet."""
        self._durable = durable
        self._unsure = unsure
        self._now: Answer | None = None
        self._waiting: deque[Answer] = deque()

    def _open(self) -> Answer:
        answer = self._now
        if answer is None:
            answer = self._now = Answer()
            self._waiting.append(answer)
        return answer

    def reply(self, packet: bytes) -> None:
        answer = self._open()
        answer.gather()
        answer.replies.append(packet)

    def acknowledge(self, packet_id: int) -> None:
        """A PUBACK without a reason: it counts for the receive maximum until it is sent."""
        self.unacked += 1
        answer = self._open()
        answer.unacked += 1
        answer.acked.append(packet_id)

    def acknowledge_with(self, packet: bytes) -> None:
        """A PUBACK that says more."""
        self.unacked += 1
        self.reply(packet)
        self._open().unacked += 1

    def later(self, *, counts: bool = False) -> Callable[[bytes], None]:
        """A reply in its place among the others, whose packet is given when it is known; to be called once. ``counts``: as ``acknowledge``."""
        answer = self._open()
        answer.gather()
        at = len(answer.replies)
        answer.replies.append(b"")
        answer.waits += 1
        if counts:
            self.unacked += 1
            answer.unacked += 1

        def known(packet: bytes) -> None:
            answer.replies[at] = packet
            answer.waits -= 1
            self._send()

        return known

    def retained(self, subscription: Subscription) -> None:
        """It gets the retained messages after the SUBACK of this read."""
        self._open().retained.append(subscription)

    def aliased(self, alias: int, topic: str) -> None:
        """The client has named an alias."""
        self._open().aliases[alias] = topic

    def end_read(self, committed: Callable[[Callable[[], None], Callable[[], None]], None], upto: int = 0) -> None:
        """Closes the answer of this read; ``committed`` (``Host.committed``) calls back once what it acknowledges is durable. ``upto``: place where
        the next packet of the client begins, 0 = nobody asks for ``heard``."""
        if upto:
            self._open().upto = upto
        answer, self._now = self._now, None
        if answer is None:
            return
        answer.gather()

        def done() -> None:
            answer.waits -= 1
            self._send()

        committed(done, self._unsure)

    def _send(self) -> None:
        waiting = self._waiting
        while waiting and not waiting[0].waits:
            answer = waiting.popleft()
            self.unacked -= answer.unacked
            if answer.upto:
                self.heard = answer.upto
                self.aliases.update(answer.aliases)
            self._durable(answer)

    def over(self) -> None:
        """Nobody is there any more who could be answered: it refers to nobody."""
        self._durable, self._unsure = _to_nobody, _nothing


def _to_nobody(_: Answer) -> None:
    pass


def _nothing() -> None:
    pass


def puback_reason(error: HeadraceError | None) -> int:
    """What a PUBACK or PUBREC says of why a publish was not taken; 0 = it was."""
    if error is None:
        return 0
    if isinstance(error, Unavailable):
        error = LimitExceeded(str(error))  # 0x97: PUBACK knows no unavailable server
    return error.mqtt if error.mqtt in ALLOWED[Type.PUBACK] else int(Reason.IMPLEMENTATION_SPECIFIC_ERROR)

"""Publishes of QoS 2 in a cluster, given out once whoever serves the publisher's session; and what its connections publish after one.

Owns their order. A publish gets a number that is journalled with its packet identifier. Only once that is durable is it given to those who want
it, each of which takes the number once (``origins``). Who serves the session next finds it there, and gives the publish, sent again, the same one.

Invariants: Q1 nothing of a QoS 2 publish leaves this broker, nor is queued here, before its number is durable. Q2 what a session publishes is
given out in its order, so what comes after one that waits waits too, on its next connection as well. Q3 PUBREC goes out once all who want it have it,
durably. Q4 when something is given up that the client sends again, nothing that waits behind it is given out before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.core.mqtt.answers import puback_reason
from headrace.core.mqtt.capture import is_native
from headrace.core.mqtt.message import Message
from headrace.core.mqtt.session import Session
from headrace.model.errors import HeadraceError, UnknownOutcome
from headrace.wire.mqtt import encoding

if TYPE_CHECKING:
    from headrace.core.mqtt.connection import Connection


class _Step:
    """A publish, and whether it may be given out. ``known``: what takes its acknowledgement, if it gets one."""

    __slots__ = ("connection", "known", "message", "packet_id", "ready")

    def __init__(self, connection: Connection, message: Message, packet_id: int, known: Callable[[bytes], None] | None, *, ready: bool) -> None:
        self.connection = connection
        self.message = message
        self.packet_id = packet_id
        self.known = known
        self.ready = ready


class Once:
    """See the module's head; of one session. What it has taken goes on when the connection ends."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._steps: deque[_Step] = deque()

    @property
    def waiting(self) -> bool:
        """Whether a publish waits that was taken before."""
        return bool(self._steps)

    def take(self, connection: Connection, message: Message, packet_id: int) -> None:
        """Gives a publish out after those that wait. One of QoS 2 may have been taken before, on another connection or at another broker."""
        session = self.session
        known = connection.answers.later(counts=message.qos == 1) if message.qos else None
        step = _Step(connection, message, packet_id, known, ready=message.qos != 2)
        self._steps.append(step)
        if step.ready:
            return
        session.receiving[packet_id] = []
        message.origin = connection.router.intend(session, packet_id)
        connection.router.await_session(session)  # its number may be in the journal already, and not durable yet

        def durable() -> None:
            step.ready = True
            self._go_on()

        connection.host.committed(durable, self._unsure(step))

    def _unsure(self, step: _Step) -> Callable[[], None]:
        def unsure() -> None:
            for connection in dict.fromkeys(lost.connection for lost in self._drop(step)):
                connection.unsure()

        return unsure

    def give_up(self, error: HeadraceError) -> None:
        """Something that came before was given up, and its client is not told so (Q4)."""
        for step in self._drop():
            if step.message.qos:
                step.connection.fail(error.mqtt, str(error))

    def _drop(self, *given: _Step) -> list[_Step]:
        """Of ``given`` and of all that waits nothing is known any more here: sent again it is taken anew, with its number."""
        lost = [*given, *self._steps]
        self._steps.clear()
        for step in lost:
            for again in self.session.receiving.pop(step.packet_id, []) if step.message.qos == 2 else []:
                again(UnknownOutcome("it was not given to all who want it"))
        return lost

    def _go_on(self) -> None:
        steps = self._steps
        while steps and steps[0].ready:
            step = steps.popleft()
            if step.connection.router.serves(self.session.client_id):
                self._give(step)

    def _give(self, step: _Step) -> None:
        connection, message = step.connection, step.message
        host, router = connection.host, connection.router
        refused = router.retain(message) if message.retain and not is_native(message.topic) else None
        if refused is not None:
            if message.qos:
                self._done(step, refused)
            return
        if not message.qos:
            router.publish(message, host.wall_ms)
            host.committed(_nothing)
            return
        left = 2

        def one(error: HeadraceError | None = None) -> None:
            nonlocal left
            if error is not None or left == 1:
                left = 0
                self._done(step, error)
            elif left:
                left -= 1

        router.publish(message, host.wall_ms, one)
        host.committed(one, self._unsure(step))

    def _done(self, step: _Step, error: HeadraceError | None) -> None:
        connection, session, packet_id = step.connection, self.session, step.packet_id
        router, version, known = connection.router, connection.version, step.known
        assert known is not None
        waiting = session.receiving.pop(packet_id, []) if step.message.qos == 2 else []
        held = router.holds(session)
        failed = error is not None and (version == 4 or not error.definite)  # 3.1.1 cannot say it otherwise; what nobody knows is not said
        if step.message.qos == 2 and held and not failed:
            if error is None:
                router.receive(session, packet_id)
            elif waiting or connection.session is session:
                router.complete(session, packet_id)  # else nobody is told: it is sent again, with its number
            connection.host.committed(_nothing)
        for again in waiting:
            again(error if held else UnknownOutcome("its session has moved"))
        if failed:
            assert error is not None
            self.give_up(error)
            connection.fail(error.mqtt, str(error))
        elif held or step.message.qos == 1:
            kind = encoding.PUBACK if step.message.qos == 1 else encoding.PUBREC
            known(encoding.ack(kind, packet_id, puback_reason(error), version))


def _nothing() -> None:
    pass

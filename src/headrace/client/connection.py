"""One logical connection over as many TCP connections as it takes: session, reconnecting, channels, and one write per loop iteration.

Owns the supervisor task, the session's token and the table of channels. What travels on a channel belongs to its ``User``: the connection opens it
again on every new link and tells it when a link is gone. Which requests are out is known by ``Answers``.

Invariants: I1 at most one link is live. I2 a user keeps its channel number over links, so frames that are sent again keep their bytes. I3 no request
outlives its link: it is answered, if need be with ``ConnectionLost``. I4 after ``close`` nothing is sent and nothing reconnects.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from headrace import __version__
from headrace.ambient import ambient
from headrace.client.answers import Answer, Answers, ignore, resolving
from headrace.client.backoff import Backoff
from headrace.client.link import Link
from headrace.client.target import Target
from headrace.client.user import User
from headrace.model import limits
from headrace.model.errors import (
    ConnectionLost,
    Draining,
    HeadraceError,
    LimitExceeded,
    Malformed,
    NotConnected,
    Unavailable,
    UnknownOutcome,
    from_wire,
)
from headrace.wire import control

log = logging.getLogger("headrace.client")

M = TypeVar("M", bound=control.Message)

TICK_S: Final = 0.1
REOPEN_S: Final = 0.2
CHANNEL_MAX: Final = 65_535
REQUESTS_MAX: Final = 4096


class Connection:
    """See the module's head. ``on_event`` hears events that name no channel."""

    def __init__(
        self,
        target: Target,
        *,
        heartbeat_ms: int,
        connect_timeout_s: float,
        request_timeout_s: float,
        on_event: Callable[[control.Event], None],
        on_state: Callable[[bool], None],
        session: str = "",
        expected: str = "",
        push: tuple[str, ...] = ("catalogue", "topology"),
    ) -> None:
        self.target = target
        self.others: tuple[tuple[str, int], ...] = ()
        """Addresses learned since, tried after those of the target."""
        self.loop = asyncio.get_running_loop()
        self.ambient = ambient()
        self.channels: dict[int, User] = {}
        self.welcome: control.Welcome | None = None
        self.session = session
        self.connects = 0
        self.closed = False
        self.up = False
        """A link is live and has said hello."""
        self._expected = expected
        """Id of the only broker that is meant, "" = any."""
        self._push = push
        self._heartbeat_ms = heartbeat_ms
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._on_event = on_event
        self._on_state = on_state
        self._avoid: tuple[str, int] | None = None
        """Address that is tried last, once."""
        self._link: Link | None = None
        self._came_up = asyncio.Event()
        self._went_down = asyncio.Event()
        self._answers = Answers()
        self._next_channel = 1
        self._marked: list[User] = []
        self._out: list[bytes] = []
        self._scheduled = False
        self._supervisor: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._last_error: HeadraceError | None = None
        self._last_address = ("", 0)

    # ------------------------------------------------------------ life

    async def open(self, wait_s: float) -> None:
        """Connects for the first time; raises why it cannot once ``wait_s`` seconds have passed and every address was tried."""
        until = self.loop.time() + wait_s
        backoff = Backoff()
        while True:
            try:
                await self._attempt()
                break
            except HeadraceError as e:
                left = until - self.loop.time()
                if left <= 0 or not isinstance(e, (NotConnected, Unavailable, UnknownOutcome)):
                    self.closed = True
                    raise
            await asyncio.sleep(min(left, backoff.next_s(self.ambient.random())))
        self._supervisor = self.loop.create_task(self._supervise(), name="headrace-reconnect")
        self._tick()

    def begin(self) -> None:
        """Connects for the first time in the background, and for ever."""
        self._went_down.set()
        self._supervisor = self.loop.create_task(self._supervise(), name="headrace-connect")
        self._tick()

    async def close(self, error: HeadraceError | None = None) -> None:
        """Ends the link and everything that waits."""
        if self.closed:
            return
        self.closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._flush()
        link, self._link = self._link, None
        self._down(error or NotConnected("the client was closed", hint="open another with headrace.connect()"))
        if link is not None:
            link.close()
        self._came_up.set()

    async def _supervise(self) -> None:
        """Connects again for ever."""
        backoff = Backoff()
        while True:
            await self._went_down.wait()
            if self.connects:
                log.warning("lost the connection to %s: %s; reconnecting", self.target, self._last_error)
            backoff.reset()
            while not self.up:
                if self.connects or backoff.attempts:
                    await asyncio.sleep(backoff.next_s(self.ambient.random()) if backoff.attempts or self.connects > 1 else backoff.next_s(0.0))
                else:
                    backoff.attempts = 1
                try:
                    await self._attempt()
                except HeadraceError as e:
                    self._last_error = e
                    log.debug("attempt %d to reach %s failed: %s", backoff.attempts, self.target, e)
            log.info(
                "connected to %s after %d attempt(s), session %s",
                self.target,
                backoff.attempts,
                "resumed" if self.welcome and self.welcome.resumed else "new",
            )

    async def _attempt(self) -> None:
        """One round over the addresses; the one that worked last comes first."""
        error: HeadraceError = NotConnected(f"no broker answers at {self.target}")
        addresses = (*self.target.addresses, *(other for other in self.others if other not in self.target.addresses))
        first = addresses.index(self._last_address) if self._last_address in addresses else 0
        order = [*addresses[first:], *addresses[:first]]
        order.sort(key=lambda address: address == self._avoid)
        self._avoid = None
        for host, port in order:
            try:
                await self._connect(host, port)
                self._last_address = (host, port)
                return
            except HeadraceError as e:
                error = e
            except (OSError, TimeoutError) as e:
                error = NotConnected(f"no broker answers at {host}:{port}: {str(e) or 'no answer in time'}")
        raise error

    async def _connect(self, host: str, port: int) -> None:
        link = Link(self, self.loop)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self.loop.create_connection(lambda: link, host, port)
                self._went_down.clear()
                self._link = link
                hello = control.Hello(
                    client=f"headrace-python/{__version__}",
                    name=self.target.name,
                    session=self.session,
                    user=self.target.user,
                    password=self.target.password,
                    heartbeat_ms=self._heartbeat_ms,
                    push=self._push,
                )
                welcomed: asyncio.Future[Any] = self.loop.create_future()
                self._ask(hello, resolving(welcomed))
                welcome = await welcomed
        except ConnectionLost as e:
            if link.error is not None and not isinstance(link.error, ConnectionLost):
                raise link.error from None
            raise NotConnected(f"{host}:{port} closed the connection instead of saying hello: {e}") from None
        except BaseException:
            self._link = None
            self._answers.clear()
            link.close()
            raise
        if not self._current(link):
            raise NotConnected(f"{host}:{port} closed the connection right after the hello")
        if not isinstance(welcome, control.Welcome):
            link.close()
            raise Malformed(f"the broker answered the hello with {type(welcome).__name__}")
        if self._expected and welcome.broker != self._expected:
            self._link = None
            link.close()
            raise NotConnected(f"{host}:{port} is broker {welcome.broker}, not {self._expected}")
        link.frame_bytes_max = welcome.frame_bytes_max + 64 * 1024
        self.welcome, self.session = welcome, welcome.session
        self._came_online(welcome)

    def _current(self, link: Link) -> bool:
        return self._link is link

    def _came_online(self, welcome: control.Welcome) -> None:
        self.up = True
        self.connects += 1
        for user in list(self.channels.values()):
            self.reopen(user, resumed=welcome.resumed)
        self._came_up.set()
        self._on_state(True)

    def link_lost(self, link: Link, error: HeadraceError) -> None:
        if link is self._link:
            self._link = None
            self._down(error)

    def _down(self, error: HeadraceError) -> None:
        was_up, self.up = self.up, False
        self._last_error = error
        self._came_up.clear()
        self._went_down.set()
        self._out.clear()
        if was_up:
            for user in list(self.channels.values()):
                user.lost()
        self._answers.lost(error)
        if was_up:
            self._on_state(False)

    def _tick(self) -> None:
        now = self.loop.time()
        link, welcome = self._link, self.welcome
        if link is not None and self.up and welcome is not None:
            beat = welcome.heartbeat_ms / 1000
            if now - link.heard_at > 2 * beat + TICK_S:
                link.fail(ConnectionLost(f"nothing was heard from the broker for {2 * beat:.1f} s"))
            elif now - link.said_at > beat / 2:
                link.ping()
        now_ms = int(now * 1000)
        for user in list(self.channels.values()):
            user.tick(now_ms)
        self._ticker = self.loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------ silence

    @property
    def awaits(self) -> bool:
        """The broker owes an answer to somebody here."""
        return len(self._answers) > 0 or any(user.owed() is not None for user in self.channels.values())

    def overdue_s(self, now: float, *, ask_after_s: float) -> float:
        """For how long a sign of life has been asked for in vain; asks for one after so long a silence. 0 = the broker owes none."""
        link = self._link
        if link is None or not self.up:
            return 0.0
        if link.asked_at is not None:
            return now - link.asked_at
        if now - link.heard_at >= ask_after_s:
            link.ping()
        return 0.0

    def forgive(self, now: float) -> None:
        """This process stood still: what came meanwhile is not read yet."""
        if self._link is not None and self._link.asked_at is not None:
            self._link.asked_at = now

    def stale(self, since: float) -> bool:
        """Whether the link is one on which nothing was heard after ``since``."""
        return self._link is not None and self.up and self._link.heard_at < since

    def renew(self, why: str) -> None:
        """Gives the link up and connects anew."""
        if self._link is not None and self.up:
            self._link.fail(ConnectionLost(why))

    def abandon(self, why: str) -> None:
        """Gives the link up and tries the other addresses first, if there are any."""
        link = self._link
        if link is not None and self.up and {*self.target.addresses, *self.others} - {self._last_address}:
            self._avoid = self._last_address
            link.fail(ConnectionLost(why))

    # ------------------------------------------------------------ channels

    def attach(self, user: User) -> None:
        """Gives ``user`` a channel and opens it, now or when there is a link. May take the channel of an idle user."""
        most = min(CHANNEL_MAX, self.welcome.channels_max if self.welcome is not None else limits.CHANNELS_MAX)
        if len(self.channels) >= most:
            victim = next((u for u in self.channels.values() if u.idle()), None)
            if victim is None:
                raise LimitExceeded(f"all {most} channels of this connection are in use")
            self.detach(victim)
        while self._next_channel in self.channels:
            self._next_channel = self._next_channel % CHANNEL_MAX + 1
        user.channel = self._next_channel
        self._next_channel = self._next_channel % CHANNEL_MAX + 1
        self.channels[user.channel] = user
        if self.up:
            self.reopen(user, resumed=False)

    def detach(self, user: User, goodbye: control.Message | None = None) -> None:
        """Takes the channel back; the broker is told with ``goodbye`` (default: the publisher's)."""
        if self.channels.get(user.channel) is user:
            del self.channels[user.channel]
            if self.up:
                self._ask(goodbye or control.ClosePublisher(channel=user.channel), ignore)
        user.channel = 0

    async def part(self, user: User, goodbye: control.Message, timeout_s: float) -> None:
        """As ``detach``, and waits for the broker's answer, but no longer than ``timeout_s``."""
        if self.up and self.channels.get(user.channel) is user:
            answered: asyncio.Future[Any] = self.loop.create_future()
            del self.channels[user.channel]
            self._ask(goodbye, lambda reply, error: None if answered.done() else answered.set_result(None))
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await answered
        self.detach(user)

    def reopen(self, user: User, *, resumed: bool) -> None:
        """Asks the broker to open the channel of ``user`` on this link, until it does or says never."""
        link, channel = self._link, user.channel

        def answered(reply: Any, error: HeadraceError | None) -> None:
            if self._link is not link or self.channels.get(channel) is not user:
                return
            if error is None:
                user.opened(reply)
            elif user.open_failed(error):
                self.loop.call_later(REOPEN_S, again)
            elif self.channels.get(channel) is user:
                del self.channels[channel]

        def again() -> None:
            if self.up and self._link is link and self.channels.get(channel) is user:
                self.reopen(user, resumed=resumed)

        self._ask(user.opening(resumed=resumed), answered)

    def mark(self, user: User) -> None:
        """``user`` has something to send: it is asked for it at the end of this loop iteration."""
        if not user.marked:
            user.marked = True
            self._marked.append(user)
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._flush)

    def send(self, pieces: list[bytes]) -> None:
        """Writes at once, before anything that is gathered from now on."""
        if self.up and self._link is not None:
            self._link.write(b"".join(pieces))

    def forget(self, user: User) -> None:
        """The broker closed this channel."""
        if self.channels.get(user.channel) is user:
            del self.channels[user.channel]
        user.channel = 0

    def link_writable(self) -> None:
        for user in self.channels.values():
            self.mark(user)

    def _flush(self) -> None:
        self._scheduled = False
        marked, self._marked = self._marked, []
        link = self._link
        if not self.up or link is None:
            for user in marked:
                user.marked = False
            return
        out = self._out
        for user in marked:
            user.marked = False
            if self.channels.get(user.channel) is user:  # it may have moved to another connection
                user.flush(out, link.writable)
        if out:
            link.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # ------------------------------------------------------------ requests

    async def wait_up(self, until: float | None = None) -> None:
        """Returns once there is a connection; raises ``NotConnected`` if not by ``until`` (loop time)."""
        try:
            async with asyncio.timeout_at(until):
                while not self.up:
                    if self.closed:
                        raise NotConnected("the client was closed", hint="open another with headrace.connect()")
                    await self._came_up.wait()
        except TimeoutError:
            raise NotConnected(f"there is no connection to {self.target}: {self._last_error}") from None

    async def request(self, message: control.Message, expected: type[M], *, again: bool = True, timeout_s: float | None = None) -> M:
        """Carries out one request. ``again``: doing it twice is as good as once, so it is repeated when the connection breaks."""
        until = self.loop.time() + (timeout_s or self._request_timeout_s)
        while True:
            await self.wait_up(until)
            if len(self._answers) >= REQUESTS_MAX:
                raise LimitExceeded(f"{REQUESTS_MAX} requests of this client wait for their answers", hint="await some of them first")
            answered: asyncio.Future[Any] = self.loop.create_future()
            correlation = self._ask(message, resolving(answered))
            try:
                async with asyncio.timeout_at(until):
                    reply = await answered
            except TimeoutError:
                self._answers.forget(correlation)
                raise UnknownOutcome(f"the broker did not answer {_verb(message)} in time", hint="ask for the state before doing it again") from None
            except ConnectionLost:
                if again and not self.closed:
                    continue
                raise
            if not isinstance(reply, expected):
                raise Malformed(f"the broker answered {_verb(message)} with {type(reply).__name__}")
            return reply

    def tell(self, message: control.Message) -> None:
        """Sends a request whose answer nobody needs."""
        self._ask(message, ignore)

    def _ask(self, message: control.Message, answer: Answer) -> int:
        link = self._link
        if link is None or link.lost:
            answer(None, ConnectionLost("there is no connection"))
            return 0
        correlation, body = self._answers.asked(message, answer)
        if self._out:
            self._out.append(body)
            link.write(b"".join(self._out))
            self._out.clear()
        else:
            link.write(body)
        return correlation

    def answered(self, correlation: int, body: bytes, is_error: bool) -> None:
        error = self._answers.answered(correlation, body, is_error)
        if error is not None and self._link is not None:
            self._link.fail(error)

    def event(self, body: bytes) -> None:
        try:
            event = control.decode_event(body)
        except msgspec.MsgspecError:
            return  # an event that a newer broker knows and this client does not
        if isinstance(event, (control.SubscriptionClosed, control.PublisherClosed)):
            user = self.channels.get(event.channel)
            if user is not None:
                drained = event.code in (0, Draining.code)
                user.closed_by_broker(None if drained else from_wire(event.code, event.message, detail=event.detail))
        elif isinstance(event, (control.Assigned, control.Retracted, control.CursorMoved, control.PartitionIsolated)):
            user = self.channels.get(event.channel)
            if user is not None:
                user.event(event)
        else:
            self._on_event(event)


def _verb(message: control.Message) -> str:
    return str(message.__struct_config__.tag)

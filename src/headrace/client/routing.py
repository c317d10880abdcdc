"""Which connection each publisher's lane and each subscription uses in a cluster: the one to the broker that serves its partition.

Owns the routing table (who serves which partition, where that broker is reached), one connection a broker beside the client's own, and the seat of
every user: at a broker, or waiting until somebody serves its partition. To a lone broker nothing of it is used: its users sit on the client's own
connection. Does not know what a user sends; it has that ready again on every channel that is opened.

Invariants: I1 of two answers about a partition the one with the higher epoch counts, whoever gave it. I2 a user has a channel on one connection at
most. I3 all connections to owners name one session, not the client's own: what a consumer leases is its own at every broker, and no broker is asked
for one session by two connections. I4 who waits is looked after until it has a seat or leaves.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec

from headrace.client.backoff import Backoff
from headrace.client.connection import TICK_S, Connection
from headrace.client.target import parse_target
from headrace.client.user import User
from headrace.model.errors import Elsewhere, HeadraceError, Invalid, NotConnected, NotFound, Unavailable
from headrace.wire import control

log = logging.getLogger("headrace.client.routing")

Connect = Callable[[str, tuple[str, ...], str], Connection]
"""Makes the connection to a broker: id, addresses, session."""

CLUSTER: Final = "cluster"
"""The feature of a broker that is one of several."""
NAMES_AT_ONCE: Final = 1000
ASK_S: Final = 2.0
AT_ONCE_MAX: Final = 2
"""So often in a row a user that was sent elsewhere goes there without waiting."""
NOT_FOUND_MAX: Final = 6
"""So often an owner may not know a name that others know: what was just declared is not seen everywhere at the same time."""
QUIET_S: Final = 5.0
"""Who was not sent away for so long begins anew with its attempts."""
IDLE_S: Final = 10.0
ASK_AWAITED_S, ASK_IDLE_S = 0.3, 2.0
"""A broker that is silent for so long is asked for a sign of life: one that owes an answer, and any other."""
DOUBT_S: Final = 0.5
"""One that gives none within this time may stand still, and others are asked whether its partitions are still its own."""
OWED_S: Final = 1.0
"""So are they if it lives but does not answer what was sent for so long: it may be cut off from them."""


class Routed(User, Protocol):
    """A user that follows its partition."""

    name: str
    partition: int
    connection: Connection
    """Where it sits; the client's own while it waits."""

    def goodbye(self) -> control.Message:
        """What tells the broker that the channel is given up."""


class Seat:
    """Where a user sits."""

    __slots__ = ("attempts", "backoff", "broker", "error", "moved_at", "not_before", "owed", "owed_at", "refused")

    def __init__(self) -> None:
        self.broker: str | None = None
        """Id; "" = whoever the client's own connection is to; None = it waits."""
        self.refused: str | None = None
        """Who sent it away while it waits."""
        self.attempts = 0
        self.moved_at = self.not_before = self.owed_at = 0.0
        self.owed: int | None = None
        """The oldest thing without an answer, as it was seen first at ``owed_at``."""
        self.backoff = Backoff(0.05, 1.0)
        self.error: HeadraceError | None = None


class Router:
    """See the module's head. ``home``: the client's own connection, which is told of changes and carries out what any broker can."""

    def __init__(self, home: Connection, connect: Connect) -> None:
        self.home = home
        self.error: HeadraceError | None = None
        """Why nobody could be asked the last time."""
        self._connect = connect
        self._session = ""
        self._rows: dict[str, dict[int, control.PartitionOwner]] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._began: dict[str, float] = {}
        """When it was heard that a broker serves something in a later epoch than before."""
        self._connections: dict[str, Connection] = {}
        self._idle_since: dict[str, float] = {}
        self._leaving: set[str] = set()
        """Brokers that go away: they wait for connections that nobody needs any more."""
        self._seats: dict[Routed, Seat] = {}
        self._by_name: dict[str, dict[Routed, None]] = {}
        self._waiting: dict[Routed, None] = {}
        self._news = asyncio.Event()
        self._renew = False
        self._turn = 0
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_at = home.loop.time()
        self._doubted: set[Connection] = set()
        self._stuck: dict[Routed, None] = {}
        """Who sits at a broker that does not answer what it was sent."""
        self._closed = False

    @property
    def clustered(self) -> bool:
        """Whether the client's broker is one of several."""
        welcome = self.home.welcome
        return welcome is not None and CLUSTER in welcome.features

    @property
    def up(self) -> bool:
        """Whether any connection is live."""
        return self.home.up or any(c.up for c in self._connections.values())

    async def close(self) -> None:
        """Ends the connections to owners."""
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for connection in self._connections.values():
            await connection.close()

    # ------------------------------------------------------------ seats

    def place(self, user: Routed) -> None:
        """Gives ``user`` a channel: now, or once somebody serves its partition."""
        seat = self._seats.get(user)
        if seat is None:
            if not self.clustered:
                user.connection = self.home
                self.home.attach(user)
                return
            seat = self._seats[user] = Seat()
            self._by_name.setdefault(user.name, {})[user] = None
        if user not in self._waiting:
            self._sit(user, seat)

    def leave(self, user: Routed) -> None:
        """``user`` follows nobody any more; its channel is given up if it has one."""
        if user.channel:
            user.connection.detach(user, user.goodbye())
        self.forget(user)

    def forget(self, user: Routed) -> None:
        """``user`` is not led anywhere any more; where it sits it stays."""
        self._waiting.pop(user, None)
        if self._seats.pop(user, None) is not None:
            users = self._by_name[user.name]
            del users[user]
            if not users:
                del self._by_name[user.name]

    def sat_down(self, user: Routed) -> None:
        """Its channel is open."""
        seat = self._seats.get(user)
        if seat is not None:
            seat.error = seat.refused = None

    def follows(self, user: Routed, error: HeadraceError) -> bool:
        """Whether ``error``, which refused or closed the channel of ``user``, is overcome by following. If it is, ``moved`` is to be called."""
        seat = self._seats.get(user)
        if seat is None:
            return type(error) is Elsewhere and self.clustered
        if type(error) is NotFound:
            return bool(seat.broker) and seat.attempts < NOT_FOUND_MAX
        return type(error) in (Elsewhere, Unavailable)

    def moved(self, user: Routed, error: HeadraceError) -> None:
        """``user`` has lost its channel because of ``error``: it gets one where its partition is served."""
        seat = self._seats.get(user)
        if seat is None:
            seat = self._seats[user] = Seat()
            self._by_name.setdefault(user.name, {})[user] = None
        now = self.home.loop.time()
        if now - seat.moved_at > QUIET_S:
            seat.attempts = 0
            seat.backoff.reset()
        seat.broker, seat.refused, seat.error, seat.moved_at = None, seat.broker, error, now
        user.connection = self.home
        seat.attempts += 1
        seat.not_before = now + seat.backoff.next_s(self.home.ambient.random())
        self._waiting[user] = None
        self.learn_detail(error.detail)
        self._retry(user, seat)
        self._look_soon()

    def _retry(self, user: Routed, seat: Seat) -> None:
        """Who waits goes at once to another than the one who sent it away, unless it was sent to and fro."""
        row = self._row(user)
        if user in self._waiting and row is not None and row.owner != seat.refused and self._where(row.owner) and seat.attempts <= AT_ONCE_MAX:
            self._sit(user, seat)

    def why(self, user: Routed) -> HeadraceError | None:
        """Why it has no open channel, as far as that is known."""
        seat = self._seats.get(user)
        if seat is not None and seat.error is None and seat.broker and not user.connection.up:
            return self._unserved(user)
        return (seat.error if seat is not None else None) or self.error

    def _unserved(self, user: Routed) -> Unavailable:
        row = self._row(user)
        away = f": its owner, broker {row.owner}, is away" if row is not None and row.owner else ""
        return Unavailable(f"nobody serves partition {user.partition} of {user.name!r} now{away}")

    def _row(self, user: Routed) -> control.PartitionOwner | None:
        return self._rows.get(user.name, {}).get(user.partition)

    def _where(self, broker: str) -> tuple[str, ...]:
        return self._addresses.get(broker, ()) if broker else ()

    def _sit(self, user: Routed, seat: Seat) -> None:
        row = self._row(user)
        if row is None or not self._where(row.owner):
            seat.broker, user.connection = None, self.home  # the one it sat on may be closed before it sits again
            self._waiting[user] = None
            self._look_soon()
            return
        self._attach(user, seat, row.owner, self._to(row.owner))

    def _attach(self, user: Routed, seat: Seat, broker: str, connection: Connection) -> None:
        self._waiting.pop(user, None)
        seat.broker, user.connection = broker, connection
        try:
            connection.attach(user)
        except HeadraceError as e:
            if not user.open_failed(e):
                self.forget(user)

    def _move(self, user: Routed, seat: Seat) -> None:
        """Somebody else serves its partition now."""
        if user.channel:
            user.lost()
            user.connection.detach(user, user.goodbye())
        self._sit(user, seat)

    # ------------------------------------------------------------ the table

    def learn(self, brokers: Mapping[str, tuple[str, ...]], partitions: tuple[control.PartitionOwner, ...], names: tuple[str, ...] = ()) -> None:
        """Takes what a broker said of who serves what; of ``names`` it said everything."""
        for id, where in brokers.items():
            if addresses(where) and self._addresses.get(id) != where:
                self._addresses[id] = where
                connection = self._connections.get(id)
                if connection is not None:
                    connection.target = msgspec.structs.replace(connection.target, addresses=addresses(where))
        self.home.others = tuple(address for where in self._addresses.values() for address in addresses(where))[:64]
        told: dict[str, None] = {}
        for row in partitions:
            rows = self._rows.setdefault(row.name, {})
            old = rows.get(row.partition)
            if old is None or (row.id, row.epoch) >= (old.id, old.epoch):
                rows[row.partition] = row
                told[row.name] = None
                if row.owner and old is not None and (row.id, row.epoch) > (old.id, old.epoch):
                    self._began[row.owner] = self.home.loop.time()
        there = {row.name for row in partitions}
        for name in names:
            if name not in there:
                self._rows.pop(name, None)
        for name in told:
            for user in list(self._by_name.get(name, ())):
                seat, now = self._seats[user], self._row(user)
                if seat.broker is None:
                    self._retry(user, seat)
                elif now is not None and self._where(now.owner) and now.owner != seat.broker:
                    self._move(user, seat)

    def learn_detail(self, detail: Mapping[str, Any]) -> str:
        """The same from an error; what cannot be read of it is nothing. The broker it names, or ""."""
        if not detail:
            return ""
        try:
            info = msgspec.convert(dict(detail), control.TopologyInfo)
        except msgspec.ValidationError:
            return ""
        self.learn(info.brokers, info.partitions)
        return info.partitions[0].owner if info.partitions else ""

    def event(self, event: control.TopologyChanged) -> None:
        """A push."""
        self.learn(event.brokers, event.partitions, event.names)

    async def partitions(self, name: str, until: float) -> tuple[int, ...]:
        """The numbers of the partitions of a queue or stream; empty if there is none of that name, as far as a broker knows."""
        if name not in self._rows:
            info = await self.home.request(control.Topology(names=(name,)), control.TopologyInfo, timeout_s=max(until - self.home.loop.time(), 0.1))
            self.learn(info.brokers, info.partitions, (name,))
        return tuple(sorted(self._rows.get(name, ())))

    def owners(self, name: str) -> set[str]:
        """Ids of those who serve it, as far as that is known."""
        return {row.owner for row in self._rows.get(name, {}).values()}

    # ------------------------------------------------------------ connections

    def _to(self, broker: str) -> Connection:
        connection = self._connections.get(broker)
        if connection is None:
            self._session = self._session or self.home.ambient.token(16)
            connection = self._connections[broker] = self._connect(broker, self._addresses[broker], self._session)
            connection.begin()
        self._idle_since.pop(broker, None)
        if self._ticker is None and not self._closed:
            self._tick()
        return connection

    def state_changed(self, connection: Connection, up: bool) -> None:
        """A connection came up or was lost."""
        if connection is self.home and up:
            self._renew = bool(self._by_name)  # nobody there knows yet what this client wants to be told of
        if self._renew or (not up and self._by_name):
            self._look_soon()

    def going_away(self, broker: str) -> None:
        """Its partitions go to others; once nothing sits there any more its connection is closed at once, so that it need not wait for it."""
        if broker in self._connections:
            self._leaving.add(broker)

    def _doubt(self, now: float) -> None:
        """Notes who owes a sign of life. The client's own connection goes elsewhere at once: nobody else would tell it of changes. A link to an owner
        that has begun an epoch since it was heard last is given up: it may be to an earlier life, whose machine can say so no more."""
        awake = now - self._ticked_at < 3 * TICK_S
        self._ticked_at = now
        self._doubted.clear()
        for connection in (self.home, *self._connections.values()):
            if not awake:
                connection.forgive(now)
            elif connection.overdue_s(now, ask_after_s=ASK_AWAITED_S if connection.awaits else ASK_IDLE_S) > DOUBT_S:
                self._doubted.add(connection)
        self._stuck.clear()
        for user, seat in self._seats.items():
            owed = user.owed() if user.connection.up else None
            if owed is None or owed != seat.owed or not awake:
                seat.owed, seat.owed_at = owed, now
            elif now - seat.owed_at > OWED_S:
                self._stuck[user] = None
        if self.home in self._doubted:
            self.home.abandon("the broker gives no sign of life")
        for id, connection in list(self._connections.items()):
            if connection in self._doubted and connection.stale(self._began.get(id, 0.0)):
                connection.renew("the broker gives no sign of life here, and has begun an epoch meanwhile")
        if self._doubted or self._stuck:
            self._look_soon()

    def _tick(self) -> None:
        now = self.home.loop.time()
        self._doubt(now)
        now_ms = int(now * 1000)
        for user in list(self._waiting):
            user.tick(now_ms)
        for id, connection in list(self._connections.items()):
            if connection.channels:
                self._idle_since.pop(id, None)
            elif now - self._idle_since.setdefault(id, now) > IDLE_S or id in self._leaving:
                del self._connections[id], self._idle_since[id]
                self._leaving.discard(id)
                self.home.loop.create_task(connection.close(), name="headrace-idle")
        self._ticker = self.home.loop.call_later(TICK_S, self._tick)

    # ------------------------------------------------------------ looking after those who wait

    def _look_soon(self) -> None:
        self._news.set()
        if self._closed:
            return
        if self._ticker is None:
            self._tick()
        if self._task is None or self._task.done():
            self._task = self.home.loop.create_task(self._look(), name="headrace-routing")

    async def _look(self) -> None:
        """Asks who serves what until everybody has a seat on a live connection."""
        backoff = Backoff(0.05, 1.0)
        while True:
            self._news.clear()
            astray = {
                u.name: None
                for u, s in self._seats.items()
                if s.broker is None or not u.connection.up or u.connection in self._doubted or u in self._stuck
            }
            names = list(self._by_name if self._renew else astray)
            if not names:
                return
            renewing, self._renew = self._renew, False
            known: set[str] = set()
            for at in range(0, len(names), NAMES_AT_ONCE):
                some = tuple(names[at : at + NAMES_AT_ONCE])
                try:
                    await self._ask(some, at_home=renewing)
                    known.update(some)
                except HeadraceError as e:
                    self.error = e
                    self._renew = self._renew or (renewing and self.home.up)
            self._seat_waiting(known)
            try:
                async with asyncio.timeout(backoff.next_s(self.home.ambient.random())):
                    await self._news.wait()
                await asyncio.sleep(0.005)
            except TimeoutError:
                pass

    async def _ask(self, names: tuple[str, ...], *, at_home: bool) -> None:
        """Of those that are connected each in its turn: one may be cut off from the rest and know nothing new."""
        silent = {self._seats[u].broker for u in self._stuck if u.name in names}
        live = [c for c in (self.home, *self._connections.values()) if c.up and c not in self._doubted]
        if silent:
            live = [c for c in live if c.welcome is None or c.welcome.broker not in silent] or await self._another(silent) or live
        if not live:
            raise NotConnected(f"there is no connection to any broker of {self.home.target}")
        asked = self.home if at_home and self.home in live else live[self._turn % len(live)]
        self._turn += 1
        info = await asked.request(control.Topology(names=names), control.TopologyInfo, again=False, timeout_s=ASK_S)
        self.error = None
        self.learn(info.brokers, info.partitions, names)

    async def _another(self, silent: set[str | None]) -> list[Connection]:
        """A connection to a broker that is none of these, if there is one to be had."""
        for broker in list(self._addresses):
            if broker in silent or not self._where(broker):
                continue
            connection = self._to(broker)
            with suppress(NotConnected):
                await connection.wait_up(self.home.loop.time() + ASK_S / 2)
                return [connection]
        return []

    def _seat_waiting(self, known: set[str]) -> None:
        now = self.home.loop.time()
        for user in list(self._waiting):
            seat = self._seats.get(user)
            if seat is None or seat.not_before > now:
                continue
            if user.name in known and user.name not in self._rows:
                self._attach(user, seat, "", self.home)  # it says that there is no such name, or makes one
            else:
                self._sit(user, seat)
                if user in self._waiting and seat.error is None:
                    seat.error = self._unserved(user)


def addresses(urls: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Hosts and ports that addresses as brokers give them name; what is none is passed over."""
    found: list[tuple[str, int]] = []
    for url in urls:
        try:
            found.extend(parse_target(url).addresses)
        except Invalid:
            log.warning("a broker is said to be at %r, which is no address", url)
    return tuple(found)

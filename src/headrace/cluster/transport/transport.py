"""The transport between brokers: one connection a pair, both ways, which the broker with the smaller id dials.

One connection and not one each way: replication of partitions owned on either side shares its beats, its acknowledgements ride with entries, 21
brokers have 210 connections instead of 420, and a link that is cut in one direction is lost for both sides, not half there. Who dials is fixed, so
that two never open at the same moment and have to agree which one stays; what that costs is that the other side cannot hurry, so the dialer begins
anew at once when it is told of a new incarnation or address. The price of one stream is that copies wait behind entries: they are sent in slices by
those who send them, and beats go before both.

Owns who is connected, who may connect and the work of a turn: what is sent within one turn of the loop to one peer goes out in one write, at its end
or when ``flush`` is called. Does not know what is said.

I1 ``send`` never waits. I2 every connected is followed by exactly one lost before the next connected of that peer. I3 nothing of a peer is taken
before its ``connected`` was told.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

import msgspec

from headrace.ambient import Ambient, ambient
from headrace.cluster.secret import Secrets
from headrace.cluster.transport.carrier import Carrier, Listening, Tcp
from headrace.cluster.transport.counters import Anonymous, Refusals
from headrace.cluster.transport.dialing import keep
from headrace.cluster.transport.handshake import Answering, Dialing, Opened, Opening
from headrace.cluster.transport.link import LINGER_S, Link, Lost
from headrace.cluster.transport.remote import Remote
from headrace.cluster.transport.requests import Serve
from headrace.cluster.transport.settings import Settings
from headrace.cluster.transport.values import Known, Me, Probed, View, Watcher, view
from headrace.cluster.transport.visits import Host, Visit, Visits
from headrace.log import get_logger
from headrace.model import limits
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Address
from headrace.model.errors import (
    Conflict,
    Draining,
    HeadraceError,
    LimitExceeded,
    Malformed,
    NotConnected,
    Unauthorized,
    UnknownOutcome,
)
from headrace.wire import peer as wire
from headrace.wire.peer import LZ4, NONCE_BYTES, Introduction, PeerOp, Purpose, Service

_log = get_logger("peers")

Take: TypeAlias = Callable[[BrokerId, bytes], None]
"""Handles a batch of a peer, at once. ``Malformed`` ends its connection."""

NEVER: Final = 0


class Transport:
    """See the module's head. Made and used on one loop."""

    def __init__(self, me: Me, secrets: Secrets, settings: Settings | None = None, *, carrier: Carrier | None = None) -> None:
        self.me = me
        self.secrets = secrets
        self.settings = settings or Settings()
        self.anonymous = Anonymous()
        self.port = 0
        self._carrier: Carrier = carrier or Tcp()
        self._loop = asyncio.get_running_loop()
        self._ambient: Ambient = ambient()
        self._remotes: dict[BrokerId, Remote] = {}
        self._links: dict[Link, asyncio.Future[None]] = {}
        """All that are not lost, opening ones too, with what is done when they are."""
        self._present: dict[Link, asyncio.BaseTransport] = {}
        """Those of them, and of the lost ones, whose transport is not yet closed."""
        self._all_gone = asyncio.Event()
        self._meant: dict[Link, tuple[BrokerId, Purpose]] = {}
        """Dialed links that open: whom is meant, and what for."""
        self._openings: dict[Link, asyncio.Future[None]] = {}
        """Dialed links that open: what awaits it."""
        self._dirty: dict[Link, None] = {}
        self._takes: dict[int, Take] = {}
        self._serves: dict[Service, Serve] = {}
        self._visits = Visits()
        self._watchers: list[Watcher] = []
        self._told = Refusals()
        self._listening: Listening | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._flushing = self._stopped = False
        self._closed = False
        """To peers."""

    # ------------------------------------------------------------ running

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def on_batch(self, service: Service, take: Take) -> None:
        self._takes[service] = take

    def on_request(self, service: Service, serve: Serve) -> None:
        self._serves[service] = serve

    def on_visit(self, host: Host) -> None:
        self._visits.host = host

    async def start(self, at: Address) -> None:
        """Listens (port 0: ``port`` says which) and begins to beat."""
        self._listening = await self._carrier.listen(lambda: Link(self, dialing=False), at)
        self.port = self._listening.port
        self._beat_later()

    def know(self, peers: Mapping[BrokerId, Known]) -> None:
        """These are the other brokers of the cluster, all of them: those with a greater id are dialed. Who was named before and is not any more is
        disconnected; who has the secret and was never named stays, since registrations are learnt late."""
        for id, known in peers.items():
            if id == self.me.broker:
                continue
            remote = self._remote(id)
            news = remote.address != known.address or known.incarnation not in ("", remote.incarnation)
            remote.address, remote.wanted = known.address, True
            if self.me.broker < id and remote.keeping is None and not self._stopped:
                remote.keeping = self._loop.create_task(keep(remote, self._dial, self._gone, self.settings, self._ambient), name=f"dial {id}")
            elif news and remote.link is None:
                remote.nudge.set()
        for remote in [remote for id, remote in self._remotes.items() if remote.wanted and id not in peers]:
            self._forget(remote, Conflict(f"broker {remote.id} is none of this cluster's any more"))

    def join_cluster(self, cluster: str) -> None:
        """This broker belongs to ``cluster`` from now on; connections opened before are opened again."""
        assert not self.me.cluster or self.me.cluster == cluster, "a broker never moves from one cluster to another"
        self.me = msgspec.structs.replace(self.me, cluster=cluster)
        for remote in list(self._remotes.values()):
            link = remote.link
            if link is not None and remote.who is not None and remote.who.cluster != cluster:
                link.close(Draining("reopened, as a member of the cluster"), Lost("closed", "it was opened before this broker joined the cluster"))

    def become(self, broker: BrokerId) -> None:
        """Its data directory is another one, so it goes by another id and is of no cluster. Peers are forgotten, visits stay."""
        for remote in list(self._remotes.values()):
            self._forget(remote, Draining(f"broker {self.me.broker} is {broker} from now on"))
        self.me = msgspec.structs.replace(self.me, broker=broker, cluster="")

    def close_to_peers(self) -> None:
        """Nobody here serves others now: they are forgotten, with those who watched and took, and let in again by ``open_to_peers``. Visits and
        probes go on."""
        self._closed = True
        for remote in list(self._remotes.values()):
            self._forget(remote, Draining(f"broker {self.me.broker} does not serve now"))
        self._watchers.clear()
        self._takes.clear()
        self._serves.clear()

    def open_to_peers(self, incarnation: Incarnation) -> None:
        """Whoever watches and takes is in place, in a life of its own."""
        self.me = msgspec.structs.replace(self.me, incarnation=incarnation)
        self._closed = False

    def remove_secret(self, id: bytes) -> None:
        """Accepts it no more; connections that either side had proven by it end and are opened anew."""
        self.secrets.remove(id)
        for link in list(self._links):
            if link.opened is not None and id in link.opened.keys:
                link.close(Unauthorized("the secret of this connection is not accepted any more"), Lost("closed", "its secret was removed"))

    async def stop(self, why: HeadraceError | None = None) -> None:
        """Says goodbye to everybody and waits a little until they have heard it; what is asked for ends with ``ConnectionLost``."""
        self._stopped = True
        if self._listening is not None:
            self._listening.close()
        if self._beat is not None:
            self._beat.cancel()
        tasks = []
        for remote in self._remotes.values():
            remote.served.cancel()
            if remote.keeping is not None:
                remote.keeping.cancel()
                tasks.append(remote.keeping)
        for link in list(self._links):
            link.close(why or Draining("this broker stops"), Lost("closed", "this broker stops"))
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        if self._present:
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._all_gone.wait()

    # ------------------------------------------------------------ saying something

    def send(self, peer: BrokerId, service: Service, *parts: bytes) -> bool:
        """One frame with ``parts`` one after another, out at the end of this turn. False: nothing was taken, since there is no connection (see
        ``connected``) or its queue is full (see ``drained``)."""
        remote = self._remotes.get(peer)
        link = None if remote is None else remote.link
        if link is None or link.full:
            if remote is not None:
                remote.counters.batches_refused += 1
            return False
        link.send(PeerOp.BATCH, parts, service=service)
        return True

    async def request(self, peer: BrokerId, service: Service, body: bytes, *, timeout_ms: int) -> bytes:
        """Its answer. ``NotConnected``, ``LimitExceeded`` and what the peer refuses are definite, ``UnknownOutcome`` (no answer, connection lost) is
        not."""
        assert 0 < timeout_ms <= limits.PEER_REQUEST_MS_MAX
        remote = self._remotes.get(peer)
        link = None if remote is None else remote.link
        if remote is None or link is None:
            trouble = "" if remote is None or not remote.trouble else f": {remote.trouble}"
            raise NotConnected(f"there is no connection to broker {peer}{trouble}", hint="it is made again by itself; try again in a moment")
        if link.full:
            raise LimitExceeded(f"{link.queued_bytes} bytes wait to be sent to broker {peer}", hint="try again in a moment")
        return await remote.calls.ask(
            lambda number: link.send(PeerOp.REQUEST, (wire.request_head(timeout_ms), body), service=service, correlation=number), timeout_ms
        )

    async def probe(self, at: Address, *, timeout_ms: int, expects: BrokerId = BrokerId("")) -> Probed:
        """Opens a connection of its own, to see who is there (and is alive: its loop has to answer), and closes it."""
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                link = await self._open(at, expects, "probe")
            assert link.opened is not None
            return Probed(outcome="answered", who=link.opened.who, keys=link.opened.keys)
        except TimeoutError:
            return Probed(outcome="silent", text=f"no answer within {timeout_ms} ms")
        except ConnectionRefusedError as e:
            return Probed(outcome="refused", text=str(e))
        except UnknownOutcome as e:
            return Probed(outcome="silent", text=str(e))
        except (OSError, HeadraceError) as e:
            return Probed(outcome="silent" if isinstance(e, OSError) else "rejected", text=str(e))
        finally:
            if link is not None:
                link.end(Lost("closed", "it was a probe"))

    async def visit(self, at: Address) -> Visit:
        """Opens one. OSError (TimeoutError among them) and ``HeadraceError`` say why it cannot be."""
        self._visits.admit()
        return self._visits.of(await self._open(at, BrokerId(""), "visit"))

    def flush(self) -> None:
        """Writes what was sent in this turn, without waiting for its end."""
        dirty, self._dirty = self._dirty, {}
        for link in dirty:
            link.flush()

    def hold(self, peer: BrokerId) -> None:
        """Reads nothing more of it until ``release``: this broker cannot keep up with what it sends."""
        remote = self._remotes.get(peer)
        if remote is not None and remote.link is not None:
            remote.link.hold()

    def release(self, peer: BrokerId) -> None:
        remote = self._remotes.get(peer)
        if remote is not None and remote.link is not None:
            remote.link.release()

    # ------------------------------------------------------------ looking

    def connected(self, peer: BrokerId) -> bool:
        remote = self._remotes.get(peer)
        return remote is not None and remote.link is not None

    def peer(self, peer: BrokerId) -> Remote | None:
        """What is known of it; not to be changed."""
        return self._remotes.get(peer)

    def heard_ms(self, peer: BrokerId) -> int:
        """When the last byte of its current incarnation was read, by the loop's monotonic clock; 0 = never. After this broker stood still, what the
        system had kept counts as heard now."""
        remote = self._remotes.get(peer)
        return NEVER if remote is None else remote.heard_ms

    def answered_ms(self, peer: BrokerId) -> int:
        """The newest moment of which it is certain that its current incarnation ran and heard this broker later than that: the sending time of the
        newest beat it has answered, or before that the beginning of the connection, whose nonce its proof answers. Nothing that lay in a buffer while
        anybody stood still makes it younger. 0 = none."""
        remote = self._remotes.get(peer)
        return NEVER if remote is None else remote.answered_ms

    def view(self) -> list[View]:
        """Every peer, by id."""
        now_ms = self.now_ms()
        return [view(remote, now_ms) for _, remote in sorted(self._remotes.items())]

    # ------------------------------------------------------------ connections

    def _remote(self, id: BrokerId) -> Remote:
        remote = self._remotes.get(id)
        if remote is None:
            if len(self._remotes) >= limits.PEERS_MAX:
                raise LimitExceeded(f"this broker knows {len(self._remotes)} others already, the most it takes")
            remote = self._remotes[id] = Remote(id, self.settings, self._serves)
        return remote

    def _forget(self, remote: Remote, why: HeadraceError) -> None:
        """It is told to be none of the cluster's."""
        if remote.keeping is not None:
            remote.keeping.cancel()
        if remote.link is not None:
            remote.link.close(why, Lost("closed", str(why)))
        remote.served.cancel()
        del self._remotes[remote.id]

    async def _dial(self, remote: Remote) -> Link:
        assert remote.address is not None
        return await self._open(remote.address, remote.id, "peer")

    async def _open(self, at: Address, expects: BrokerId, purpose: Purpose) -> Link:
        link = Link(self, dialing=True)
        future: asyncio.Future[None] = self._loop.create_future()
        self._meant[link], self._openings[link] = (expects, purpose), future
        try:
            async with asyncio.timeout(self.settings.opening_ms / 1000):
                await self._carrier.dial(lambda: link, at)
            await future
        except BaseException as e:
            link.end(Lost("closed", "the dial was given up"))
            if isinstance(e, TimeoutError):
                raise TimeoutError(f"{at} does not answer") from None
            raise
        finally:
            self._meant.pop(link, None)
            self._openings.pop(link, None)
            if future.done() and not future.cancelled():
                future.exception()
        return link

    async def _gone(self, link: Link) -> None:
        gone = self._links.get(link)
        if gone is not None:
            await asyncio.shield(gone)

    def begin_opening(self, link: Link, transport: asyncio.BaseTransport) -> Opening:
        if self._stopped:
            raise Draining("this broker stops")
        expects, purpose = self._meant.get(link, (BrokerId(""), "peer"))
        if not link.dialing:
            self.anonymous.accepted += 1
            opening = [other for other in self._links if not other.attached and not other.dialing]
            if len(opening) >= self.settings.openings_max:  # a broker is done in milliseconds: who has been at it for longest is none
                self.anonymous.crowded_out += 1
                opening[0].end(Lost("refused", "too many others are opening a connection"))
        self._links[link] = self._loop.create_future()
        self._present[link] = transport
        me = Introduction(
            broker=self.me.broker,
            incarnation=self.me.incarnation,
            cluster="" if purpose == "visit" else self.me.cluster,
            release=self.me.release,
            nonce=bytes.fromhex(self._ambient.token(NONCE_BYTES)),
            features=(LZ4,) if self.settings.compression == "lz4" else (),
            expects=expects,
            purpose=purpose,
        )
        binding = self._carrier.binding(transport)
        return Dialing(me, self.secrets, binding=binding) if link.dialing else Answering(me, self.secrets, self._admit, binding=binding)

    def _admit(self, who: Introduction) -> None:
        if who.purpose == "probe":
            return
        if who.purpose == "visit":
            self._visits.admit()
            return
        if self._closed:
            raise Draining(f"broker {self.me.broker} does not serve now")
        if who.broker > self.me.broker:
            raise Malformed(f"broker {who.broker} dials {self.me.broker}; the smaller id dials")
        remote = self._remotes.get(BrokerId(who.broker))
        if remote is not None:
            remote.check(who)
        elif len(self._remotes) >= limits.PEERS_MAX:
            raise LimitExceeded(f"this broker knows {len(self._remotes)} others already, the most it takes")

    def is_open(self, link: Link, opened: Opened) -> None:
        who = opened.who
        _, purpose = self._meant.get(link, (BrokerId(""), who.purpose))
        if purpose == "visit":
            self._visits.opened(link)
        elif purpose == "peer":
            remote = self._remote(BrokerId(who.broker))
            before = remote.link
            if before is not None:
                before.end(Lost("replaced", "it has connected anew"))
            remote.attach(link, who)
            _log.info("connected to broker %s (%s) at %s", who.broker, who.incarnation, link.address)
            for watcher in self._watchers:
                watcher.connected(remote.id, who)
        future = self._openings.get(link)
        if future is not None and not future.done():
            future.set_result(None)

    def is_gone(self, link: Link) -> None:
        self._present.pop(link, None)
        if not self._present and self._stopped:
            self._all_gone.set()

    def is_lost(self, link: Link, why: Lost) -> None:
        gone = self._links.pop(link, None)
        self._dirty.pop(link, None)
        if gone is not None and not gone.done():
            gone.set_result(None)
        future = self._openings.get(link)
        if future is not None and not future.done():
            future.set_exception(link.error or (TimeoutError(why.text) if why.kind == "silent" else ConnectionResetError(why.text)))
        if self._visits.lost(link, why):
            return
        if link.attached and link.opened is not None:
            remote = self._remotes[BrokerId(link.opened.who.broker)]
            if remote.detach(link, why):
                _log.info("connection to broker %s lost (%s): %s", remote.id, why.kind, why.text)
                for watcher in self._watchers:
                    watcher.lost(remote.id, why)
        elif not link.dialing and link.opened is None and gone is not None:
            if why.kind == "silent":
                self.anonymous.timed_out += 1
            else:
                self.anonymous.refused += 1
            if link.error is not None:
                self._told.refused(link.address, link.error, self.now_ms())

    # ------------------------------------------------------------ for the links

    def now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    def take(self, link: Link, op: PeerOp, service: int, correlation: int, body: bytes) -> None:
        assert link.opened is not None
        if link in self._visits:
            self._visits.take(link, op, service, body)
            return
        remote = self._remotes[BrokerId(link.opened.who.broker)]
        if op == PeerOp.BATCH:
            take = self._takes.get(service)
            if take is None:
                raise Malformed(f"this broker has no service {service} for its peers")
            take(remote.id, body)
        elif op == PeerOp.REQUEST:
            remote.served.begin(service, body, lambda answer: _reply(link, correlation, answer))
        else:
            remote.calls.answered(op, correlation, body)

    def filled(self, link: Link) -> None:
        self._loop.call_soon(self._tell_full, link)

    def drained(self, link: Link) -> None:
        assert link.opened is not None
        self._tell_full(link)
        link.full = link.told_full = False
        if link in self._visits:
            return
        for watcher in self._watchers:
            watcher.drained(BrokerId(link.opened.who.broker))

    def _tell_full(self, link: Link) -> None:
        if link.full and link.lost is None and link.opened is not None and not link.told_full and link not in self._visits:
            link.told_full = True
            for watcher in self._watchers:
                watcher.full(BrokerId(link.opened.who.broker))

    def flush_soon(self, link: Link) -> None:
        self._dirty[link] = None
        self._flush_next_turn()

    def _flush_next_turn(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._flushing = False
        self.flush()

    def breathe(self, link: Link) -> None:
        self._loop.call_soon(link.breathed)

    def _beat_later(self) -> None:
        self._beat = self._loop.call_later(self.settings.beat_ms / 1000, self._beat_all)

    def _beat_all(self) -> None:
        self._beat_later()
        for link in list(self._links):
            link.beat()


def _reply(link: Link, correlation: int, answer: bytes | HeadraceError) -> None:
    if link.lost is not None:
        return
    if isinstance(answer, bytes) and link.full:
        answer = LimitExceeded("too much waits to be sent on this connection", hint="try again in a moment")
    if isinstance(answer, HeadraceError):
        link.say(wire.failure(PeerOp.ERROR, answer, correlation))
    else:
        link.send(PeerOp.REPLY, (answer,), correlation=correlation)

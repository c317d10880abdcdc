"""Membership by SWIM over UDP: the package kinship, in the words of ``interface``. Imported in coordinated mode only.

Owns names in gossip (one each life of a broker, ``lives`` puts them together), the keys made of the cluster's secrets, and names to addresses. The
package owns the protocol: probes, indirect probes, suspicion with Lifeguard's patience, encryption, replays. It runs on a thread of its own, so a
loop that is busy or a long hold of the interpreter does not make this broker look dead.

Keys: HKDF of a secret for this purpose and cluster; packets are sealed with XChaCha20-Poly1305. Who has another cluster id or no secret is not heard.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Final

import kinship
import msgspec

from headrace.ambient import ambient
from headrace.cluster.membership.fanout import Fanout
from headrace.cluster.membership.interface import Changed, Claimed, Event, Member, Reread, State, check_meta
from headrace.cluster.membership.lives import Life, Lives
from headrace.cluster.secret import Secret, Secrets
from headrace.log import get_logger
from headrace.model import config
from headrace.model.cluster import BrokerId
from headrace.model.config import Address, parse_address
from headrace.model.errors import Conflict, Invalid, Unavailable

_log = get_logger("membership")

PURPOSE: Final = "gossip 1"
LEAVE_S: Final = 2.0
RECONNECT_S: Final = 2.0
"""How often the dead are asked whether they are back, and seeds that were never seen are tried again."""
SETTLE_S: Final = 0.1
"""After the package has closed, its thread lets go of the last objects of the interpreter's; one that ends within that moment crashed in 1 of 40
runs."""
RETRANSMIT: Final = 10
"""Each who hears a change passes it on this often for each power of ten of members. At the package's 4, one of five missed the return of another in 1
of 50 runs and learned it seconds later, from the next full exchange."""
CLAIM_S: Final = 10.0
"""Two lives of one broker that overlap for so long are two processes."""
ID: Final = "id"
"""Key of the broker's id in a member's metadata; its name there is another one in each life."""
_STATES: Final[dict[kinship.State, State]] = {
    kinship.State.ALIVE: "alive", kinship.State.SUSPECT: "suspect", kinship.State.DEAD: "dead", kinship.State.LEFT: "left"
}  # fmt: skip


class Gossip:
    """A ``Membership``. ``at`` port 0: the system picks; ``advertise`` None: the address bound."""

    def __init__(
        self, id: BrokerId, cluster: str, secrets: Secrets, settings: config.Membership,
        *, at: Address, advertise: Address | None = None, meta: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._id = id
        self._cluster_id = cluster
        self._secrets = secrets
        self._settings = settings
        self._at = at
        self._advertise = advertise
        self._meta = dict(meta)
        self._seeds = tuple(parse_address(seed) for seed in settings.seeds)
        self._node: kinship.Cluster | None = None
        self.claim_s = CLAIM_S
        self._name = f"{id[:40]}~{ambient().token(8)}"
        self._lives = Lives()
        self._fanout = Fanout()
        self._following: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ running

    async def start(self) -> None:
        s = self._settings
        await asyncio.to_thread(_route_log)
        check_meta(self._meta)
        at = await resolved(self._at)
        advertise = None if self._advertise is None else await resolved(self._advertise)
        if advertise is not None and not advertise.port:
            if not at.port:
                raise Invalid("gossip is advertised at a port that the system picks", hint="give listen.gossip or listen.gossip_advertise a port")
            advertise = Address(advertise.host, at.port)
        interval_s = s.probe_interval_ms / 1000
        try:
            settings = kinship.Config.lan(
                name=self._name,
                bind=str(at),
                advertise=None if advertise is None else str(advertise),
                cluster=f"headrace {self._cluster_id}",
                seeds=[str(seed) for seed in self._seeds],
                keys=[self._key(secret) for secret in self._secrets],
                meta=self._meta | {ID: self._id},
                probe_interval=interval_s,
                probe_timeout=s.probe_timeout_ms / 1000,
                indirect_checks=s.indirect_probes,
                suspicion_mult=s.suspicion_multiplier,
                gossip_interval=min(0.2, interval_s / 2),
                reconnect_interval=RECONNECT_S,
                rejoin_interval=RECONNECT_S,
                retransmit_mult=RETRANSMIT,
                push_pull_interval=10.0,
                resolve_timeout=5.0,
            )
            node = kinship.Cluster(settings)
            await node.start()
        except kinship.JoinError as e:
            raise Unavailable(f"no seed has an address: {e}", hint="correct membership.seeds or the names' service") from None
        except kinship.ConfigError as e:
            raise Invalid(f"membership: {e}") from None
        except (OSError, kinship.KinshipError) as e:
            raise Unavailable(f"{self._at} cannot be opened for gossip: {e}", hint="is another broker running there? see listen.gossip") from None
        self._node = node
        events = node.events()
        self._reread()
        self._following = asyncio.get_running_loop().create_task(self._follow(events), name="membership")

    async def _follow(self, events: kinship.EventStream) -> None:
        try:
            async for event in events:
                self._take(event)
        except kinship.KinshipClosed as e:
            _log.error("gossip has stopped: %s; this broker sees nobody's death until it is restarted", e)
        finally:
            self._fanout.end()

    async def leave(self) -> None:
        if self._node is not None:
            with suppress(kinship.KinshipError):
                await self._node.leave(LEAVE_S)
        await self.close()

    async def close(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            with suppress(kinship.KinshipError):
                await node.close()
        if self._following is not None:
            await self._following
        if node is not None:
            await asyncio.sleep(SETTLE_S)

    @property
    def _running(self) -> kinship.Cluster:
        if self._node is None:
            raise Unavailable("gossip is not started")
        return self._node

    # ------------------------------------------------------------ looking

    @property
    def address(self) -> Address:
        return parse_address(self._running.local.addr)

    def members(self) -> tuple[Member, ...]:
        everyone = self._lives.current() | {self._id: self._me()}
        return tuple(everyone[id] for id in sorted(everyone))

    def member(self, id: BrokerId) -> Member | None:
        return self._me() if id == self._id else self._lives.member(id)

    def _me(self) -> Member:
        me = _member(self._running.local)
        assert me is not None
        return me

    def events(self) -> AsyncIterator[Event]:
        return self._fanout.reader()

    def counters(self) -> Mapping[str, int]:
        stats = self._running.stats()
        return {name: int(getattr(stats, name)) for name in stats.__slots__}

    def _take(self, event: kinship.Event) -> None:
        if isinstance(event, kinship.EventsLost):
            self._reread()
            self._fanout.put(Reread())
        elif not isinstance(event, (kinship.NameConflict, kinship.UserMessage)):
            self._take_life(event.member)

    def _take_life(self, m: kinship.Member) -> None:
        member = _member(m)
        if member is None or m.name == self._name:
            return
        if member.id == self._id:
            self._suspect_claim(Life(m.name, member))
            return
        known = self._lives.get(m.name)
        if known is not None and known.member == member:
            return
        before, now = self._lives.take(Life(m.name, member))
        if known is None and len(self._lives.alive(member.id)) > 1:
            asyncio.get_running_loop().call_later(self.claim_s, self._judge_claim, member.id)
        if now is None or before == now:
            return
        if before is None or before.state != now.state or before.run != now.run:
            was = "" if before is None else f", was {before.state}" if before.run == now.run else f", an earlier life of it was {before.state}"
            _log.info("broker %s at %s is %s%s", now.id, now.address, now.state, was)
        self._fanout.put(Changed(now, before))

    def _judge_claim(self, id: BrokerId) -> None:
        """Two lives of a broker overlap while one has just been killed; not for long."""
        for life in self._lives.alive(id)[:-1]:
            self._claimed(life)

    def _suspect_claim(self, life: Life) -> None:
        if life.member.state == "alive":
            asyncio.get_running_loop().call_later(self.claim_s, self._judge_own, life.name)

    def _judge_own(self, name: str) -> None:
        node = self._node
        with suppress(kinship.KinshipError):
            found = None if node is None else node.member(name)
            member = None if found is None else _member(found)
            if member is not None and member.state == "alive":
                self._claimed(Life(name, member))

    def _claimed(self, life: Life) -> None:
        member = self.member(life.member.id)
        assert member is not None
        _log.error(
            "two processes are broker %s, at %s and at %s: one runs on a copy of the other's data directory; stop it, and start it on an empty one",
            member.id, member.address, life.member.address,
        )  # fmt: skip
        self._fanout.put(Claimed(member, life.member.address))

    def _reread(self) -> None:
        """As the package sees it now; those it shows no more are what it remembers of them."""
        node = self._running
        shown = {m.name: m for m in node.members()}
        for name in self._lives.names():
            if name not in shown:
                gone, known = node.member(name), self._lives.get(name)
                if gone is not None:
                    self._take_life(gone)
                elif known is not None:
                    member = msgspec.structs.replace(known.member, state="dead")
                    before, now = self._lives.take(Life(name, member))
                    if now is not None:
                        self._fanout.put(Changed(now, before))
        for m in shown.values():
            self._take_life(m)

    # ------------------------------------------------------------ changing

    async def join(self, seeds: tuple[Address, ...]) -> int:
        try:
            return await self._running.join([str(seed) for seed in seeds])
        except kinship.JoinError:
            return 0

    async def say(self, **meta: str) -> None:
        changed = {key: value for key, value in (self._meta | meta).items() if value}
        check_meta(changed)
        await self._running.set_meta(changed | {ID: self._id})
        self._meta = changed

    async def add_secret(self, secret: bytes) -> None:
        await self._keyring(self._running.keyring.install(self._key(Secret(secret))))

    async def use_secret(self, id: bytes) -> None:
        await self._keyring(self._running.keyring.use(self._key(self._secrets.known(id))))

    async def remove_secret(self, id: bytes) -> None:
        await self._keyring(self._running.keyring.remove(self._key(self._secrets.known(id))))

    async def _keyring(self, doing: "asyncio.Future[None] | object") -> None:
        try:
            await doing  # type: ignore[misc]
        except kinship.KeyringError as e:
            raise Conflict(f"gossip: {e}", hint="add a secret everywhere, use it everywhere, then remove the old one") from None

    def _key(self, secret: Secret) -> bytes:
        return secret.key(f"{PURPOSE} {self._cluster_id}")


class _Into(logging.Handler):
    """The package's warnings, in this broker's log."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.log(min(record.levelno, logging.WARNING), "gossip: %s", record.getMessage())


def _route_log() -> None:
    """Called where no loop runs: then the package's log is carried by a thread of its own, which survives every loop."""
    logger = logging.getLogger("kinship")
    if not logger.handlers:
        logger.addHandler(_Into())
        logger.propagate = False
    kinship.log_to_python(logging.WARNING)


async def resolved(address: Address) -> Address:
    """With its host as a number: the first that the name has."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port or None, type=socket.SOCK_DGRAM)
    except OSError as e:
        raise Unavailable(f"the name {address.host} has no address: {e}", hint="correct listen.gossip, or the names' service") from None
    return Address(str(found[0][4][0]), address.port)


def _member(m: kinship.Member) -> Member | None:
    """None for something that is no broker."""
    meta = dict(m.meta)
    id = meta.pop(ID, "")
    return Member(id=BrokerId(id), address=m.addr, state=_STATES[m.state], run=m.epoch, meta=meta) if id else None

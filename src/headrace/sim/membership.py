"""Membership for simulated clusters: the same interface as real gossip, by probes over the simulated network.

Owns nothing but the way between the machine (``sim.swim``), the datagrams and the loop. A machine that is killed, paused or cut off is noticed as in
reality: it does not answer. Made on the simulated machine it belongs to.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec

from headrace.cluster.membership.fanout import Fanout
from headrace.cluster.membership.interface import Changed, Event, Member, check_meta
from headrace.cluster.secret import Secret, Secrets
from headrace.model import config
from headrace.model.cluster import BrokerId
from headrace.model.config import Address, parse_address
from headrace.model.errors import Conflict, Unavailable
from headrace.sim.datagrams import Datagrams
from headrace.sim.loop import SimLoop
from headrace.sim.swim import Message, Rumour, Swim


class Sealed(msgspec.Struct, frozen=True):
    """A datagram: who has not the cluster and one of its keys does not understand it."""

    cluster: str
    key: bytes
    message: Message

    def __getitem__(self, _: int) -> str:
        return self.message.kind


class SimMembership:
    """A ``Membership``."""

    def __init__(
        self, id: BrokerId, cluster: str, secrets: Secrets, settings: config.Membership,
        *, at: Address, datagrams: Datagrams, meta: Mapping[str, str],
    ) -> None:  # fmt: skip
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self._loop = loop
        self._machine = loop.ambient
        self._id = id
        self._cluster = cluster
        self._keys = {secret.id for secret in secrets}
        self._used = secrets.used.id
        self._settings = settings
        self._at = at
        self._datagrams = datagrams
        self._meta = dict(meta)
        self._fanout = Fanout()
        self._counters = {"packets_received": 0, "decrypt_failures": 0, "suspicions": 0}
        self._timer: asyncio.TimerHandle | None = None
        self._address: Address | None = None
        self._swim: Swim | None = None

    async def start(self) -> None:
        check_meta(self._meta)
        self._address = self._datagrams.bind(self._machine, self._at.port, self._receive)
        me = Rumour(
            id=self._id, address=self._address, run=1 + int(self._loop.time() * 1000), number=0, state="alive", meta=tuple(sorted(self._meta.items()))
        )
        seeds = [parse_address(seed) for seed in self._settings.seeds]
        self._swim = Swim(me, seeds, self._settings, self._machine.chance.fork("membership"), self._now_ms())
        self._swim.join(seeds)
        self._go_on()

    # ------------------------------------------------------------ looking

    @property
    def address(self) -> Address:
        return self._running.me.address

    def members(self) -> tuple[Member, ...]:
        swim = self._running
        return tuple(_member(r) for _, r in sorted((swim.known | {self._id: swim.me}).items()))

    def member(self, id: BrokerId) -> Member | None:
        swim = self._running
        found = swim.me if id == self._id else swim.known.get(id)
        return None if found is None else _member(found)

    def events(self) -> AsyncIterator[Event]:
        return self._fanout.reader()

    def counters(self) -> Mapping[str, int]:
        return dict(self._counters)

    # ------------------------------------------------------------ changing

    async def join(self, seeds: tuple[Address, ...]) -> int:
        swim = self._running
        before = self._counters["packets_received"]
        swim.join(seeds)
        self._go_on()
        await asyncio.sleep(0.1)
        return min(len(seeds), self._counters["packets_received"] - before)

    async def say(self, **meta: str) -> None:
        changed = {key: value for key, value in (self._meta | meta).items() if value}
        check_meta(changed)
        self._meta = changed
        self._running.say(tuple(sorted(changed.items())))
        self._go_on()

    async def add_secret(self, secret: bytes) -> None:
        self._keys.add(Secret(secret).id)

    async def use_secret(self, id: bytes) -> None:
        if id not in self._keys:
            raise Conflict("that secret is not accepted")
        self._used = id

    async def remove_secret(self, id: bytes) -> None:
        if id == self._used:
            raise Conflict("that secret is in use")
        self._keys.discard(id)

    async def leave(self) -> None:
        self._running.leave()
        self._send()
        await self.close()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._address is not None:
            self._datagrams.unbind(self._address)
        self._fanout.end()

    # ------------------------------------------------------------ between machine and network

    @property
    def _running(self) -> Swim:
        if self._swim is None:
            raise Unavailable("membership is not started")
        return self._swim

    def _now_ms(self) -> int:
        return int(self._machine.monotonic() * 1000)

    def _receive(self, source: Address, sealed: Sealed) -> None:
        if sealed.cluster != self._cluster or sealed.key not in self._keys:
            self._counters["decrypt_failures"] += 1
            return
        self._counters["packets_received"] += 1
        self._running.receive(source, sealed.message, self._now_ms())
        self._go_on()

    def _due(self) -> None:
        self._running.tick(self._now_ms())
        self._go_on()

    def _go_on(self) -> None:
        swim = self._running
        self._send()
        news, swim.news = swim.news, []
        for now, before in news:
            self._counters["suspicions"] += now.state == "suspect"
            self._fanout.put(Changed(_member(now), None if before is None else _member(before)))
        if self._timer is not None:
            self._timer.cancel()
        wait_s = max(0.001, (swim.next_deadline_ms() - self._machine.monotonic() * 1000) / 1000)
        self._timer = self._loop.call_later(wait_s, self._due)

    def _send(self) -> None:
        swim = self._running
        out, swim.out = swim.out, []
        for to, message in out:
            self._datagrams.send(swim.me.address, to, Sealed(self._cluster, self._used, message))


def _member(r: Rumour) -> Member:
    return Member(id=r.id, address=str(r.address), state=r.state, run=r.run, meta=dict(r.meta))

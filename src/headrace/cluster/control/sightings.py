"""What this broker has seen of the others: gossip's verdicts, its own probes, how its connections ended, and whom the others heard.

Owns the looking: nobody is probed without a reason, and who is suspect is probed until nothing speaks against him any more. Judges nothing
(``core.control.liveness``).

S1 clues are about one incarnation; with another they start anew. S2 that a connection was reset and refused is told only together with the answers
of the others to "when did you last hear it", so that a verdict by reset never comes before they were asked. S3 silence is never told as a refusal.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from headrace.ambient import ambient
from headrace.cluster.control.evidence import NONE, Clues
from headrace.cluster.membership.interface import Membership
from headrace.cluster.transport import Lost, Transport
from headrace.core.control.liveness import REFUSED_APART_MS
from headrace.core.control.picture import Swim
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Incarnation, Registered
from headrace.model.config import parse_address
from headrace.model.errors import HeadraceError, Invalid, Malformed
from headrace.wire.peer import Introduction, Service

_log = get_logger("cluster")

PEER: Final = "peer"
"""Name of the listener whose address is probed."""
PROBE_MS: Final = 300
"""A broker that does not answer a new connection for so long has failed the probe."""
AGAIN_MS: Final = 500
"""Between two probes of a broker against whom something speaks."""
ASK_MS: Final = 150
"""The others say whom they heard within this time, or do not count."""
REFUSALS_KEPT: Final = 4


class _Asked(msgspec.Struct, frozen=True):
    """A request of ``Service.SIGHTINGS``: when was this life last heard?"""

    broker: Annotated[str, Meta(max_length=64)]
    incarnation: Annotated[str, Meta(max_length=64)]


class _Heard(msgspec.Struct, frozen=True):
    """Its answer: milliseconds before the answer was written; -1 = never."""

    ago_ms: Annotated[int, Meta(ge=-1, le=1 << 52)]


_asked = msgspec.msgpack.Decoder(_Asked).decode
_heard = msgspec.msgpack.Decoder(_Heard).decode
_encode = msgspec.msgpack.Encoder().encode


class _One:
    """One life of a broker as seen from here."""

    def __init__(self, registered: Registered) -> None:
        self.registered = registered
        self.clues = NONE
        self.lost_ms: int | None = None
        """When the connection was reset; what is told of it is in ``clues``."""
        self.looking: asyncio.Task[None] | None = None


class Sightings:
    """Implements ``Evidence`` by membership and transport. ``stop`` ends what it has begun, not those two."""

    def __init__(self, me: BrokerId, membership: Membership, transport: Transport) -> None:
        self._me = me
        self._membership = membership
        self._transport = transport
        self._ambient = ambient()
        self._loop = asyncio.get_running_loop()
        self._lives: dict[BrokerId, _One] = {}
        self._closely: frozenset[BrokerId] = frozenset()
        self._others: frozenset[BrokerId] = frozenset()
        self._told: list[Callable[[], None]] = []
        self._following: asyncio.Task[None] | None = None
        transport.watch(self)
        transport.on_request(Service.SIGHTINGS, self._answer)

    def start(self) -> None:
        self._following = self._loop.create_task(self._follow(), name="verdicts of gossip")

    async def stop(self) -> None:
        tasks = [t for t in (self._following, *(one.looking for one in self._lives.values())) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ as Evidence

    def clues(self, broker: BrokerId, incarnation: Incarnation) -> Clues:
        one = self._lives.get(broker)
        if one is None or one.registered.incarnation != incarnation:
            return replace(NONE, swim=self._swim(broker, incarnation))
        return replace(one.clues, swim=self._swim(broker, incarnation))

    def look_at(self, registered: Mapping[BrokerId, Registered], closely: frozenset[BrokerId]) -> None:
        self._closely = closely
        for id in [id for id in self._lives if id not in registered]:
            self._forget(self._lives.pop(id))
        for id, now in registered.items():
            if id == self._me:
                continue
            one = self._lives.get(id)
            if one is None or one.registered.incarnation != now.incarnation:
                if one is not None:
                    self._forget(one)
                one = self._lives[id] = _One(now)
            one.registered = now
            self._look(one)

    def on_news(self, told: Callable[[], None]) -> None:
        self._told.append(told)

    def also(self, brokers: frozenset[BrokerId]) -> None:
        """Those are to be probed too once anything speaks against them, whoever the controller is."""
        if brokers == self._others:
            return
        self._others = brokers
        for id in sorted(brokers):
            if id in self._lives:
                self._look(self._lives[id])

    # ------------------------------------------------------------ as the transport's watcher

    def connected(self, peer: BrokerId, who: Introduction) -> None:
        one = self._lives.get(peer)
        if one is not None and one.registered.incarnation == who.incarnation:
            one.lost_ms = None
            one.clues = replace(one.clues, probe_failed=False, reset_ms=None, refused_ms=(), frame_ms=None)
            self._tell()

    def lost(self, peer: BrokerId, why: Lost) -> None:
        one = self._lives.get(peer)
        remote = self._transport.peer(peer)
        if one is None or remote is None or remote.incarnation != one.registered.incarnation or why.kind not in ("reset", "silent"):
            return
        if why.kind == "reset":
            one.lost_ms = self._now_ms()
        self._look(one, reason=True)

    def full(self, peer: BrokerId) -> None: ...

    def drained(self, peer: BrokerId) -> None: ...

    # ------------------------------------------------------------ looking

    async def _follow(self) -> None:
        async for _ in self._membership.events():
            for one in list(self._lives.values()):
                self._look(one)
            self._tell()

    def _swim(self, broker: BrokerId, incarnation: Incarnation) -> Swim:
        member = self._membership.member(broker)
        return "unknown" if member is None or member.incarnation != incarnation else member.state

    def _suspect(self, one: _One) -> bool:
        swim = self._swim(one.registered.id, one.registered.incarnation)
        return swim in ("suspect", "dead") or one.clues.probe_failed or one.lost_ms is not None

    def _close(self, one: _One) -> bool:
        return one.registered.id in self._closely or one.registered.id in self._others

    def _look(self, one: _One, *, reason: bool = False) -> None:
        if self._close(one) and one.looking is None and (reason or self._suspect(one)):
            one.looking = self._loop.create_task(self._probe_on(one), name=f"probes of {one.registered.id}")

    def _forget(self, one: _One) -> None:
        if one.looking is not None:
            one.looking.cancel()

    async def _probe_on(self, one: _One) -> None:
        """Probes until nothing speaks against it, or nobody here has to know."""
        refused: list[int] = []
        try:
            while True:
                outcome = await self._probe(one)
                if outcome == "answered":
                    refused.clear()
                    one.lost_ms = None
                    one.clues = replace(one.clues, probe_failed=False, reset_ms=None, refused_ms=(), frame_ms=None)
                else:
                    if outcome == "refused":
                        refused = [*refused, self._now_ms()][-REFUSALS_KEPT:]
                    reset_ms = one.lost_ms
                    if reset_ms is not None and len(refused) >= 2:
                        frame_ms = await self._ask_others(one)
                        one.clues = replace(one.clues, reset_ms=one.lost_ms, refused_ms=tuple(refused), frame_ms=frame_ms)
                    else:
                        one.clues = replace(one.clues, reset_ms=reset_ms, refused_ms=())
                    one.clues = replace(one.clues, probe_failed=True)
                if not self._close(one):
                    one.clues = NONE  # nobody here looks any more: it would be told for ever
                self._tell()
                if not self._close(one) or not self._suspect(one):
                    return
                # a process that is ending may still take a connection and drop it: that tells nothing, and is asked again as soon
                hurry = one.lost_ms is not None and outcome in ("refused", "silent") and len(refused) < 2
                await asyncio.sleep((REFUSED_APART_MS + 5 if hurry else AGAIN_MS) / 1000)
        except Exception:
            _log.exception("looking at broker %s failed", one.registered.id)
        finally:
            one.looking = None

    async def _probe(self, one: _One) -> str:
        registered = one.registered
        try:
            at = parse_address(registered.addresses.get(PEER, ""))
        except Invalid:
            return "silent"
        probed = await self._transport.probe(at, timeout_ms=PROBE_MS, expects=registered.id)
        if probed.outcome == "answered" and (probed.who is None or probed.who.incarnation != registered.incarnation):
            return "replaced"
        return probed.outcome

    async def _ask_others(self, one: _One) -> int | None:
        """When any other broker last got a frame of it; None = none of those who answered ever did."""
        body = _encode(_Asked(one.registered.id, one.registered.incarnation))

        async def ask(peer: BrokerId) -> int | None:
            try:
                heard = _heard(await self._transport.request(peer, Service.SIGHTINGS, body, timeout_ms=ASK_MS))
            except (HeadraceError, msgspec.DecodeError):
                return None
            return None if heard.ago_ms < 0 else self._now_ms() - heard.ago_ms

        others = [id for id in self._lives if id != one.registered.id and self._transport.connected(id)]
        answers = [at for at in await asyncio.gather(*map(ask, others)) if at is not None]
        return max(answers, default=None)

    async def _answer(self, peer: BrokerId, body: bytes) -> bytes:
        try:
            asked = _asked(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"a question who was heard: {e}") from None
        broker = BrokerId(asked.broker)
        remote = self._transport.peer(broker)
        at = 0 if remote is None or remote.incarnation != asked.incarnation else self._transport.heard_ms(broker)
        return _encode(_Heard(self._now_ms() - at if at else -1))

    def _now_ms(self) -> int:
        return int(self._ambient.monotonic() * 1000)

    def _tell(self) -> None:
        for told in self._told:
            told()

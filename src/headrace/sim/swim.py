"""SWIM as a machine without I/O: probes, probes through others, suspicion, refutation, rumours. What the simulator has in place of kinship.

Source: Das, Gupta, Motivala, "SWIM" (2002). Left out of what the real one does: Lifeguard's patience and encryption; so this one suspects sooner.

Owns one member's view of all. Messages and time (milliseconds) come in, messages go out as (to, message); who carries them may lose them.

I1 of two rumours about a member the same one wins everywhere, in whatever order they come (``stronger``). I2 a member's number is raised only by
itself. I3 whoever is probed in vain is suspect before it is dead, and may object in between.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import Final, Literal

import msgspec

from headrace.cluster.membership.interface import State
from headrace.model.cluster import BrokerId
from headrace.model.config import Address, Membership

RUMOURS_A_MESSAGE: Final = 8
SYNC_MS: Final = 2_000
"""How often all that is known is exchanged with somebody, the dead and the seeds among them."""
_STRENGTH: Final[dict[State, int]] = {"alive": 0, "suspect": 1, "dead": 2, "left": 3}


class Rumour(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a member."""

    id: BrokerId
    address: Address
    run: int
    number: int
    """Raised by the member itself to object, or to say something new of itself."""
    state: State
    meta: tuple[tuple[str, str], ...] = ()


class Message(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["ping", "ack", "ask", "sync", "synced"]
    probe: int = 0
    target: Address | None = None
    """Of an ask: who shall be probed."""
    rumours: tuple[Rumour, ...] = ()

    def __getitem__(self, _: int) -> str:
        return self.kind


def stronger(a: Rumour, b: Rumour) -> bool:
    """Whether ``a`` replaces ``b``. Within a run a goodbye stays, and a death is undone by a higher number only."""
    if a.run != b.run:
        return a.run > b.run
    if "left" in (a.state, b.state):
        return a.state == "left" != b.state
    return (a.number, _STRENGTH[a.state]) > (b.number, _STRENGTH[b.state])


class Swim:
    def __init__(self, me: Rumour, seeds: Sequence[Address], settings: Membership, random: Random, now_ms: int) -> None:
        self.me = me
        self.seeds = [seed for seed in seeds if seed != me.address]
        self.settings = settings
        self.known: dict[BrokerId, Rumour] = {}
        self.out: list[tuple[Address, Message]] = []
        """To be sent; taken by whoever calls."""
        self.news: list[tuple[Rumour, Rumour | None]] = []
        """What changed, and from what; likewise."""
        self._random = random
        self._next_probe_ms = now_ms
        self._next_sync_ms = now_ms
        self._order: list[BrokerId] = []
        self._probe = 0
        self._probed: tuple[int, BrokerId, int, bool] | None = None
        """Number, whom, since when, whether others were asked."""
        self._relayed: dict[int, tuple[Address, int]] = {}
        """Probes made for others: for whom, under which number of theirs."""
        self._until_ms: dict[BrokerId, int] = {}
        """When a suspect is dead."""
        self._spread: dict[BrokerId, int] = {}
        """Whose rumour shall still be told, how often."""
        self._rumour(me)

    # ------------------------------------------------------------ time

    def next_deadline_ms(self) -> int:
        moments = [self._next_probe_ms, self._next_sync_ms, *self._until_ms.values()]
        if self._probed is not None and not self._probed[3]:
            moments.append(self._probed[2] + self.settings.probe_timeout_ms)
        return min(moments)

    def tick(self, now_ms: int) -> None:
        probed = self._probed
        if probed is not None and not probed[3] and now_ms >= probed[2] + self.settings.probe_timeout_ms:
            self._probed = (*probed[:3], True)
            helpers = [r for id, r in self.known.items() if r.state == "alive" and id != probed[1]]
            for helper in self._random.sample(helpers, min(self.settings.indirect_probes, len(helpers))):
                self._say(helper.address, "ask", probed[0], self.known[probed[1]].address)
        for id in [id for id, until_ms in self._until_ms.items() if now_ms >= until_ms]:
            self._hear(msgspec.structs.replace(self.known[id], state="dead"), now_ms)
        if now_ms >= self._next_probe_ms:
            self._next_probe_ms = now_ms + self.settings.probe_interval_ms
            self._begin_probe(now_ms)
        if now_ms >= self._next_sync_ms:
            self._next_sync_ms = now_ms + SYNC_MS
            self._sync()

    def _begin_probe(self, now_ms: int) -> None:
        if self._probed is not None:
            found = self.known.get(self._probed[1])
            if found is not None and found.state == "alive":
                self._hear(msgspec.structs.replace(found, state="suspect"), now_ms)
        self._probed = None
        while True:
            if not self._order:
                self._order = sorted(id for id, r in self.known.items() if r.state in ("alive", "suspect"))
                self._random.shuffle(self._order)
                if not self._order:
                    return
            id = self._order.pop()
            if self.known[id].state in ("alive", "suspect"):
                break
        self._probe += 1
        self._probed = self._probe, id, now_ms, False
        self._say(self.known[id].address, "ping", self._probe)

    def _sync(self) -> None:
        addresses = {r.address for r in self.known.values() if r.state != "left"} | set(self.seeds)
        if addresses:
            to = self._random.choice(sorted(addresses, key=str))
            self.out.append((to, Message(kind="sync", rumours=self._everything())))

    def join(self, seeds: Sequence[Address]) -> None:
        for seed in seeds:
            if seed != self.me.address:
                self.out.append((seed, Message(kind="sync", rumours=self._everything())))

    # ------------------------------------------------------------ messages

    def receive(self, source: Address, message: Message, now_ms: int) -> None:
        for rumour in message.rumours:
            self._hear(rumour, now_ms)
        if message.kind == "ping":
            self._say(source, "ack", message.probe)
        elif message.kind == "ask":
            assert message.target is not None
            self._probe += 1
            self._relayed[self._probe] = source, message.probe
            if len(self._relayed) > 256:
                del self._relayed[next(iter(self._relayed))]
            self._say(message.target, "ping", self._probe)
        elif message.kind == "ack":
            relayed = self._relayed.pop(message.probe, None)
            if relayed is not None:
                self._say(relayed[0], "ack", relayed[1])
            elif self._probed is not None and self._probed[0] == message.probe:
                self._probed = None
        elif message.kind == "sync":
            self.out.append((source, Message(kind="synced", rumours=self._everything())))

    def _hear(self, rumour: Rumour, now_ms: int) -> None:
        if rumour.id == self.me.id:
            if rumour.run == self.me.run and rumour.state != "alive" and self.me.state == "alive" and rumour.number >= self.me.number:
                self.me = msgspec.structs.replace(self.me, number=rumour.number + 1)
                self._rumour(self.me)
            return
        before = self.known.get(rumour.id)
        if before is not None and not stronger(rumour, before):
            return
        if before is None and rumour.state != "alive":
            return
        self.known[rumour.id] = rumour
        self._rumour(rumour)
        self._until_ms.pop(rumour.id, None)
        if rumour.state == "suspect":
            many = max(1.0, math.log10(len(self.known) + 1))
            self._until_ms[rumour.id] = now_ms + int(self.settings.suspicion_multiplier * many * self.settings.probe_interval_ms)
        self.news.append((rumour, before))

    # ------------------------------------------------------------ rumours

    def say(self, meta: tuple[tuple[str, str], ...]) -> None:
        self.me = msgspec.structs.replace(self.me, number=self.me.number + 1, meta=meta)
        self._rumour(self.me)

    def leave(self) -> None:
        self.me = msgspec.structs.replace(self.me, state="left")
        for rumour in self.known.values():
            if rumour.state == "alive":
                self.out.append((rumour.address, Message(kind="synced", rumours=(self.me,))))

    def _rumour(self, rumour: Rumour) -> None:
        self._spread[rumour.id] = 3 * math.ceil(math.log10(len(self.known) + 2)) + 3

    def _say(self, to: Address, kind: Literal["ping", "ack", "ask"], probe: int, target: Address | None = None) -> None:
        told = sorted(self._spread, key=lambda id: (-self._spread[id], id))[:RUMOURS_A_MESSAGE]
        for id in told:
            self._spread[id] -= 1
            if not self._spread[id]:
                del self._spread[id]
        rumours = tuple(self.me if id == self.me.id else self.known[id] for id in told)
        self.out.append((to, Message(kind=kind, probe=probe, target=target, rumours=rumours)))

    def _everything(self) -> tuple[Rumour, ...]:
        return (self.me, *(self.known[id] for id in sorted(self.known)))

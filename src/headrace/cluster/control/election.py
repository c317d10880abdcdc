"""Who is the controller: one key of the coordinator, taken by compare-and-swap.

Owns the key and when it may be taken. Does not plan.

The version of the key is the term: it only grows, since the document is handed on and never removed, and every transaction of a controller compares
it. So a controller that was replaced can write nothing any more, and two that both believe to be it are harmless.

E1 it is taken from a holder only if its registration is gone or another life's, or it has stepped down, or the evidence makes it dead
(``core.control.liveness``). E2 who drains, or is not registered itself, or is cut off from most others, does not take it. E3 who was replaced
although it lived takes it back from somebody who is registered only after a while, which doubles each time: two sides of a cut that do not agree who
is dead would otherwise take turns as fast as the coordinator writes.
"""

from typing import Final

from headrace.ambient import ambient
from headrace.cluster.control.mirror import Mirror
from headrace.cluster.control.picturing import Picturing
from headrace.cluster.control.presence import Presence
from headrace.cluster.coordinator import Coordinator
from headrace.core.control.liveness import verdict
from headrace.log import get_logger
from headrace.model.cluster import CONTROLLER_KEY, NOBODY, Holder, encode
from headrace.model.errors import CoordinatorUnavailable, UnknownOutcome

_log = get_logger("controller")

SHOWN_S: Final = 1.0
"""How long to wait until this broker sees what it, or another, has just written."""
DEPOSED_MS: Final = 2_000
DEPOSED_MS_MAX: Final = 60_000
CALM_MS: Final = 120_000
"""After so long without being replaced it counts from the beginning again."""


class Election:
    """See the module's head. ``term`` 0 = this broker is not the controller."""

    def __init__(self, coordinator: Coordinator, mirror: Mirror, picturing: Picturing, presence: Presence) -> None:
        self._coordinator = coordinator
        self._mirror = mirror
        self._picturing = picturing
        self._presence = presence
        self._ambient = ambient()
        self.term = 0
        self._deposed_ms = self._wait_ms = 0
        """When it was last replaced although it lives, and how long it then waits."""

    def look(self) -> bool:
        """Whether this broker holds the key, as far as it is known now."""
        me, holder = self._presence.me, self._picturing.holder
        mine = holder.broker == me.id and holder.incarnation == me.incarnation
        term = self._picturing.holder_version if mine else 0
        if term != self.term:
            if self.term and not term:
                _log.info("%s is not the controller any more: %s is", me.name, self._name() or "nobody")
                if holder.broker != NOBODY:
                    self._replaced()
            self.term = term
        return self.term > 0

    def _replaced(self) -> None:
        now_ms = self._picturing.now_ms()
        calm = now_ms - self._deposed_ms > CALM_MS or not self._wait_ms
        self._deposed_ms, self._wait_ms = now_ms, DEPOSED_MS if calm else min(2 * self._wait_ms, DEPOSED_MS_MAX)

    @property
    def may_stand(self) -> bool:
        return self._presence.alive and not self._presence.me.draining and not self._picturing.secluded()

    def vacancy(self) -> tuple[str, int | None]:
        """Why the key may be taken, "" if it may not; and when time alone may change that."""
        holder = self._picturing.holder
        if holder.broker == NOBODY:
            return "nobody was the controller" if not holder.reason else f"the one before it stepped down: {holder.reason}", None
        seen = self._picturing.seen(holder.broker)
        name = self._name()
        if seen is None or not seen.present:
            return f"the registration of {name} is gone", None
        if seen.incarnation != holder.incarnation:
            return f"{name} has been started again", None
        now_ms = self._picturing.now_ms()
        waits_ms = self._deposed_ms + self._wait_ms
        if now_ms < waits_ms:
            return "", waits_ms
        judgement = verdict(seen, self._picturing.settings, now_ms)
        return (f"{name} is dead ({judgement.reason})" if judgement.state == "dead" else ""), judgement.until_ms

    async def take(self, why: str) -> bool:
        """Tries to become the controller. ``CoordinatorUnavailable`` if nobody could be asked."""
        me, version = self._presence.me, self._picturing.holder_version
        reason = f"{me.name} is the controller because {why}"
        holder = Holder(broker=me.id, incarnation=me.incarnation, since_wall_ms=self._ambient.wall_ns() // 1_000_000, reason=reason[:1000])
        try:
            taken = await self._coordinator.transact({CONTROLLER_KEY: version}, {CONTROLLER_KEY: encode(holder)})
        except UnknownOutcome:
            taken = False  # if it was done after all, the mirror shows it
            if await self.version() == version:
                return False
        await self._mirror.moved({CONTROLLER_KEY: version}, timeout_s=SHOWN_S)
        held = self.look()
        if held:
            _log.info("%s", reason)
        return held and (taken or self.term > version)

    async def step_down(self, reason: str) -> None:
        """Lets another take over at once."""
        if not self.look():
            return
        _log.info("%s steps down as the controller: %s", self._presence.me.name, reason)
        version = self.term
        try:
            await self._coordinator.transact({CONTROLLER_KEY: version}, {CONTROLLER_KEY: encode(Holder(reason=reason))})
        except (CoordinatorUnavailable, UnknownOutcome):
            return  # its registration's end does it then
        await self._mirror.moved({CONTROLLER_KEY: version}, timeout_s=SHOWN_S)
        self.look()

    async def deposed(self) -> bool:
        """Asks whether the key has another version than this broker's term."""
        return await self.version() != self.term

    async def version(self) -> int:
        """The key's, as it is recorded now; 0 = absent."""
        document = await self._coordinator.get(CONTROLLER_KEY)
        return 0 if document is None else document.version

    def _name(self) -> str:
        holder = self._picturing.holder
        seen = self._picturing.seen(holder.broker)
        return holder.broker if seen is None else seen.registered.name

"""This broker's registration: made, kept, made anew when it was lost.

Owns the document under ``brokers/`` and how often it is tried. Does not know who reads it.

The incarnation is that of the process: a registration that is lost and made again (the coordinator was away, this broker stood still) keeps it, for
nothing on the disk was lost; whoever took over what it owned has done so in a newer epoch. Only a new process is another life.

R1 a broker that finds another living registration of its own id made after its own steps back: it is tried again only once that one is gone, since
two processes with one id must not take turns. R2 ``registered`` is set exactly while the registration is held, as far as this broker knows.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from headrace.cluster.coordinator import Coordinator, Registration
from headrace.log import get_logger
from headrace.model.cluster import Incarnation, Registered, broker_key, decode, encode
from headrace.model.errors import Conflict, HeadraceError, Refused

_log = get_logger("cluster")

RETRY_S_MIN: Final = 0.1
RETRY_S_MAX: Final = 2.0
DISPLACED_S: Final = 1.0
"""How often a broker that stepped back looks whether the other one is gone."""


class Presence:
    """See the module's head. ``fits`` says why it cannot be one of those that are registered ("": it can), ``lost`` is told the reason,
    ``displaced`` the incarnation of the other process; both at once within the loop."""

    def __init__(
        self,
        coordinator: Coordinator,
        me: Registered,
        *,
        ttl_ms: int,
        fits: Callable[[Registered], Awaitable[str]] | None = None,
        lost: Callable[[str], None] = lambda reason: None,
        displaced: Callable[[Incarnation], None] = lambda other: None,
    ) -> None:
        self._coordinator = coordinator
        self._ttl_ms = ttl_ms
        self._fits, self._lost, self._displaced = fits, lost, displaced
        self._registration: Registration | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._stopped = False
        self.me = me
        """What is, or will be, registered."""
        self.registered = asyncio.Event()
        self.times = 0
        """How often it was registered."""
        self.trouble = ""
        """Why it is not registered, "" if it is."""

    @property
    def alive(self) -> bool:
        return self._registration is not None and self._registration.alive

    @property
    def silent_ms(self) -> int:
        """Since when the coordinator has not confirmed the registration; from the time to live on it may be gone."""
        return self._registration.silent_ms if self._registration is not None else 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="the registration")

    async def stop(self) -> None:
        """Says goodbye: the registration ends at once, if the coordinator is reached."""
        await self.halt()
        await self.release()

    async def halt(self) -> None:
        """It is not made again any more, should it be lost."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.registered.clear()

    async def release(self) -> None:
        """Ends it."""
        if self._registration is not None:
            await self._registration.release()
            self._registration = None

    def update(self, **what: object) -> None:
        """Changes fields of what is registered (``draining``, ``addresses``) as soon as the coordinator takes it."""
        self.me = replace(self.me, **what)
        self._news.set()

    async def _keep(self) -> None:
        wait_s = RETRY_S_MIN
        while True:
            try:
                registration = await self._enter()
            except HeadraceError as e:
                if not self.trouble:
                    _log.warning("this broker cannot be registered: %s", e)
                self.trouble = str(e)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)
                continue
            wait_s = RETRY_S_MIN
            reason = await self._hold(registration)
            self.registered.clear()
            self._registration = None
            self.trouble = reason
            _log.warning("the registration of this broker is lost: %s; it registers again", reason)
            self._lost(reason)
            await self._step_back()

    async def _enter(self) -> Registration:
        why = await self._fits(self.me) if self._fits is not None else ""
        if why:
            raise Refused(f"this broker does not fit to those that are registered: {why}")
        self._news.clear()
        registration = await self._coordinator.register(broker_key(self.me.id), encode(self.me), ttl_ms=self._ttl_ms)
        self._registration = registration
        self.times += 1
        self.trouble = ""
        self.registered.set()
        _log.info("this broker is registered as %s, life %s%s", self.me.name, self.me.incarnation, ", again" if self.times > 1 else "")
        return registration

    async def _hold(self, registration: Registration) -> str:
        """Writes what is new until the registration is lost; the reason."""
        lost = asyncio.ensure_future(registration.lost())
        try:
            while True:
                news = asyncio.ensure_future(self._news.wait())
                try:
                    await asyncio.wait((lost, news), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if lost.done():
                    return lost.result()
                self._news.clear()
                try:
                    await registration.update(encode(self.me))
                except Conflict:
                    return await lost if not registration.alive else "its document is another's"
                except HeadraceError as e:
                    _log.warning("what is registered of this broker could not be changed: %s", e)
                    self._news.set()
                    await asyncio.sleep(RETRY_S_MIN)
        finally:
            lost.cancel()

    async def _step_back(self) -> None:
        """Waits as long as another process is registered under this id."""
        told = False
        while True:
            try:
                document = await self._coordinator.get(broker_key(self.me.id))
                other = None if document is None else decode(Registered, document.value)
            except HeadraceError:
                return  # unreachable, or unreadable and to be replaced: ``_keep`` tries and waits
            if other is None or other.incarnation == self.me.incarnation:
                return
            if not told:
                told = True
                self.trouble = f"another process is registered as broker {self.me.id}, life {other.incarnation}"
                _log.error("%s; stop one of the two, or give one an empty data directory", self.trouble)
                self._displaced(other.incarnation)
            await asyncio.sleep(DISPLACED_S)

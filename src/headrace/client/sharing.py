"""One member's share of a queue or stream: a subscription for each partition that its group gives it, opened and given up as the group says.

Owns which parts there are. Knows no message: a part knows when nothing of it is in the application's hands any more (``at_rest``).
Invariants: H1 what is not assigned any more is closed, and the broker has answered that or cannot be reached, before the group is told that others
may have it. H2 a part is opened with the generation in which it was assigned, so that its broker refuses it once another has it. H3 who loses a
partition hands nothing of it out any more; what is in the application's hands may still be settled, for at most ``AT_REST_S``. H4 what all parts
have, and may still be sent, is never more than the prefetch of the whole, or one message a partition: a part is given its share once others have
given theirs up.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

from headrace.client.connection import log
from headrace.client.membership import Membership
from headrace.client.subscription import Subscription
from headrace.model.errors import Fenced, HeadraceError, StaleSettle, Unavailable
from headrace.wire import control
from headrace.wire.frames import CREDIT, Op

LOOK_S: Final = 0.01
FREE_S: Final = 0.05
"""So often it is looked whether others have given up what a part is to have."""
AT_REST_S: Final = 10.0
"""So long the application may take with what it has of a partition that goes to another member; then that is delivered there again."""


class Shared(Subscription):
    """What a part adds to a consumer or reader of one partition."""

    seat = 0
    """Token of the membership, 0 = it is of no group."""
    shown = 0
    """Generation in which its partition was assigned, or assigned again."""
    retired = False
    """It hands nothing out any more."""
    fenced = False
    """Its partition was given to another member."""
    ended_to: Callable[[], None] | None = None
    """Told when it is open, and when it has ended."""
    share = 0
    """Its part of the prefetch."""
    _granted = 0
    _before = 0
    """What it had been granted, as long as its broker may not know of less."""
    _lowerings = 0

    def here(self) -> int:
        """How many messages or records of it are here and not done with."""
        raise NotImplementedError

    @property
    def bound(self) -> int:
        """How many may be here, as things are."""
        return max(self.share, self._granted, self._before, self.here())

    def at_rest(self) -> bool:
        """Whether the application has nothing of it in its hands."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Closes it."""
        raise NotImplementedError

    def resize(self, prefetch: int) -> None:
        """Its share of the prefetch is another."""
        self.share = prefetch
        if self._open and prefetch != self._granted:
            self._connection.send([CREDIT.pack(16, Op.CREDIT, 0, self.channel, 0, prefetch - self._granted, 0)])
            if prefetch < self._granted:
                self._before, self._lowerings = max(self._before, self._granted), self._lowerings + 1
            self._granted = prefetch

    async def lowered(self) -> None:
        """Returns once nothing can come any more that was sent before its broker knew of its share."""
        lowerings = self._lowerings
        with suppress(HeadraceError):  # with the connection what was granted on it is gone too
            await self._connection.request(control.Topology(names=(self.name,)), control.TopologyInfo, again=False)
        if lowerings == self._lowerings:
            self._before = 0

    def opened(self, reply: Any) -> None:
        super().opened(reply)
        self._before = 0
        if self.seat:
            self.resize(self.share)  # it may have changed meanwhile
        if self.ended_to is not None:
            self.ended_to()

    def lost(self) -> None:
        super().lost()
        self._granted = self._before = 0

    def end(self, error: HeadraceError | None) -> None:
        if isinstance(error, Fenced) and self.seat:
            self.fenced = True
            error = StaleSettle(f"partition {self.partition} of {self.name!r} went to another member of the group before this was settled")
        super().end(error)
        if self.ended_to is not None:
            self.ended_to()


P = TypeVar("P", bound=Shared)


class Sharing(Generic[P]):
    """See the module's head. ``parts`` is the list that ``whole`` hands out from, kept here."""

    def __init__(
        self, whole: Subscription, membership: Membership, parts: list[P], *, make: Callable[[int, int, int], P], prefetch: int
    ) -> None:
        """``make`` the part of a partition that is one of so many, with its share of ``prefetch``."""
        self.membership = membership
        membership.told = self._news_came
        self._whole = whole
        self._parts = parts
        self._make = make
        self._prefetch = prefetch
        self._news = asyncio.Event()
        self._leaving: dict[int, P] = {}
        """By partition: what is given up, and not closed yet."""
        self._refused: dict[int, int] = {}
        """Partition to the generation that another member outran there."""
        self._said = -1
        self._again: asyncio.TimerHandle | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def start(self, until: float) -> None:
        """Returns once something is assigned (be it nothing) and open; raises what the group refuses, or what is waited for when time is up."""
        try:
            async with asyncio.timeout_at(until):
                await self.membership.start()
                while True:
                    self._look()
                    if self._whole._error is not None:
                        raise self._whole._error
                    if self.membership.known and all(part._open for part in self._parts):
                        break
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise Unavailable(f"{self._whole.name!r} could not be shared out in time; {self._whys() or 'no broker answered'}") from None
        self._spawn(self._follow())

    def _whys(self) -> str:
        router = self.membership._router
        assert router is not None
        waiting: list[Subscription] = [p for p in self._parts if not p._open]
        if not self.membership.known:
            waiting = [self.membership]
            if self.membership._open:
                return f"partition {self.membership.partition}, where the group has its home, cannot commit what is assigned"
        return "; ".join(f"partition {one.partition}: {why}" for one in waiting[:3] if (why := router.why(one)) is not None)

    def _news_came(self) -> None:
        self._news.set()

    # ------------------------------------------------------------ following

    async def _follow(self) -> None:
        while not self._whole._stopping:
            await self._news.wait()
            self._news.clear()
            self._look()

    def _look(self) -> None:
        """Does what the newest assignment asks for, and says what was given up."""
        member = self.membership
        if member._stopping:
            self._whole.end(member._error)
            return
        for part in [p for p in self._parts if p._stopping]:
            if part.fenced:
                self._parts.remove(part)
                self._refused[part.partition] = part.shown
                log.info("partition %d of %r went to another member of its group", part.partition, part.name)
            elif part._error is not None:
                self._whole.end(part._error)
                return
        if not member.known:
            return
        leaving = [part for part in self._parts if part.partition not in member.assigned]
        for part in leaving:
            self._parts.remove(part)
            self._leaving[part.partition] = part
            part.retired = True
            self._lower(part, 0)
            self._spawn(self._give_up(part))
        self._open_some()
        if member.generation != self._said:
            self._said = member.generation
            self._whole.assigned, self._whole.generation = tuple(sorted(member.assigned)), member.generation
            revoked = tuple(sorted(part.partition for part in leaving))
            Subscription.event(self._whole, control.Assigned(channel=0, generation=self._said, partitions=self._whole.assigned, revoked=revoked))
        if not self._leaving:
            member.release(member.generation)
        self._whole._wake()

    def _open_some(self) -> None:
        """Opens what is assigned and not open; everything has its share of the prefetch, as soon as that is free."""
        member = self.membership
        have = {part.partition: part for part in self._parts}
        count = max(1, len(member.assigned))
        share = max(1, self._prefetch // count)
        for part in self._parts:
            part.shown = member.generation
            if part.share > share:
                self._lower(part, share)
        free = max(self._prefetch, count) - sum(part.bound for part in (*self._parts, *self.given_up()))
        waiting = False
        for number in member.assigned:
            known = have.get(number)
            given = min(share - (known.share if known is not None else 0), free)
            if known is not None:
                known.resize(known.share + max(0, given))
            elif number in self._leaving or self._refused.get(number, -1) >= member.generation:
                continue
            elif given > 0:
                part = self._make(number, count, given)
                part.share = given
                part.seat, part.shown, part.ended_to = member.token, member.generation, self._news_came
                self._parts.append(part)
                self._spawn(self._start(part))
            free -= max(0, given)
            waiting = waiting or number not in have or have[number].share < share
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(FREE_S, self._news_came) if waiting else None

    def _lower(self, part: P, share: int) -> None:
        part.resize(share)
        if part._before:
            self._spawn(self._lowered(part))

    async def _lowered(self, part: P) -> None:
        await part.lowered()
        self._news.set()

    async def _start(self, part: P) -> None:
        with suppress(HeadraceError):  # ``_look`` sees it
            await part.start()
        self._news.set()

    async def _give_up(self, part: P) -> None:
        for _ in range(int(AT_REST_S / LOOK_S)):
            if not part._open or part.at_rest():
                break
            await asyncio.sleep(LOOK_S)
        await part.finish()
        del self._leaving[part.partition]
        self._news.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"headrace-share-{self._whole.name}")
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))

    def given_up(self) -> tuple[P, ...]:
        """Parts that others shall have, and that are not closed yet."""
        return tuple(self._leaving.values())

    async def close(self) -> None:
        """Before the parts that are in use are closed: nothing is opened any more. Those that were given up are closed."""
        if self._again is not None:
            self._again.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(part.finish() for part in self._leaving.values()))

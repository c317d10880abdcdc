"""One member's share of a queue or stream: a subscription for each partition that its group gives it, opened and given up as the group says.

Owns which parts there are. Knows no message: a part knows when nothing of it is in the application's hands any more (``at_rest``).
Invariants: H1 what is not assigned any more is closed, and the broker has answered that or cannot be reached, before the group is told that others
may have it. H2 a part is opened with the generation in which it was assigned, so that its broker refuses it once another has it. H3 who loses a
partition hands nothing of it out any more; what is in the application's hands may still be settled, for at most ``AT_REST_S``.
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
AT_REST_S: Final = 10.0
"""So long the application may take with what it has of a partition that goes to another member; then that is delivered there again."""


class Shared(Subscription):
    """What a part adds to a consumer or reader of one partition."""

    seat = 0
    """Token of the membership, 0 = it is of no group."""
    shown = 0
    """Generation in which its partition was assigned, or assigned again."""
    retired = False
    fenced = False
    """Its partition was given to another member."""
    ended_to: Callable[[], None] | None = None
    """Told when it has ended."""

    def retire(self) -> None:
        """Hands nothing out any more, and takes nothing more."""
        self.retired = True
        self._regrant(0)

    def at_rest(self) -> bool:
        """Whether the application has nothing of it in its hands."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Closes it."""
        raise NotImplementedError

    def resize(self, prefetch: int) -> None:
        """Its share of the prefetch is another."""
        if prefetch != self._granted and not self.retired:
            self._regrant(prefetch)

    _granted = 0

    def _regrant(self, prefetch: int) -> None:
        if self._open:
            self._connection.send([CREDIT.pack(16, Op.CREDIT, 0, self.channel, 0, prefetch - self._granted, 0)])
            self._granted = prefetch

    def end(self, error: HeadraceError | None) -> None:
        if isinstance(error, Fenced):
            self.fenced = True
            error = StaleSettle(f"partition {self.partition} of {self.name!r} went to another member of the group before this was settled")
        super().end(error)
        if self.ended_to is not None:
            self.ended_to()


P = TypeVar("P", bound=Shared)


class Sharing(Generic[P]):
    """See the module's head. ``parts`` is the list that ``whole`` hands out from, kept here."""

    def __init__(
        self, whole: Subscription, membership: Membership, parts: list[P], *, make: Callable[[int, int], P], prefetch: Callable[[int], int]
    ) -> None:
        """``make`` the part of a partition that is one of so many; ``prefetch`` of each of so many."""
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
            part.retire()
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
        """Opens what is assigned and not open; everything has its share of the prefetch."""
        member = self.membership
        have = {part.partition: part for part in self._parts}
        count = max(1, len(member.assigned))
        for number in member.assigned:
            part = have.get(number)
            if part is not None:
                part.shown = member.generation
                part.resize(self._prefetch(count))
            elif number not in self._leaving and self._refused.get(number, -1) < member.generation:
                part = self._make(number, count)
                part.seat, part.shown, part.ended_to = member.token, member.generation, self._news_came
                self._parts.append(part)
                self._spawn(self._start(part))

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

    async def close(self) -> None:
        """Before the parts that are in use are closed: nothing is opened any more. Those that were given up are closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(part.finish() for part in self._leaving.values()))

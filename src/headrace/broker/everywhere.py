"""A verb about partitions that several brokers serve: asked of each owner, and again while partitions change hands.

Owns who is asked for what, and how long. A lone broker carries everything out itself, at once.

Invariants: E1 an answer covers every partition once, or the verb fails. E2 what only looks at figures never fails because a broker does not answer:
it says which figures are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from headrace.broker import forwarding
from headrace.broker.catalogue import Item
from headrace.broker.joining import infos
from headrace.model.errors import ConnectionLost, Elsewhere, HeadraceError, NotConnected, NotFound, Unavailable, UnknownOutcome
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

T = TypeVar("T")

WAIT_S: Final = 4.0
"""So long somebody is looked for who serves a partition: less than clients wait for an answer."""
AGAIN_S: Final = 0.05
LOOK_MS: Final = 1_000
"""So long another broker may take for figures."""
_PASSING = (Elsewhere, Unavailable, NotConnected, ConnectionLost, UnknownOutcome)
"""What is asked again: it was not done, or doing it twice is as good as once."""


async def call(broker: Broker, item: Item, request: control.Request, numbers: Sequence[int]) -> list[control.Reply]:
    """The answers of all who serve those partitions, each about some; in the order of the first of them."""
    if broker.cluster is None:
        return [await broker.parts.call(request, numbers)]
    until = broker.loop.time() + WAIT_S
    found: dict[int, control.Reply] = {}
    left = list(numbers)
    while True:
        by_owner = _by_owner(broker, item, left)
        told = await asyncio.gather(*(_ask(broker, owner, request, some) for owner, some in by_owner.items()), return_exceptions=True)
        failed: HeadraceError | None = None
        for some, answer in zip(by_owner.values(), told, strict=True):
            if not isinstance(answer, BaseException):
                found[some[0]] = answer
                left = [n for n in left if n not in some]
            elif isinstance(answer, _PASSING):
                failed = answer
            else:
                raise answer
        if failed is None:
            return [answer for _, answer in sorted(found.items())]
        if broker.loop.time() >= until:
            if not failed.definite:
                raise failed
            names = ", ".join(map(str, left[:10]))
            raise Unavailable(f"partitions {names} of {item.name!r} cannot be asked now: {failed}", hint="try again in a moment")
        await asyncio.sleep(AGAIN_S)


async def describe(broker: Broker, item: Item) -> control.Info:
    """Settings and figures of all partitions, as far as their owners answer."""
    request = control.Describe(name=item.name)
    numbers = range(len(item.partitions))
    if broker.cluster is None:
        return broker.parts.info(item, numbers)
    by_owner = _by_owner(broker, item, numbers)
    told = await asyncio.gather(
        *(_soon(broker, partial(_ask, broker, owner, request, some, timeout_ms=LOOK_MS)) for owner, some in by_owner.items()),
        return_exceptions=True,
    )
    found = [broker.parts.info(item, ())]
    for (owner, some), answer in zip(by_owner.items(), told, strict=True):
        if isinstance(answer, control.Info):
            found.append(answer)
        elif isinstance(answer, BaseException) and not isinstance(answer, HeadraceError):
            raise answer
        else:
            why = str(answer) if isinstance(answer, HeadraceError) else f"broker {owner} answered with {type(answer).__name__}"
            rows = [control.PartitionInfo(partition=n, id=item.partitions[n], epoch=0, state="unavailable", why=why) for n in some]
            attention = tuple(f"partition {n} cannot be looked at: {why}" for n in some)
            found.append(control.Info(name=item.name, kind=item.kind, id=item.id, spec={}, partitions=tuple(rows), attention=attention))
    return infos(found)


async def figures(broker: Broker, items: Sequence[Item]) -> tuple[control.Info, ...]:
    """Settings and totals of each, as far as the others answer."""
    names = [item.name for item in items]
    rows = {info.name: [info] for info in (await broker.parts.figures(names)).items}
    cluster = broker.cluster
    if cluster is not None:
        asked: dict[str, list[str]] = {}
        for item in items:
            for owner in dict.fromkeys(map(cluster.owner, item.partitions)):
                if owner not in ("", broker.id):
                    asked.setdefault(owner, []).append(item.name)
        told = await asyncio.gather(
            *(_soon(broker, partial(forwarding.figures, broker, owner, some, timeout_ms=LOOK_MS)) for owner, some in asked.items()),
            return_exceptions=True,
        )
        for (owner, some), answer in zip(asked.items(), told, strict=True):
            if isinstance(answer, control.Listing):
                for info in answer.items:
                    if info.name in rows:
                        rows[info.name].append(info)
            elif isinstance(answer, HeadraceError):
                for name in some:
                    if name in rows:
                        lacking = (f"the figures of broker {owner} are missing: {answer}",)
                        rows[name].append(control.Info(name=name, kind="", id="", spec={}, attention=lacking))
            else:
                raise answer
    return tuple(found[0] if len(found) == 1 else infos(found) for found in rows.values())


async def find(broker: Broker, request: control.Request, missing: NotFound) -> control.Reply:
    """The answer of whichever other broker has what is asked about; raises ``missing`` if none of those that answer has it."""
    others = [] if broker.cluster is None else broker.cluster.others()
    told = await asyncio.gather(*(forwarding.ask(broker, other, request, (), timeout_ms=LOOK_MS) for other in others), return_exceptions=True)
    for answer in told:
        if not isinstance(answer, BaseException):
            return answer
        if not isinstance(answer, HeadraceError):
            raise answer
    raise missing


async def _soon(broker: Broker, ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` gives, once there is a connection: brokers that have just begun are about to have one."""
    until = broker.loop.time() + LOOK_MS / 1000
    while True:
        try:
            return await ask()
        except NotConnected:
            if broker.loop.time() >= until:
                raise
        await asyncio.sleep(AGAIN_S)


def _by_owner(broker: Broker, item: Item, numbers: Sequence[int]) -> dict[str, list[int]]:
    assert broker.cluster is not None
    found: dict[str, list[int]] = {}
    for number in numbers:
        found.setdefault(broker.cluster.owner(item.partitions[number]), []).append(number)
    return found


async def _ask(
    broker: Broker, owner: str, request: control.Request, numbers: Sequence[int], *, timeout_ms: int = forwarding.TIMEOUT_MS
) -> control.Reply:
    if not owner:
        raise Unavailable("nobody serves them")
    if owner == broker.id:
        return await broker.parts.call(request, numbers)
    return await forwarding.ask(broker, owner, request, numbers, timeout_ms=timeout_ms)

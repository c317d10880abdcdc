"""Keeping a connection to a peer: dialing, waiting longer after each failure, beginning anew when something about the peer is new.

Owns the waits. Does not know what connections are for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from errno import ECONNREFUSED

from headrace.ambient import Ambient
from headrace.cluster.transport.link import Link
from headrace.cluster.transport.remote import Remote
from headrace.cluster.transport.settings import Settings
from headrace.log import get_logger
from headrace.model.errors import HeadraceError

_log = get_logger("peers")
STEADY_MS = 5_000
"""A connection that lasted so long was no failure: the next wait is the shortest again."""


def spread(wait_ms: int, chance: float) -> float:
    """Seconds to wait: half of it to one and a half of it."""
    return wait_ms / 1000 * (0.5 + chance)


async def keep(
    remote: Remote, dial: Callable[[Remote], Awaitable[Link]], gone: Callable[[Link], Awaitable[None]], settings: Settings, around: Ambient
) -> None:
    """For ever: ``dial`` until it gives an open link, wait until it is ``gone``, wait a little, again."""
    wait_ms = settings.retry_ms_min
    while True:
        began = around.monotonic()
        remote.nudge.clear()
        try:
            link = await dial(remote)
            await gone(link)
        except (OSError, HeadraceError) as e:  # TimeoutError is one of the former
            _failed(remote, e, int(around.monotonic() * 1000))
        except Exception:
            _log.exception("dialing broker %s failed", remote.id)
        if (around.monotonic() - began) * 1000 >= STEADY_MS:
            wait_ms = settings.retry_ms_min
        try:
            async with asyncio.timeout(spread(wait_ms, around.random())):
                await remote.nudge.wait()
            wait_ms = settings.retry_ms_min
        except TimeoutError:
            wait_ms = min(2 * wait_ms, settings.retry_ms_max)


def _failed(remote: Remote, error: OSError | HeadraceError, now_ms: int) -> None:
    remote.counters.dials_failed += 1
    if isinstance(error, HeadraceError):
        remote.counters.refusals += 1
    elif getattr(error, "errno", None) == ECONNREFUSED or isinstance(error, ConnectionRefusedError):
        remote.refused_ms.append(now_ms)
    text = str(error) or "it does not answer"
    if text != remote.trouble:
        remote.trouble = text
        hint = f"; {error.hint}" if isinstance(error, HeadraceError) and error.hint else ""
        level = "warning" if isinstance(error, HeadraceError) and not error.retriable else "info"
        getattr(_log, level)("no connection to broker %s at %s: %s%s", remote.id, remote.address, text, hint)

"""How a broker that knows no cluster config finds others: by the names and addresses it was given as seeds.

Owns how a seed becomes addresses (a machine's by the system's resolver, a service's by its DNS record), and how often is looked. Whoever is found is
greeted by name; whether that leads anywhere the formation decides. Seeds never form a cluster.

S1 every name is looked up anew at every try. S2 a seed that hangs holds up no other. S3 nothing is looked for while a config is known.
"""

import asyncio
import socket
from collections.abc import Iterable
from typing import Final

from headrace.cluster.formation.driver import Driver
from headrace.cluster.formation.post import Post
from headrace.log import get_logger
from headrace.model.config import Address, parse_address
from headrace.model.errors import HeadraceError, NotFound, Unavailable
from headrace.model.seeds import SRV

_log = get_logger("formation")
AGAIN_S: Final = 2.0
LOOKUP_S: Final = 5.0
FOUND_MAX: Final = 256
"""Addresses that one try visits."""


async def seek(seeds: tuple[str, ...], driver: Driver, post: Post) -> None:
    """For as long as the broker runs."""
    told = ""
    while True:
        if driver.current is None:
            found, wrong = await _try(seeds, driver, post)
            text = f"seeds: {', '.join(found) or 'nobody'} found{''.join(f'; {w}' for w in wrong)}"
            if text != told:
                told = text
                _log.info("%s", text)
        await asyncio.sleep(AGAIN_S)


async def _try(seeds: tuple[str, ...], driver: Driver, post: Post) -> tuple[list[str], list[str]]:
    """Names that were found, and why others were not."""
    addresses, wrong = await every(seeds)

    async def visit(at: Address) -> str:
        try:
            name = await post.who(at)
        except (OSError, HeadraceError) as e:
            wrong.append(f"{at}: {str(e) or type(e).__name__}")
            return ""
        if name != driver.name:
            driver.introduced(name, str(at))
            return name
        return ""

    names = await asyncio.gather(*(visit(at) for at in addresses[:FOUND_MAX]))
    return sorted({name for name in names if name}), sorted(wrong)


async def every(seeds: Iterable[str]) -> tuple[list[Address], list[str]]:
    """The addresses of all seeds, each once, and what is wrong with those that have none."""
    wrong: list[str] = []

    async def one(seed: str) -> list[Address]:
        try:
            return await addresses(seed)
        except HeadraceError as e:
            wrong.append(f"{seed}: {e}")
            return []

    found = await asyncio.gather(*(one(seed) for seed in seeds))
    return list(dict.fromkeys(at for those in found for at in those)), wrong


async def addresses(seed: str) -> list[Address]:
    """Of ``HOST:PORT`` or ``srv:NAME``. ``Unavailable`` or ``NotFound`` if there are none now."""
    if not seed.startswith(SRV):
        return await _machine(parse_address(seed))
    found = await asyncio.gather(*(_machine(at) for at in await service(seed.removeprefix(SRV))), return_exceptions=True)
    each = [at for those in found if not isinstance(those, BaseException) for at in those]
    if not each:
        raise NotFound(f"none of the machines of {seed} has an address", hint="is any of its brokers running?")
    return each


async def service(name: str) -> list[Address]:
    """The machines and ports of a DNS service record (RFC 2782), those of the lowest priority number first, and then by name."""
    import dns.asyncresolver
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(name, "SRV", lifetime=LOOKUP_S, search=True)
    except dns.exception.DNSException as e:
        raise Unavailable(f"there is no service record of {name}: {e}", hint="correct the name, or see whether the DNS answers") from None
    records = sorted((r.priority, r.target.to_text(omit_final_dot=True), r.port) for r in answer)
    return [Address(host, port) for _, host, port in records if host != "."]


async def _machine(at: Address) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_S):
            found = await loop.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
    except OSError as e:
        why = str(e) or "its lookup takes too long"
        raise Unavailable(f"{at.host} has no address: {why}", hint="correct the name, or see whether the DNS answers") from None
    return list(dict.fromkeys(Address(str(where[0]), at.port) for _, _, _, _, where in found))

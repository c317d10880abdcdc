"""Exchanging the cluster's secret by command, on one broker: for gossip and for connections together.

Add the new one on every broker, then use it on every broker, then remove the old one on every broker. Owns the order within one broker, so that at
no moment it uses what it does not accept, and the refusal to remove what another broker still uses. Does not write the secret's file.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from headrace.cluster.membership.interface import Membership
from headrace.cluster.secret import Secrets
from headrace.cluster.transport.transport import Transport
from headrace.log import get_logger
from headrace.model.config import parse_address
from headrace.model.errors import Conflict, Invalid

_log = get_logger("membership")
PROBE_MS: Final = 5_000


class Rotation:
    def __init__(self, secrets: Secrets, transport: Transport, membership: Callable[[], Membership | None]) -> None:
        """``membership``: None while this broker takes part in none; what begins later takes ``secrets`` as they are then."""
        self._secrets = secrets
        self._transport = transport
        self._membership = membership

    def ids(self) -> list[str]:
        """Of the accepted secrets, the used one first."""
        return self._secrets.ids()

    async def add(self, secret: bytes) -> str:
        """Accepts it; its id."""
        added = self._secrets.add(secret)
        if (membership := self._membership()) is not None:
            await membership.add_secret(secret)
        _log.info("the cluster secret %s is accepted", added.id.hex())
        return added.id.hex()

    async def use(self, id: str) -> None:
        """Proves and seals with it."""
        known = self._secrets.known(_bytes(id))
        if (membership := self._membership()) is not None:
            await membership.use_secret(known.id)
        self._secrets.use(known.id)
        _log.info("the cluster secret %s is used", id)

    async def remove(self, id: str, *, force: bool = False) -> None:
        """Accepts it no more. ``Conflict`` while it is used here, or (but for ``force``) while another broker uses it or does not say what it uses.
        Connections that were opened by it are opened anew."""
        known = self._secrets.known(_bytes(id))
        if known is self._secrets.used:
            raise Conflict(f"the secret {id} is in use here", hint="use another one first, on every broker")
        if not force:
            await self._check(known.id)
        if (membership := self._membership()) is not None:
            await membership.remove_secret(known.id)
        self._transport.remove_secret(known.id)
        _log.info("the cluster secret %s is accepted no more", id)

    async def _check(self, id: bytes) -> None:
        """Asks every other broker, by opening a connection, which secret it uses now."""
        peers = [(view.broker, parse_address(view.address)) for view in self._transport.view() if view.address]
        probed = await asyncio.gather(*(self._transport.probe(at, timeout_ms=PROBE_MS, expects=peer) for peer, at in peers))
        using = [peer for (peer, _), found in zip(peers, probed, strict=True) if id in found.keys]
        silent = [f"{peer} ({found.text})" for (peer, _), found in zip(peers, probed, strict=True) if found.outcome != "answered"]
        if using:
            raise Conflict(f"the secret {id.hex()} is still used by {', '.join(using)}", hint="use another one there first")
        if silent:
            hint = "wait until it is back, or force it: a broker that knows no newer secret stays out"
            raise Conflict(f"it is not known what {', '.join(silent)} uses", hint=hint)


def _bytes(id: str) -> bytes:
    try:
        return bytes.fromhex(id)
    except ValueError:
        raise Invalid(f"{id!r} is no id of a secret", hint="an id has 16 hexadecimal digits") from None

"""What a repartition does next, as a pure function of how it stands.

announced: the partitions are there and are consumed, publishes go where they went. Left when nothing is on its way to the queue from other queues
(what is given twice must come to the same partition), so that a transfer is stored once.
cutting: every partition notes the new version and refuses publishes of the old one; those of the new one wait. Left when all have.
draining: publishes go by the new version; moved key slots are held until the old partitions have let go of them, and partitions that are given up
are emptied. Left when nothing is held, those are empty, and have been kept for a while to answer what became of publishes.
"""

from typing import Literal

import msgspec

from headrace.model.routing import Phase


class Stands(msgspec.Struct, frozen=True, kw_only=True):
    """How a change stands."""

    phase: Phase
    arriving: int = 0
    """Transfers to this queue that have not ended."""
    uncut: int = 0
    """Partitions that have not noted the new version."""
    holding: int = 0
    """Slots that are held, over all partitions."""
    retiring: int = 0
    """Messages in partitions that are given up."""
    kept_ms: int = 0
    """So long these are kept at least from now on."""
    force: bool = False
    """Nobody waits for what arrives or is held."""


def next_phase(stands: Stands) -> Phase | Literal["done"]:
    """The phase that comes now: the same one while something is waited for."""
    if stands.phase == "announced":
        return "announced" if stands.arriving and not stands.force else "cutting"
    if stands.phase == "cutting":
        return "cutting" if stands.uncut else "draining"
    if stands.uncut or stands.holding or stands.retiring or stands.kept_ms > 0:
        return "draining"
    return "done"


def waits_for(stands: Stands) -> str:
    """What is waited for, in words; "" = nothing."""
    if stands.phase == "announced":
        return f"{stands.arriving} transfers to this queue that have not arrived" if stands.arriving and not stands.force else ""
    if stands.uncut:
        return f"{stands.uncut} partitions that have not taken the new routing"
    if stands.phase == "cutting":
        return ""
    found = []
    if stands.holding:
        found.append(f"{stands.holding} key slots of which older messages are in hand")
    if stands.retiring:
        found.append(f"{stands.retiring} messages in partitions that are given up")
    if not found and stands.kept_ms > 0:
        found.append("publishers that may ask what became of their messages")
    return " and ".join(found)

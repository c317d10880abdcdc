"""How a seed is written: ``HOST:PORT`` of a broker's peer listener, or ``srv:NAME`` of a DNS service record (RFC 2782).

Owns the spelling. Does not know how names become addresses.
"""

import re
from typing import Final

from headrace.model.hosts import is_host

SRV: Final = "srv:"
SEED_CHARACTERS_MAX: Final = 255
_SERVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MACHINE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9._-]*):([0-9]{1,5})")
_NOBODY: Final = ("0.0.0.0", "[::]")


def seed_mistake(text: str) -> str:
    """What is wrong with it, "" = nothing."""
    if len(text) > SEED_CHARACTERS_MAX:
        return f"a seed has at most {SEED_CHARACTERS_MAX} characters"
    if text.startswith(SRV):
        return "" if _SERVICE.fullmatch(text[len(SRV) :]) else f"{text!r} names no service: write {SRV}_peer._tcp.NAME"
    machine = _MACHINE.fullmatch(text)
    if machine is None or not 1 <= int(machine[2]) <= 65_535 or machine[1] in _NOBODY or not is_host(machine[1]):
        return f"{text!r} names no machine and port: write HOST:PORT of a broker's peer listener, or {SRV}NAME"
    return ""

"""Where a client connects and as whom: the parsed form of ``headrace://user:password@host:port,host:port?name=...``.

Pure. A bare ``host:port`` is taken too; a missing port is the native default. IPv6 hosts stand in brackets.
"""

from urllib.parse import parse_qsl, unquote

import msgspec

from headrace.model.errors import Invalid
from headrace.model.hosts import is_host
from headrace.model.ports import DefaultPort

ADDRESSES_MAX = 64


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Bootstrap addresses in the order in which they are tried, and credentials."""

    addresses: tuple[tuple[str, int], ...]
    user: str = ""
    password: str = ""
    name: str = ""

    def __str__(self) -> str:
        return "headrace://" + ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.addresses)


def parse_target(url: str) -> Target:
    """The target that ``url`` names; raises ``Invalid`` saying what is wrong with it."""
    scheme, found, rest = url.strip().partition("://")
    if not found:
        rest = scheme
    elif scheme != "headrace":
        raise Invalid(f"{url!r} has the scheme {scheme!r}", hint="write headrace://HOST:PORT")
    rest, _, query = rest.partition("?")
    rest = rest.rstrip("/")
    login, at, hosts = rest.rpartition("@")
    user, _, password = login.partition(":") if at else ("", "", "")
    addresses = tuple(_address(part.strip(), url) for part in hosts.split(","))
    if len(addresses) > ADDRESSES_MAX:
        raise Invalid(f"{url!r} names {len(addresses)} addresses, at most {ADDRESSES_MAX} are taken")
    options = dict(parse_qsl(query, keep_blank_values=True))
    name = options.pop("name", "")
    if options:
        raise Invalid(
            f"{url!r} has the unknown option {', '.join(options)}", hint="the only option in an address is name; others are arguments of connect()"
        )
    return Target(addresses=addresses, user=unquote(user), password=unquote(password), name=name)


def _address(text: str, url: str) -> tuple[str, int]:
    if text.startswith("["):
        host, closed, tail = text[1:].partition("]")
        if not closed or (tail and not tail.startswith(":")):
            raise Invalid(f"{text!r} in {url!r} is no address", hint="an IPv6 address is written [::1]:7580")
        port = tail[1:]
    else:
        host, _, port = text.partition(":")
    if not host or not is_host(host) or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536)):
        raise Invalid(f"{text!r} in {url!r} is no address", hint="write headrace://HOST:PORT, for instance headrace://127.0.0.1:7580")
    return host, int(port) if port else int(DefaultPort.NATIVE)

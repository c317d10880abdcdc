"""Ports for those who start several brokers on one host: a tryout, benchmarks, tests.

They lie below those that the system gives to connections, so that none is taken while a broker is stopped and started again. What one process was
given no other is while it lives: it holds a name of the system for each, which goes with the process however that ends.
"""

import secrets
import socket
import sys
from typing import Final

from headrace.model.errors import Unavailable

HOST: Final = "127.0.0.1"
RANGE: Final = (10_000, 32_000)
TRIES: Final = 1_000

_held: list[int] = []
"""Descriptors, which the system closes."""


def neighbours(count: int) -> int:
    """The first of ``count`` neighbouring ports of ``HOST`` that nobody has; they are this process's until it ends. Raises Unavailable."""
    for _ in range(TRIES):
        first = RANGE[0] + secrets.randbelow(RANGE[1] - RANGE[0] - count + 1)
        names = [name for port in range(first, first + count) if (name := _reserved(port)) is not None]
        if len(names) == count and all(_free(port) for port in range(first, first + count)):
            _held.extend(name.detach() for name in names)
            return first
        for name in names:
            name.close()
    raise Unavailable(f"no {count} neighbouring ports are free on {HOST} between {RANGE[0]} and {RANGE[1]}", hint="stop what listens there")


def _reserved(port: int) -> socket.socket | None:
    """What stands for the port among processes of Headrace; None = another has it."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if sys.platform != "linux":  # no names without files there: what is free now has to do
        return name
    try:
        name.bind(f"\0headrace-port-{port}")
    except OSError:
        name.close()
        return None
    return name


def _free(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as held:
                held.bind((HOST, port))
    except OSError:
        return False
    return True

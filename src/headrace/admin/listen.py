"""The admin listener of a running broker: where it listens is configured, what it answers stands in ``admin.app``."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from headrace.admin.service import Formation, Verbs
from headrace.admin.serving import serve
from headrace.broker.metrics import Snapshot
from headrace.model.config import Config, advertised, parse_address


class Figured(Protocol):
    """A broker, or a member of a cluster that may have one."""

    config: Config

    def metrics(self) -> Snapshot: ...


class _Facade:
    """A broker and its verbs as one ``Service``."""

    def __init__(self, broker: Figured, verbs: Verbs, formation: Formation | None) -> None:
        self.broker = broker
        self.verbs = verbs
        self.formation = formation

    def metrics(self) -> Snapshot:
        return self.broker.metrics()


async def listen(
    broker: Figured, verbs: Verbs, formation: Formation | None = None
) -> tuple[dict[str, str], Callable[[], Awaitable[None]]]:
    """Serves the admin HTTP where the configuration says: ``{"admin": url}``, and what stops it. ``formation``: that of a member of a
    cluster."""
    config = broker.config.listen
    address = parse_address(config.admin)
    port, stop = await serve(_Facade(broker, verbs, formation), address.host, address.port)
    told = advertised(config.admin, config.admin_advertise, port=port, hostname=socket.gethostname())
    return {"admin": f"http://{told}"}, stop

"""The admin listener of a running broker: where it listens is configured, what it answers stands in ``admin.app``."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from headrace.admin.service import Verbs
from headrace.admin.serving import serve
from headrace.broker.metrics import Snapshot
from headrace.model.config import advertised, parse_address

if TYPE_CHECKING:
    from headrace.broker.broker import Broker


class _Facade:
    """A broker and its verbs as one ``Service``."""

    def __init__(self, broker: Broker, verbs: Verbs) -> None:
        self.broker = broker
        self.verbs = verbs

    def metrics(self) -> Snapshot:
        return self.broker.metrics()


async def listen(broker: Broker, verbs: Verbs) -> tuple[dict[str, str], Callable[[], Awaitable[None]]]:
    """Serves the admin HTTP where the configuration says: ``{"admin": url}``, and what stops it."""
    config = broker.config.listen
    address = parse_address(config.admin)
    port, stop = await serve(_Facade(broker, verbs), address.host, address.port)
    told = advertised(config.admin, config.admin_advertise, port=port, hostname=socket.gethostname())
    return {"admin": f"http://{told}"}, stop

"""Opens the native listener for a running broker."""

from collections.abc import Awaitable, Callable

from headrace.broker.broker import Broker
from headrace.broker.run import native_url
from headrace.broker.verbs import Verbs
from headrace.gateways.native.server import NativeServer


async def listen(broker: Broker, verbs: Verbs) -> tuple[dict[str, str], Callable[[], Awaitable[None]]]:
    server = NativeServer(broker, verbs)
    await server.start()
    return {"url": native_url(broker.config, server.port)}, server.stop

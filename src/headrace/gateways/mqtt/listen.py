"""Opens the MQTT listeners for a running broker."""

import socket
from collections.abc import Awaitable, Callable
from typing import Literal

from headrace.broker.broker import Broker
from headrace.broker.verbs import Verbs
from headrace.gateways.mqtt.server import MqttServer
from headrace.gateways.mqtt.verbs import MqttVerbs
from headrace.log import get_logger
from headrace.model.config import advertised, mqtt_address
from headrace.model.errors import Quarantined

_log = get_logger("mqtt")


async def listen(broker: Broker, verbs: Verbs) -> tuple[dict[str, str], Callable[[], Awaitable[None]]]:
    """``{"mqtt": url, "mqtt_ws": url}`` of those that are configured, and what stops them; none if sessions are damaged: all else is served."""
    server = MqttServer(broker)
    try:
        await server.start()
    except Quarantined as e:
        _log.error("%s", e)
    except BaseException:
        await server.stop()
        raise
    urls: dict[str, str] = {}
    shown: tuple[tuple[Literal["mqtt", "mqtt_ws"], str, str], ...] = (("mqtt", "mqtt", ""), ("mqtt_ws", "ws", "/mqtt"))
    for name, scheme, path in shown:
        if name in server.ports:
            address = advertised(mqtt_address(broker.config, name), "", port=server.ports[name], hostname=socket.gethostname())
            urls[name] = f"{scheme}://{address}{path}"
    if broker.cluster is not None:
        from headrace.gateways.mqtt.cluster_verbs import ClusterVerbs  # a lone broker needs none of it

        verbs.add(ClusterVerbs(server.hub).handlers())
        broker.figures.append(server.figures)
        if "mqtt" in urls:
            broker.cluster.advertise(mqtt=urls["mqtt"])
    elif urls:
        verbs.add(MqttVerbs(server.hub).handlers())
        broker.figures.append(server.figures)
    return urls, server.stop

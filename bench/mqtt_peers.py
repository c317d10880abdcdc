"""Brokers that only the rows of MQTT are measured on."""

import shutil
from pathlib import Path

from bench.targets import Absent, Headrace, Nats, Rabbit, Target, listening, put
from headrace.cli.ports import neighbours

BUILD = Path(__file__).resolve().parent / "build"
"""Where ``install-peers`` puts aedes and amqtt."""


class MqttPeer(Target):
    """A server of MQTT and nothing else."""

    kind = "mqtt"

    def serves(self) -> bool:
        return listening(self.mqtt_port)


class Mosquitto(MqttPeer):
    """Without persistence, as it ships; with its default bounds (20 in flight, 1,000 queued) it would drop messages."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        binary = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if not binary:
            raise Absent("mosquitto (make bench-peers)")
        self.mqtt_port = neighbours(1)
        config = f"""\
            listener {self.mqtt_port} 127.0.0.1
            allow_anonymous true
            max_inflight_messages 1000
            max_queued_messages 100000
            log_type error
            """
        return [binary, "-c", str(put(self.folder / "mosquitto.conf", config))], {}


class Aedes(MqttPeer):
    """In memory, as it ships."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        node = shutil.which("node")
        if not node or not (BUILD / "node" / "node_modules" / "aedes").exists():
            raise Absent("aedes (make bench-peers, with Node.js)")
        self.mqtt_port = neighbours(1)
        script = f"""\
            import {{ createServer }} from 'node:net'
            import {{ createRequire }} from 'node:module'
            const {{ Aedes }} = createRequire('{BUILD}/node/')('aedes')
            const broker = await Aedes.createBroker()
            createServer({{ noDelay: true }}, broker.handle).listen({{ port: {self.mqtt_port}, host: '127.0.0.1', backlog: 4096 }})
            """
        return [node, str(put(self.folder / "broker.mjs", script))], {}


class Amqtt(MqttPeer):
    """Without the plugins that log each packet."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        binary = BUILD / "amqtt" / "bin" / "amqtt"
        if not binary.exists():
            raise Absent("amqtt (make bench-peers)")
        self.mqtt_port = neighbours(1)
        config = f"""\
            listeners:
              default:
                type: tcp
                bind: 127.0.0.1:{self.mqtt_port}
                max_connections: 20000
            plugins:
              amqtt.plugins.authentication.AnonymousAuthPlugin:
                allow_anonymous: true
            """
        return [str(binary), "-c", str(put(self.folder / "amqtt.yaml", config))], {}


def mqtt_targets() -> dict[str, Target]:
    """Those that ``targets.all_targets`` does not have."""
    return {
        "headrace-pure": Headrace("headrace-pure", pure=True),
        "mosquitto": Mosquitto("mosquitto"),
        "nats-mqtt": Nats("nats-mqtt", "", mqtt=True),
        "rabbit-mqtt": Rabbit("rabbit-mqtt", mqtt=True),
        "aedes": Aedes("aedes"),
        "amqtt": Amqtt("amqtt"),
    }

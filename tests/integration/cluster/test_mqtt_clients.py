"""Real MQTT clients at three brokers, of which two that talk to each other are never at the same one; what they are tried with is in ``trying``."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.members import Three

pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
pytest.importorskip("aiomqtt", reason="needs aiomqtt")
pytest.importorskip("websockets", reason="needs websockets")
from tests.integration.cluster.test_mqtt_sessions import settled
from tests.integration.mqtt_clients import trying

pytestmark = pytest.mark.timeout(600)
LISTENERS = {"tcp": "mqtt", "websockets": "mqtt_ws"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """One for all tests here."""
    made = Three(tmp_path_factory.mktemp("three"), "--mqtt", "127.0.0.1:0", "--mqtt-ws", "127.0.0.1:0")
    try:
        made.start("abc")
        asyncio.run(settled(made, "abc"))
        yield made
        assert set(asyncio.run(made.stop())) == {0}
    finally:
        made.end()


def urls(three: Three, listener: str, turn: int) -> tuple[str, str]:
    """Of two brokers; others at each turn."""
    return three["abc"[turn % 3]].said()[listener], three["abc"[(turn + 1) % 3]].said()[listener]


def ports(three: Three, transport: str, turn: int) -> tuple[int, int]:
    one, two = (int(url.partition("//")[2].partition("/")[0].rpartition(":")[2]) for url in urls(three, LISTENERS[transport], turn))
    return one, two


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("version", [4, 5])
async def test_paho(cluster: Three, version: int, transport: str) -> None:
    await asyncio.to_thread(trying.with_paho, ports(cluster, transport, version), version, transport, f"paho-{version}-{transport}")


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
@pytest.mark.parametrize("version", [4, 5])
async def test_aiomqtt(cluster: Three, version: int, transport: str) -> None:
    await trying.with_aiomqtt(ports(cluster, transport, version), version, transport, f"aiomqtt-{version}-{transport}")


@pytest.mark.skipif(not trying.GMQTT.is_dir(), reason="needs gmqtt in .clients: scripts/mqtt_clients installs it")
@pytest.mark.parametrize("version", [4, 5])
async def test_gmqtt(cluster: Three, version: int) -> None:
    await trying.with_gmqtt(ports(cluster, "tcp", version), version, f"gmqtt-{version}")


@pytest.mark.skipif(
    shutil.which("node") is None or not trying.MQTT_JS.exists(), reason="needs node, and MQTT.js in .clients: scripts/mqtt_clients installs it"
)
@pytest.mark.parametrize(("listener", "version"), [("mqtt", 4), ("mqtt", 5), ("mqtt_ws", 5)])
async def test_mqtt_js(cluster: Three, listener: str, version: int) -> None:
    await trying.with_mqtt_js(urls(cluster, listener, version), version, f"mqttjs-{version}-{listener}")


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto-clients")
@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_programs(cluster: Three, tmp_path: Path, version: str) -> None:
    await trying.with_mosquitto(ports(cluster, "tcp", len(version)), version, f"mosquitto-{version}", tmp_path)

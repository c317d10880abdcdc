"""MQTT clients that run in processes of their own: gmqtt, MQTT.js, the mosquitto programs. Skipped where they are not (scripts/mqtt_clients)."""

import shutil
from pathlib import Path

import pytest

from tests.integration.test_mqtt import port, running

pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
pytest.importorskip("aiomqtt", reason="needs aiomqtt")
pytest.importorskip("websockets", reason="needs websockets")
from tests.integration.mqtt_clients import trying


@pytest.mark.skipif(not trying.GMQTT.is_dir(), reason="needs gmqtt in .clients: scripts/mqtt_clients installs it")
@pytest.mark.parametrize("version", [4, 5])
async def test_gmqtt(tmp_path: Path, version: int) -> None:
    async with running(tmp_path) as broker:
        await trying.with_gmqtt((port(broker), port(broker)), version, "gmqtt")


@pytest.mark.skipif(
    shutil.which("node") is None or not trying.MQTT_JS.exists(), reason="needs node, and MQTT.js in .clients: scripts/mqtt_clients installs it"
)
@pytest.mark.parametrize(("listener", "version"), [("mqtt", 4), ("mqtt", 5), ("mqtt_ws", 5)])
async def test_mqtt_js(tmp_path: Path, listener: str, version: int) -> None:
    async with running(tmp_path) as broker:
        await trying.with_mqtt_js((broker.addresses[listener], broker.addresses[listener]), version, "mqttjs")


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto-clients")
@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_programs(tmp_path: Path, version: str) -> None:
    async with running(tmp_path / "broker") as broker:
        await trying.with_mosquitto((port(broker), port(broker)), version, "mosquitto", tmp_path)

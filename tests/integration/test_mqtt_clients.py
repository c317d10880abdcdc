"""MQTT clients that run in processes of their own: gmqtt, MQTT.js, the mosquitto programs. Skipped where they are not (scripts/mqtt_clients)."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.test_mqtt import port, running

pytest.importorskip("websockets", reason="needs websockets")
HERE = Path(__file__).parent / "mqtt_clients"
CLIENTS = Path(__file__).parents[2] / ".clients"
WAIT_S = 50


async def said(*command: str, **environment: str) -> str:
    """What a program said; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.skipif(not (CLIENTS / "gmqtt").is_dir(), reason="needs gmqtt in .clients: scripts/mqtt_clients installs it")
@pytest.mark.parametrize("version", ["4", "5"])
async def test_gmqtt(tmp_path: Path, version: str) -> None:
    async with running(tmp_path) as broker:
        assert (await said(sys.executable, str(HERE / "with_gmqtt.py"), str(port(broker)), version, PYTHONPATH=str(CLIENTS))).endswith("ok\n")


@pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENTS / "node_modules" / "mqtt").is_dir(),
    reason="needs node, and MQTT.js in .clients: scripts/mqtt_clients installs it",
)
@pytest.mark.parametrize(("listener", "version"), [("mqtt", "4"), ("mqtt", "5"), ("mqtt_ws", "5")])
async def test_mqtt_js(tmp_path: Path, listener: str, version: str) -> None:
    module = CLIENTS / "node_modules" / "mqtt" / "build" / "index.js"
    async with running(tmp_path) as broker:
        assert await said("node", str(HERE / "with_mqttjs.mjs"), module.as_uri(), broker.addresses[listener], version) == "ok\n"


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto-clients")
@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_programs(tmp_path: Path, version: str) -> None:
    async with running(tmp_path) as broker:
        where = ["-V", version, "-h", "127.0.0.1", "-p", str(port(broker)), "-q", "2"]
        await said("mosquitto_pub", *where, "-t", "a/b", "-m", "hello", "-r")
        assert await said("mosquitto_sub", *where, "-t", "a/#", "-C", "1", "-v") == "a/b hello\n"
        kept = [*where, "-t", "later", "-i", "keeps", "-c", *(("-x", "600") if version == "5" else ())]
        await said("mosquitto_sub", *kept, "-E")
        await said("mosquitto_pub", *where, "-t", "later", "-m", "while away")
        assert await said("mosquitto_sub", *kept, "-C", "1") == "while away\n"

"""What operators see and change of MQTT, by the command line and by HTTP, on a broker with real clients."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.broker.run import RunningBroker, start
from headrace.cli import main
from headrace.model.config import Broker, Config, Listen
from headrace.model.errors import Invalid, NotFound, Refused
from headrace.wire.mqtt.packets import Disconnect, Will
from headrace.wire.mqtt.publish import Publish
from tests.integration.test_mqtt import Raw, until
from tests.plain import ANSWER_S, PLAIN

Command = Callable[..., Awaitable[tuple[int, str]]]
PROPERTIES = {0x11: 600}


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[RunningBroker]:
    listen = Listen(native="127.0.0.1:0", admin="127.0.0.1:0", mqtt="127.0.0.1:0", mqtt_ws="off")
    running = await start(Config(broker=Broker(data_dir=str(tmp_path), drain_grace_ms=0), listen=listen), tune=False)
    yield running
    await running.stop()


@pytest.fixture
def run(broker: RunningBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("HEADRACE_URL", broker.url)

    async def command(*words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ("mqtt", *words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return command


async def told(run: Command, *words: str) -> Any:
    code, said = await run(*words, "--json")
    assert code == 0, said
    return json.loads(said)


async def test_sessions_and_subscriptions(broker: RunningBroker, run: Command) -> None:
    here, away = Raw(5), Raw(4)
    await here.open(broker, "here", properties=PROPERTIES, will=Will("gone", b"bye", 1))
    await here.subscribe("a/+", 1)
    await here.subscribe("b", 2)
    await away.open(broker, "away", clean_start=False)
    await away.subscribe("a/#", 1)
    away.drop()
    await until(lambda: len(broker.broker.sinks) == 1)
    assert (await told(run, "publish", "a/x", "kept"))["count"] == 2
    found = {s["client_id"]: s for s in (await told(run, "sessions", "list"))["items"]}
    assert list(found) == ["away", "here"]
    assert (found["here"]["connected"], found["here"]["version"], found["here"]["expiry_s"], found["here"]["will"]) == (True, "5.0", 600, True)
    assert (found["away"]["connected"], found["away"]["waiting"], found["away"]["subscriptions"]) == (False, 1, 1)
    shown = await told(run, "sessions", "show", "here")
    assert [s["filter"] for s in shown["subscriptions"]] == ["a/+", "b"]
    rows = (await told(run, "subscriptions", "list", "a/*"))["items"]
    assert [(s["client_id"], s["filter"]) for s in rows] == [("away", "a/#"), ("here", "a/+")]
    first = await told(run, "subscriptions", "list", "--limit", "1")
    assert (len(first["items"]), first["more"]) == (1, True)
    here.drop()
    for words, part in ((("sessions", "list"), "away for"), (("sessions", "show", "away"), "1 waiting"), (("subscriptions", "list"), "a/#")):
        code, said = await run(*words)
        assert code == 0
        assert part in said
    assert (await run("sessions", "show", "nobody"))[0] == NotFound.exit


async def test_a_client_is_kicked_and_its_session_forgotten(broker: RunningBroker, run: Command) -> None:
    watcher, victim = Raw(5), Raw(5)
    await watcher.open(broker, "watcher")
    await watcher.subscribe("gone", 1)
    await victim.open(broker, "victim", properties=PROPERTIES, will=Will("gone", b"bye", 1))
    assert (await run("kick", "victim"))[0] == 0
    goodbye = await victim.next()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x98
    assert await victim.next() is None
    assert (await watcher.next()).payload == b"bye"
    assert (await run("kick", "victim"))[0] == NotFound.exit, "it is away"
    assert (await run("kick", "victim", "--forget"))[0] == 0
    assert [s["client_id"] for s in (await told(run, "sessions", "list"))["items"]] == ["watcher"]
    again = Raw(5)
    assert not (await again.open(broker, "victim", clean_start=False, properties=PROPERTIES)).session_present
    again.drop()
    watcher.drop()


async def test_retained_messages_and_publishing(broker: RunningBroker, run: Command) -> None:
    for topic in ("a/1", "a/2", "b/1"):
        assert (await run("publish", topic, f"value of {topic}", "--retain", "--content-type", "text/plain"))[0] == 0
    assert [m["topic"] for m in (await told(run, "retained", "list", "a/+"))["items"]] == ["a/1", "a/2"]
    first = await told(run, "retained", "list", "--limit", "2")
    assert ([m["topic"] for m in first["items"]], first["more"]) == (["a/1", "a/2"], True)
    shown = await told(run, "retained", "show", "a/2")
    assert (shown["payload"]["text"], shown["content_type"]) == ("value of a/2", "text/plain")
    assert "value of a/2" in (await run("retained", "show", "a/2"))[1]
    client = Raw(5)
    await client.open(broker, "reads")
    await client.subscribe("#", 1)
    got = [await client.next() for _ in range(3)]
    assert sorted(p.topic for p in got if isinstance(p, Publish)) == ["a/1", "a/2", "b/1"]
    assert all(p.retain and p.properties[0x03] == "text/plain" for p in got)
    client.drop()
    assert (await told(run, "retained", "clear", "a/#"))["count"] == 2
    assert [m["topic"] for m in (await told(run, "retained", "list"))["items"]] == ["b/1"]
    for wrong in (("publish", "a/#", "x"), ("publish", "$SYS/x", "x"), ("retained", "list", "a#"), ("retained", "show", "+")):
        assert (await run(*wrong))[0] == Invalid.exit, wrong


async def test_http_and_metrics(broker: RunningBroker) -> None:
    client = Raw(5)
    await client.open(broker, "a/b", properties=PROPERTIES)
    await client.subscribe("t", 1)
    async with httpx.AsyncClient(verify=PLAIN, timeout=ANSWER_S, base_url=f"{broker.admin_url}/admin/api/mqtt") as http:
        body = {"topic": "t", "payload": base64.b64encode(b"by http").decode(), "retain": True, "user_properties": [["k", "v"]]}
        assert (await http.post("/publish", json=body)).json()["count"] == 1
        got = await client.next()
        assert (got.payload, got.properties[0x26]) == (b"by http", [("k", "v")])
        kept = (await http.get("/retained", params={"payload_bytes_max": 2})).json()["items"][0]
        assert (kept["topic"], kept["payload"]["text"], kept["payload_bytes"]) == ("t", "by", 7)
        rows = (await http.get("/subscriptions", params={"filter": "t"})).json()["items"]
        assert [(s["client_id"], s["filter"], s["qos"]) for s in rows] == [("a/b", "t", 1)]
        metrics = dict(line.rsplit(" ", 1) for line in (await http.get(f"{broker.admin_url}/metrics")).text.splitlines() if line[:1] != "#")
        figures = [float(metrics[f"headrace_mqtt_{name}"]) for name in ("connections", "sessions", "subscriptions", "retained_messages")]
        assert figures == [1, 1, 1, 1]
        assert (await http.delete("/sessions/a%2Fb", params={"forget": True})).json()["count"] == 1
        assert (await client.next()).reason == 0x98
        client.drop()
        assert (await http.get("/sessions")).json()["items"] == []
        assert (await http.delete("/sessions/a%2Fb")).status_code == 404
        assert (await http.post("/retained/clear", json={"filter": "#"})).json()["count"] == 1
        assert (await http.post("/retained/clear", json={"filter": "a#"})).status_code == Invalid.http
        metrics = dict(line.rsplit(" ", 1) for line in (await http.get(f"{broker.admin_url}/metrics")).text.splitlines() if line[:1] != "#")
        assert float(metrics["headrace_mqtt_sent_total"]) == 1, "what a connection counted stays"


async def test_a_broker_without_mqtt_says_so(tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = Listen(native="127.0.0.1:0", admin="off")
    other = await start(Config(broker=Broker(data_dir=str(tmp_path / "other")), listen=listen), tune=False)
    try:
        monkeypatch.setenv("HEADRACE_URL", other.url)
        code, said = await run("sessions", "list")
        assert (code, "--mqtt" in said) == (Refused.exit, True)
    finally:
        await other.stop()

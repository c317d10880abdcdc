"""The admin HTTP over a stub broker: every route is one control message, and errors carry status, number and hint."""

import asyncio
import json
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from headrace.admin.app import create_app
from headrace.admin.serving import serve
from headrace.model.errors import DiskFull, Draining, HeadraceError, QueueFull, StorageError, Unavailable
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.wire import control
from tests.integration.admin_stub import StubBroker
from tests.plain import ANSWER_S, PLAIN

API = "/admin/api"


@pytest.fixture
def broker() -> StubBroker:
    return StubBroker()


@pytest.fixture
async def http(broker: StubBroker) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(broker)), base_url="http://127.0.0.1:7581") as client:
        yield client


async def test_declare_describe_alter_delete(http: httpx.AsyncClient, broker: StubBroker) -> None:
    made = await http.put(f"{API}/queues/orders", json={"partitions": 2, "lease_ms": 5000})
    assert made.status_code == 200
    assert made.json()["name"] == "orders"
    assert broker.requests[-1] == control.DeclareQueue(name="orders", spec=QueueSpec(partitions=2, lease_ms=5000))
    assert (await http.get(f"{API}/queues/orders")).json()["ready"] == 0, "fields at their default are there too"
    assert (await http.patch(f"{API}/queues/orders", json={"lease_ms": 100})).json()["spec"]["lease_ms"] == 100
    listing = (await http.get(f"{API}/queues", params={"pattern": "o*", "limit": 5})).json()
    assert [i["name"] for i in listing["items"]] == ["orders"]
    assert (await http.delete(f"{API}/queues/orders", params={"if_empty": True})).json()["count"] == 1
    assert broker.requests[-1] == control.Delete(name="orders", kind="queue", if_empty=True)
    assert (await http.get(f"{API}/queues/orders")).status_code == 404
    await http.put(f"{API}/streams/log", json={"tier": "ephemeral"})
    assert broker.requests[-1] == control.DeclareStream(name="log", spec=StreamSpec(tier="ephemeral"))


@pytest.mark.parametrize("name", ["a/b", "a/inspect", "ü ", "100%", "a%2Fb", "a?b#c", "."])
async def test_any_name_can_be_a_path_segment(http: httpx.AsyncClient, broker: StubBroker, name: str) -> None:
    from urllib.parse import quote

    segment = quote(name, safe="") if name != "." else "%2E"
    assert (await http.put(f"{API}/queues/{segment}")).status_code == 200
    assert broker.requests[-1] == control.DeclareQueue(name=name)
    assert (await http.get(f"{API}/queues/{segment}/inspect")).status_code == 200


VERBS: list[tuple[str, str, Any, control.Request]] = [
    ("POST", "queues/q/purge", {"leased": True}, control.Purge(name="q", leased=True)),
    ("POST", "queues/q/repartition", {"partitions": 4, "force": True}, control.Repartition(name="q", partitions=4, force=True)),
    ("POST", "queues/q/pause", None, control.Pause(name="q", paused=True)),
    ("POST", "queues/q/resume", None, control.Pause(name="q", paused=False)),
    ("POST", "queues/q/move", {"to": "r", "limit": 5}, control.Move(name="q", to="r", limit=5)),
    (
        "POST",
        "queues/q/redrive",
        {"rate": 10, "filter": {"op": "eq", "header": "h", "value": "v"}},
        control.Redrive(name="q", rate=10, filter=control.Filter(op="eq", header="h", value="v")),
    ),
    ("GET", "transfers/7", None, control.TransferStatus(id=7)),
    ("DELETE", "transfers/7", None, control.TransferStatus(id=7, cancel=True)),
    ("POST", "streams/s/trim", {"offset": 10}, control.Trim(name="s", offset=10)),
    ("GET", "streams/s/offsets?timestamp_ms=5", None, control.OffsetForTime(name="s", timestamp_ms=5)),
    ("GET", "streams/s/cursors", None, control.CursorsList(name="s")),
    ("PUT", "streams/s/cursors/c%2F1", {"to": "last:5"}, control.CursorSet(name="s", cursor="c/1", to="last:5")),
    ("DELETE", "streams/s/cursors/c", None, control.CursorDelete(name="s", cursor="c")),
    ("POST", "drain", None, control.Drain()),
    ("POST", "drain", {"grace_ms": 100, "message": "upgrade"}, control.Drain(grace_ms=100, message="upgrade")),
    ("GET", "status", None, control.Status()),
    ("GET", "connections", None, control.ConnectionsList()),
    ("GET", "topology?name=a&name=b", None, control.ClusterTopology(names=("a", "b"))),
    ("GET", "topology?after=a&limit=7", None, control.ClusterTopology(after="a", limit=7)),
    ("GET", "quarantine", None, control.QuarantineList()),
    ("POST", "quarantine/repair", {"name": "q", "dry_run": True}, control.QuarantineRepair(name="q", dry_run=True)),
]


@pytest.mark.parametrize(("method", "path", "body", "request_"), VERBS)
async def test_each_route_is_one_message(
    http: httpx.AsyncClient, broker: StubBroker, method: str, path: str, body: Any, request_: control.Request
) -> None:
    broker.items["q"] = control.Info(name="q", kind="queue", id="1", spec={})
    answer = await http.request(method, f"{API}/{path}", json=body)
    assert answer.status_code == 200, answer.text
    assert broker.requests == [request_]
    assert "t" not in answer.json()


async def test_inspect_shows_text_where_it_is_text(http: httpx.AsyncClient, broker: StubBroker) -> None:
    await http.put(f"{API}/queues/q")
    query = {"state": "any", "limit": 2, "filter": '{"op":"exists","header":"h"}'}
    found = (await http.get(f"{API}/queues/q/inspect", params=query)).json()["messages"]
    assert found[0]["value"] == {"base64": "/wA=", "text": None}
    assert found[1]["value"]["text"] == '{"a":1}'
    assert found[1]["key"] is None
    assert broker.requests[-1] == control.Inspect(name="q", state="any", limit=2, filter=control.Filter(op="exists", header="h"))
    assert (await http.get(f"{API}/queues/q/inspect", params={"filter": "{"})).status_code == 422
    assert (await http.get(f"{API}/queues/q/inspect", params={"limit": 0})).status_code == 422


@pytest.mark.parametrize("error", [QueueFull("full"), DiskFull("disk"), Draining("bye"), StorageError("bad", hint="replace the disk")])
async def test_errors_have_status_number_and_hint(http: httpx.AsyncClient, broker: StubBroker, error: HeadraceError) -> None:
    broker.fail = error
    answer = await http.get(f"{API}/status")
    assert answer.status_code == error.http
    assert answer.json() == {
        "code": error.code, "error": type(error).__name__, "message": str(error), "hint": error.hint, "retriable": error.retriable
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("PUT", "queues/q", b"{", 400),
        ("PUT", "queues/q", b"[]", 400),
        ("PUT", "queues/q", b"\xff", 400),
        ("PUT", "queues/q", b'{"lease": 1}', 422),
        ("PUT", "queues/q", b'{"lease_ms": "x"}', 422),
        ("PUT", "queues/$sys", b"{}", 422),
        ("POST", "queues/q/move", b"{}", 422),
        ("POST", "queues/q/move", b'{"to": "r", "t": "list"}', 422),
        ("POST", "drain", b'{"grace": 5}', 422),
        ("PUT", "queues/q", b" " * (1 << 20) + b"{}", 413),
        ("GET", "queues?limit=0", b"", 422),
        ("GET", "transfers/x", b"", 422),
        ("GET", "nothing", b"", 404),
        ("POST", "status", b"", 405),
    ],
)
async def test_bad_requests_are_refused_with_a_reason(http: httpx.AsyncClient, method: str, path: str, content: bytes, status: int) -> None:
    answer = await http.request(method, f"{API}/{path}", content=content)
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "error", "message", "hint", "retriable"}


async def test_health_live_ready(http: httpx.AsyncClient, broker: StubBroker) -> None:
    assert (await http.get(f"{API}/ready")).json() == {"ready": True, "state": "serving"}
    assert (await http.get(f"{API}/health")).json() == {"state": "serving", "healthy": True, "attention": ["the disk is slow"]}
    broker.state = "draining"
    not_ready = await http.get(f"{API}/ready")
    assert not_ready.status_code == 503
    assert "draining" in not_ready.json()["message"]
    assert (await http.get(f"{API}/health")).status_code == 200
    broker.state = "failed"
    assert (await http.get(f"{API}/health")).status_code == 503
    broker.fail = Unavailable("gone")
    assert (await http.get(f"{API}/live")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "null"}],
)
async def test_another_sites_page_changes_nothing(http: httpx.AsyncClient, broker: StubBroker, headers: dict[str, str]) -> None:
    assert (await http.post(f"{API}/drain", headers=headers)).status_code == 401
    assert broker.requests == []
    own = {"origin": "http://127.0.0.1:7581", "sec-fetch-site": "same-origin"}
    assert (await http.post(f"{API}/drain", headers=own)).status_code == 200


async def test_metrics_are_prometheus(http: httpx.AsyncClient, broker: StubBroker) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    await http.put(f"{API}/queues/q%22%0A".replace("%0A", "x"))
    broker.counters.published += 5
    broker.counters.confirmed(0.3, 5)
    text = (await http.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert families["headrace_published"].samples[0].value == 5
    buckets = {s.labels["le"]: s.value for s in families["headrace_confirm_latency_seconds"].samples if s.name.endswith("_bucket")}
    assert buckets["0.000256"] == 0
    assert buckets["0.000512"] == 5
    assert buckets["+Inf"] == 5
    assert {s.labels["queue"] for s in families["headrace_queue_ready"].samples} == {'q"x'}
    assert families["headrace_connections"].samples[0].value == 3
    assert all(f.documentation for f in families.values())


async def test_openapi_names_every_route_and_resolves(http: httpx.AsyncClient) -> None:
    document = (await http.get(f"{API}/openapi.json")).json()
    assert {f"{API}/drain", f"{API}/queues/{{name}}/redrive", f"{API}/streams/{{name}}/cursors/{{cursor}}", "/metrics"} <= set(document["paths"])
    schemas = document["components"]["schemas"]

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [v for k, v in value.items() if k == "$ref"] + [r for v in value.values() for r in references(v)]
        return [r for v in value for r in references(v)] if isinstance(value, list) else []

    assert {r.rsplit("/", 1)[1] for r in references(document)} <= set(schemas)
    assert "lease_ms" in schemas["QueueSpec"]["properties"] or any("lease_ms" in json.dumps(p) for p in document["paths"].values())


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("href", "src") and v and not v.startswith("data:")]


async def test_the_pages_need_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    for page in ("/", f"{API}/docs"):
        answer = await http.get(page)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        links = _Links()
        links.feed(answer.text)
        assert links.links
        for link in links.links:
            assert link.startswith("/")
            assert (await http.get(link)).status_code == 200
        assert " style=" not in answer.text, "the content security policy refuses inline styles"


async def test_overview_is_one_answer_shared_by_its_viewers(http: httpx.AsyncClient, broker: StubBroker) -> None:
    await http.put(f"{API}/queues/q")
    await http.put(f"{API}/streams/s")
    broker.requests.clear()
    first = (await http.get(f"{API}/overview")).json()
    assert [q["name"] for q in first["queues"]] == ["q"]
    assert first["queues"][0]["oldest_ms"] == 1234
    assert [s["name"] for s in first["streams"]] == ["s"]
    assert set(first["history"]) >= {"published", "delivered", "settled", "bytes_in", "bytes_out"}
    asked = len(broker.requests)
    assert (await http.get(f"{API}/overview")).json() == first
    assert len(broker.requests) == asked


async def test_the_first_connections_wait_for_the_application_together(broker: StubBroker) -> None:
    port, stop = await serve(broker, "127.0.0.1", 0)
    gone, kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    gone[1].close()
    async with httpx.AsyncClient(verify=PLAIN, timeout=ANSWER_S) as client:
        answers = await asyncio.gather(*(client.get(f"http://127.0.0.1:{port}{API}/live") for _ in range(20)))
    assert {a.status_code for a in answers} == {200}
    kept[1].write(b"GET /admin/api/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await kept[0].read()).startswith(b"HTTP/1.1 200")
    kept[1].close()
    await stop()


async def test_it_can_be_stopped_before_anybody_came_and_while_the_first_waits(broker: StubBroker) -> None:
    _, stop = await serve(broker, "127.0.0.1", 0)
    await stop()
    port, stop = await serve(broker, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await stop()
    assert await reader.read() == b""
    writer.close()


async def test_it_is_served_on_the_running_loop_and_stops(broker: StubBroker) -> None:
    port, stop = await serve(broker, "127.0.0.1", 0)
    async with httpx.AsyncClient(verify=PLAIN, timeout=ANSWER_S) as client:
        assert (await client.get(f"http://127.0.0.1:{port}{API}/live")).json() == {"live": True}
        assert (await client.put(f"http://127.0.0.1:{port}{API}/queues/a%2Fb", json={})).json()["name"] == "a/b"
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            await serve(broker, "127.0.0.1", port)
        await stop()
    async with httpx.AsyncClient(verify=PLAIN, timeout=ANSWER_S) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}{API}/live")

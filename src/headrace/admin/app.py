"""The admin application: which route is which control message.

Each route makes one message, gives it to ``broker.verbs.call`` and answers with its reply as JSON. A ``HeadraceError`` becomes its HTTP status with
``{code, error, message, hint}``. Invariants: a path segment is one name, percent-encoded (a name may hold a slash); a body has no unknown fields;
no page of another site can change anything.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace import __version__
from headrace.admin.bodies import Body, Name, accepts, answer, answers, components, make, refuse
from headrace.admin.cluster import cluster_routes
from headrace.admin.exposition import exposition
from headrace.admin.mqtt import mqtt_routes
from headrace.admin.overview import Overview
from headrace.admin.service import Service
from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid, Invariant, NotFound, Unauthorized, Unavailable
from headrace.model.specs import QueueSpec, Spec, StreamSpec, meant
from headrace.wire import control

API: Final = "/admin/api"
_STATIC: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/admin/topology": ("topology.html", "text/html; charset=utf-8"),
    "/admin/api/docs": ("api.html", "text/html; charset=utf-8"),
    "/static/overview.css": ("overview.css", "text/css; charset=utf-8"),
    "/static/overview.js": ("overview.js", "text/javascript; charset=utf-8"),
    "/static/topology.css": ("topology.css", "text/css; charset=utf-8"),
    "/static/topology.js": ("topology.js", "text/javascript; charset=utf-8"),
    "/static/api.js": ("api.js", "text/javascript; charset=utf-8"),
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def _decoded_cursor(cursor: str) -> str:
    return unquote(cursor)


Cursor = Annotated[str, Depends(_decoded_cursor)]
Limit = Annotated[int, Query(ge=1, le=10_000)]


def create_app(broker: Service) -> FastAPI:
    """The application over ``broker``; makes no request and starts nothing by itself."""
    app = FastAPI(title="Headrace admin", version=__version__, openapi_url=f"{API}/openapi.json", docs_url=None, redoc_url=None)

    async def call(request: control.Request) -> Response:
        return answer(await broker.verbs.call(request))

    _broker_routes(app, broker, call)
    _catalogue_routes(app, "queue", control.DeclareQueue, control.AlterQueue, QueueSpec, call)
    _catalogue_routes(app, "stream", control.DeclareStream, control.AlterStream, StreamSpec, call)
    _queue_routes(app, call)
    _stream_routes(app, call)
    mqtt_routes(app, call)
    cluster_routes(app, broker)
    _pages(app)

    @app.exception_handler(HeadraceError)
    async def _refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HeadraceError)
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = "; ".join(f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors())
        return refuse(Invalid(wrong))

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refused = refuse(NotFound(f"{request.method} {request.url.path}: {error.detail}", hint=f"{API}/docs lists all there is"))
        refused.status_code = error.status_code
        return refused

    @app.exception_handler(Exception)
    async def _bug(_request: Request, error: Exception) -> Response:
        return refuse(Invariant(f"the admin interface failed: {type(error).__name__}"))

    described = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            described().setdefault("components", {}).setdefault("schemas", {}).update(components)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_middleware(_Edge)
    return app


Call = Callable[[control.Request], Awaitable[Response]]


def _broker_routes(app: FastAPI, broker: Service, call: Call) -> None:
    overview = Overview(broker)

    async def status() -> control.BrokerStatus:
        reply = await broker.verbs.call(control.Status())
        assert isinstance(reply, control.BrokerStatus)
        return reply

    @app.get(f"{API}/live", tags=["health"], summary="Is the process answering?")
    async def live() -> Response:
        return answer({"live": True})

    @app.get(f"{API}/health", tags=["health"], summary="State and what needs attention; 503 once the broker has failed")
    async def health() -> Response:
        now = await status()
        return answer({"state": now.state, "healthy": now.state != "failed", "attention": now.attention}, 503 if now.state == "failed" else 200)

    @app.get(f"{API}/ready", tags=["health"], summary="200 while the broker takes work, else 503 with the reason")
    async def ready() -> Response:
        now = await status()
        if now.state != "serving":
            raise Unavailable(f"the broker is {now.state}", hint="; ".join(now.attention) or "wait, or use another broker")
        return answer({"ready": True, "state": now.state})

    @app.post(
        f"{API}/drain", tags=["broker"], summary="Tell clients, let them finish, then refuse new work", responses=answers(control.Done),
        openapi_extra=accepts(control.Drain, required=False),
    )  # fmt: skip
    async def drain(body: Body) -> Response:
        return await call(make(control.Drain, body))

    @app.get(f"{API}/status", tags=["broker"], summary="The broker in figures", responses=answers(control.BrokerStatus))
    async def broker_status() -> Response:
        return await call(control.Status())

    @app.get(f"{API}/connections", tags=["broker"], summary="Open connections", responses=answers(control.Connections))
    async def connections() -> Response:
        return await call(control.ConnectionsList())

    @app.get(
        f"{API}/topology", tags=["broker"], summary="The whole cluster: brokers, who owns and copies which partition, lag, what is amiss",
        responses=answers(control.ClusterTopologyInfo),
    )  # fmt: skip
    async def topology(name: Annotated[list[str] | None, Query()] = None, after: str = "", limit: Limit = 1000) -> Response:
        return await call(control.ClusterTopology(names=tuple(name or ()), after=after, limit=limit))

    @app.get(f"{API}/quarantine", tags=["broker"], summary="Partitions isolated because of damage", responses=answers(control.Quarantine))
    async def quarantine() -> Response:
        return await call(control.QuarantineList())

    @app.post(
        f"{API}/quarantine/repair", tags=["broker"], summary="Cut a damaged partition to its last valid point and serve it again",
        responses=answers(control.Done), openapi_extra=accepts(control.QuarantineRepair),
    )  # fmt: skip
    async def repair(body: Body) -> Response:
        return await call(make(control.QuarantineRepair, body))

    @app.get(f"{API}/transfers/{{number}}", tags=["queues"], summary="Progress of a move or redrive", responses=answers(control.Progress))
    async def transfer(number: int) -> Response:
        return await call(control.TransferStatus(id=number))

    @app.delete(f"{API}/transfers/{{number}}", tags=["queues"], summary="Cancel a move or redrive", responses=answers(control.Progress))
    async def cancel(number: int) -> Response:
        return await call(control.TransferStatus(id=number, cancel=True))

    @app.get(f"{API}/overview", tags=["broker"], summary="Everything that the overview page shows, in one answer")
    async def overview_now() -> Response:
        return answer(await overview.now())

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(exposition(broker.metrics()), media_type="text/plain; version=0.0.4; charset=utf-8")


def _catalogue_routes(app: FastAPI, kind: str, declare: Any, alter: Any, spec: type[Spec], call: Call) -> None:
    """List, describe, declare, alter and delete: the same for queues and streams."""
    path, tag = f"{API}/{kind}s", f"{kind}s"

    @app.get(path, tags=[tag], summary=f"Names in order, with figures; pattern is a glob, {tag} after a name", responses=answers(control.Listing))
    async def listing(pattern: str = "*", after: str = "", limit: Limit = 1000) -> Response:
        return await call(control.List(kind=kind, pattern=pattern, after=after, limit=limit))

    @app.get(f"{path}/{{name}}", tags=[tag], summary=f"One {kind}: settings, figures, partitions", responses=answers(control.Info))
    async def describe(name: Name) -> Response:
        return await call(control.Describe(name=name))

    @app.put(
        f"{path}/{{name}}", tags=[tag], summary=f"Declare a {kind} (again with the same settings: nothing happens)", responses=answers(control.Info),
        openapi_extra=accepts(spec, required=False),
    )  # fmt: skip
    async def put(name: Name, body: Body) -> Response:
        wanted = make(spec, body)
        return await call(declare(name=name, spec=wanted, given=meant(wanted, body)))

    @app.patch(f"{path}/{{name}}", tags=[tag], summary=f"Change settings of a {kind}", responses=answers(control.Info), openapi_extra=accepts(spec))
    async def patch(name: Name, body: Body) -> Response:
        make(spec, body)
        return await call(alter(name=name, changes=body))

    @app.delete(f"{path}/{{name}}", tags=[tag], summary=f"Delete a {kind} and its data", responses=answers(control.Done))
    async def delete(name: Name, if_empty: bool = False) -> Response:
        return await call(control.Delete(name=name, kind=kind, if_empty=if_empty))


def _queue_routes(app: FastAPI, call: Call) -> None:
    one, tags = f"{API}/queues/{{name}}", ["queues"]

    @app.get(f"{one}/inspect", tags=list(tags), summary="Look at messages without leasing them", responses=answers(control.Inspected))
    async def inspect(
        name: Name,
        state: str = "ready",
        partition: int = -1,
        after: int = -1,
        limit: Annotated[int, Query(ge=1, le=1000)] = 20,
        payload_bytes_max: Annotated[int, Query(ge=0, le=limits.CONTROL_BYTES_MAX)] = 65_536,
        filter: Annotated[str, Query(description="a filter as JSON, as in the body of move")] = "",
    ) -> Response:
        try:
            parsed = msgspec.json.decode(filter.encode(), type=control.Filter) if filter else None
        except msgspec.DecodeError as e:
            raise Invalid(f"filter: {e}") from None
        return await call(
            control.Inspect(name=name, state=state, partition=partition, after=after, limit=limit, payload_bytes_max=payload_bytes_max, filter=parsed)
        )

    for verb, kind, reply, summary in (
        ("purge", control.Purge, control.Done, "Drop ready and delayed messages; leased ones too if asked"),
        ("move", control.Move, control.Progress, "Move ready messages to another queue or stream, each exactly once"),
        ("redrive", control.Redrive, control.Progress, "Move dead letters back to where they came from"),
        ("repartition", control.Repartition, control.Info, "Give it more or fewer partitions while it is used; each key keeps its order"),
    ):
        _post_about(app, f"{one}/{verb}", list(tags), summary, kind, reply, call)

    @app.post(f"{one}/pause", tags=list(tags), summary="Deliver nothing until resumed", responses=answers(control.Done))
    async def pause(name: Name) -> Response:
        return await call(control.Pause(name=name, paused=True))

    @app.post(f"{one}/resume", tags=list(tags), summary="Deliver again", responses=answers(control.Done))
    async def resume(name: Name) -> Response:
        return await call(control.Pause(name=name, paused=False))


def _stream_routes(app: FastAPI, call: Call) -> None:
    one, tags = f"{API}/streams/{{name}}", ["streams"]
    _post_about(app, f"{one}/trim", list(tags), "Give up everything below an offset or older than a time", control.Trim, control.Done, call)

    @app.get(f"{one}/offsets", tags=list(tags), summary="First offsets at or after a time", responses=answers(control.Offsets))
    async def offsets(name: Name, timestamp_ms: int) -> Response:
        return await call(control.OffsetForTime(name=name, timestamp_ms=timestamp_ms))

    @app.get(f"{one}/cursors", tags=list(tags), summary="Cursors and their lag", responses=answers(control.Cursors))
    async def cursors(name: Name) -> Response:
        return await call(control.CursorsList(name=name))

    @app.put(
        f"{one}/cursors/{{cursor}}", tags=list(tags), summary="Set a cursor: earliest, latest, offset:N, timestamp:MS, last:N",
        responses=answers(control.Offsets), openapi_extra=accepts(control.CursorSet, without=("name", "cursor"), required=False),
    )  # fmt: skip
    async def cursor_set(name: Name, cursor: Cursor, body: Body) -> Response:
        return await call(make(control.CursorSet, {**body, "name": name, "cursor": cursor}))

    @app.delete(f"{one}/cursors/{{cursor}}", tags=list(tags), summary="Forget a cursor", responses=answers(control.Done))
    async def cursor_delete(name: Name, cursor: Cursor) -> Response:
        return await call(control.CursorDelete(name=name, cursor=cursor))


def _post_about(app: FastAPI, path: str, tags: list[Any], summary: str, kind: Any, reply: Any, call: Call) -> None:
    """A POST whose body is the message of type ``kind`` without the name, which the path gives."""

    @app.post(path, tags=tags, summary=summary, responses=answers(reply), openapi_extra=accepts(kind, without=("name",), required=False))
    async def post(name: Name, body: Body) -> Response:
        return await call(make(kind, {**body, "name": name}))


def _pages(app: FastAPI) -> None:
    static = files("headrace.admin") / "static"
    for path, (file, media_type) in _STATIC.items():
        app.add_api_route(path, _page((static / file).read_bytes(), media_type), include_in_schema=False, response_class=Response)


def _page(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}

    async def page() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return page


class _Edge:
    """Before routing: keeps path segments encoded (a name may hold a slash), and refuses changes that another site's page asks a browser for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raw = scope.get("raw_path")
            if raw:
                scope = {**scope, "path": raw.partition(b"?")[0].decode("latin-1")}
            if scope["method"] not in ("GET", "HEAD", "OPTIONS") and _foreign(dict(scope["headers"])):
                refused = refuse(Unauthorized("a page of another site asked for this", hint="use the broker's own address"))
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _foreign(headers: dict[bytes, bytes]) -> bool:
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")

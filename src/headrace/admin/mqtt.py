"""The admin routes about MQTT: which route is which message of ``wire.control.mqtt``."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import FastAPI, Query, Response

from headrace.admin.bodies import Body, Name, accepts, answers, make
from headrace.model import limits
from headrace.wire import control
from headrace.wire.control import mqtt as asked

PATH: Final = "/admin/api/mqtt"
Limit = Annotated[int, Query(ge=1, le=10_000)]
Call = Callable[[control.Request], Awaitable[Response]]


def mqtt_routes(app: FastAPI, call: Call) -> None:
    """Adds them to ``app``."""
    tags = ["mqtt"]

    @app.get(f"{PATH}/sessions", tags=list(tags), summary="Sessions in order of their client ids", responses=answers(asked.MqttSessionList))
    async def sessions(pattern: str = "*", after: str = "", limit: Limit = 1000) -> Response:
        return await call(asked.MqttSessions(pattern=pattern, after=after, limit=limit))

    @app.delete(
        f"{PATH}/sessions/{{name}}", tags=list(tags), summary="End a client's connection; with forget its session too",
        responses=answers(control.Done),
    )  # fmt: skip
    async def kick(name: Name, forget: bool = False) -> Response:
        return await call(asked.MqttKick(client_id=name, forget=forget))

    @app.get(f"{PATH}/subscriptions", tags=list(tags), summary="Subscriptions", responses=answers(asked.MqttSubscriptionList))
    async def subscriptions(
        pattern: str = "*", filter: str = "*", after_client_id: str = "", after_filter: str = "", limit: Limit = 1000
    ) -> Response:
        wanted = asked.MqttSubscriptions(
            pattern=pattern, filter=filter, after_client_id=after_client_id, after_filter=after_filter, limit=limit
        )  # fmt: skip
        return await call(wanted)

    @app.get(f"{PATH}/retained", tags=list(tags), summary="Retained messages that a filter matches", responses=answers(asked.MqttRetainedList))
    async def retained(
        filter: str = "#",
        after: str = "",
        limit: Limit = 1000,
        payload_bytes_max: Annotated[int, Query(ge=0, le=limits.CONTROL_BYTES_MAX)] = 0,
    ) -> Response:
        return await call(asked.MqttRetained(filter=filter, after=after, limit=limit, payload_bytes_max=payload_bytes_max))

    @app.post(
        f"{PATH}/retained/clear", tags=list(tags), summary="Clear the retained messages that a filter matches", responses=answers(control.Done),
        openapi_extra=accepts(asked.MqttClear),
    )  # fmt: skip
    async def clear(body: Body) -> Response:
        return await call(make(asked.MqttClear, body))

    @app.post(
        f"{PATH}/publish", tags=list(tags), summary="Publish as a client would; the payload is base64", responses=answers(control.Done),
        openapi_extra=accepts(asked.MqttPublish),
    )  # fmt: skip
    async def publish(body: Body) -> Response:
        return await call(make(asked.MqttPublish, body))

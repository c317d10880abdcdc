"""The admin interface's part about the cluster: how it stands, who is in it, which config it shall have, which voters, which secret.

Each route is one verb of ``service.Formation``, but for elections, which are a verb of the broker. A config that cannot be taken on is an answer like
any other, with the verdict in its body and in the HTTP status: 200 begun or already applied, 422 invalid, 409 older or conflict, 503 busy.
"""

from typing import Any, Final

from fastapi import FastAPI, Response

from headrace.admin.bodies import Body, Name, accepts, answer, answers, make
from headrace.admin.service import Formation, Service
from headrace.model.errors import Refused
from headrace.wire import control
from headrace.wire.formation import AddVoter, Fed, Feed, Members, Planned, Secrets, SecretStage

PATH: Final = "/admin/api/cluster"
STATUS: Final = {"begun": 200, "already applied": 200, "invalid": 422, "older": 409, "conflict": 409, "busy": 503}


def cluster_routes(app: FastAPI, broker: Service) -> None:
    """Adds them to ``app``."""
    tags: list[Any] = ["cluster"]

    def formation() -> Formation:
        if broker.formation is None:
            raise Refused("this broker is alone: it belongs to no cluster", hint="docs/cluster.md says how brokers are started as one")
        return broker.formation

    def fed(answered: Fed) -> Response:
        return answer(answered, STATUS[answered.verdict])

    refusals: Any = {status: answers(Fed)[200] | {"description": why} for status, why in ((422, "invalid"), (409, "older, conflict"), (503, "busy"))}
    verdicts: Any = answers(Fed) | refusals

    @app.get(PATH, tags=tags, summary="How this broker stands with its cluster: what it waits for, on whom and since when")
    async def cluster() -> Response:
        return answer(formation().status())

    @app.get(f"{PATH}/members", tags=tags, summary="Who is declared and who was heard, as this broker knows them", responses=answers(Members))
    async def members() -> Response:
        return answer(formation().members())

    @app.post(
        f"{PATH}/apply", tags=tags, responses=verdicts, openapi_extra=accepts(Feed, required=False),
        summary="Apply a declared config; without a body the one of the broker's own configuration, read again",
    )  # fmt: skip
    async def apply(body: Body) -> Response:
        return fed(await formation().apply(make(Feed, body)))

    @app.post(
        f"{PATH}/plan", tags=tags, responses=answers(Planned), openapi_extra=accepts(Feed, required=False),
        summary="What a config would bring: the steps, whose data would be given up, who would be emptied; nothing is done",
    )  # fmt: skip
    async def plan(body: Body) -> Response:
        return answer(await formation().plan(make(Feed, body)))

    @app.put(
        f"{PATH}/voters/{{name}}", tags=tags, responses=verdicts, openapi_extra=accepts(AddVoter, required=False),
        summary="Write the next version of the config, in which it votes",
    )  # fmt: skip
    async def add_voter(name: Name, body: Body) -> Response:
        return fed(await formation().add_voter(name, make(AddVoter, body).address))

    @app.delete(
        f"{PATH}/voters/{{name}}", tags=tags, responses=verdicts,
        summary="Write the next version of the config, in which it is an observer, or (leave) is not listed",
    )  # fmt: skip
    async def remove_voter(name: Name, leave: bool = False) -> Response:
        return fed(await formation().remove_voter(name, leave=leave))

    @app.post(
        f"{PATH}/elections", tags=tags, responses=answers(control.Election), openapi_extra=accepts(control.ForceElection),
        summary="What it costs to have a copy serve that may lack confirmed messages; with accept_data_loss: have it serve",
    )  # fmt: skip
    async def force_election(body: Body) -> Response:
        return answer(await broker.verbs.call(make(control.ForceElection, body)))

    @app.get(f"{PATH}/secrets", tags=tags, summary="Ids of the secrets that it accepts, and of those in its file", responses=answers(Secrets))
    async def secrets() -> Response:
        return answer(await formation().secrets())

    @app.post(
        f"{PATH}/secrets", tags=tags, responses=answers(Secrets), openapi_extra=accepts(SecretStage),
        summary="Take its secret file as it now is, one stage of a rotation",
    )  # fmt: skip
    async def rotate(body: Body) -> Response:
        return answer(await formation().rotate(make(SecretStage, body)))

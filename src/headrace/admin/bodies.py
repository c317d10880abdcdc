"""HTTP bodies and answers as msgspec values: strict about unknown fields, bounded, described in OpenAPI from the same types."""

from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from fastapi import Depends, Request, Response

from headrace.model import limits
from headrace.model.errors import HeadraceError, Invalid, Malformed, TooLarge
from headrace.wire.shown import shown

T = TypeVar("T", bound=msgspec.Struct)
_REF: Final = "#/components/schemas/{name}"
components: Final[dict[str, Any]] = {}
"""Schemas of every type that ``accepts`` or ``answers`` has described."""


def answer(value: Any, status: int = 200) -> Response:
    """``value`` as JSON."""
    return Response(msgspec.json.encode(shown(value)), status_code=status, media_type="application/json", headers={"cache-control": "no-store"})


def refuse(error: HeadraceError) -> Response:
    """An error as ``{code, error, message, hint}`` with its HTTP status."""
    body = {"code": error.code, "error": type(error).__name__, "message": str(error), "hint": error.hint, "retriable": error.retriable}
    headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if error.retriable else {})
    return Response(msgspec.json.encode(body), status_code=error.http, media_type="application/json", headers=headers)


async def body_of(request: Request) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty one. ``TooLarge`` past the bound of a control message, read no further."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limits.CONTROL_BYTES_MAX:
            raise TooLarge(f"the body is larger than {limits.CONTROL_BYTES_MAX} bytes")
    if not raw.strip():
        return {}
    try:
        value = msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Malformed(f"the body is not JSON: {e}", hint="send a JSON object") from None
    if not isinstance(value, dict):
        raise Malformed("the body is no JSON object", hint="send a JSON object")
    return value


def _decoded(name: str) -> str:
    return unquote(name)


Body = Annotated[dict[str, Any], Depends(body_of)]
Name = Annotated[str, Depends(_decoded)]
"""A segment of the path, which arrives percent-encoded."""


def make(kind: type[T], fields: dict[str, Any]) -> T:
    """A value of ``kind``; ``Invalid`` naming an unknown field or one that is not what it should be."""
    unknown = [name for name in fields if name not in kind.__struct_fields__]
    if unknown:
        raise Invalid(f"unknown: {', '.join(sorted(unknown))}", hint=f"known are {', '.join(kind.__struct_fields__)}")
    tag = kind.__struct_config__.tag
    try:
        return msgspec.convert({"t": tag, **fields} if tag else fields, kind)
    except msgspec.ValidationError as e:
        raise Invalid(str(e)) from None


def accepts(kind: type[msgspec.Struct], *, without: tuple[str, ...] = (), required: bool = True) -> dict[str, Any]:
    """OpenAPI of a body of that type; ``without``: fields that the path gives."""
    _describe(kind)
    schema = dict(components[kind.__name__])
    schema["properties"] = {k: v for k, v in schema.get("properties", {}).items() if k not in (*without, "t")}
    schema["required"] = [k for k in schema.get("required", []) if k not in (*without, "t")]
    schema.pop("title", None)
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def answers(kind: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of an answer of that type, and of errors."""
    _describe(kind)
    return {
        200: {"description": "done", "content": {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}},
        "default": {"description": "refused", "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}},
    }


def _describe(kind: type[msgspec.Struct]) -> None:
    _, found = msgspec.json.schema_components([kind], ref_template=_REF)
    for name, schema in found.items():
        if "properties" in schema:
            schema["properties"] = {k: v for k, v in schema["properties"].items() if k != "t"}
            schema["required"] = [k for k in schema.get("required", []) if k != "t"]
        components[name] = schema


components["Error"] = {
    "title": "Error",
    "description": "Why a request was refused: number and name as in docs/errors, what and why, and what to do.",
    "type": "object",
    "properties": {
        "code": {"type": "integer"},
        "error": {"type": "string"},
        "message": {"type": "string"},
        "hint": {"type": "string"},
        "retriable": {"type": "boolean"},
    },
    "required": ["code", "error", "message", "hint", "retriable"],
}

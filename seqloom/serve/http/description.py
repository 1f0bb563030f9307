"""What OpenAPI says of routes that read their bodies themselves."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_PLACE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_REASONS = {
    400: "the request cannot be answered as it is asked for",
    401: "a key is needed",
    403: "pages of other origins need a server with a key",
    404: "no such model",
    408: "the body does not come",
    413: "the body is too long",
    429: "no room now; Retry-After says when to come again",
    503: "no engine now",
}


def describe(app: FastAPI, bodies: Mapping[str, type[BaseModel]]) -> None:
    """Add routes, by their paths and the bodies they read, to the description of an application."""
    plain = app.openapi
    _, found = models_json_schema([(kind, "validation") for kind in bodies.values()], ref_template=_PLACE)

    def whole() -> dict[str, Any]:
        shown = plain()
        shown["paths"] |= {path: {"post": _described(path, kind)} for path, kind in bodies.items()}
        shown.setdefault("components", {}).setdefault("schemas", {}).update({**found["$defs"], "Error": _ERROR})
        return shown

    app.openapi = whole  # type: ignore[method-assign]


def _described(path: str, kind: type[BaseModel]) -> dict[str, Any]:
    """The body that a route reads and what it gives."""
    schema = {"$ref": _PLACE.format(model=kind.__name__)}
    error = {"application/json": {"schema": {"$ref": _PLACE.format(model="Error")}}}
    given: dict[str, Any] = {"200": {"description": "the answer", "content": {"application/json": {"schema": {}}}}}
    given |= {str(status): {"description": reason, "content": error} for status, reason in _REASONS.items()}
    return {
        "summary": kind.__doc__,
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": given,
    }

"""The documentation of the Open Inference Protocol's routes in `/docs` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from service.asgi.openapi.schemas import Schema, list_of

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {"error": {"type": "string", "description": "What was found and what was expected."}},
}
_TEXT: Schema = {"type": "string"}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer"}, "example": [1, 4]}
_DATA: Schema = {"type": "array", "items": {}, "description": "Row-major, flat or nested.", "example": [0.1, 0.2]}
_DATATYPE: Schema = {"type": "string", "example": "FP32"}


def _object(required: Sequence[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


_INFER_PARAMETERS: Schema = {
    "type": "object",
    "properties": {
        "sequence_id": {
            "description": "Id of the sequence, which is the stream with this id. Required for a model with state.",
            "anyOf": [{"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64}, {"type": "string"}],
        },
        "sequence_start": {
            "type": "boolean",
            "default": False,
            "description": "Reset the stream before this timestep.",
        },
        "sequence_end": {"type": "boolean", "default": False, "description": "Delete the stream after this timestep."},
        "binary_data_output": {"type": "boolean", "default": False, "description": "Return outputs as raw bytes."},
        "step": {"type": "integer", "minimum": 1, "description": "Number of this timestep in its sequence."},
        "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 255},
    },
}
_INFER_BODY = _object(
    ["inputs"],
    id=_TEXT,
    parameters=_INFER_PARAMETERS,
    inputs=list_of(
        _object(
            ["name", "shape", "datatype"],
            name=_TEXT,
            shape=_SHAPE,
            datatype=_DATATYPE,
            data=_DATA,
            parameters=_object([], binary_data_size={"type": "integer"}),
        )
    ),
    outputs=list_of(_object(["name"], name=_TEXT, parameters=_object([], binary_data={"type": "boolean"}))),
)
_INFER_ANSWER = _object(
    ["model_name", "model_version", "outputs"],
    id=_TEXT,
    model_name=_TEXT,
    model_version=_TEXT,
    parameters=_PARAMETERS,
    outputs=list_of(_object(["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE, data=_DATA)),
)
_TENSOR = _object(["name", "datatype", "shape"], name=_TEXT, datatype=_DATATYPE, shape=_SHAPE)
_METADATA = _object(
    ["name", "versions", "platform", "inputs", "outputs"],
    name=_TEXT,
    versions=list_of(_TEXT),
    platform=_TEXT,
    inputs=list_of(_TENSOR),
    outputs=list_of(_TENSOR),
)
_STATS = _object(["model_stats"], model_stats=list_of({"type": "object"}))
_MODEL: Schema = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
_HEADERS: Sequence[Schema] = (
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer"},
        "description": "Length in bytes of the JSON document, which the tensors' raw bytes follow.",
    },
    {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}},
)

DEFAULT: Sequence[Schema] = ()
"""The path parameters of a route without a version."""

VERSION: Sequence[Schema] = ({"name": "version", "in": "path", "required": True, "schema": _TEXT},)
"""The path parameters of a route with a version."""


def _route(
    *,
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    answer: Schema | None = None,
    errors: Sequence[int] = (),
) -> dict[str, Any]:
    operation: dict[str, Any] = {"parameters": list(parameters)}
    if body is not None:
        octets = {"schema": {"type": "string", "format": "binary"}}
        content = {"application/json": {"schema": body}, "application/octet-stream": octets}
        operation["requestBody"] = {"required": bool(body.get("required")), "content": content}
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "Done"}}
    if answer is not None:
        responses[200]["content"] = {"application/json": {"schema": answer}}
    for status in errors:
        responses[status] = {"description": "Error", "content": {"application/json": {"schema": _ERROR}}}
    return {"tags": ["Open Inference Protocol"], "openapi_extra": operation, "responses": responses}


_READ = (400, 401, 403, 404, 500)
SERVER = _route(
    answer=_object(["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=list_of(_TEXT)),
    errors=[401, 403],
)
LIVE = _route(answer=_object(["live"], live={"const": True}))
READY = _route(answer=_object(["live", "ready"], live={"const": True}, ready={"type": "boolean"}), errors=[503])
ALL_STATS = _route(answer=_STATS, errors=[401, 403, 500])
INDEX = _route(
    answer=list_of(_object(["name"], name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)), errors=[401, 403]
)
LOAD = {
    **_route(parameters=[_MODEL], errors=[400, 401, 403, 413, 415, 500, 501]),
    "response_class": Response,
}  # it is empty
UNLOAD = _route(parameters=[_MODEL], errors=[401, 403, 501])


def infer(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of an infer route."""
    return _route(
        parameters=[_MODEL, *version, *_HEADERS],
        body=_INFER_BODY,
        answer=_INFER_ANSWER,
        errors=(*_READ, 413, 415, 429, 501, 503),
    )


def metadata(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of a route to a model's metadata."""
    return _route(parameters=[_MODEL, *version], answer=_METADATA, errors=_READ)


def model_ready(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of a route to a model's readiness."""
    answer = _object(["name", "ready"], name=_TEXT, ready={"const": True})
    return _route(parameters=[_MODEL, *version], answer=answer, errors=_READ)


def config(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of a route to a model's configuration."""
    return _route(parameters=[_MODEL, *version], answer={"type": "object"}, errors=_READ)


def stats(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of a route to a model's statistics."""
    return _route(parameters=[_MODEL, *version], answer=_STATS, errors=_READ)

"""What `/docs` and `/openapi.json` say of each route: the routes take requests raw, so it is written here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.problems import MEDIA_TYPE, PROBLEMS
from service.wire.names import SEQ_LIMIT

Schema = dict[str, Any]

DESCRIPTION = """\
Recurrent models on live streams: each POST of a timestep moves one stream's hidden state exactly once and returns the
prediction. A retry with the same `seq` (or `Idempotency-Key`) gets the first answer again.

Bodies are JSON, or msgpack with `Content-Type: application/msgpack`, where arrays are
`{"d": "float32", "s": [shape], "b": bytes}`. Every problem is `application/problem+json`; its `applied` says whether
the request moved the stream.

WebSockets: `/v1/models/{model}/streams/{stream}/feed` takes step bodies and answers each in order;
`/v1/models/{model}/feed` takes messages that name their `stream`, or columns with `streams`;
`/v1/watch` tells predictions as they are committed. Subprotocols: `stepwell.json` and `stepwell.msgpack`.
"""

# ------------------------------------------------------------------- schemas

_TENSOR: Schema = {
    "description": "Nested arrays of the declared shape; a bare number where the shape is []. In msgpack also packed.",
    "example": [0.1, 0.2, 0.3, 0.4],
}
_TENSORS: Schema = {"type": "object", "additionalProperties": _TENSOR, "example": {"x": [0.1, 0.2, 0.3, 0.4]}}
_INPUTS: Schema = {
    "description": "One tensor per input of the model; a model with one input also takes its tensor alone.",
    "anyOf": [_TENSORS, {}],
    "example": {"x": [0.1, 0.2, 0.3, 0.4]},
}
_SEQ: Schema = {
    "type": "integer",
    "minimum": 1,
    "exclusiveMaximum": SEQ_LIMIT,
    "description": "Number of the first timestep of this request, from 1 since creation or reset.",
}
_STATE_ID: Schema = {"type": "string", "minLength": 22, "maxLength": 22, "description": "Names a stream's history."}
_STREAM: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:@-]{1,128}$"}
_CREATE: Schema = {
    "enum": ["auto", "never", "must"],
    "default": "auto",
    "description": "What a missing stream means: begin it, refuse, or it has to be missing.",
}
_RETURN: Schema = {"enum": ["all", "last", "none"], "default": "all", "description": "Which predictions are answered."}


def _object(required: Sequence[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {name.rstrip("_"): schema for name, schema in properties.items()},
    }


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


_STEP_BODY = _object(["inputs"], inputs=_INPUTS, seq=_SEQ, after=_STATE_ID, create=_CREATE)
_STEPS_BODY = _object(["inputs"], inputs=_INPUTS, seq=_SEQ, after=_STATE_ID, create=_CREATE, return_=_RETURN)
_COLUMNS = {
    "streams": _list(_STREAM),
    "inputs": _INPUTS,
    "seq": _list(_nullable(_SEQ)),
    "after": _list(_nullable(_STATE_ID)),
    "create": _CREATE,
}
_BULK_BODY = _object(["streams", "inputs"], **_COLUMNS)
_BULK_STEPS_BODY = _object(["streams", "inputs"], **_COLUMNS, return_=_RETURN)
_RESET_BODY = _object([], to={"anyOf": [{"const": "initial"}, _object(["snapshot"], snapshot={})]}, after=_STATE_ID)

_STEP_ANSWER = _object(
    ["outputs", "step", "state_id"],
    outputs=_TENSORS,
    step={"type": "integer", "description": "The last timestep that was applied."},
    state_id=_STATE_ID,
    replayed={"const": True, "description": "Applied before; this is the first answer."},
    created={"const": True, "description": "This request created the stream."},
)
_PROBLEM_REF: Schema = {"$ref": "#/components/schemas/Problem"}
_BULK_ANSWER = _object(
    ["outputs", "step", "state_id", "errors"],
    outputs=_TENSORS,
    step=_list(_nullable({"type": "integer"})),
    state_id=_list(_nullable(_STATE_ID)),
    errors={"type": "object", "additionalProperties": _PROBLEM_REF, "description": "By index, as text."},
    replayed=_list({"type": "integer"}),
)
_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "applied", "retry"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, what was expected, what to do."},
        "code": {"enum": list(PROBLEMS)},
        "applied": {"enum": ["no", "yes", "unknown"], "description": "Did this request move the stream?"},
        "retry": {"enum": ["same", "resend_from", "never"]},
        "step": {"type": "integer", "description": "Where the stream stands."},
        "expected": {"type": "integer", "description": "The `seq` that would be taken next."},
        "state_id": _STATE_ID,
    },
}
_MODEL: Schema = {"$ref": "#/components/schemas/Model"}
_MODEL_SCHEMA: Schema = {
    "type": "object",
    "required": ["name", "version", "versions", "inputs", "outputs", "states", "bytes_per_stream", "parity"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "integer"},
        "versions": _list({"type": "integer"}),
        "inputs": _list({"type": "object"}),
        "outputs": _list({"type": "object"}),
        "states": _list({"type": "object"}),
        "bytes_per_stream": {"type": "integer"},
        "parity": _nullable({"type": "object"}),
    },
}

# ------------------------------------------------------------------- routes

_PATH = {
    "model": {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},
    "stream": {"name": "stream", "in": "path", "required": True, "schema": _STREAM},
}
_VERSION: Schema = {
    "name": "version",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1},
    "description": "A model version; else the stream's own, for new streams the highest.",
}
_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Every retry with the same key gets the first answer, for `idempotency_ttl_s` seconds.",
}
_ANY = ("unauthenticated", "forbidden", "internal")
_STORE = ("store_unavailable", "overloaded", "draining")
_STREAM_READ = (*_ANY, *_STORE, "bad_request", "model_not_found")
_STREAM_WRITE = (*_STREAM_READ, "bad_json", "too_large", "outcome_unknown", "store_full", "not_durable")
_STEP = (
    *_STREAM_WRITE,
    *("stream_not_found", "seq_gap", "seq_passed", "seq_conflict", "state_changed", "stream_exists", "model_changed"),
    *("bad_input", "non_finite", "non_finite_state", "idempotency_key_reused", "state_corrupt", "model_timeout"),
    *("record_version", "stream_quota", "rate_limited"),
)


def _route(
    tag: str,
    *,
    path: Sequence[str] = (),
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    answer: Schema | None = None,
    problems: Sequence[str] = (),
    status: int = 200,
) -> dict[str, Any]:
    """Return the arguments that declare a route's documentation."""
    operation: dict[str, Any] = {"parameters": [*(_PATH[name] for name in path), *parameters]}
    if body is not None:
        content = {"schema": body}
        operation["requestBody"] = {
            "required": bool(body.get("required")),
            "content": {"application/json": content, "application/msgpack": content},
        }
    responses: dict[int | str, dict[str, Any]] = {}
    if answer is not None:
        responses[status] = {"description": "Done", "content": {"application/json": {"schema": answer}}}
    for code in problems:
        known = responses.setdefault(
            PROBLEMS[code][0], {"description": "", "content": {MEDIA_TYPE: {"schema": _PROBLEM_REF}}}
        )
        known["description"] += f"{', ' if known['description'] else ''}`{code}`"
    return {"tags": [tag], "openapi_extra": operation, "responses": responses, "status_code": status}


_ONE = ("model", "stream")
STEP = _route("streams", path=_ONE, parameters=[_VERSION, _KEY], body=_STEP_BODY, answer=_STEP_ANSWER, problems=_STEP)
STEPS = _route("streams", path=_ONE, parameters=[_VERSION, _KEY], body=_STEPS_BODY, answer=_STEP_ANSWER, problems=_STEP)
BULK_STEP = _route(
    "many streams", path=["model"], parameters=[_VERSION, _KEY], body=_BULK_BODY, answer=_BULK_ANSWER, problems=_STEP
)
BULK_STEPS = _route(
    "many streams",
    path=["model"],
    parameters=[_VERSION, _KEY],
    body=_BULK_STEPS_BODY,
    answer=_BULK_ANSWER,
    problems=_STEP,
)
RESET = _route(
    "streams",
    path=_ONE,
    parameters=[_KEY],
    body=_RESET_BODY,
    answer=_object(["step", "state_id"], step={"type": "integer"}, state_id=_STATE_ID, replayed={"const": True}),
    problems=(
        *_STREAM_WRITE,
        *("stream_not_found", "snapshot_not_found", "state_changed", "idempotency_key_reused", "precondition_required"),
    ),
)
RESET_ALL = _route(
    "many streams",
    path=["model"],
    parameters=[_KEY],
    answer=_object(["reset"], reset={"type": "integer"}),
    problems=(*_STREAM_WRITE, "precondition_required"),
)
STATUS = _route(
    "streams",
    path=_ONE,
    answer=_object(
        ["stream", "model", "version", "step", "state_id", "created_at", "updated_at", "expires_in_s"],
        stream=_STREAM,
        model={"type": "string"},
        version=_nullable({"type": "integer"}),
        step={"type": "integer"},
        state_id=_STATE_ID,
        created_at={"type": "string", "format": "date-time"},
        updated_at={"type": "string", "format": "date-time"},
        expires_in_s={"type": "number"},
    ),
    problems=(*_STREAM_READ, "stream_not_found", "state_corrupt", "record_version"),
)
DELETE = _route("streams", path=_ONE, problems=(*_STREAM_READ, "precondition_required"), status=204)
LIST = _route(
    "many streams",
    path=["model"],
    parameters=[
        {"name": "prefix", "in": "query", "schema": {"type": "string"}},
        {"name": "cursor", "in": "query", "schema": {"type": "string"}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
    ],
    answer=_object(
        ["streams", "cursor"],
        streams=_list(_object(["stream", "step"], stream=_STREAM, step={"type": "integer"})),
        cursor=_nullable({"type": "string"}),
    ),
    problems=_STREAM_READ,
)
MODELS = _route("models", answer=_object(["models"], models=_list(_MODEL)), problems=_ANY)
MODEL = _route(
    "models",
    path=["model"],
    parameters=[_VERSION],
    answer=_MODEL,
    problems=(*_ANY, "bad_request", "model_not_found"),
)
RELOAD = _route(
    "models",
    answer=_object(["loaded", "failed"], loaded=_list({"type": "string"}), failed=_list({"type": "string"})),
    problems=_ANY,
)
INFO = _route("service", answer={"type": "object"}, problems=_ANY)
HEALTHZ = _route("service", answer=_object(["alive"], alive={"const": True}))
READYZ = _route("service", answer=_object(["ready", "reasons"], ready={"type": "boolean"}, reasons=_list({})))
METRICS = _route("service", problems=_ANY)


def document(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document."""
    made = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = made.setdefault("components", {})
    components.setdefault("schemas", {}).update({"Problem": _PROBLEM, "Model": _MODEL_SCHEMA})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{}, {"key": []}]
    return made

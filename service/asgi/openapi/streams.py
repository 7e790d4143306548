"""The documentation of each route, written by hand because the routes read raw requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import PlainTextResponse

from service.asgi.openapi.schemas import (
    COMMON_PROBLEMS,
    CREATE,
    IDEMPOTENCY_KEY,
    INPUTS,
    PROBLEM,
    PROBLEM_REF,
    RETURN,
    SEQ,
    STATE_ID,
    STEPPING,
    STREAM,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    TENSORS,
    VERSION,
    Schema,
    list_of,
    nullable,
    object_schema,
    route,
)

DESCRIPTION = """\
Recurrent models on live streams: each POST of a timestep advances one stream's hidden state exactly once and returns
the prediction. A retry with the same `seq` (or `Idempotency-Key`) gets the first response again.

Bodies are JSON, or msgpack with `Content-Type: application/msgpack`, where arrays are
`{"d": "float32", "s": [shape], "b": bytes}`. Every error is an `application/problem+json`; its `applied` is whether
the request was applied to the stream.

WebSockets: `/v1/models/{model}/streams/{stream}/feed` accepts step bodies and replies to each in order;
`/v1/models/{model}/feed` accepts messages that name their `stream`, or bulk requests with `streams`;
`/v1/watch` sends predictions as they are committed. Subprotocols: `stepwell.json` and `stepwell.msgpack`.

`/v2` is the Open Inference Protocol, where a sequence is a stream and errors are `{"error": ".."}`.
"""

# ------------------------------------------------------------------- schemas

_STEP_BODY = object_schema(["inputs"], inputs=INPUTS, seq=SEQ, after=STATE_ID, create=CREATE)
_STEPS_BODY = object_schema(["inputs"], inputs=INPUTS, seq=SEQ, after=STATE_ID, create=CREATE, return_=RETURN)
_COLUMNS = {
    "streams": list_of(STREAM),
    "inputs": INPUTS,
    "seq": list_of(nullable(SEQ)),
    "after": list_of(nullable(STATE_ID)),
    "create": CREATE,
}
_BULK_BODY = object_schema(["streams", "inputs"], **_COLUMNS)
_BULK_STEPS_BODY = object_schema(["streams", "inputs"], **_COLUMNS, return_=RETURN)
_RESET_BODY = object_schema(
    [], to={"anyOf": [{"const": "initial"}, object_schema(["snapshot"], snapshot={})]}, after=STATE_ID
)

_STEP_ANSWER = object_schema(
    ["outputs", "step", "state_id"],
    outputs=TENSORS,
    step={"type": "integer", "description": "The last timestep that was applied."},
    state_id=STATE_ID,
    replayed={"const": True, "description": "The request was applied before; this is its first response."},
    created={"const": True, "description": "This request created the stream."},
)
_BULK_ANSWER = object_schema(
    ["outputs", "step", "state_id", "errors"],
    outputs=TENSORS,
    step=list_of(nullable({"type": "integer"})),
    state_id=list_of(nullable(STATE_ID)),
    errors={"type": "object", "additionalProperties": PROBLEM_REF, "description": "By row index, as text."},
    replayed=list_of({"type": "integer"}),
)
_MODEL: Schema = {"$ref": "#/components/schemas/Model"}
_MODEL_SCHEMA: Schema = {
    "type": "object",
    "required": ["name", "version", "versions", "inputs", "outputs", "states", "bytes_per_stream", "parity"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "integer"},
        "versions": list_of({"type": "integer"}),
        "inputs": list_of({"type": "object"}),
        "outputs": list_of({"type": "object"}),
        "states": list_of({"type": "object"}),
        "feedback": {"type": "object", "description": "By input, the output that it is computed from in a rollout."},
        "bytes_per_stream": {"type": "integer"},
        "parity": nullable({"type": "object"}),
    },
}

# ------------------------------------------------------------------- routes

STEP = route(
    "streams",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=_STEP_BODY,
    answer=_STEP_ANSWER,
    problems=STEPPING,
)
STEPS = route(
    "streams",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=_STEPS_BODY,
    answer=_STEP_ANSWER,
    problems=STEPPING,
)
BULK_STEP = route(
    "many streams",
    path=["model"],
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=_BULK_BODY,
    answer=_BULK_ANSWER,
    problems=STEPPING,
)
BULK_STEPS = route(
    "many streams",
    path=["model"],
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=_BULK_STEPS_BODY,
    answer=_BULK_ANSWER,
    problems=STEPPING,
)
RESET = route(
    "streams",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=_RESET_BODY,
    answer=object_schema(["step", "state_id"], step={"type": "integer"}, state_id=STATE_ID, replayed={"const": True}),
    problems=(
        *STREAM_WRITE,
        *("stream_not_found", "snapshot_not_found", "state_changed", "idempotency_key_reused", "precondition_required"),
        "stream_quota",
        "model_changed",
    ),
)
RESET_ALL = route(
    "many streams",
    path=["model"],
    parameters=[IDEMPOTENCY_KEY],
    answer=object_schema(["reset"], reset={"type": "integer"}),
    problems=(*STREAM_WRITE, "precondition_required"),
)
STATUS = route(
    "streams",
    path=STREAM_PATH,
    parameters=[
        {
            "name": "outputs",
            "in": "query",
            "schema": {"type": "boolean", "default": False},
            "description": "Include the last prediction.",
        }
    ],
    answer=object_schema(
        ["stream", "model", "version", "step", "state_id", "created_at", "updated_at", "expires_in_s"],
        stream=STREAM,
        model={"type": "string"},
        version=nullable({"type": "integer"}),
        step={"type": "integer"},
        state_id=STATE_ID,
        created_at={"type": "string", "format": "date-time"},
        updated_at={"type": "string", "format": "date-time"},
        expires_in_s={"type": "number"},
        outputs=TENSORS,
    ),
    problems=(*STREAM_READ, "stream_not_found", "state_corrupt", "record_version"),
)
DELETE = route("streams", path=STREAM_PATH, problems=(*STREAM_READ, "precondition_required"), status=204)
EVENTS = route(
    "streams",
    path=STREAM_PATH,
    parameters=[
        {
            "name": "since",
            "in": "query",
            "schema": {"type": "integer", "minimum": 0},
            "description": "The last step that you have received: later events in the event log are sent first.",
        },
        {"name": "inputs", "in": "query", "schema": {"type": "boolean", "default": False}},
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "Like `since`, and overrides it: browsers send it when they reconnect.",
        },
    ],
    problems=(*COMMON_PROBLEMS, "bad_request", "model_not_found"),
)
EVENTS["responses"][200] = {
    "description": "Server-sent events without end: predictions as they are committed, `id` is the step; `gap` is the "
    "number of timesteps that were missed.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
LIST = route(
    "many streams",
    path=["model"],
    parameters=[
        {"name": "prefix", "in": "query", "schema": {"type": "string"}},
        {"name": "cursor", "in": "query", "schema": {"type": "string"}},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
    ],
    answer=object_schema(
        ["streams", "cursor"],
        streams=list_of(object_schema(["stream", "step"], stream=STREAM, step=nullable({"type": "integer"}))),
        cursor=nullable({"type": "string"}),
    ),
    problems=STREAM_READ,
)
MODELS = route("models", answer=object_schema(["models"], models=list_of(_MODEL)), problems=COMMON_PROBLEMS)
MODEL = route(
    "models",
    path=["model"],
    parameters=[VERSION],
    answer=_MODEL,
    problems=(*COMMON_PROBLEMS, "bad_request", "model_not_found"),
)
RELOAD = route(
    "models",
    answer=object_schema(["loaded", "failed"], loaded=list_of({"type": "string"}), failed=list_of({"type": "string"})),
    problems=COMMON_PROBLEMS,
)
INFO = route("service", answer={"type": "object"}, problems=COMMON_PROBLEMS)
HEALTHZ = route("service", answer=object_schema(["alive"], alive={"const": True}))
READYZ = route("service", answer=object_schema(["ready", "reasons"], ready={"type": "boolean"}, reasons=list_of({})))
METRICS = {**route("service", problems=COMMON_PROBLEMS), "response_class": PlainTextResponse}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document."""
    openapi = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = openapi.setdefault("components", {})
    components.setdefault("schemas", {}).update({"Problem": PROBLEM, "Model": _MODEL_SCHEMA})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    openapi["security"] = [{}, {"key": []}]
    return openapi

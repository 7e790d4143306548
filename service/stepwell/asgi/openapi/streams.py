"""The documentation of each route; the routes read raw requests, so that FastAPI cannot derive it."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import PlainTextResponse

from stepwell.asgi.openapi.schemas import (
    COMMON_PROBLEMS,
    IDEMPOTENCY_KEY,
    STEPPING,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    VERSION,
    components,
    query,
    route,
)
from stepwell.codec.response_schemas import (
    AliveResponse,
    BulkResponse,
    ModelDescription,
    ModelsResponse,
    PositionResponse,
    ReadyResponse,
    ReloadResponse,
    ResetAllResponse,
    ServiceResponse,
    StatusResponse,
    StepResponse,
    StreamsResponse,
)
from stepwell.codec.step_bodies import BulkBody, BulkStepsBody, StepBody, StepsBody
from stepwell.codec.stream_ops import ResetBody

DESCRIPTION = """\
Recurrent models on live streams: each POST of a timestep advances one stream's hidden state exactly once and returns
the prediction. A retry with the same `seq` (or `Idempotency-Key`) gets the first response again.

Bodies are JSON, or msgpack with `Content-Type: application/msgpack`, where arrays are
`{"d": "float32", "s": [shape], "b": bytes}`. Every error is an `application/problem+json`; its `applied` is whether
the request was applied to the stream.

WebSockets: `/v1/models/{model}/streams/{stream}/feed` accepts step bodies and replies to each in order;
`/v1/models/{model}/feed` accepts messages that name their `stream`, or bulk requests with `streams`;
`/v1/watch` sends predictions as they are committed. Subprotocols: `stepwell.json` and `stepwell.msgpack`. All their
messages are in `/asyncapi.json`.

`/v2` is the Open Inference Protocol, where a sequence is a stream and errors are `{"error": ".."}`.
"""

_WRITE_PARAMETERS = (VERSION, IDEMPOTENCY_KEY)
_one = functools.partial(route, "streams", path=STREAM_PATH, parameters=_WRITE_PARAMETERS, problems=STEPPING)
_many = functools.partial(route, "many streams", path=["model"], parameters=_WRITE_PARAMETERS, problems=STEPPING)
STEP = _one(body=StepBody, answer=StepResponse)
STEPS = _one(body=StepsBody, answer=StepResponse)
BULK_STEP = _many(body=BulkBody, answer=BulkResponse)
BULK_STEPS = _many(body=BulkStepsBody, answer=BulkResponse)
RESET = route(
    "streams",
    path=STREAM_PATH,
    parameters=_WRITE_PARAMETERS,
    body=ResetBody,
    answer=PositionResponse,
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
    answer=ResetAllResponse,
    problems=(*STREAM_WRITE, "precondition_required", "idempotency_key_reused"),
)
STATUS = route(
    "streams",
    path=STREAM_PATH,
    parameters=[query("outputs", {"type": "boolean", "default": False}, "Include the last prediction.")],
    answer=StatusResponse,
    problems=(*STREAM_READ, "stream_not_found", "state_corrupt", "record_version"),
)
DELETE = route(
    "streams",
    path=STREAM_PATH,
    parameters=[IDEMPOTENCY_KEY],
    problems=(
        *STREAM_READ,
        *("precondition_required", "idempotency_key_reused", "outcome_unknown", "store_full", "not_durable"),
    ),
    status=204,
)
LIST = route(
    "many streams",
    path=["model"],
    parameters=[
        query("prefix", {"type": "string"}),
        query("cursor", {"type": "string"}),
        query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
    ],
    answer=StreamsResponse,
    problems=STREAM_READ,
)
MODELS = route("models", answer=ModelsResponse, problems=COMMON_PROBLEMS)
MODEL = route(
    "models",
    path=["model"],
    parameters=[VERSION],
    answer=ModelDescription,
    problems=(*COMMON_PROBLEMS, "bad_request", "model_not_found"),
)
RELOAD = route("models", answer=ReloadResponse, problems=COMMON_PROBLEMS)
INFO = route("service", answer=ServiceResponse, problems=COMMON_PROBLEMS)
HEALTHZ = route("service", answer=AliveResponse)
READYZ = route("service", answer=ReadyResponse)
METRICS = {**route("service", problems=COMMON_PROBLEMS), "response_class": PlainTextResponse}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document."""
    openapi = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    parts = openapi.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components())
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    openapi["security"] = [{}, {"key": []}]
    return openapi

"""The documentation of the routes of streams, of models and of the service itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import PlainTextResponse

from stepwell.addons.api_schemas.responses import (
    AliveResponse,
    BulkResponse,
    ModelDescription,
    ModelsResponse,
    PeekResponse,
    PositionResponse,
    ReadyResponse,
    ReloadResponse,
    ServiceResponse,
    StatusResponse,
    StepResponse,
    StreamsResponse,
)
from stepwell.addons.api_schemas.routes import (
    COMMON_PROBLEMS,
    IDEMPOTENCY_KEY,
    STEPPING,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    VERSION,
    query,
    route,
)
from stepwell.codec.resets import ResetBody
from stepwell.codec.step_bodies import BulkBody, BulkStepsBody, PeekBody, StepBody, StepsBody

_STREAM = "/v1/models/{model}/streams/{stream}"
_MODEL = "/v1/models/{model}"
_WRITE_PARAMETERS = (VERSION, IDEMPOTENCY_KEY)
_one = functools.partial(route, "streams", path=STREAM_PATH, parameters=_WRITE_PARAMETERS, problems=STEPPING)
_many = functools.partial(route, "many streams", path=["model"], parameters=_WRITE_PARAMETERS, problems=STEPPING)
ROUTES: Final[Mapping[str, dict[str, Any]]] = {
    f"POST {_STREAM}/step": _one(body=StepBody, answer=StepResponse),
    f"POST {_STREAM}/steps": _one(body=StepsBody, answer=StepResponse),
    f"POST {_MODEL}/step": _many(body=BulkBody, answer=BulkResponse),
    f"POST {_MODEL}/steps": _many(body=BulkStepsBody, answer=BulkResponse),
    f"POST {_STREAM}/peek": route(
        "rollouts", path=STREAM_PATH, parameters=[VERSION], body=PeekBody, answer=PeekResponse, problems=STEPPING
    ),
    f"POST {_STREAM}/reset": route(
        "streams",
        path=STREAM_PATH,
        parameters=_WRITE_PARAMETERS,
        body=ResetBody,
        answer=PositionResponse,
        problems=(
            *STREAM_WRITE,
            *(
                "stream_not_found",
                "snapshot_not_found",
                "state_changed",
                "idempotency_key_reused",
                "precondition_required",
            ),
            "stream_quota",
            "model_changed",
        ),
    ),
    f"GET {_STREAM}": route(
        "streams",
        path=STREAM_PATH,
        parameters=[query("outputs", {"type": "boolean", "default": False}, "Include the last prediction.")],
        answer=StatusResponse,
        problems=(*STREAM_READ, "stream_not_found", "state_corrupt", "record_version"),
    ),
    f"DELETE {_STREAM}": route(
        "streams",
        path=STREAM_PATH,
        parameters=[IDEMPOTENCY_KEY],
        problems=(
            *STREAM_READ,
            *("precondition_required", "idempotency_key_reused", "outcome_unknown", "store_full", "not_durable"),
        ),
        status=204,
    ),
    f"GET {_MODEL}/streams": route(
        "many streams",
        path=["model"],
        parameters=[
            query("prefix", {"type": "string"}),
            query("cursor", {"type": "string"}),
            query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
        ],
        answer=StreamsResponse,
        problems=STREAM_READ,
    ),
    "GET /v1/models": route("models", answer=ModelsResponse, problems=COMMON_PROBLEMS),
    f"GET {_MODEL}": route(
        "models",
        path=["model"],
        parameters=[VERSION],
        answer=ModelDescription,
        problems=(*COMMON_PROBLEMS, "bad_request", "model_not_found"),
    ),
    "POST /v1/models/reload": route("models", answer=ReloadResponse, problems=COMMON_PROBLEMS),
    "GET /v1/info": route("service", answer=ServiceResponse, problems=COMMON_PROBLEMS),
    "GET /healthz": route("service", answer=AliveResponse),
    "GET /readyz": route("service", answer=ReadyResponse),
    "GET /metrics": {**route("service", problems=COMMON_PROBLEMS), "response_class": PlainTextResponse},
}
"""The documentation of the routes, by method and path."""

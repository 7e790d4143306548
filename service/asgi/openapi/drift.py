"""The documentation of the route in `routes/drift.py`."""

from __future__ import annotations

from service.asgi.openapi.schemas import COMMON_PROBLEMS, VERSION, route
from service.codec.drift_responses import DriftResponse

DRIFT = route(
    "models",
    path=["model"],
    parameters=[VERSION | {"description": "A model version; by default the one of new streams."}],
    answer=DriftResponse,
    problems=(*COMMON_PROBLEMS, "store_unavailable", "bad_request", "model_not_found"),
)

"""The documentation of the route in `routes/alerts.py`."""

from __future__ import annotations

from service.asgi.openapi.schemas import COMMON_PROBLEMS, query, route
from service.codec.response_bodies import AlertsResponse

LIST = route(
    "many streams",
    parameters=[
        query("model", {"type": "string"}),
        query("cursor", {"type": "string"}),
        query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
    ],
    answer=AlertsResponse,
    problems=(*COMMON_PROBLEMS, "bad_request", "store_unavailable"),
)

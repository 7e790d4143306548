"""The route of drift and data quality."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.asgi.http import authorize, format_of, model_of, respond
from stepwell.asgi.openapi.schemas import COMMON_PROBLEMS, VERSION, route
from stepwell.codec.drift_responses import DriftResponse, DriftWindow, FeatureDrift
from stepwell.drift.report import FeatureReport
from stepwell.requests.context import AppContext

_DOCUMENTATION = route(
    "models",
    path=["model"],
    parameters=[VERSION | {"description": "A model version; by default the one of new streams."}],
    answer=DriftResponse,
    problems=(*COMMON_PROBLEMS, "store_unavailable", "bad_request", "model_not_found"),
)


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the route."""

    async def drift(request: Request) -> Response:
        """Return how the inputs and outputs of a model's live streams are distributed, and how far from its reference.

        A sample of the committed timesteps of all replicas is counted; counts are not exact.
        """
        authorize(request, context, "read")
        has_reference, windows = await context.engine.drift.windows(model_of(request, context))
        document = DriftResponse(
            reference=has_reference, windows={name: _window(reports) for name, reports in windows.items()}
        )
        return respond(document, request, format_of(request))

    app.add_api_route("/v1/models/{model}/drift", drift, methods=["GET"], **_DOCUMENTATION)


def _window(reports: Iterable[FeatureReport]) -> DriftWindow:
    window = DriftWindow(inputs={}, outputs={})
    for report in reports:
        fields = {name: getattr(report, name) for name in FeatureDrift.__struct_fields__}
        (window.outputs if report.is_output else window.inputs)[report.name] = FeatureDrift(**fields)
    return window

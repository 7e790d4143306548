"""`Drift`: observes the distributions of committed timesteps; the route of drift and data quality."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.addons.api_schemas.routes import COMMON_PROBLEMS, VERSION, route
from stepwell.addons.drift.metrics import DriftMetrics
from stepwell.addons.drift.monitor import DriftMonitor
from stepwell.addons.drift.report import FeatureReport
from stepwell.addons.drift.responses import DriftResponse, DriftWindow, FeatureDrift
from stepwell.addons.drift.settings import DriftSettings
from stepwell.asgi.http import authorize, format_of, model_of, respond
from stepwell.background import run_forever
from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.engine.observer import Sampler
    from stepwell.models.served import ServedModel
    from stepwell.requests.context import AppContext

_EVERY_S: Final = 1.0

_DOCUMENTATION = route(
    "models",
    path=["model"],
    parameters=[VERSION | {"description": "A model version; by default the one of new streams."}],
    answer=DriftResponse,
    problems=(*COMMON_PROBLEMS, "store_unavailable", "bad_request", "model_not_found"),
)


class Drift(ServiceAddon):
    """Observes committed timesteps where the setting `drift` is on, and shows what all workers have seen."""

    def __init__(self, context: AppContext, version: str) -> None:
        super().__init__(context, version)
        metrics = DriftMetrics(context.metrics.registry, is_shared=context.metrics.is_shared)
        context.metrics.on_refresh(lambda: metrics.refresh(self.monitor.reports))

    @cached_property
    def monitor(self) -> DriftMonitor:
        """The observed models of this worker."""
        settings = self.context.settings.of(DriftSettings)
        return DriftMonitor(self.context.engine.store, is_on=settings.drift, max_features=settings.drift_max_features)

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        app.add_api_route("/v1/models/{model}/drift", self.drift, methods=["GET"], **_DOCUMENTATION)

    async def drift(self, request: Request) -> Response:
        """Return how the inputs and outputs of a model's live streams are distributed, and how far from its reference.

        A sample of the committed timesteps of all replicas is counted; counts are not exact.
        """
        authorize(request, self.context, "read")
        has_reference, windows = await self.monitor.windows(model_of(request, self.context))
        document = DriftResponse(
            reference=has_reference, windows={name: _window(reports) for name, reports in windows.items()}
        )
        return respond(document, request, format_of(request))

    def background(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Count what was sampled, once a second."""
        if self.context.settings.of(DriftSettings).drift:
            yield run_forever(self.monitor.run, every_s=_EVERY_S, name="Observing the distributions of timesteps")

    def sampler(self, served: ServedModel) -> Sampler | None:
        """Return the sampler of a model version; None: it is not observed."""
        return self.monitor.sampler(served)

    def end_sampler(self, served: ServedModel) -> None:
        """Observe a model version no more."""
        self.monitor.end_sampler(served)

    async def close(self) -> None:
        """Write what was sampled since the last write."""
        await self.monitor.close()


def _window(reports: Iterable[FeatureReport]) -> DriftWindow:
    window = DriftWindow(inputs={}, outputs={})
    for report in reports:
        fields = {name: getattr(report, name) for name in FeatureDrift.__struct_fields__}
        (window.outputs if report.is_output else window.inputs)[report.name] = FeatureDrift(**fields)
    return window

"""`RunRoute`: the route that runs timesteps whose state is in the request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.addons.api_schemas.routes import COMMON_PROBLEMS, VERSION, route
from stepwell.addons.state_runs.bodies import RunResponse
from stepwell.addons.state_runs.handler import RunHandler
from stepwell.addons.state_runs.service import StateRuns
from stepwell.asgi.http import RawResponse, body_of, format_of, model_of, run_handler
from stepwell.codec.step_bodies import RunBody
from stepwell.requests.hot_routes import MODEL_PATH, HotRoute, RequestHeaders
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.formats import format_of_answer

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine
    from stepwell.requests.context import AppContext

_DOCUMENTATION: Final = route(
    "many streams",
    path=["model"],
    parameters=[VERSION],
    body=RunBody,
    answer=RunResponse,
    problems=(
        *COMMON_PROBLEMS,
        *("overloaded", "draining", "bad_json", "bad_request", "too_large", "unsupported_encoding"),
        *("model_not_found", "model_changed", "bad_input", "non_finite", "non_finite_state", "model_timeout"),
    ),
)


class RunRoute(ServiceAddon):
    """The route in one worker."""

    _runs: StateRuns

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        app.add_api_route("/v1/models/{model}/run", self.run, methods=["POST"], **_DOCUMENTATION)

    def hot_routes(self) -> Iterable[HotRoute]:
        """Return the route for the fast path."""
        yield HotRoute("/v1/models/", f"{MODEL_PATH}/run", "POST /v1/models/{model}/run", self._handler)

    def model_runs(self, engine: Engine) -> StateRuns:
        """Return what runs the timesteps."""
        self._runs = StateRuns(engine)
        return self._runs

    async def run(self, request: Request) -> Response:
        """Run timesteps whose state is in the request, and return the next state; nothing is stored."""
        context = self.context
        caller = context.authenticate_and_count(request.headers.get("authorization"), "step")
        served, request_format = model_of(request, context), format_of(request)
        response_format = format_of_answer(request.headers.get("accept"), request_format)
        handler = RunHandler(context, self._runs, served, caller.tenant, request_format, response_format)
        body = await run_handler(handler, await body_of(request, context), request, context)
        return RawResponse(body, response_format.value)

    def _handler(
        self, context: AppContext, parts: Sequence[str], version: int | None, headers: RequestHeaders
    ) -> RunHandler:
        [model] = parts
        tenant = context.authenticate_and_count(headers.authorization, "step").tenant
        served = context.engine.models.get(model, version)
        return RunHandler(context, self._runs, served, tenant, headers.request_format, headers.response_format)

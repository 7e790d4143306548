"""`Rollouts`: the route that runs a stream by the model's own predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from msgspec import UNSET
from starlette.responses import Response

from stepwell.addons.api_schemas.routes import IDEMPOTENCY_KEY, STEPPING, STREAM_PATH, VERSION, route
from stepwell.addons.rollouts.bodies import (
    RolloutBody,
    RolloutLimits,
    RolloutResponse,
    read_rollout,
    rollout_response,
)
from stepwell.addons.rollouts.events import RolloutEvents
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.addons.rollouts.service import RolloutService
from stepwell.addons.rollouts.settings import RolloutSettings
from stepwell.asgi.http import authorized_stream, body_of, decoded, format_of, idempotency_key_of, model_of, respond
from stepwell.asgi.query import version_of
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.formats import format_of_answer, prefers_events

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine

_DOCUMENTATION: Final = route(
    "rollouts",
    path=STREAM_PATH,
    parameters=(VERSION, IDEMPOTENCY_KEY),
    body=RolloutBody,
    answer=RolloutResponse,
    problems=STEPPING,
)
_DOCUMENTATION["responses"][200]["content"]["text/event-stream"] = {
    "schema": {
        "type": "string",
        "description": "Server-sent events, by `Accept: text/event-stream`: a `timestep` with `outputs` and `next` for "
        "each timestep, then `done` with all other members of the response; or a `problem`, which ends it.",
    }
}


class Rollouts(ServiceAddon):
    """Rollouts in one worker."""

    _service: RolloutService

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        path = "/v1/models/{model}/streams/{stream}/rollout"
        app.add_api_route(path, self.rollout, methods=["POST"], **_DOCUMENTATION)

    def model_runs(self, engine: Engine) -> RolloutService:
        """Return what runs them."""
        self._service = RolloutService(engine)
        return self._service

    async def rollout(self, request: Request) -> Response:
        """Run a stream on its own predictions for `horizon` timesteps; with `commit` they are applied to the stream.

        With `Accept: text/event-stream`, the response is an event for each timestep, and a last one.
        """
        context, settings = self.context, self.context.settings.of(RolloutSettings)
        key = authorized_stream(request, context, "step")
        served, request_format, version = model_of(request, context), format_of(request), version_of(request)
        limits = RolloutLimits(settings.max_horizon, settings.max_samples, context.settings.max_body_bytes)
        body, inputs = await decoded(
            context,
            await body_of(request, context),
            lambda raw: read_rollout(raw, request_format, served.manifest, limits),
        )
        rollout = RolloutRequest(
            key, inputs=inputs, idempotency_key=idempotency_key_of(request), version=version, **body.options()
        )
        has_samples = body.samples is not UNSET
        if prefers_events(request.headers.get("accept")):
            events = RolloutEvents(self._service, rollout, samples=has_samples)
            await events.wait_for_first()
            return events
        result = await self._service.run(rollout)
        response_format = format_of_answer(request.headers.get("accept"), request_format)
        return respond(rollout_response(result, response_format, samples=has_samples), request, request_format)

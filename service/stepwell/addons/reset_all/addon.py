"""`ResetAll`: the route that resets all streams of a model."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.addons.api_schemas.responses import Document
from stepwell.addons.api_schemas.routes import IDEMPOTENCY_KEY, STREAM_WRITE, route
from stepwell.addons.reset_all.reset_all import reset_all_streams
from stepwell.asgi.http import audited, authorize, body_of, format_of, idempotency_key_of, model_of, respond
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.formats import Format


class ResetAllResponse(Document, kw_only=True):
    """The number of streams that were reset."""

    reset: int


class ResetAll(ServiceAddon):
    """Resets all streams of a model, in one worker."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        documentation = route(
            "many streams",
            path=["model"],
            parameters=[IDEMPOTENCY_KEY],
            answer=ResetAllResponse,
            problems=(*STREAM_WRITE, "precondition_required", "idempotency_key_reused"),
        )
        app.add_api_route("/v1/models/{model}/reset", self.reset_all, methods=["POST"], **documentation)

    async def reset_all(self, request: Request) -> Response:
        """Reset all streams of a model that belong to the caller's tenant."""
        caller = authorize(request, self.context, "admin")
        model, request_format = model_of(request, self.context), format_of(request)
        _check_no_fields(await body_of(request, self.context), request_format)
        idempotency_key = idempotency_key_of(request)
        self.context.require_precondition("reset", idempotency_key)
        with audited(request, self.context, "reset_all", model=model.name) as audit:
            audit["streams"] = reset = await reset_all_streams(
                self.context.engine.streams, caller.tenant, model.name, idempotency_key=idempotency_key
            )
        return respond({"reset": reset}, request)


def _check_no_fields(body: bytes, body_format: Format) -> None:
    """Check that a body is empty or an empty object: its members would have no effect.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    if body.strip() and (document := parse(body, body_format)) != {}:
        bad_request(f"The body is {preview(document)}; expected none, or an empty object.")

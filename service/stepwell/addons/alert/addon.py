"""The route `/v1/alerts` of the service: the alarms that are raised now."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from stepwell.addons.alert.store import list_raised
from stepwell.addons.api_schemas.responses import Document
from stepwell.addons.api_schemas.routes import COMMON_PROBLEMS, query, route
from stepwell.asgi.http import authorize, respond
from stepwell.asgi.query import number_of
from stepwell.codec.step_bodies import StreamId
from stepwell.service_addon import ServiceAddon

_LIMIT = 1000


class RaisedAlarm(Document, kw_only=True):
    """An alarm that `stepwell alert` has raised and not cleared."""

    id: Annotated[str, Meta(description="Random; every message about it has it.")]
    rule: Annotated[str, Meta(description="The name of the rule.")]
    state: Annotated[str, Meta(description="`raised`.")]
    model: str
    stream: StreamId
    step: Annotated[
        int, Meta(ge=0, description="Where it was raised; for silence, expiry and refusals, the last step.")
    ]
    at: Annotated[float, Meta(description="When it was raised, seconds since 1970, by the store's clock.")]
    outputs: Annotated[dict[str, Any], Meta(description="The outputs of that step.")]
    kind: Annotated[
        str, Meta(description="`when`, `silent`, `expired` or `refused`: the key of the rule that raised it.")
    ]
    code: Annotated[str, Meta(description="Of refused timesteps: the error's code.")] | UnsetType = UNSET
    severity: Annotated[str, Meta(description="`critical`, `warning` or `info`, if the rule has one.")] | UnsetType = (
        UNSET
    )


class AlertsResponse(Document, kw_only=True):
    """One page of the alarms that are raised now, by model and stream, and the cursor of the next page."""

    alerts: list[RaisedAlarm]
    cursor: str | None


_decode = msgspec.json.Decoder(RaisedAlarm).decode
_DOCUMENTATION = route(
    "many streams",
    parameters=[
        query("model", {"type": "string"}),
        query("cursor", {"type": "string"}),
        query("limit", {"type": "integer", "minimum": 1, "maximum": _LIMIT, "default": 100}),
    ],
    answer=AlertsResponse,
    problems=(*COMMON_PROBLEMS, "bad_request", "store_unavailable"),
)


class AlertRoute(ServiceAddon):
    """Lists the alarms that `stepwell alert` keeps in the store."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        app.add_api_route("/v1/alerts", self.alerts, methods=["GET"], **_DOCUMENTATION)

    async def alerts(self, request: Request) -> Response:
        """List the alarms that `stepwell alert` has raised and not cleared, page by page."""
        caller = authorize(request, self.context, "read")
        params = request.query_params
        page = await list_raised(
            self.context.engine.store,
            caller.tenant,
            params.get("model") or None,
            params.get("cursor") or None,
            number_of(params, "limit", 1, _LIMIT) or 100,
        )
        document = AlertsResponse(alerts=[_decode(alarm) for alarm in page.alarms], cursor=page.cursor)
        return respond(document, request)

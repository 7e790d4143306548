"""The route `/v1/alerts`: the alarms that are raised now."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.asgi.http import authorize, respond
from stepwell.asgi.openapi.schemas import COMMON_PROBLEMS, query, route
from stepwell.asgi.query import number_of
from stepwell.codec.response_bodies import AlertsResponse, RaisedAlarm
from stepwell.requests.context import AppContext
from stepwell.store.alerts import list_raised

_LIMIT = 1000
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


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the route."""

    async def alerts(request: Request) -> Response:
        """List the alarms that `stepwell alert` has raised and not cleared, page by page."""
        caller = authorize(request, context, "read")
        params = request.query_params
        page = await list_raised(
            context.engine.store,
            caller.tenant,
            params.get("model") or None,
            params.get("cursor") or None,
            number_of(params, "limit", 1, _LIMIT) or 100,
        )
        document = AlertsResponse(alerts=[_decode(alarm) for alarm in page.alarms], cursor=page.cursor)
        return respond(document, request)

    app.add_api_route("/v1/alerts", alerts, methods=["GET"], **_DOCUMENTATION)

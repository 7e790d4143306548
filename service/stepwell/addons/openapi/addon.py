"""`OpenApi`: the route `/openapi.json`, which describes the routes of the service and of its add-ons."""

from __future__ import annotations

import asyncio
import functools

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.addons.openapi.document import document
from stepwell.asgi.http import RawResponse, authorize
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.formats import JSON, encode


class OpenApi(ServiceAddon):
    """Describes the routes of this service, unless it is in production."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        # replaced as FastAPI documents it; called after all routes have been added
        app.openapi = functools.cache(lambda: document(app))  # type: ignore[method-assign]
        encoded = functools.cache(lambda: encode(app.openapi(), JSON))

        async def openapi(request: Request) -> Response:
            """Return the OpenAPI document."""
            authorize(request, self.context, "read")
            return RawResponse(await asyncio.to_thread(encoded), JSON.value)

        if not self.context.settings.production:
            app.add_api_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)

"""`AsyncApi`: the route `/asyncapi.json`, which describes the WebSockets of the service and of its add-ons."""

from __future__ import annotations

import asyncio
import functools

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.addons.asyncapi.document import document
from stepwell.asgi.http import RawResponse, authorize
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.formats import JSON, encode


class AsyncApi(ServiceAddon):
    """Describes the WebSockets of this service, unless it is in production."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the route."""
        encoded = functools.cache(lambda: encode(document(app), JSON))

        async def asyncapi(request: Request) -> Response:
            """Return the AsyncAPI document."""
            authorize(request, self.context, "read")
            return RawResponse(await asyncio.to_thread(encoded), JSON.value)

        if not self.context.settings.production:
            app.add_api_route("/asyncapi.json", asyncapi, methods=["GET"], include_in_schema=False)

"""The service's route `/fleet`."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from stepwell import extend
from stepwell_fleet.settings import FleetSettings


class Overview(extend.ServiceAddon):
    """Adds a route with all that a list of many services shows of this one."""

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/fleet", self.show, methods=["GET"])

    async def show(self, request: Request) -> Response:
        self.context.authenticate(request.headers.get("authorization"), "read")
        problems = await self.context.check_readiness()
        site, models = self.context.settings.of(FleetSettings).fleet_site, self.context.engine.models.names()
        return JSONResponse({"site": site, "version": self.version, "models": models, "problems": problems})

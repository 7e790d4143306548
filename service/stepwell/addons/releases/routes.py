"""Routes of releases: show, start and change one, promote, abort, and move streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from msgspec import UNSET
from msgspec.structs import asdict
from starlette.responses import Response

from stepwell.addons.releases import openapi
from stepwell.addons.releases.bodies import read_end, read_release, read_stream_move, read_sweep
from stepwell.addons.releases.document import How
from stepwell.asgi.http import (
    audited,
    authorize,
    authorized_stream,
    body_of,
    format_of,
    idempotency_key_of,
    model_of,
    replacement_fields,
    respond,
)
from stepwell.codec.responses import position_response
from stepwell.requests.audit import Action
from stepwell_client.wire.formats import JSON, encode

if TYPE_CHECKING:
    from stepwell.addons.releases.addon import ReleasesAddon

_RELEASE = "/v1/models/{model}/release"


def add_routes(app: FastAPI, addon: ReleasesAddon) -> None:
    """Declare the routes."""
    routes = ReleaseRoutes(addon)
    add = app.add_api_route
    add(_RELEASE, routes.show, methods=["GET"], **openapi.RELEASE)
    add(_RELEASE, routes.put, methods=["PUT"], **openapi.PUT_RELEASE)
    add(f"{_RELEASE}/promote", routes.promote, methods=["POST"], **openapi.PROMOTE)
    add(f"{_RELEASE}/abort", routes.abort, methods=["POST"], **openapi.ABORT)
    add(f"{_RELEASE}/move", routes.move, methods=["POST"], **openapi.MOVE_ALL)
    add("/v1/models/{model}/streams/{stream}/move", routes.move_stream, methods=["POST"], **openapi.MOVE)


class ReleaseRoutes:
    """The endpoints of the routes."""

    def __init__(self, addon: ReleasesAddon) -> None:
        self._addon = addon
        self._context = addon.context

    async def show(self, request: Request) -> Response:
        """Return the release of a model: its versions, their streams, and the comparison."""
        authorize(request, self._context, "read")
        return await self._respond(request)

    async def put(self, request: Request) -> Response:
        """Start a release, change the running one, or set the version of new streams."""
        authorize(request, self._context, "models")
        name = model_of(request, self._context).name
        body, gate = read_release(await body_of(request, self._context), format_of(request))
        about = {key: value for key, value in asdict(body).items() if value is not UNSET and key != "revision"}
        if body.schedule is not UNSET:
            about["percent"] = ",".join(f"{seconds:g}:{share:g}" for seconds, share in body.schedule)
        if body.gate is not UNSET:
            about["gate"] = encode(body.gate, JSON).decode()
        with audited(request, self._context, "release", model=name, **about) as audit:
            audit["revision"] = (await self._addon.service.put(name, body, gate)).revision
        return await self._respond(request)

    async def promote(self, request: Request) -> Response:
        """Make the candidate the current version."""
        return await self._end(request, "promote", "promoted")

    async def abort(self, request: Request) -> Response:
        """Give all streams of the candidate back to the version before."""
        return await self._end(request, "abort", "aborted")

    async def move(self, request: Request) -> Response:
        """Move the streams that sleep to where the release places them, in the background."""
        authorize(request, self._context, "models")
        name = model_of(request, self._context).name
        body = read_sweep(await body_of(request, self._context), format_of(request))
        limit_per_s = 0 if body.limit_per_s is UNSET else body.limit_per_s
        with audited(request, self._context, "move_all", model=name, limit_per_s=limit_per_s or None):
            await self._addon.service.sweep(name, limit_per_s)
        return await self._respond(request, status=202)

    async def move_stream(self, request: Request) -> Response:
        """Move one stream to a version; its step stays, its state id is a new one."""
        key, request_format = authorized_stream(request, self._context, "admin"), format_of(request)
        body = read_stream_move(await body_of(request, self._context), request_format)
        idempotency_key, after = idempotency_key_of(request), body.after_bytes
        self._context.require_precondition("move", after, idempotency_key)
        about = {"model": key.model, "stream": key.stream, "version": body.version, "take": body.take}
        with audited(request, self._context, "move", **about) as audit:
            position = await self._addon.service.moves.move(
                key, version=body.version, take=body.take, after=after, idempotency_key=idempotency_key
            )
            audit.update(replacement_fields(position))
        return respond({**position_response(position), "version": position.version}, request, request_format)

    async def _end(self, request: Request, action: Action, how: How) -> Response:
        authorize(request, self._context, "models")
        name = model_of(request, self._context).name
        body = read_end(await body_of(request, self._context), format_of(request))
        why = None if body.why is UNSET else body.why
        with audited(request, self._context, action, model=name, why=why) as audit:
            document = await self._addon.service.end(name, how, why, revision=body.revision)
            audit["revision"] = document.revision
        return await self._respond(request)

    async def _respond(self, request: Request, *, status: int = 200) -> Response:
        name = model_of(request, self._context).name
        return respond(await self._addon.service.view(name), request, format_of(request), status=status)

"""Routes that step, reset, delete and list streams, one at a time or in bulk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.asgi.http import (
    RawResponse,
    audited,
    authorize,
    authorized_stream,
    body_of,
    format_of,
    idempotency_key_of,
    model_of,
    replacement_fields,
    respond,
    run_handler,
)
from stepwell.asgi.query import flag_of, number_of, version_of
from stepwell.codec.resets import read_reset
from stepwell.codec.responses import position_response, rfc3339, step_response
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import BulkHandler, RequestHandler, StepHandler, to_timestep
from stepwell.types import ConsumedSource, StreamKey
from stepwell_client.wire.formats import JSON, Format, encode_tensors, format_of_answer
from stepwell_client.wire.ids import STREAM_ID, encode_state_id

_STREAM = "/v1/models/{model}/streams/{stream}"
_MODEL = "/v1/models/{model}"
_PAGE_LIMIT = 1000


def add_step_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes that step streams."""
    routes = StreamRoutes(context)
    add = app.add_api_route
    add(f"{_STREAM}/step", routes.step, methods=["POST"])
    add(f"{_STREAM}/steps", routes.steps, methods=["POST"])
    add(f"{_MODEL}/step", routes.bulk_step, methods=["POST"])
    add(f"{_MODEL}/steps", routes.bulk_steps, methods=["POST"])


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the other routes."""
    routes = StreamRoutes(context)
    add = app.add_api_route
    add(f"{_STREAM}/peek", routes.peek, methods=["POST"])
    add(f"{_STREAM}/reset", routes.reset, methods=["POST"])
    add(_STREAM, routes.status, methods=["GET"])
    add(_STREAM, routes.delete, methods=["DELETE"])
    add(f"{_MODEL}/streams", routes.list_streams, methods=["GET"])


class StreamRoutes:
    """The endpoints of the routes."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def step(self, request: Request) -> Response:
        """Apply one timestep to one stream."""
        return await self._step_one(request, chunk=False)

    async def steps(self, request: Request) -> Response:
        """Apply a chunk of timesteps to one stream, all or none."""
        return await self._step_one(request, chunk=True)

    async def bulk_step(self, request: Request) -> Response:
        """Apply one timestep to each of many streams."""
        return await self._step_bulk(request, chunk=False)

    async def bulk_steps(self, request: Request) -> Response:
        """Apply a chunk of timesteps to each of many streams."""
        return await self._step_bulk(request, chunk=True)

    async def peek(self, request: Request) -> Response:
        """Return what a step, or a chunk, would return; nothing is committed."""
        context = self._context
        key = authorized_stream(request, context, "step")
        served, request_format = model_of(request, context), format_of(request)
        decoder = context.decoder(served)
        raw = await body_of(request, context)
        body = await context.large_bodies.decode_by(raw, decoder, lambda decoder: decoder.peek(raw, request_format))
        result = await context.engine.steps.peek(to_timestep(body, key, version_of(request), transport="http"))
        response_format = format_of_answer(request.headers.get("accept"), request_format)
        document = step_response(result, response_format, chunk=body.chunk, keep=body.keep)
        if not result.state_id:
            del document["state_id"]  # the stream does not exist, so it has no history
        return respond(document, request, request_format)

    async def reset(self, request: Request) -> Response:
        """Reset one stream to its initial state, or to one of its snapshots."""
        key = authorized_stream(request, self._context, "admin")
        request_format = format_of(request)
        after, snapshot = read_reset(await body_of(request, self._context), request_format)
        idempotency_key = idempotency_key_of(request)
        self._context.require_precondition("reset", after, idempotency_key)
        version, about = version_of(request), {"model": key.model, "stream": key.stream, "snapshot": snapshot}
        with audited(request, self._context, "reset", **about) as audit:
            position = await self._context.engine.streams.reset(
                key, snapshot=snapshot, version=version, after=after, idempotency_key=idempotency_key
            )
            audit.update(replacement_fields(position))
        return respond(position_response(position), request, request_format)

    async def delete(self, request: Request) -> Response:
        """Delete one stream and its snapshots."""
        key, idempotency_key = authorized_stream(request, self._context, "admin"), idempotency_key_of(request)
        self._context.require_precondition("delete", idempotency_key)
        with audited(request, self._context, "delete", model=key.model, stream=key.stream) as audit:
            audit["state_id_before"] = await self._context.engine.streams.delete(key, idempotency_key=idempotency_key)
        return Response(status_code=204)

    async def status(self, request: Request) -> Response:
        """Return the position and the times of one stream."""
        key = authorized_stream(request, self._context, "read")
        status = await self._context.engine.streams.status(key)
        document: dict[str, Any] = {
            "stream": key.stream,
            "model": key.model,
            "version": status.version,
            "step": status.step,
            "state_id": encode_state_id(status.state_id),
            "created_at": rfc3339(status.created_ms),
            "updated_at": rfc3339(status.updated_ms),
            "expires_in_s": status.expires_in_ms / 1000,
        }
        if flag_of(request.query_params, "outputs"):
            response_format = format_of_answer(request.headers.get("accept"), JSON)
            document["outputs"] = encode_tensors(status.outputs, response_format)
        if status.sources:
            document |= {"source": {"at": status.sources[0].at}, "sources": _source_entries(status.sources)}
        return respond(document, request)

    async def list_streams(self, request: Request) -> Response:
        """List a model's streams, page by page."""
        caller = authorize(request, self._context, "read")
        model = model_of(request, self._context)
        query = request.query_params
        page = await self._context.engine.streams.list(
            caller.tenant,
            model.name,
            prefix=prefix_of(query),
            cursor=query.get("cursor") or None,
            limit=number_of(query, "limit", 1, _PAGE_LIMIT) or 100,
            with_sources=(with_sources := flag_of(query, "sources")),
        )
        streams = [
            {"stream": stream, "step": step}
            | ({"sources": _source_entries(page.sources.get(stream, ()))} if with_sources else {})
            for stream, step in page.streams
        ]
        return respond({"streams": streams, "cursor": page.cursor}, request)

    # ---------------------------------------------------------------- helpers

    async def _step_one(self, request: Request, *, chunk: bool) -> Response:
        context = self._context
        caller = context.authenticate_and_count(request.headers.get("authorization"), "step")
        served = model_of(request, context)
        key = StreamKey(caller.tenant, served.name, check_stream_id(request.path_params["stream"]))
        return await self._respond(StepHandler(context, served, key, chunk, *self._handler_options(request)), request)

    async def _step_bulk(self, request: Request, *, chunk: bool) -> Response:
        context = self._context
        caller = context.authenticate_and_count(request.headers.get("authorization"), "step")
        served = model_of(request, context)
        return await self._respond(
            BulkHandler(context, served, caller.tenant, chunk, *self._handler_options(request)), request
        )

    def _handler_options(self, request: Request) -> tuple[int | None, str | None, Format, Format]:
        """Return version, idempotency key, and the formats of request and response."""
        idempotency_key = idempotency_key_of(request)
        request_format = format_of(request)
        return (
            version_of(request),
            idempotency_key,
            request_format,
            format_of_answer(request.headers.get("accept"), request_format),
        )

    async def _respond(self, handler: RequestHandler, request: Request) -> Response:
        body = await run_handler(handler, await body_of(request, self._context), request, self._context)
        return RawResponse(body, handler.response_format.value, headers=handler.extra_headers)


def _source_entries(sources: Sequence[ConsumedSource]) -> list[dict[str, Any]]:
    return [{"id": source.id, "at": source.at} for source in sources]


def prefix_of(query: Mapping[str, str]) -> str:
    """Return `?prefix=`, the start of stream ids; empty if it is missing.

    Raises:
        ServiceError: `bad_request`: no stream id begins like that.
    """
    prefix = query.get("prefix", "")
    if prefix and not STREAM_ID.fullmatch(prefix):
        raise ServiceError(
            "bad_request",
            f"`prefix` is {prefix[:140]!a}; expected the start of a stream id, of A-Z a-z 0-9 . _ : @ -.",
            fix="Leave `prefix` out for all streams.",
        )
    return prefix

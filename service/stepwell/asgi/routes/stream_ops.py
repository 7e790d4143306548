"""Routes for peeks, forks, states and snapshots of a stream."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from msgspec import UNSET
from starlette.responses import Response

from stepwell.asgi.http import (
    audited,
    authorized_stream,
    body_of,
    decoded,
    format_of,
    idempotency_key_of,
    model_of,
    replacement_fields,
    respond,
)
from stepwell.asgi.query import flag_of, version_of
from stepwell.codec import JSON, Format
from stepwell.codec.responses import position_response, rfc3339, step_response
from stepwell.codec.stream_ops import (
    check_snapshot_name,
    read_fork,
    read_packed_state,
    read_snapshot,
    read_state,
    states_of,
)
from stepwell.engine.given_states import states_in
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import to_timestep
from stepwell.types import ImportedState, SnapshotStatus, StreamKey, StreamState
from stepwell_client.wire.formats import encode_tensors, format_of_answer
from stepwell_client.wire.ids import encode_state_id
from stepwell_export.runtime.state_packing import encode_packed_state

_STREAM = "/v1/models/{model}/streams/{stream}"


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""
    routes = StreamOpRoutes(context)
    add = app.add_api_route
    add(f"{_STREAM}/peek", routes.peek, methods=["POST"])
    add(f"{_STREAM}/fork", routes.fork, methods=["POST"])
    add(f"{_STREAM}/state", routes.state, methods=["GET"])
    add(f"{_STREAM}/state", routes.put_state, methods=["PUT"])
    add(f"{_STREAM}/snapshots", routes.snapshots, methods=["GET"])
    add(f"{_STREAM}/snapshots/{{name}}", routes.snapshot, methods=["GET"])
    add(f"{_STREAM}/snapshots/{{name}}", routes.put_snapshot, methods=["PUT"])
    add(f"{_STREAM}/snapshots/{{name}}", routes.delete_snapshot, methods=["DELETE"])


class StreamOpRoutes:
    """The endpoints of the routes."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

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

    # ---------------------------------------------------------------- forks

    async def fork(self, request: Request) -> Response:
        """Create another stream with the state of this one, or of one of its snapshots."""
        key, request_format = authorized_stream(request, self._context, "admin"), format_of(request)
        to, after, snapshot = read_fork(await body_of(request, self._context), request_format)
        target = StreamKey(key.tenant, key.model, to)
        version, idempotency_key = version_of(request), idempotency_key_of(request)
        about = {"model": key.model, "stream": key.stream, "to": to, "snapshot": snapshot}
        with audited(request, self._context, "fork", **about) as audit:
            position = await self._context.engine.streams.copies.fork(
                key, target, snapshot=snapshot, version=version, after=after, idempotency_key=idempotency_key
            )
            audit.update(state_id_after=position.state_id, replayed=position.replayed or None)
        return respond({"stream": target.stream, **position_response(position)}, request, request_format)

    # ---------------------------------------------------------------- states

    async def state(self, request: Request) -> Response:
        """Return the state of a stream."""
        key, version = authorized_stream(request, self._context, "read"), version_of(request)
        copies = self._context.engine.streams.copies
        if flag_of(request.query_params, "packed"):
            packed, step = await copies.get_packed_state(key, version=version)
            return respond({"state": encode_packed_state(*packed), "step": step}, request)
        state = await copies.get_state(key, version=version)
        return respond(_state_fields(state, _response_format(request)), request)

    async def put_state(self, request: Request) -> Response:
        """Set the state of a stream."""
        key, request_format, version = (
            authorized_stream(request, self._context, "admin"),
            format_of(request),
            version_of(request),
        )
        engine, idempotency_key = self._context.engine, idempotency_key_of(request)
        raw_body = await body_of(request, self._context)
        body = await decoded(self._context, raw_body, lambda raw: read_state(raw, request_format))
        self._context.require_precondition("new state", body.after_bytes, idempotency_key)
        packed = None if body.state is UNSET else read_packed_state(body.state)
        fingerprint = body.fingerprint_bytes if packed is None else packed.fingerprint
        served = await engine.streams.copies.model_for_import(key.model, fingerprint, version)
        if packed is not None:
            states = states_in(packed, served, engine.models)
        else:
            assert body.states is not UNSET
            states = states_of(body.states, served.step_model.fields)
        imported = ImportedState(states, body.step)
        with audited(request, self._context, "put_state", model=key.model, stream=key.stream) as audit:
            position = await engine.streams.put_state(
                key,
                served,
                imported,
                is_named=version is not None,
                after=body.after_bytes,
                idempotency_key=idempotency_key,
            )
            audit.update(replacement_fields(position))
        return respond(position_response(position), request, request_format)

    # ---------------------------------------------------------------- snapshots

    async def snapshots(self, request: Request) -> Response:
        """List the snapshots of a stream."""
        result = await self._context.engine.streams.copies.list_snapshots(
            authorized_stream(request, self._context, "read")
        )
        return respond({"snapshots": [_snapshot_fields(status) for status in result]}, request)

    async def snapshot(self, request: Request) -> Response:
        """Return a snapshot of a stream, with its state."""
        key, name = authorized_stream(request, self._context, "read"), check_snapshot_name(request.path_params["name"])
        status, state = await self._context.engine.streams.copies.get_snapshot(key, name)
        return respond(_snapshot_fields(status) | _state_fields(state, _response_format(request)), request)

    async def put_snapshot(self, request: Request) -> Response:
        """Save a named snapshot of a stream's current state."""
        key, name, request_format = (
            authorized_stream(request, self._context, "admin"),
            check_snapshot_name(request.path_params["name"]),
            format_of(request),
        )
        after, idempotency_key = (
            read_snapshot(await body_of(request, self._context), request_format),
            idempotency_key_of(request),
        )
        self._context.require_precondition("snapshot", after, idempotency_key)
        about = {"model": key.model, "stream": key.stream, "snapshot": name}
        with audited(request, self._context, "put_snapshot", **about) as audit:
            position = await self._context.engine.streams.copies.create_snapshot(
                key, name, after=after, idempotency_key=idempotency_key
            )
            audit.update(state_id=position.state_id, replayed=position.replayed or None)
        return respond({"name": name, **position_response(position)}, request, request_format)

    async def delete_snapshot(self, request: Request) -> Response:
        """Delete a snapshot."""
        key, name = authorized_stream(request, self._context, "admin"), check_snapshot_name(request.path_params["name"])
        idempotency_key = idempotency_key_of(request)
        self._context.require_precondition("deletion", idempotency_key)
        with audited(request, self._context, "delete_snapshot", model=key.model, stream=key.stream, snapshot=name):
            await self._context.engine.streams.copies.delete_snapshot(key, name, idempotency_key=idempotency_key)
        return Response(status_code=204)


def _response_format(request: Request) -> Format:
    return format_of_answer(request.headers.get("accept"), JSON)


def _state_fields(state: StreamState, response_format: Format) -> dict[str, Any]:
    states = encode_tensors(state.states, response_format)
    return {"states": states, "step": state.step, "fingerprint": state.fingerprint.hex()}


def _snapshot_fields(status: SnapshotStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "version": status.version,
        "step": status.step,
        "state_id": encode_state_id(status.state_id),
        "taken_at": rfc3339(status.taken_ms),
    }

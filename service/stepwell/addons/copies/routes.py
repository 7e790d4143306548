"""Routes for forks, states and snapshots of a stream."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from msgspec import UNSET
from starlette.responses import Response

from stepwell.addons.copies import openapi
from stepwell.addons.copies.bodies import read_fork, read_snapshot, read_state, states_of
from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.addons.copies.values import ImportedState, SnapshotStatus, StreamState
from stepwell.addons.packed_states import read_packed_state, states_in
from stepwell.asgi.http import (
    audited,
    authorized_stream,
    body_of,
    decoded,
    format_of,
    idempotency_key_of,
    replacement_fields,
    respond,
)
from stepwell.asgi.query import flag_of, version_of
from stepwell.codec.resets import check_snapshot_name
from stepwell.codec.responses import position_response, rfc3339
from stepwell.requests.context import AppContext
from stepwell.types import StreamKey
from stepwell_client.wire.formats import JSON, Format, encode_tensors, format_of_answer
from stepwell_client.wire.ids import encode_state_id
from stepwell_export.runtime.state_packing import encode_packed_state

_STREAM = "/v1/models/{model}/streams/{stream}"


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""
    routes = CopyRoutes(context)
    add = app.add_api_route
    add(f"{_STREAM}/fork", routes.fork, methods=["POST"], **openapi.FORK)
    add(f"{_STREAM}/state", routes.state, methods=["GET"], **openapi.STATE)
    add(f"{_STREAM}/state", routes.put_state, methods=["PUT"], **openapi.PUT_STATE)
    add(f"{_STREAM}/snapshots", routes.snapshots, methods=["GET"], **openapi.SNAPSHOTS)
    add(f"{_STREAM}/snapshots/{{name}}", routes.snapshot, methods=["GET"], **openapi.SNAPSHOT)
    add(f"{_STREAM}/snapshots/{{name}}", routes.put_snapshot, methods=["PUT"], **openapi.PUT_SNAPSHOT)
    add(f"{_STREAM}/snapshots/{{name}}", routes.delete_snapshot, methods=["DELETE"], **openapi.DELETE_SNAPSHOT)


class CopyRoutes:
    """The endpoints of the routes."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    @property
    def _copies(self) -> StreamCopies:
        return StreamCopies(self._context.engine)

    # ---------------------------------------------------------------- forks

    async def fork(self, request: Request) -> Response:
        """Create another stream with the state of this one, or of one of its snapshots."""
        key, request_format = authorized_stream(request, self._context, "admin"), format_of(request)
        to, after, snapshot = read_fork(await body_of(request, self._context), request_format)
        target = StreamKey(key.tenant, key.model, to)
        version, idempotency_key = version_of(request), idempotency_key_of(request)
        about = {"model": key.model, "stream": key.stream, "to": to, "snapshot": snapshot}
        with audited(request, self._context, "fork", **about) as audit:
            position = await self._copies.fork(
                key, target, snapshot=snapshot, version=version, after=after, idempotency_key=idempotency_key
            )
            audit.update(state_id_after=position.state_id, replayed=position.replayed or None)
        return respond({"stream": target.stream, **position_response(position)}, request, request_format)

    # ---------------------------------------------------------------- states

    async def state(self, request: Request) -> Response:
        """Return the state of a stream."""
        key, version = authorized_stream(request, self._context, "read"), version_of(request)
        if flag_of(request.query_params, "packed"):
            packed, step = await self._copies.get_packed_state(key, version=version)
            return respond({"state": encode_packed_state(*packed), "step": step}, request)
        state = await self._copies.get_state(key, version=version)
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
        served = await self._copies.model_for_import(key.model, fingerprint, version)
        if packed is not None:
            states = states_in(packed, served, engine.models)
        else:
            assert body.states is not UNSET
            states = states_of(body.states, served.step_model.fields)
        imported = ImportedState(states, body.step)
        with audited(request, self._context, "put_state", model=key.model, stream=key.stream) as audit:
            position = await self._copies.put_state(
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
        result = await self._copies.list_snapshots(authorized_stream(request, self._context, "read"))
        return respond({"snapshots": [_snapshot_fields(status) for status in result]}, request)

    async def snapshot(self, request: Request) -> Response:
        """Return a snapshot of a stream, with its state."""
        key, name = authorized_stream(request, self._context, "read"), check_snapshot_name(request.path_params["name"])
        status, state = await self._copies.get_snapshot(key, name)
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
            position = await self._copies.create_snapshot(key, name, after=after, idempotency_key=idempotency_key)
            audit.update(state_id=position.state_id, replayed=position.replayed or None)
        return respond({"name": name, **position_response(position)}, request, request_format)

    async def delete_snapshot(self, request: Request) -> Response:
        """Delete a snapshot."""
        key, name = authorized_stream(request, self._context, "admin"), check_snapshot_name(request.path_params["name"])
        idempotency_key = idempotency_key_of(request)
        self._context.require_precondition("deletion", idempotency_key)
        with audited(request, self._context, "delete_snapshot", model=key.model, stream=key.stream, snapshot=name):
            await self._copies.delete_snapshot(key, name, idempotency_key=idempotency_key)
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

"""The documentation of the routes."""

from __future__ import annotations

import functools

from stepwell.addons.api_schemas.responses import PositionResponse
from stepwell.addons.api_schemas.routes import (
    IDEMPOTENCY_KEY,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    VERSION,
    query,
    ref,
    route,
)
from stepwell.addons.copies.bodies import ForkBody, SnapshotBody, StateBody
from stepwell.addons.copies.responses import (
    ForkResponse,
    NewSnapshotResponse,
    PackedStateResponse,
    SnapshotResponse,
    SnapshotsResponse,
    StateResponse,
)

_READ = (*STREAM_READ, "stream_not_found", "state_corrupt", "record_version")
_WRITE = (
    *STREAM_WRITE,
    *("stream_not_found", "state_changed", "idempotency_key_reused", "state_corrupt", "record_version"),
)

_copies = functools.partial(route, "copies", path=STREAM_PATH)
_snapshot = functools.partial(route, "copies", path=(*STREAM_PATH, "name"))
_KEYED = (VERSION, IDEMPOTENCY_KEY)

FORK = _copies(
    parameters=_KEYED,
    body=ForkBody,
    answer=ForkResponse,
    problems=(*_WRITE, "stream_exists", "snapshot_not_found", "model_changed", "stream_quota"),
)
STATE = _copies(
    parameters=[
        VERSION,
        query("packed", {"type": "boolean", "default": False}, "Return the state as one text, a packed state."),
    ],
    answer=StateResponse,
    problems=(*_READ, "model_changed"),
)
STATE["responses"][200]["content"]["application/json"]["schema"] = {
    "anyOf": [ref(StateResponse), ref(PackedStateResponse)]
}
PUT_STATE = _copies(
    parameters=_KEYED,
    body=StateBody,
    answer=PositionResponse,
    problems=(
        *_WRITE,
        *("bad_input", "non_finite", "non_finite_state", "model_changed", "precondition_required", "stream_quota"),
    ),
)
SNAPSHOTS = _copies(answer=SnapshotsResponse, problems=_READ)
SNAPSHOT = _snapshot(answer=SnapshotResponse, problems=(*_READ, "snapshot_not_found", "model_changed"))
PUT_SNAPSHOT = _snapshot(
    parameters=[IDEMPOTENCY_KEY],
    body=SnapshotBody,
    answer=NewSnapshotResponse,
    problems=(*_WRITE, "precondition_required", "stream_quota"),
)
DELETE_SNAPSHOT = _snapshot(
    parameters=[IDEMPOTENCY_KEY],
    problems=(*STREAM_WRITE, "idempotency_key_reused", "precondition_required"),
    status=204,
)

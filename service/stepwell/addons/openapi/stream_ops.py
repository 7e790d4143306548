"""The documentation of peeks, forks, states and snapshots of a stream."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from stepwell.addons.api_schemas.responses import (
    ForkResponse,
    NewSnapshotResponse,
    PackedStateResponse,
    PeekResponse,
    PositionResponse,
    SnapshotResponse,
    SnapshotsResponse,
    StateResponse,
)
from stepwell.addons.api_schemas.routes import (
    IDEMPOTENCY_KEY,
    STEPPING,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    VERSION,
    query,
    ref,
    route,
)
from stepwell.codec.step_bodies import PeekBody
from stepwell.codec.stream_ops import ForkBody, SnapshotBody, StateBody

_READ = (*STREAM_READ, "stream_not_found", "state_corrupt", "record_version")
_WRITE = (
    *STREAM_WRITE,
    *("stream_not_found", "state_changed", "idempotency_key_reused", "state_corrupt", "record_version"),
)

_STREAM = "/v1/models/{model}/streams/{stream}"
_copies = functools.partial(route, "copies", path=STREAM_PATH)
_snapshot = functools.partial(route, "copies", path=(*STREAM_PATH, "name"))
_KEYED = (VERSION, IDEMPOTENCY_KEY)

ROUTES: Final[Mapping[str, dict[str, Any]]] = {
    f"POST {_STREAM}/peek": route(
        "rollouts", path=STREAM_PATH, parameters=[VERSION], body=PeekBody, answer=PeekResponse, problems=STEPPING
    ),
    f"POST {_STREAM}/fork": _copies(
        parameters=_KEYED,
        body=ForkBody,
        answer=ForkResponse,
        problems=(*_WRITE, "stream_exists", "snapshot_not_found", "model_changed", "stream_quota"),
    ),
    f"GET {_STREAM}/state": _copies(
        parameters=[
            VERSION,
            query("packed", {"type": "boolean", "default": False}, "Return the state as one text, a packed state."),
        ],
        answer=StateResponse,
        problems=(*_READ, "model_changed"),
    ),
    f"PUT {_STREAM}/state": _copies(
        parameters=_KEYED,
        body=StateBody,
        answer=PositionResponse,
        problems=(
            *_WRITE,
            *("bad_input", "non_finite", "non_finite_state", "model_changed", "precondition_required", "stream_quota"),
        ),
    ),
    f"GET {_STREAM}/snapshots": _copies(answer=SnapshotsResponse, problems=_READ),
    f"GET {_STREAM}/snapshots/{{name}}": _snapshot(
        answer=SnapshotResponse, problems=(*_READ, "snapshot_not_found", "model_changed")
    ),
    f"PUT {_STREAM}/snapshots/{{name}}": _snapshot(
        parameters=[IDEMPOTENCY_KEY],
        body=SnapshotBody,
        answer=NewSnapshotResponse,
        problems=(*_WRITE, "precondition_required", "stream_quota"),
    ),
    f"DELETE {_STREAM}/snapshots/{{name}}": _snapshot(
        parameters=[IDEMPOTENCY_KEY],
        problems=(*STREAM_WRITE, "idempotency_key_reused", "precondition_required"),
        status=204,
    ),
}
"""The documentation of the routes, by method and path."""

ROUTES[f"GET {_STREAM}/state"]["responses"][200]["content"]["application/json"]["schema"] = {
    "anyOf": [ref(StateResponse), ref(PackedStateResponse)]
}

"""The documentation of the routes in `routes/stream_ops.py`."""

from __future__ import annotations

from service.asgi.openapi.schemas import (
    IDEMPOTENCY_KEY,
    STEPPING,
    STREAM_PATH,
    STREAM_READ,
    STREAM_WRITE,
    VERSION,
    route,
)
from service.codec.documents import (
    ForkResponse,
    NewSnapshotResponse,
    PeekResponse,
    PositionResponse,
    RolloutResponse,
    SnapshotResponse,
    SnapshotsResponse,
    StateResponse,
)
from service.codec.envelopes import PeekBody
from service.codec.rollout import RolloutBody
from service.codec.stream_ops import ForkBody, SnapshotBody, StateBody

_READ = (*STREAM_READ, "stream_not_found", "state_corrupt", "record_version")
_WRITE = (
    *STREAM_WRITE,
    *("stream_not_found", "state_changed", "idempotency_key_reused", "state_corrupt", "record_version"),
)
_SNAPSHOT_PATH = (*STREAM_PATH, "name")

PEEK = route("rollouts", path=STREAM_PATH, parameters=[VERSION], body=PeekBody, answer=PeekResponse, problems=STEPPING)
ROLLOUT = route(
    "rollouts",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=RolloutBody,
    answer=RolloutResponse,
    problems=STEPPING,
)
FORK = route(
    "copies",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=ForkBody,
    answer=ForkResponse,
    problems=(*_WRITE, "stream_exists", "snapshot_not_found", "model_changed", "stream_quota"),
)
STATE = route(
    "copies", path=STREAM_PATH, parameters=[VERSION], answer=StateResponse, problems=(*_READ, "model_changed")
)
PUT_STATE = route(
    "copies",
    path=STREAM_PATH,
    parameters=[VERSION, IDEMPOTENCY_KEY],
    body=StateBody,
    answer=PositionResponse,
    problems=(*_WRITE, "bad_input", "non_finite", "model_changed", "precondition_required", "stream_quota"),
)
SNAPSHOTS = route("copies", path=STREAM_PATH, answer=SnapshotsResponse, problems=_READ)
SNAPSHOT = route(
    "copies",
    path=_SNAPSHOT_PATH,
    answer=SnapshotResponse,
    problems=(*_READ, "snapshot_not_found", "model_changed"),
)
PUT_SNAPSHOT = route(
    "copies",
    path=_SNAPSHOT_PATH,
    parameters=[IDEMPOTENCY_KEY],
    body=SnapshotBody,
    answer=NewSnapshotResponse,
    problems=(*_WRITE, "precondition_required", "stream_quota"),
)
DELETE_SNAPSHOT = route(
    "copies",
    path=_SNAPSHOT_PATH,
    parameters=[IDEMPOTENCY_KEY],
    problems=(*STREAM_WRITE, "idempotency_key_reused", "precondition_required"),
    status=204,
)

"""The documentation of the routes of releases."""

from __future__ import annotations

import functools

from stepwell.addons.api_schemas.routes import COMMON_PROBLEMS, IDEMPOTENCY_KEY, STREAM_PATH, STREAM_WRITE, ref, route
from stepwell.addons.releases.bodies import EndBody, GateBody, ReleaseBody, StreamMoveBody, SweepBody
from stepwell.addons.releases.responses import ReleaseResponse, StreamMoveResponse

_READ = (*COMMON_PROBLEMS, "store_unavailable", "bad_request", "model_not_found", "state_corrupt")
_WRITE = (
    *_READ,
    *("bad_json", "too_large", "unsupported_encoding", "bad_release", "release_changed", "release_refused"),
    *("overloaded", "outcome_unknown", "store_full", "not_durable"),
)
_release = functools.partial(route, "releases", path=["model"], answer=ReleaseResponse)

ref(GateBody)  # named by the schema of `ReleaseBody`

RELEASE = _release(problems=_READ)
PUT_RELEASE = _release(body=ReleaseBody, problems=(*_WRITE, "version_not_found"))
PROMOTE = _release(body=EndBody, problems=_WRITE)
ABORT = _release(body=EndBody, problems=_WRITE)
MOVE = route(
    "releases",
    path=STREAM_PATH,
    parameters=[IDEMPOTENCY_KEY],
    body=StreamMoveBody,
    answer=StreamMoveResponse,
    problems=(
        *STREAM_WRITE,
        *("stream_not_found", "version_not_found", "state_changed", "release_refused", "model_changed", "bad_release"),
        *("idempotency_key_reused", "precondition_required", "state_corrupt", "record_version"),
    ),
)
MOVE_ALL = _release(body=SweepBody, problems=_WRITE, status=202)

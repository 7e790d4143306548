"""Problem documents of RFC 9457, and the table of HTTP statuses and titles of all error codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from service.errors import ServiceError
from service.ids import encode_state_id

PROBLEMS: dict[str, tuple[int, str]] = {
    "bad_json": (400, "The body cannot be read"),
    "bad_request": (400, "The request is not well formed"),
    "unauthenticated": (401, "No valid key"),
    "forbidden": (403, "Not allowed"),
    "model_not_found": (404, "No such model"),
    "stream_not_found": (404, "No such stream"),
    "snapshot_not_found": (404, "No such snapshot"),
    "version_not_found": (404, "No such version"),
    "not_found": (404, "No such route"),
    "method_not_allowed": (405, "Method not allowed"),
    "seq_gap": (409, "Timesteps are missing in between"),
    "seq_passed": (409, "This position was applied before"),
    "seq_conflict": (409, "This position was taken by another request"),
    "source_passed": (409, "This position of the source was applied before"),
    "state_changed": (409, "The stream has another history"),
    "stream_exists": (409, "The stream exists"),
    "model_changed": (409, "The stream belongs to another model version"),
    "release_changed": (409, "The release was changed by another request"),
    "release_refused": (409, "The release does not allow this"),
    "too_large": (413, "Too large"),
    "unsupported_encoding": (415, "The body's encoding is not supported"),
    "bad_input": (422, "An input does not fit the model"),
    "bad_release": (422, "The release is not well formed"),
    "non_finite": (422, "An input is not finite"),
    "non_finite_state": (422, "The new state is not finite"),
    "idempotency_key_reused": (422, "The key was used for another request"),
    "precondition_required": (428, "A precondition is required"),
    "stream_quota": (429, "Too many streams"),
    "rate_limited": (429, "Too many requests"),
    "state_corrupt": (500, "The stored state cannot be read"),
    "internal": (500, "Internal error"),
    "overloaded": (503, "The service is overloaded"),
    "draining": (503, "This process is about to end"),
    "store_unavailable": (503, "The store is unavailable"),
    "outcome_unknown": (503, "The outcome is unknown"),
    "store_full": (503, "The store is full"),
    "not_durable": (503, "The step is not as durable as promised"),
    "model_timeout": (503, "The model took too long"),
    "record_version": (503, "The state was written by another release"),
}
"""HTTP status and title of every code."""

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""Seconds that a client should wait before it retries, if the error has no better estimate."""


class UnreadBodyError(ServiceError):
    """A request was rejected before its whole body was received, so the connection cannot be reused."""


def status_of(error: ServiceError) -> int:
    """Return the HTTP status of an error."""
    return PROBLEMS[error.code][0]


def problem_document(error: ServiceError) -> dict[str, Any]:
    """Return the problem document of an error; optional members without a value are left out."""
    status, title = PROBLEMS[error.code]
    document: dict[str, Any] = {
        "type": f"/docs/errors#{error.code}",
        "title": title,
        "status": status,
        "detail": str(error),
        "code": error.code,
        "applied": error.applied,
        "retry": error.retry,
    }
    for name in ("step", "expected", "at", "revision"):
        if (value := getattr(error, name)) is not None:
            document[name] = value
    if error.state_id is not None:
        document["state_id"] = encode_state_id(error.state_id)
    return document


def problem_body(error: ServiceError) -> bytes:
    """Return the problem document as JSON."""
    return msgspec.json.encode(problem_document(error))


def problem_headers(error: ServiceError, status: int) -> dict[str, str]:
    """Return the headers that an error response with this status needs."""
    if status in (429, 503):
        return {"retry-after": str(max(RETRY_AFTER_S, math.ceil(error.retry_after_s or 0)))}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


def response_headers(body: bytes, media_type: str, more: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response with this body; names are in lower case."""
    return [
        (b"content-type", media_type.encode("latin-1")),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in more.items()),
    ]


def internal_error() -> ServiceError:
    """Return the error for an unexpected exception, without details, which are in the server's log."""
    return ServiceError(
        "internal",
        "An unexpected error occurred.",
        fix="Send the same again with seq, after or Idempotency-Key; report it to the operator, whose log has details.",
        applied="unknown",
    )


def body_timeout(seconds: float) -> UnreadBodyError:
    """Return the error for a request whose body did not arrive within some seconds."""
    return UnreadBodyError(
        "bad_request", f"The body did not arrive within {seconds:g} s.", fix="Send the whole body at once."
    )

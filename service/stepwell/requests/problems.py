"""Problem documents of RFC 9457."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from stepwell.error_codes import CODES
from stepwell.errors import ServiceError
from stepwell_client.wire.ids import encode_state_id

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""Seconds that a client should wait before it retries, if the error has no better estimate."""


class UnreadBodyError(ServiceError):
    """A request was rejected before its whole body was received, so the connection cannot be reused."""


def status_of(error: ServiceError) -> int:
    """Return the HTTP status of an error."""
    return CODES[error.code].status


def problem_document(error: ServiceError) -> dict[str, Any]:
    """Return the problem document of an error; optional members without a value are left out."""
    status, _, title, _ = CODES[error.code]
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

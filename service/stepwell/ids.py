"""Stream ids in requests, checked: what is none raises the service's error; and the limit of idempotency keys."""

from __future__ import annotations

from typing import Final

from stepwell.errors import ServiceError
from stepwell_client.wire.ids import is_stream_id, stream_id_problem

IDEMPOTENCY_KEY_LIMIT: Final = 255
"""Maximum length of an `Idempotency-Key`, in characters."""


def check_stream_id(text: str) -> str:
    """Return a stream id after checking it.

    Raises:
        ServiceError: `bad_request`: not 1 to 128 of `A-Z a-z 0-9 . _ : @ -`, or `.` or `..`.
    """
    if not is_stream_id(text):
        raise bad_stream_id(text)
    return text


def bad_stream_id(text: str) -> ServiceError:
    """Return the error for an invalid stream id."""
    return ServiceError("bad_request", stream_id_problem(text), fix="Use such a stream id.")

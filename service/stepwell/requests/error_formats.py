"""`ErrorFormat`: status and body of the errors of a family of routes.

The native routes respond with problem documents. The Open Inference Protocol has one key, `error`, and Triton's
statuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from stepwell.codec.oip import TritonError
from stepwell.errors import ServiceError
from stepwell.requests.problems import MEDIA_TYPE, problem_body, problem_headers, response_headers, status_of
from stepwell.types import Transport

_DRAINING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
_KEPT: Final = frozenset(
    {401, 403, 404, 405, 413, 415, 429, 500, 503}
)  # of our statuses; Triton has 400 for the others


class RawHttpResponse(NamedTuple):
    """A complete response.

    Attributes:
        status: The HTTP status.
        headers: Names in lower case, and values.
        body: The bytes of the body.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """How a family of routes responds with an error.

    Attributes:
        transport: The transport that the metrics count its requests under.
        media_type: Media type of an error response.
        status: Returns the HTTP status of an error.
        body: Returns the body of an error response.
    """

    transport: Transport
    media_type: str
    status: Callable[[ServiceError], int]
    body: Callable[[ServiceError], bytes]

    def response(self, error: ServiceError) -> RawHttpResponse:
        """Return the complete response to a request that failed with this error."""
        status, body = self.status(error), self.body(error)
        return RawHttpResponse(status, response_headers(body, self.media_type, problem_headers(error, status)), body)


def oip_status(error: ServiceError) -> int:
    """Return the HTTP status of an error of the Open Inference Protocol."""
    if isinstance(error, TritonError) and error.status is not None:
        return error.status
    status = status_of(error)
    return 400 if status not in _KEPT or error.code == "stream_not_found" else status


def oip_message(error: ServiceError) -> str:
    """Return the text of an error of the Open Inference Protocol.

    Errors that Triton does not have add our code, and whether the request was applied.
    """
    if isinstance(error, TritonError):
        return str(error)
    if error.code == "draining":
        return _DRAINING
    return f"{str(error).replace('`seq`', '`step`')} (code: {error.code}, applied: {error.applied})"


def _oip_body(error: ServiceError) -> bytes:
    return msgspec.json.encode({"error": oip_message(error)})


NATIVE: Final = ErrorFormat("http", MEDIA_TYPE, status_of, problem_body)
OIP: Final = ErrorFormat("oip", "application/json", oip_status, _oip_body)


def error_format_of(path: str) -> ErrorFormat:
    """Return the error format of the routes at a path."""
    return OIP if path.startswith("/v2/") or path == "/v2" else NATIVE

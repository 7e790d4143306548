"""`ErrorFormat`: status and body of the errors of a family of routes; the native ones have problem documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from stepwell.errors import ServiceError
from stepwell.requests.problems import MEDIA_TYPE, problem_body, problem_headers, response_headers, status_of
from stepwell.types import Transport


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


NATIVE: Final = ErrorFormat("http", MEDIA_TYPE, status_of, problem_body)

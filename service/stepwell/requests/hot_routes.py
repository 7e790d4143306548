"""`HotRoute`: how an add-on declares a route that is requested often, for an add-on that handles such requests faster.

The route stays declared in FastAPI, which handles every request if there is no such add-on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stepwell.requests.context import AppContext
from stepwell.requests.error_formats import NATIVE, ErrorFormat
from stepwell.requests.handlers import RequestHandler
from stepwell_client.wire.formats import Format

MODEL_PATH: Final = r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
"""The pattern of the path of a model; its group is the name."""

_LENGTH_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The relevant headers of a plain request.

    Attributes:
        authorization: As sent, or None.
        idempotency_key: 1 to 255 characters, or None.
        origin: The origin of the browser's page, or None.
        host: As sent, or None.
        length: Length of the body in bytes, or None.
        request_format: The format of the body.
        response_format: The format of the response.
        document_bytes: Length in bytes of the JSON document at the start of the body, which raw bytes follow; None:
            the whole body is the document.
        has_valid_host: There is a `Host`, and its value is valid; else the declared route rejects the request.
    """

    authorization: str | None
    idempotency_key: str | None
    origin: str | None
    host: str | None
    length: int | None
    request_format: Format
    response_format: Format
    document_bytes: int | None = None
    has_valid_host: bool = True


def is_byte_count(text: str) -> bool:
    """Return whether a header's value is a number of bytes."""
    return text.isascii() and text.isdecimal() and len(text) <= _LENGTH_DIGITS


class HotRoute(NamedTuple):
    """A hot route; its method is POST.

    Attributes:
        prefix: Common prefix of its paths.
        path: The pattern of its paths; the declared route handles paths that do not match.
        name: The declared route, for the metrics.
        make: Creates the handler, from the groups of the pattern, the requested version, and the headers. Raises the
            `ServiceError` that the declared route would respond with.
        error_format: Status and body of its errors.
    """

    prefix: str
    path: str
    name: str
    make: Callable[[AppContext, Sequence[str], int | None, RequestHeaders], RequestHandler]
    error_format: ErrorFormat = NATIVE

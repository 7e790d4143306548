"""The table of hot routes, and the parser of their request headers, for the fast path.

A hot route is a row: the pattern of its path, and a function that creates the `RequestHandler` of a request; those of
add-ons come from `ServiceAddon.hot_routes`. The route stays declared in FastAPI, which handles every request with an
unusual head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stepwell.codec import Format
from stepwell.requests.context import AppContext
from stepwell.requests.error_formats import NATIVE, ErrorFormat
from stepwell.requests.handlers import BulkHandler, RequestHandler, StepHandler
from stepwell.types import StreamKey
from stepwell_client.wire.formats import format_of_answer, format_of_body

VERSION: Final = r"version=([1-9][0-9]{0,8})"
"""Pattern of the only query that a hot request may have."""

KEY_LIMIT: Final = 255
"""Maximum length of an Idempotency-Key, in characters."""

_LENGTH_DIGITS: Final = 10
MODEL_PATH: Final = r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
"""The pattern of the path of a model; its group is the name."""

_STREAM: Final = r"/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128})"
RELEVANT_HEADERS: Final = frozenset({
    b"authorization", b"idempotency-key", b"origin", b"host", b"content-type", b"accept", b"content-length",
    b"content-encoding", b"inference-header-content-length", b"sec-fetch-site",
})  # fmt: skip
"""Names of the headers that change how a hot request is handled; all others are ignored."""

HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""The value of `Host`: a name or an address, and a port (RFC 9110, 7.2). It may be empty, but not missing."""
_NO_HOST: Final = "/"


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


def parse_headers(headers: Iterable[tuple[bytes, bytes]]) -> RequestHeaders | None:
    """Return the relevant headers; None: one is duplicate or invalid, or only the declared route handles it.

    Args:
        headers: Names in lower case, and values.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in RELEVANT_HEADERS:
            if name in found:
                return None
            found[name] = value.decode("latin-1")
    key, length = found.get(b"idempotency-key"), found.get(b"content-length")
    if (key is not None and not 1 <= len(key) <= KEY_LIMIT) or (length is not None and not length.isdecimal()):
        return None
    document = found.get(b"inference-header-content-length")
    if b"sec-fetch-site" in found and b"origin" not in found:
        return None  # from a browser: the declared route checks the Host header
    if b"content-encoding" in found or (document is not None and not is_byte_count(document)):
        return None
    request_format = format_of_body(found.get(b"content-type"))
    return RequestHeaders(
        found.get(b"authorization"),
        key,
        found.get(b"origin"),
        found.get(b"host"),
        None if length is None else int(length),
        request_format,
        format_of_answer(found.get(b"accept"), request_format),
        None if document is None else int(document),
        HOST.fullmatch(found.get(b"host", _NO_HOST)) is not None,
    )


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


def make_handler(
    route: HotRoute, context: AppContext, parts: Sequence[str], version: int | None, headers: RequestHeaders
) -> RequestHandler:
    """Return the handler of a request, after checking that its head is allowed.

    Raises:
        ServiceError: The head is rejected.
    """
    if headers.origin is not None:
        context.check_origin(headers.origin, headers.host)
    return route.make(context, parts, version, headers)


def _step(context: AppContext, parts: Sequence[str], version: int | None, headers: RequestHeaders) -> StepHandler:
    model, stream, action = parts
    tenant = context.authenticate_and_count(headers.authorization, "step").tenant
    served = context.engine.models.get(model, version)
    return StepHandler(
        context,
        served,
        StreamKey(tenant, served.name, stream),
        action == "steps",
        version,
        headers.idempotency_key,
        headers.request_format,
        headers.response_format,
    )


def _bulk(context: AppContext, parts: Sequence[str], version: int | None, headers: RequestHeaders) -> BulkHandler:
    model, action = parts
    tenant = context.authenticate_and_count(headers.authorization, "step").tenant
    served = context.engine.models.get(model, version)
    return BulkHandler(
        context,
        served,
        tenant,
        action == "steps",
        version,
        headers.idempotency_key,
        headers.request_format,
        headers.response_format,
    )


HOT_ROUTES: Final = (
    HotRoute("/v1/models/", f"{MODEL_PATH}{_STREAM}/(step)", "POST /v1/models/{model}/streams/{stream}/step", _step),
    HotRoute("/v1/models/", f"{MODEL_PATH}{_STREAM}/(steps)", "POST /v1/models/{model}/streams/{stream}/steps", _step),
    HotRoute("/v1/models/", f"{MODEL_PATH}/(step)", "POST /v1/models/{model}/step", _bulk),
    HotRoute("/v1/models/", f"{MODEL_PATH}/(steps)", "POST /v1/models/{model}/steps", _bulk),
)

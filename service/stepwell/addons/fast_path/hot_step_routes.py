"""The hot routes of steps, and the parser of the headers of hot requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from stepwell.ids import IDEMPOTENCY_KEY_LIMIT
from stepwell.protocols.http_limits import HOST
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import BulkHandler, RequestHandler, StepHandler
from stepwell.requests.hot_routes import MODEL_PATH, HotRoute, RequestHeaders, is_byte_count
from stepwell.types import StreamKey
from stepwell_client.wire.formats import format_of_answer, format_of_body

VERSION: Final = r"version=([1-9][0-9]{0,8})"
"""Pattern of the only query that a hot request may have."""

_STREAM: Final = r"/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128})"
RELEVANT_HEADERS: Final = frozenset({
    b"authorization", b"idempotency-key", b"origin", b"host", b"content-type", b"accept", b"content-length",
    b"content-encoding", b"inference-header-content-length", b"sec-fetch-site",
})  # fmt: skip
"""Names of the headers that change how a hot request is handled; all others are ignored."""

_NO_HOST: Final = "/"


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
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_LIMIT:
        return None
    if length is not None and not length.isdecimal():
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


STEP_ROUTES: Final = (
    HotRoute("/v1/models/", f"{MODEL_PATH}{_STREAM}/(step)", "POST /v1/models/{model}/streams/{stream}/step", _step),
    HotRoute("/v1/models/", f"{MODEL_PATH}{_STREAM}/(steps)", "POST /v1/models/{model}/streams/{stream}/steps", _step),
    HotRoute("/v1/models/", f"{MODEL_PATH}/(step)", "POST /v1/models/{model}/step", _bulk),
    HotRoute("/v1/models/", f"{MODEL_PATH}/(steps)", "POST /v1/models/{model}/steps", _bulk),
)

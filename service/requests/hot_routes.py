"""The table of hot routes, and what the heads of their requests contain, for the fast lane.

A further hot route is a row here: the pattern of its path, and a function that makes a `RequestHandler` of a request. The route
stays declared in FastAPI; a request whose head is in any way unusual is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from service.codec import Format
from service.codec.formats import format_of_answer, format_of_body
from service.requests.context import AppContext
from service.requests.error_formats import NATIVE, OIP, ErrorFormat
from service.requests.handlers import BulkHandler, RequestHandler, StepHandler
from service.requests.infer_handler import InferHandler, model_for_oip
from service.types import StreamKey

VERSION: Final = r"version=([1-9][0-9]{0,8})"
"""Pattern of the one query that hot requests may have."""

KEY_LIMIT: Final = 255
"""Characters of an Idempotency-Key."""

_LENGTH_DIGITS: Final = 10
_MODEL: Final = r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
_OIP_MODEL: Final = r"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
_STREAM: Final = r"/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128})"
ASKED: Final = frozenset({
    b"authorization", b"idempotency-key", b"origin", b"host", b"content-type", b"accept", b"content-length",
    b"content-encoding", b"inference-header-content-length", b"sec-fetch-site",
})  # fmt: skip
"""Names of the headers that matter to a hot request."""


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """What the headers of a plain request say.

    Attributes:
        authorization: As sent, or None.
        idempotency_key: 1 to 255 characters, or None.
        origin: The browser's page, or None.
        host: As sent, or None.
        length: Of the body, in bytes, or None.
        form: The format of the body.
        answer_form: The format of the answer.
        document_bytes: How much of the body is a JSON document that raw bytes follow, or None.
    """

    authorization: str | None
    idempotency_key: str | None
    origin: str | None
    host: str | None
    length: int | None
    request_format: Format
    response_format: Format
    document_bytes: int | None = None


def parse_headers(headers: Iterable[tuple[bytes, bytes]]) -> RequestHeaders | None:
    """Return what headers contain, None where one that matters is there twice or wrong, or is the declared route's.

    Args:
        headers: Names in lower case, and values.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in ASKED:
            if name in found:
                return None
            found[name] = value.decode("latin-1")
    key, length = found.get(b"idempotency-key"), found.get(b"content-length")
    if (key is not None and not 1 <= len(key) <= KEY_LIMIT) or (length is not None and not length.isdecimal()):
        return None
    document = found.get(b"inference-header-content-length")
    if b"sec-fetch-site" in found and b"origin" not in found:
        return None  # a browser's, whose own name is to be checked
    if b"content-encoding" in found or (document is not None and not is_byte_count(document)):
        return None
    form = format_of_body(found.get(b"content-type"))
    return RequestHeaders(
        found.get(b"authorization"),
        key,
        found.get(b"origin"),
        found.get(b"host"),
        None if length is None else int(length),
        form,
        format_of_answer(found.get(b"accept"), form),
        None if document is None else int(document),
    )


def is_byte_count(text: str) -> bool:
    """Say whether a header's value is a number of bytes."""
    return text.isascii() and text.isdecimal() and len(text) <= _LENGTH_DIGITS


class HotRoute(NamedTuple):
    """A hot route; its method is POST.

    Attributes:
        prefix: How its paths begin.
        path: The pattern of its paths; whatever it does not match is left to the declared route.
        call: Makes the call, of what the pattern's groups matched, the version that was asked for, and the headers.
            Raises the `ServiceError` that the declared route would answer.
        dialect: How it says what is refused.
    """

    prefix: str
    path: str
    make: Callable[[AppContext, Sequence[str], int | None, RequestHeaders], RequestHandler]
    error_format: ErrorFormat = NATIVE


def make_handler(
    route: HotRoute, context: AppContext, parts: Sequence[str], version: int | None, fields: RequestHeaders
) -> RequestHandler:
    """Return what a request asks for, once it is sure that its head is allowed.

    Raises:
        ServiceError: It is refused.
    """
    if fields.origin is not None:
        context.check_origin(fields.origin, fields.host)
    return route.make(context, parts, version, fields)


def _step(context: AppContext, parts: Sequence[str], version: int | None, fields: RequestHeaders) -> StepHandler:
    model, stream, what = parts
    tenant = context.authenticate_and_count(fields.authorization, "step").tenant
    served = context.engine.models.get(model, version)
    return StepHandler(
        context,
        served,
        StreamKey(tenant, served.name, stream),
        what == "steps",
        version,
        fields.idempotency_key,
        fields.request_format,
        fields.response_format,
    )


def _columns(context: AppContext, parts: Sequence[str], version: int | None, fields: RequestHeaders) -> BulkHandler:
    model, what = parts
    tenant = context.authenticate_and_count(fields.authorization, "step").tenant
    served = context.engine.models.get(model, version)
    return BulkHandler(
        context,
        served,
        tenant,
        what == "steps",
        version,
        fields.idempotency_key,
        fields.request_format,
        fields.response_format,
    )


def _infer(context: AppContext, parts: Sequence[str], _version: int | None, fields: RequestHeaders) -> InferHandler:
    model, *versions = parts
    return make_infer_handler(context, model, versions[0] if versions else None, fields)


def make_infer_handler(context: AppContext, model: str, version: str | None, fields: RequestHeaders) -> InferHandler:
    """Return what an infer request asks for.

    Args:
        context: What every route needs.
        model: As the path names it.
        version: As the path names it, or None.
        fields: The headers.

    Raises:
        ServiceError: It is refused.
    """
    tenant = context.authenticate_and_count(fields.authorization, "step").tenant
    served = model_for_oip(context, model, version)
    return InferHandler(
        context,
        served,
        None if version is None else served.version,
        tenant,
        fields.idempotency_key,
        fields.document_bytes,
    )


HOT_ROUTES: Final = (
    HotRoute("/v1/models/", f"{_MODEL}{_STREAM}/(steps?)", _step),
    HotRoute("/v1/models/", f"{_MODEL}/(steps?)", _columns),
    HotRoute("/v2/models/", f"{_OIP_MODEL}/infer", _infer, OIP),
    HotRoute("/v2/models/", f"{_OIP_MODEL}/versions/([1-9][0-9]{{0,8}})/infer", _infer, OIP),
)

"""Code that all HTTP routes share: reading requests, writing responses, and turning errors into problems."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stepwell.asgi.query import version_of
from stepwell.engine.streams.resets import ReplacedPosition
from stepwell.errors import ServiceError
from stepwell.ids import IDEMPOTENCY_KEY_LIMIT, check_stream_id
from stepwell.models.served import ServedModel
from stepwell.requests.audit import Action
from stepwell.requests.auth.api_keys import Caller
from stepwell.requests.auth.api_keys import Scope as KeyScope
from stepwell.requests.context import AppContext
from stepwell.requests.error_formats import NATIVE, ErrorFormat
from stepwell.requests.handlers import RequestHandler, run
from stepwell.requests.large_bodies import LargeBodies
from stepwell.requests.problems import UnreadBodyError, body_timeout, internal_error, problem_headers, response_headers
from stepwell.requests.request_ids import RESPONSE_HEADER, SCOPE_KEY, log_fields, request_id_of
from stepwell.types import StreamKey
from stepwell_client.wire.formats import JSON, Format, encode, format_of_answer, format_of_body

T = TypeVar("T")
_log = logging.getLogger(__name__)
_DRAIN_S = 1.0
_NOT_FOUND = frozenset({"stream_not_found", "snapshot_not_found"})  # of a GET: the answer to a look-up, no refusal


class RawResponse(Response):
    """A response with a complete body; it computes only the headers that are needed."""

    def __init__(
        self, body: bytes, media_type: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Create a response.

        Args:
            body: The encoded body.
            media_type: The value of `Content-Type`.
            status: The HTTP status.
            headers: Further headers; names in lower case.
        """
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = response_headers(body, media_type, headers or {})


class RespondThenCloseResponse(RawResponse):
    """A response that is sent before the whole request body was read; then the connection closes.

    Closing at once would reset a connection that has unread input, and the client might not receive the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then discard input for at most a second, then end."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class RawRoute(APIRoute):
    """A declared and documented FastAPI route whose endpoint gets the raw request and returns the response.

    FastAPI's own parsing and validation would cost five times what a step costs; the codec validates bodies.
    """

    context: ClassVar[AppContext]

    @property
    def error_format(self) -> ErrorFormat:
        """Status and body of its errors."""
        return self.context.error_format_of(self.path)

    @property
    def name_for_metrics(self) -> str:
        """Method and path, with the names of the path's parameters."""
        return f"{' '.join(sorted(self.methods or ()))} {self.path}"

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a wrapper of the endpoint that turns errors into problems and counts every response."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        error_format, name = self.error_format, self.name_for_metrics

        async def handle(request: Request) -> Response:
            context: AppContext = request.app.state.context
            work = _checked(request, context, endpoint)
            return await run_with_problems(work, request, context, error_format, name)

        return handle


def raw_route_class(context: AppContext) -> type[RawRoute]:
    """Return the class of all routes of an application."""
    return type("RawRoute", (RawRoute,), {"context": context})


async def _checked(
    request: Request, context: AppContext, endpoint: Callable[[Request], Awaitable[Response]]
) -> Response:
    reject_escaped_slash(request.scope)
    headers = request.headers
    if request.method != "GET" and (origin := headers.get("origin")) is not None:
        context.check_origin(origin, headers.get("host"))
    elif "sec-fetch-site" in headers:  # sent by browsers only
        context.check_host(headers.get("host"))
    return await endpoint(request)


async def run_with_problems(
    work: Awaitable[Response], request: Request, context: AppContext, error_format: ErrorFormat, route: str
) -> Response:
    """Await the response to a request, turn an error into a problem response, and count the response."""
    try:
        response = await work
    except ClientDisconnect:
        response = RawResponse(
            b"", error_format.media_type, status=499
        )  # the client has disconnected and does not receive it
    except ServiceError as exc:
        if request.method != "GET" or exc.code not in _NOT_FOUND:
            context.metrics.refusal(exc.code)
        response = problem_response(exc, error_format)
    except Exception as exc:  # noqa: BLE001 - logged, and reported as `internal`
        fields = log_fields(request.scope.get(SCOPE_KEY) or request_id_of(request.scope["headers"]))
        _log.error("A request failed: %s %a", request.method, request.scope["path"], exc_info=exc, extra=fields)
        context.metrics.refusal("internal")
        response = problem_response(internal_error(), error_format)
    context.metrics.request(error_format.transport, response.status_code, route)
    return with_request_id(response, request.scope)


async def run_handler(handler: RequestHandler, body: bytes, request: Request, context: AppContext) -> bytes:
    """Submit a request, trace it if it is sampled, and return its response body.

    Raises:
        ServiceError: As for `run`.
    """
    if (tracer := context.tracer) is None:
        return await run(lambda done: handler.submit(body, done), handler)
    request_id = tracer.sample(request_id_of(request.scope["headers"], tracer))
    request.scope[SCOPE_KEY] = request_id
    declared: RawRoute = request.scope["route"]
    route, status_of = declared.name_for_metrics, declared.error_format.status
    return await run(
        lambda done: tracer.submit(handler, body, done, request_id=request_id, route=route, status_of=status_of),
        handler,
    )


def with_request_id(response: Response, scope: Scope) -> Response:
    """Add the request's id to a response, if the request has one; return the response."""
    if request_id := request_id_of(scope["headers"]):
        response.raw_headers = [*response.raw_headers, (RESPONSE_HEADER, request_id)]
    return response


def problem_response(error: ServiceError, error_format: ErrorFormat = NATIVE) -> Response:
    """Return the response to a request that failed."""
    response_class = RespondThenCloseResponse if isinstance(error, UnreadBodyError) else RawResponse
    status = error_format.status(error)
    return response_class(
        error_format.body(error), error_format.media_type, status=status, headers=problem_headers(error, status)
    )


def reject_escaped_slash(scope: Scope) -> None:
    """Reject an escaped slash: it is decoded before routing, so it could select another route.

    Raises:
        ServiceError: `bad_request`: the path has `%2F`.
    """
    if b"%2f" in scope.get("raw_path", b"").lower():
        raise ServiceError(
            "bad_request",
            "The path has an escaped slash (%2F); expected names of models and streams without slashes.",
            fix="Stream ids are 1 to 128 of A-Z a-z 0-9 . _ : @ -.",
        )


def model_of(request: Request, context: AppContext) -> ServedModel:
    """Return the model in the path, in the version in the query.

    Raises:
        ServiceError: `model_not_found`, or `bad_request`: the version is not a valid number.
    """
    return context.engine.models.get(request.path_params["model"], version_of(request))


def stream_of(request: Request, context: AppContext, tenant: str) -> StreamKey:
    """Return the key of the stream in the path; its model exists.

    Raises:
        ServiceError: As for `model_of`, and `bad_request`: the stream id is not valid.
    """
    return StreamKey(tenant, model_of(request, context).name, check_stream_id(request.path_params["stream"]))


def authorize(request: Request, context: AppContext, scope: KeyScope) -> Caller:
    """Return the caller of a request, after checking the scope; `audited` logs this caller.

    Raises:
        ServiceError: `unauthenticated`, `forbidden`, or `rate_limited`.
    """
    caller = context.authenticate_and_count(request.headers.get("authorization"), scope)
    request.state.caller = caller
    return caller


def audited(
    request: Request, context: AppContext, action: Action, **fields: Any
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """Return a context that logs an operation when it ends; the request was authorized before.

    Args:
        request: The request.
        context: The dependencies of every route.
        action: The operation.
        fields: What it concerns, as for `AuditLog.operation`.
    """
    request_id = request_id_of(request.scope["headers"])
    return context.audit.operation(action, request.state.caller, request_id, **fields)


def replacement_fields(position: ReplacedPosition) -> dict[str, Any]:
    """Return the audit fields of a stream whose state was replaced, or that was moved."""
    replayed = position.replayed or None
    return {"state_id_before": position.before, "state_id_after": position.state_id, "replayed": replayed}


def authorized_stream(request: Request, context: AppContext, scope: KeyScope) -> StreamKey:
    """Return the key of the stream in the path, after checking that the caller has the scope.

    Raises:
        ServiceError: As for `stream_of`, and `unauthenticated` or `forbidden`.
    """
    return stream_of(request, context, authorize(request, context, scope).tenant)


def idempotency_key_of(request: Request) -> str | None:
    """Return the `Idempotency-Key`, or None.

    Raises:
        ServiceError: `bad_request`: it does not have 1 to 255 characters, or there are several.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) == 1 and 1 <= len(keys[0]) <= IDEMPOTENCY_KEY_LIMIT:
        return keys[0]
    found = f"{len(keys)} of them" if len(keys) > 1 else f"{len(keys[0])} characters"
    raise ServiceError(
        "bad_request",
        f"The Idempotency-Key header has {found}; expected one of 1 to {IDEMPOTENCY_KEY_LIMIT} characters.",
        fix="Send one fresh key per request, and the same again with its retries.",
    )


async def decoded(context: AppContext, body: bytes, decode: Callable[[bytes], T]) -> T:
    """Return what a function returns that decodes a body, called in a thread if the body is large."""
    return await context.large_bodies.decode(lambda: decode(body)) if LargeBodies.is_large(body) else decode(body)


async def body_of(request: Request, context: AppContext, *, encodings: Sequence[str] = ()) -> bytes:
    """Return the request's body, as it came.

    Args:
        request: The request.
        context: Has the limits.
        encodings: What its `Content-Encoding` may be, beside none and `identity`.

    Raises:
        ServiceError: `too_large`, before it is read where its length is declared; `unsupported_encoding`, before it is
            read; `bad_request` where it does not come.
        ClientDisconnect: The client has gone.
    """
    found = encoding_of(request)
    if found not in ("identity", *encodings):
        raise UnreadBodyError(
            "unsupported_encoding",
            f"The body's Content-Encoding is {found[:40]!a}; expected none, or {_any_of(['identity', *encodings])}.",
            fix="Send the body as it is, without a Content-Encoding.",
        )
    limit, seconds = context.settings.max_body_bytes, context.settings.receive_timeout_s
    length = request.headers.get("content-length")
    if length is not None and int(length) > limit:
        raise _too_large(f"{int(length)} bytes", limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read(request.receive, limit)
    except TimeoutError:
        raise body_timeout(seconds) from None


def encoding_of(request: Request) -> str:
    """Return the `Content-Encoding` of the body, in lower case; `identity` where there is none."""
    return ", ".join(request.headers.getlist("content-encoding")).strip().lower() or "identity"


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(f"more than {limit} bytes", limit)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(size: str, limit: int) -> ServiceError:
    return UnreadBodyError(
        "too_large",
        f"The body has {size}; at most {limit} are accepted.",
        fix="Send it in parts, or raise `max_body_bytes`.",
    )


def _any_of(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def respond(document: Any, request: Request, body: Format = JSON, *, status: int = 200) -> Response:
    """Return a response with a document, in the format that the request accepts."""
    response_format = format_of_answer(request.headers.get("accept"), body)
    return RawResponse(encode(document, response_format), response_format.value, status=status)


def format_of(request: Request) -> Format:
    """Return the format of the request's body."""
    return format_of_body(request.headers.get("content-type"))

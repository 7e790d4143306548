"""`submit_traced`: submits a request whose body is not decoded yet, and traces it if it is sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from stepwell.addons.tracing.tracer import StatusOf, Tracer

if TYPE_CHECKING:
    from stepwell.requests.handlers import RequestHandler

SCOPE_KEY: Final = "stepwell.request_id"
"""Where the scope of a declared route's request has its id, if traces are on."""


def submit_traced(
    tracer: Tracer,
    handler: RequestHandler,
    body: bytes,
    done: Callable[[Any], None],
    *,
    request_id: bytes,
    route: str,
    status_of: StatusOf,
    stream: str | None = None,
    received_s: float | None = None,
) -> None:
    """Submit a request as `RequestHandler.submit` does.

    Args:
        tracer: Traces it, if `request_id` is a `TracedId`.
        handler: Decodes and submits it.
        body: The body.
        done: Gets the result.
        request_id: The result of `Tracer.sample`.
        route: Method and path of its route.
        status_of: Returns the HTTP status of an error.
        stream: The stream; None: that of the handler, if it has one.
        received_s: When it was received, on the monotonic clock; None: now.

    Raises:
        ServiceError: The body was rejected; `done` is not called.
    """
    if stream is None:
        stream = getattr(getattr(handler, "key", None), "stream", None)  # a bulk request has several
    trace = tracer.start(
        request_id,
        route,
        status_of,
        model=handler.served.name,
        stream=stream,
        received_s=received_s,
    )
    if trace is None:
        handler.submit(body, done)
        return

    def on_result(result: Any) -> None:
        done(result)
        trace.end(result)

    try:
        handler.submit(body, on_result)
    except Exception as exc:
        trace.end(exc)
        raise
    trace.submitted()

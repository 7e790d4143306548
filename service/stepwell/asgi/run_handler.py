"""`run_handler`: runs the handler of a declared route, and traces the request if it is sampled."""

from __future__ import annotations

from fastapi import Request

from stepwell.asgi.http import RawRoute
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import RequestHandler, run
from stepwell.requests.request_ids import SCOPE_KEY, request_id_of


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

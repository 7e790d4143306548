"""`create_app`: puts the parts together; their life is the application's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.websockets import WebSocketDisconnect

from model_export.errors import StepwellError
from service.asgi.http import RawRoute, problem_response, reject_escaped_slash
from service.asgi.openapi import streams as openapi
from service.asgi.routes import admin, feed, oip, sse, stream_ops, streams, watch
from service.background import cancel, run_forever
from service.engine.engine import Engine, EngineOptions
from service.errors import ServiceError
from service.metrics import Metrics
from service.models.registry import ModelRegistry, ReloadReport
from service.models.reload import ADMITTED_ENV, CONTROL_ENV, ReloadCoordinator
from service.models.vetting import ModelVetting
from service.requests.context import AppContext
from service.requests.error_formats import error_format_of
from service.requests.jwt import keys_of
from service.requests.problems import internal_error
from service.settings import Settings
from service.store.checks.safety import SafetyMonitor
from service.store.state_store import StateStore

_log = logging.getLogger(__name__)
_COUNT_S = 10.0  # between two counts of streams, where their number is limited
_HOUSEKEEPING_S = 1.0  # between two readings of readiness and gauges, and of the models folders
_SAFETY_S = 5.0  # between two checks of the store's own settings


class NoStoreError(StepwellError):
    """The application is started without a store."""

    code = "no_store"


def create_app(settings: Settings) -> FastAPI:
    """Return the application; the store and the models are opened when it starts.

    Raises:
        KeysFileError: `api_keys_file` cannot be used.
    """
    version = importlib.metadata.version("stepwell")
    context = AppContext(settings, keys_of(settings), Metrics(version))
    app = FastAPI(
        title="Stepwell",
        version=version,
        lifespan=lambda app: _lifespan(app, context),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.router.route_class = RawRoute
    # FastAPI's own way to change it; all routes are there when somebody reads it
    app.openapi = functools.cache(lambda: openapi.document(app))  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(WebSocketDisconnect, _ignore_disconnect)
    app.add_exception_handler(Exception, _internal_error)
    streams.add_routes(app, context)  # first: routes are tried in their order, and these are asked for most
    oip.add_routes(app, context)
    feed.add_routes(app, context)
    stream_ops.add_routes(app, context)
    watch.add_routes(app, context)
    sse.add_routes(app, context)
    admin.add_routes(app, context)
    return app


def build_engine(settings: Settings, metrics: Metrics) -> Engine:
    """Return an engine over the store that is named; its models are not loaded yet.

    Raises:
        NoStoreError: None is named: `stepwell serve` starts the embedded one and names it.
    """
    if settings.redis is None:
        raise NoStoreError(
            "`redis` is not set, and an application by itself starts no store.",
            fix="Run `stepwell serve`, which starts one, or set STEPWELL_REDIS to a URL.",
        )
    store = StateStore(
        settings.redis,
        stream_ttl_s=settings.stream_ttl_s,
        idempotency_ttl_s=settings.idempotency_ttl_s,
        durability=settings.durability,
    )
    options = EngineOptions(
        max_batch_size=settings.max_batch_size,
        max_wait_s=settings.max_wait_ms / 1000,
        queue_limit=settings.queue_limit,
        queue_bytes=settings.queue_bytes,
        request_timeout_s=settings.request_timeout_s,
        run_timeout_s=settings.run_timeout_s,
        cache_bytes=settings.cache_bytes,
        tenant_rate=settings.tenant_rate,
        tenant_max_streams=settings.tenant_max_streams,
        snapshot_ttl_s=settings.snapshot_ttl_s,
        max_snapshots=settings.max_snapshots,
        history=settings.kept_history,
    )
    folder = os.environ.get(ADMITTED_ENV)
    load = ModelVetting(settings, Path(folder) if folder else None).load
    return Engine(store, ModelRegistry(settings.models, load), options, metrics)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, context: AppContext) -> AsyncIterator[None]:
    """Open what requests need, serve, and close it in reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        engine = build_engine(context.settings, context.metrics)
        stack.push_async_callback(engine.close)
        folder = os.environ.get(CONTROL_ENV)
        workers = ReloadCoordinator(engine.models.reload, Path(folder) if folder else None)
        report = await engine.models.reload()
        _log_failed(report)
        _log.info("Models: %s", ", ".join(report.loaded) or "none")

        await engine.start()

        context.engine, context.reload = engine, workers.reload_everywhere
        settings = context.settings
        context.safety = SafetyMonitor(engine.store, settings.durability, allow_eviction=settings.allow_eviction)
        await context.safety.check()
        app.state.engine = engine
        context.metrics.bind_gauges(
            models=engine.models.names,
            queue_rows=engine.queue_rows,
            watchers=lambda: len(engine.watch),
            websockets=lambda: context.websockets,
            ready=lambda: context.ready,
            store_safe=lambda: not context.safety.reasons,
            durability=settings.durability,
        )
        tasks = [asyncio.create_task(work) for work in (workers.watch(), *_background(context))]
        stack.push_async_callback(cancel, tasks)
        yield
        await engine.drain(context.settings.drain_s)
        context.metrics.refresh()  # other workers may still be asked


def _background(context: AppContext) -> Iterator[Coroutine[Any, Any, None]]:
    """Return what goes on for as long as requests are served, each to run in a task of its own."""
    engine, loop = context.engine, asyncio.get_running_loop()

    async def refresh() -> None:
        await context.check_readiness()
        context.metrics.refresh()

    async def count_streams() -> None:
        began = loop.time()
        with contextlib.suppress(ServiceError):  # the store does not answer: readiness reports it
            await engine.count_streams()
        # A count may cost the store a twentieth of its time at most.
        await asyncio.sleep(max(0.0, 20 * (loop.time() - began) - _COUNT_S))

    yield run_forever(refresh, every_s=_HOUSEKEEPING_S, name="Reading readiness and gauges")
    yield run_forever(context.safety.check, every_s=_SAFETY_S, name="Checking the store's settings")
    if context.settings.watch_models:
        yield run_forever(_reload_of(engine.models), every_s=_HOUSEKEEPING_S, name="Watching the models folders")
    if context.settings.tenant_max_streams is not None:
        yield run_forever(count_streams, every_s=_COUNT_S, name="Counting the tenants' streams")


def _reload_of(shelf: ModelRegistry) -> Callable[[], Awaitable[None]]:
    """Return what reloads the models; failures are logged when they are new."""
    known: list[str] = []

    async def reload() -> None:
        nonlocal known
        report = await shelf.reload()
        if report.failed != known:
            known = report.failed
            _log_failed(report)

    return reload


def _log_failed(report: ReloadReport) -> None:
    for failed in report.failed:
        _log.error("A model cannot be served: %s", failed)


# ------------------------------------------------------------------- what no route answers


async def _no_route(request: Request, exc: Exception) -> Response:
    """Answer where the framework found no route, or none for the method."""
    assert isinstance(exc, HTTPException)
    context: AppContext = request.app.state.context
    headers = {}
    path = request.scope["path"]
    dialect = error_format_of(path)
    try:
        reject_escaped_slash(request.scope)
        if exc.status_code == 405:
            headers["allow"] = ", ".join(sorted(_methods(request)))
            error = ServiceError(
                "method_not_allowed",
                f"{request.method} is not for {path[:200]!a}; expected {headers['allow']}.",
                fix="See /docs for the routes.",
            )
        else:
            error = ServiceError("not_found", f"There is no route {path[:200]!a}.", fix="See /docs for the routes.")
    except ServiceError as refused:
        error = refused
    context.metrics.refusal(error.code)
    response = problem_response(error, dialect)
    context.metrics.request(dialect.transport, response.status_code)
    response.headers.update(headers)
    return response


def _methods(request: Request) -> set[str]:
    """Return the methods of every route at this path; the framework knows only the first one's."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return methods


async def _ignore_disconnect(_websocket: Any, _exc: Exception) -> None:
    """A client that has gone is no error."""


async def _internal_error(request: Request, exc: Exception) -> Response:
    """Answer what nobody foresaw, without its details; the server's log has them."""
    context: AppContext = request.app.state.context
    context.metrics.refusal("internal")
    dialect = error_format_of(request.scope["path"])
    context.metrics.request(dialect.transport, 500)
    return problem_response(internal_error(), dialect)

"""`create_app`: builds the application, which opens its engine and models at its start and closes them at its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.websockets import WebSocketDisconnect

from stepwell.asgi.http import problem_response, raw_route_class, reject_escaped_slash, with_request_id
from stepwell.asgi.routes import admin, feed, streams
from stepwell.asgi.websocket import rejecting_sockets
from stepwell.background import cancel, run_forever
from stepwell.engine.engine import Engine
from stepwell.engine.model_reloads import ModelReloads
from stepwell.engine.observer import all_of
from stepwell.engine.options import EngineOptions
from stepwell.errors import ServiceError
from stepwell.metrics import Metrics
from stepwell.models.loading import model_loader
from stepwell.models.registry import ModelRegistry
from stepwell.requests.auth.api_keys import ApiKeys
from stepwell.requests.context import AppContext
from stepwell.requests.problems import internal_error
from stepwell.service_addon import ServiceAddon, addon_classes, sole
from stepwell.settings import Settings, SharedFolders
from stepwell.store.checks.safety import SafetyMonitor
from stepwell.store.state_store import StateStore
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.registered import AddonError

_log = logging.getLogger(__name__)
_COUNT_S = 10.0  # minimum between two counts of streams, if their number is limited
_HOUSEKEEPING_S = 1.0  # between two updates of readiness and gauges, and two checks of the models folders
_DROP_S = 60.0
_SAFETY_S = 5.0  # between two checks of the store's settings


class NoStoreError(StepwellError):
    """The application was started without a store."""

    code = "no_store"


def create_app(settings: Settings, folders: SharedFolders | None = None) -> FastAPI:
    """Return the application; it connects to the store and loads the models when it starts.

    Args:
        settings: The service's settings.
        folders: What the workers of this service share; None: nothing.

    Raises:
        KeysFileError: `api_keys_file` cannot be used.
        AddonError: An installed package registers an add-on that cannot be used, or two have what one alone may have.
        StepwellError: An add-on cannot be created.
    """
    version = importlib.metadata.version("stepwell")
    context = AppContext(settings, ApiKeys(settings.api_keys_file), Metrics(version))
    app = FastAPI(
        title="Stepwell",
        version=version,
        lifespan=lambda app: _lifespan(app, context, folders or SharedFolders()),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    addons = [addon(context, version) for addon in addon_classes()]
    app.state.addons = addons
    context.api_keys.caller_of_token = sole(addons, "caller_of_token", lambda addon: addon.caller_of_token())
    if settings.has_keys and not context.api_keys.required:
        raise AddonError(
            "The settings accept tokens, and no add-on verifies them: everybody could send requests.",
            fix="Install the add-on as a whole, or unset what makes it accept tokens.",
        )
    context.tracer = sole(addons, "tracer", lambda addon: addon.tracer())
    context.error_formats = {first: found for addon in addons for first, found in addon.error_formats().items()}
    app.router.route_class = raw_route_class(context)
    app.add_exception_handler(HTTPException, _respond_without_route)
    app.add_exception_handler(WebSocketDisconnect, _ignore_disconnect)
    app.add_exception_handler(Exception, _internal_error)
    streams.add_step_routes(app, context)  # first: routes are matched in order, and these are the most frequent
    for addon in addons:
        addon.add_routes(app)
    streams.add_routes(app, context)
    feed.add_routes(app, context)
    admin.add_routes(app, context)
    app.router.default = rejecting_sockets(app.router.default, context)
    return app


def _build_engine(
    settings: Settings, metrics: Metrics, folders: SharedFolders, addons: Sequence[ServiceAddon]
) -> Engine:
    """Return an engine on the configured store, which add-ons observe; its models are not loaded yet.

    Raises:
        NoStoreError: `redis` is not set; `stepwell serve` sets it to the embedded store that it starts.
    """
    if settings.redis is None:
        raise NoStoreError(
            "`redis` is not set; the application does not start a store itself.",
            fix="Run `stepwell serve`, which starts one, or set STEPWELL_REDIS to a URL.",
        )
    store = StateStore(
        settings.redis,
        stream_ttl_s=settings.stream_ttl_s,
        idempotency_ttl_s=settings.idempotency_ttl_s,
        durability=settings.durability,
    )
    same = {field.name for field in dataclasses.fields(EngineOptions)} & Settings.model_fields.keys()
    options = EngineOptions(
        **{name: getattr(settings, name) for name in same},
        max_wait_s=settings.max_wait_ms / 1000,
        queue_bytes=settings.queue_bytes,
    )
    load_model = model_loader(settings, folders.verdicts)
    models = ModelRegistry(
        settings.models,
        load_model,
        sole(addons, "artifacts", lambda addon: addon.artifacts(store, load_model, folders.artifacts)),
        find_timeout_s=settings.request_timeout_s,
        retired_ttl_s=1.5 * settings.longest_ttl_s,
        on_change=metrics.model_changed,
    )
    placing = sole(addons, "placing", lambda addon: addon.placing(store, models))
    publisher = sole(addons, "publisher", lambda addon: addon.publisher(store))
    observers = [seen for addon in addons if (seen := addon.observer()) is not None]
    observer = all_of([metrics, *observers]) if observers else metrics
    engine = Engine(store, models, options, observer, placing=placing, publisher=publisher, samplers=addons)
    engine.runs += [runs for addon in addons if (runs := addon.model_runs(engine)) is not None]
    return engine


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, context: AppContext, folders: SharedFolders) -> AsyncIterator[None]:
    """Open the engine and start background tasks, serve, then close all in reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        addons: list[ServiceAddon] = app.state.addons
        engine = _build_engine(context.settings, context.metrics, folders, addons)
        stack.callback(engine.models.close)
        stack.push_async_callback(engine.close)

        shared = sole(addons, "reloads", lambda addon: addon.reloads(engine.store, engine.models))
        reloads = shared or ModelReloads(engine.models)
        stack.push_async_callback(reloads.close)
        await reloads.load()
        context.engine, context.reloads = engine, reloads
        settings = context.settings
        context.safety = SafetyMonitor(engine.store, settings.durability, allow_eviction=settings.allow_eviction)
        await context.safety.check()
        app.state.engine = engine
        context.metrics.bind_gauges(
            models=engine.models.names,
            queue_rows=engine.steps.waiting_by_model,
            websockets=lambda: context.websockets,
            ready=lambda: context.ready,
            cached_streams=engine.steps.cached_by_model,
            connections=lambda: len(context.connections),
            store_reachable=lambda: engine.store_reachable,
            store_safe=lambda: not context.safety.reasons,
            store_used_bytes=lambda: 0 if context.safety.info is None else context.safety.info.used_memory,
            store_max_bytes=lambda: 0 if context.safety.info is None else context.safety.info.max_memory,
            durability=settings.durability,
        )
        works = (reloads.run(), *_background(context), *(w for addon in addons for w in addon.background()))
        tasks = [asyncio.create_task(work) for work in works]
        stack.push_async_callback(cancel, tasks)
        stack.callback(context.metrics.refresh)  # metrics requests to other workers include this one
        for addon in addons:
            await addon.start()
            stack.push_async_callback(addon.close)
        yield
        for addon in addons:
            await addon.stop(settings.drain_s)
        await engine.drain(settings.drain_s)


def _background(context: AppContext) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield the background work of the application, each to run in its own task."""
    engine, loop = context.engine, asyncio.get_running_loop()

    async def refresh() -> None:
        await context.check_readiness()
        context.metrics.refresh()

    async def count_streams() -> None:
        started_at = loop.time()
        with contextlib.suppress(ServiceError):  # the store is unavailable: readiness reports it
            await engine.streams.count()
        # Counting may use at most a twentieth of the store's time.
        await asyncio.sleep(max(0.0, 20 * (loop.time() - started_at) - _COUNT_S))

    async def drop_unused() -> None:
        engine.steps.close_unused()
        engine.models.drop_unused()

    async def reload_changed() -> None:
        report = await context.reloads.reload_changed()
        if report.loaded:
            context.audit.write("reload", by="watch_models", loaded=", ".join(report.loaded), outcome="yes")

    yield run_forever(refresh, every_s=_HOUSEKEEPING_S, name="Updating readiness and gauges")
    yield run_forever(context.safety.check, every_s=_SAFETY_S, name="Checking the store's settings")
    yield run_forever(drop_unused, every_s=_DROP_S, name="Dropping models that no stream uses")
    if context.settings.watch_models:
        yield run_forever(reload_changed, every_s=_HOUSEKEEPING_S, name="Reloading changed models")
    if context.settings.tenant_max_streams is not None:
        yield run_forever(count_streams, every_s=_COUNT_S, name="Counting the tenants' streams")


# ------------------------------------------------------------------- requests without a route


async def _respond_without_route(request: Request, exc: Exception) -> Response:
    """Respond to a request whose path or method has no route."""
    assert isinstance(exc, HTTPException)
    context: AppContext = request.app.state.context
    headers = {}
    path = request.scope["path"]
    error_format = context.error_format_of(path)
    try:
        reject_escaped_slash(request.scope)
        if exc.status_code == 405:
            headers["allow"] = ", ".join(sorted(_methods(request)))
            error = ServiceError(
                "method_not_allowed",
                f"{request.method} is not allowed for {path[:200]!a}; expected {headers['allow']}.",
                fix="See /docs for the routes.",
            )
        else:
            error = ServiceError("not_found", f"There is no route {path[:200]!a}.", fix="See /docs for the routes.")
    except ServiceError as slash_error:
        error = slash_error
    context.metrics.refusal(error.code)
    response = problem_response(error, error_format)
    context.metrics.request(error_format.transport, response.status_code)
    response.headers.update(headers)
    return with_request_id(response, request.scope)


def _methods(request: Request) -> set[str]:
    """Return the methods of all routes at this path; the framework returns those of the first one only."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return methods


async def _ignore_disconnect(_websocket: Any, _exc: Exception) -> None:
    """Ignore a WebSocket disconnect, which is not an error."""


async def _internal_error(request: Request, exc: Exception) -> Response:
    """Respond to an unexpected exception, without details, which are in the log."""
    context: AppContext = request.app.state.context
    context.metrics.refusal("internal")
    error_format = context.error_format_of(request.scope["path"])
    context.metrics.request(error_format.transport, 500)
    return with_request_id(problem_response(internal_error(), error_format), request.scope)

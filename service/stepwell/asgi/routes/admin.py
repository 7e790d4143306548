"""Routes of the service itself: models, readiness, metrics, and documentation."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from stepwell.asgi.http import RawResponse, audited, authorize, model_of, respond
from stepwell.metrics import OPENMETRICS
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.requests.context import AppContext
from stepwell.requests.problems import RETRY_AFTER_S
from stepwell_client.wire.formats import JSON, encode
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import TensorSpec


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""
    routes = AdminRoutes(app, context)
    add = app.add_api_route
    add("/v1/models", routes.models, methods=["GET"])
    add("/v1/models/reload", routes.reload, methods=["POST"])
    add("/v1/models/{model}", routes.model, methods=["GET"])
    add("/v1/info", routes.info, methods=["GET"])
    add("/healthz", routes.healthz, methods=["GET"])
    add("/readyz", routes.readyz, methods=["GET"])
    add("/healthz", routes.healthz, methods=["HEAD"], include_in_schema=False)
    add("/readyz", routes.readyz, methods=["HEAD"], include_in_schema=False)
    add("/metrics", routes.metrics, methods=["GET"])


class AdminRoutes:
    """The endpoints of the routes."""

    def __init__(self, app: FastAPI, context: AppContext) -> None:
        self._app = app
        self._context = context

    async def models(self, request: Request) -> Response:
        """Describe every model."""
        authorize(request, self._context, "read")
        models = self._context.engine.models
        return respond({"models": [describe(models.get(name), models) for name in models.names()]}, request)

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        authorize(request, self._context, "read")
        return respond(describe(model_of(request, self._context), self._context.engine.models), request)

    async def reload(self, request: Request) -> Response:
        """Reload new and changed models from the model folders, in every worker of every replica."""
        authorize(request, self._context, "models")
        with audited(request, self._context, "reload") as audit:
            report = await self._context.reloads.reload()
            audit.update(loaded=", ".join(report.loaded) or None, failed=len(report.failed) or None)
        document = {"loaded": report.loaded, "failed": report.failed}
        more = {"not_kept": report.not_kept, "ignored": report.ignored}
        return respond(document | {name: found for name, found in more.items() if found}, request)

    async def info(self, request: Request) -> Response:
        """Return version, durability, information about the store, limits, history, and the caller's tenant."""
        caller = authorize(request, self._context, "read")
        settings = self._context.settings
        names = (
            *("max_body_bytes", "max_chunk_steps", "max_batch_size", "queue_limit", "queue_bytes", "max_websockets"),
            *("max_connections", "request_timeout_s", "run_timeout_s", "stream_ttl_s", "idempotency_ttl_s"),
            *("tenant_rate", "tenant_max_websockets", "tenant_max_streams"),
            "max_snapshots",
        )
        limits = {name: getattr(settings, name) for name in names} | settings.more_limits
        limits["snapshot_ttl_s"] = settings.stream_ttl_s if settings.snapshot_ttl_s is None else settings.snapshot_ttl_s
        safety = self._context.safety
        document = {
            "version": self._app.version,
            "durability": settings.durability,
            "store": {**({} if safety.info is None else safety.info.as_dict()), "unsafe": safety.reasons},
            "limits": limits,
            "history": settings.kept_history,
            "tenant": caller.tenant,
        }
        return respond(document, request)

    async def healthz(self, _request: Request) -> Response:
        """Return 200: the process is alive."""
        return RawResponse(b'{"alive":true}', JSON.value)

    async def readyz(self, _request: Request) -> Response:
        """Return 200 if requests can be served now, else 503 with the reasons."""
        reasons = await self._context.check_readiness()
        notes = self._context.reloads.notes()
        document = {"ready": not reasons, "reasons": reasons} | ({"notes": notes} if notes else {})
        headers = {"retry-after": str(RETRY_AFTER_S)} if reasons else None
        return RawResponse(encode(document, JSON), JSON.value, status=503 if reasons else 200, headers=headers)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics in Prometheus' text format, or in that of OpenMetrics if the request accepts it."""
        authorize(request, self._context, "metrics")
        self._context.metrics.refresh()
        as_openmetrics = OPENMETRICS in request.headers.get("accept", "")
        body, media_type = await asyncio.to_thread(self._context.metrics.render, as_openmetrics=as_openmetrics)
        return RawResponse(body, media_type)


def describe(served: ServedModel, models: ModelRegistry) -> dict[str, Any]:
    """Return the public description of a model."""
    manifest = served.manifest
    labels = {name: {"labels": list(found)} for name, found in labels_of_outputs(manifest).items() if found}
    return {
        "name": served.name,
        "version": served.version,
        "versions": models.versions(served.name),
        "inputs": [
            _tensor(spec, "name", "dtype", "shape", *(["missing"] if spec.missing == "nan" else []))
            for spec in manifest.inputs
        ],
        "outputs": [
            _tensor(spec, "name", "dtype", "shape", "kind", *_known(spec, "latency", "stage"))
            | labels.get(spec.name, {})
            for spec in manifest.answered
        ],
        "states": [
            {"name": field.name, "dtype": field.dtype.name, "shape": list(field.shape)}
            for field in served.step_model.fields
        ],
        "feedback": manifest.feedback,
        **{name: found for name in ("latency", "every") if (found := getattr(manifest, name)) is not None},
        "bytes_per_stream": served.step_model.state_bytes,
        "parity": None if manifest.verified is None else manifest.verified.model_dump(mode="json"),
    }


def _tensor(spec: TensorSpec, *keys: str) -> dict[str, Any]:
    """Return some keys of a tensor's spec, and the manifest's own extra keys, such as the names of its elements."""
    return {**spec.model_dump(include=set(keys)), **(spec.model_extra or {})}


def _known(spec: TensorSpec, *keys: str) -> list[str]:
    return [key for key in keys if getattr(spec, key) is not None]

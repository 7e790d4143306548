"""Routes of the Open Inference Protocol: `/v2`, as used by Triton's clients, with its sequence extension."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from service.asgi.http import RawResponse, body_of, encoding_of, idempotency_key_of
from service.asgi.openapi import oip as openapi
from service.asgi.run_handler import run_handler
from service.codec.formats import JSON, encode
from service.codec.oip import TritonError, config_of, metadata_of, quote
from service.codec.oip.response_bodies import (
    IndexEntry,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStats,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.codec.strict.parse import parse
from service.errors import ServiceError
from service.metrics import ModelCounts
from service.models.served import ServedModel
from service.requests.auth.api_keys import Scope
from service.requests.context import AppContext
from service.requests.hot_routes import RequestHeaders, is_byte_count, make_infer_handler
from service.requests.infer_handler import model_for_oip

EXTENSIONS = [
    "sequence", "sequence(string_id)", "binary_tensor_data", "parameters",
    "model_configuration", "model_repository", "statistics",
]  # fmt: skip

_MODEL = "/v2/models/{model}"
_VERSION = "/versions/{version}"
_WINDOW_BITS: Mapping[str, int] = {"gzip": 31, "deflate": 15}


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""
    routes = OipRoutes(app, context)
    add = app.add_api_route
    for version, parameters in (("", openapi.DEFAULT), (_VERSION, openapi.VERSION)):
        add(f"{_MODEL}{version}/infer", routes.infer, methods=["POST"], **openapi.infer(parameters))
    add("/v2", routes.server, methods=["GET"], **openapi.SERVER)
    add("/v2/", routes.server, methods=["GET"], include_in_schema=False)
    add("/v2/health/live", routes.live, methods=["GET"], **openapi.LIVE)
    add("/v2/health/ready", routes.ready, methods=["GET"], **openapi.READY)
    add("/v2/models/stats", routes.all_stats, methods=["GET"], **openapi.ALL_STATS)
    document = openapi.model_route
    for version, parameters in (("", openapi.DEFAULT), (_VERSION, openapi.VERSION)):
        add(f"{_MODEL}{version}", routes.metadata, methods=["GET"], **document(ModelMetadata, parameters))
        add(f"{_MODEL}{version}/ready", routes.model_ready, methods=["GET"], **document(ModelReady, parameters))
        add(f"{_MODEL}{version}/config", routes.config, methods=["GET"], **document(ModelConfig, parameters))
        add(f"{_MODEL}{version}/stats", routes.stats, methods=["GET"], **document(ModelStats, parameters))
    add("/v2/repository/index", routes.index, methods=["POST"], **openapi.INDEX)
    add("/v2/repository/models/{model}/load", routes.load, methods=["POST"], **openapi.LOAD)
    add("/v2/repository/models/{model}/unload", routes.unload, methods=["POST"], **openapi.UNLOAD)


class OipRoutes:
    """The endpoints of the routes."""

    def __init__(self, app: FastAPI, context: AppContext) -> None:
        self._app = app
        self._context = context

    async def infer(self, request: Request) -> Response:
        """Apply one timestep to a sequence, or run a model without state."""
        path, headers = request.path_params, request.headers
        request_headers = RequestHeaders(
            headers.get("authorization"),
            idempotency_key_of(request),
            None,
            None,
            None,
            JSON,
            JSON,
            _document_bytes(headers.getlist("inference-header-content-length")),
        )
        handler = make_infer_handler(self._context, path["model"], path.get("version"), request_headers)
        body = await body_of(request, self._context, encodings=list(_WINDOW_BITS))
        if (encoding := encoding_of(request)) in _WINDOW_BITS:
            body = _decompressed(body, encoding, self._context.settings.max_body_bytes)
        response_body = await run_handler(handler, body, request, self._context)
        return RawResponse(response_body, handler.response_format.value, headers=handler.extra_headers)

    # ---------------------------------------------------------------- the server

    async def server(self, request: Request) -> Response:
        """Return the server's name, its version, and the supported extensions of the protocol."""
        self._check(request, "read")
        return _document(ServerMetadata("stepwell", self._app.version, EXTENSIONS))

    async def live(self, _request: Request) -> Response:
        """Return 200: the process is alive."""
        return _document(ServerLive(True))

    async def ready(self, _request: Request) -> Response:
        """Return 200 if requests can be served now, else 503."""
        ready = not await self._context.check_readiness()
        return _document(ServerReady(True, ready), status=200 if ready else 503)

    # ---------------------------------------------------------------- models

    async def metadata(self, request: Request) -> Response:
        """Return the inputs and outputs of a model."""
        served = self._model(request)
        has_version = "version" in request.path_params
        versions = [served.version] if has_version else self._context.engine.models.versions(served.name)
        return _document(metadata_of(served.name, versions, served.manifest))

    async def model_ready(self, request: Request) -> Response:
        """Return 200 if the model is served, else an error."""
        return _document(ModelReady(self._model(request).name, True))

    async def config(self, request: Request) -> Response:
        """Return the parts of a model's configuration that apply to this service."""
        served, settings = self._model(request), self._context.settings
        return _document(
            config_of(
                served.name,
                served.manifest,
                max_rows=settings.max_batch_size,
                idle_s=settings.stream_ttl_s,
                stateful=served.stateful,
            )
        )

    async def stats(self, request: Request) -> Response:
        """Return the statistics of a model."""
        return _document(ModelStats(await self._stats(self._model(request))))

    async def all_stats(self, request: Request) -> Response:
        """Return the statistics of every model."""
        self._check(request, "read")
        models = self._context.engine.models
        return _document(ModelStats(await self._stats(*map(models.get, models.names()))))

    # ---------------------------------------------------------------- the repository

    async def index(self, request: Request) -> Response:
        """List the models that are served."""
        self._check(request, "read")
        models = self._context.engine.models
        return _document(
            [
                IndexEntry(name, str(version), "READY", "")
                for name in models.names()
                for version in models.versions(name)
            ]
        )

    async def load(self, request: Request) -> Response:
        """Reload the model folders, in every worker; an error if the model is not served afterwards."""
        self._check(request, "models")
        name = request.path_params["model"]
        body = await body_of(request, self._context)
        document = parse(body, JSON) if body.strip() else {}
        if isinstance(document, dict) and document.get("parameters"):
            raise TritonError(
                "bad_request",
                f"load of {quote(name)} with parameters is not supported: put files into the folder",
                status=501,
            )
        report = await self._context.reloads.reload_fleet()
        failed = next((reason for reason in report.failed if reason.startswith((f"{name}.onnx:", f"{name}/"))), None)
        if failed is not None or name not in self._context.engine.models.names():
            reason = failed or "there is no such file in the models folders"
            raise TritonError("bad_request", f"failed to load {quote(name)}, {reason}")
        return RawResponse(b"", JSON.value)

    async def unload(self, request: Request) -> Response:
        """Return 501: a model is unloaded by removing its file."""
        self._check(request, "models")
        raise TritonError(
            "bad_request",
            f"unload of {quote(request.path_params['model'])} is not supported: remove its file from the models "
            "folder, then load any other model or POST /v1/models/reload",
            status=501,
        )

    # ---------------------------------------------------------------- helpers

    def _check(self, request: Request, scope: Scope) -> None:
        self._context.authenticate_and_count(request.headers.get("authorization"), scope)

    def _model(self, request: Request) -> ServedModel:
        """Return the model in the path, after checking that the caller may read."""
        self._check(request, "read")
        return model_for_oip(self._context, request.path_params["model"], request.path_params.get("version"))

    async def _stats(self, *served: ServedModel) -> list[dict[str, Any]]:
        """Return the statistics of models."""
        metrics = self._context.metrics
        metrics.refresh()
        counts = await asyncio.to_thread(metrics.counts)
        return [_stats_of(model, counts.get(model.name, ModelCounts())) for model in served]


def _stats_of(served: ServedModel, counts: ModelCounts) -> dict[str, Any]:
    """Return a model's statistics. Queue time is all but the model run: waiting for a batch, and the store."""
    count, queue_seconds = counts.answers, max(counts.answer_seconds - counts.row_seconds, 0.0)
    return {
        "name": served.name,
        "version": str(served.version),
        "inference_count": counts.timesteps,
        "execution_count": counts.runs,
        "inference_stats": {
            "success": _duration(counts.answers, counts.answer_seconds),
            "fail": _duration(counts.refusals, counts.refusal_seconds),
            "queue": _duration(count, queue_seconds),
            "compute_input": _duration(count, 0),
            "compute_infer": _duration(count, counts.row_seconds),
            "compute_output": _duration(count, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [],
    }


def _document(document: Any, *, status: int = 200) -> Response:
    return RawResponse(encode(document, JSON), JSON.value, status=status)


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def _document_bytes(values: Sequence[str]) -> int | None:
    if not values:
        return None
    if len(values) == 1 and is_byte_count(values[0]):
        return int(values[0])
    raise TritonError(
        "bad_request",
        f"Unable to parse Inference-Header-Content-Length, got: {quote(', '.join(values))}; expected one number",
    )


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body.

    Raises:
        ServiceError: `bad_request`: it is not so encoded; `too_large`.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        decompressed = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise TritonError("bad_request", f"the body is not {encoding}: {exc}") from exc
    if len(decompressed) > limit:
        raise ServiceError(
            "too_large",
            f"The decompressed body has more than {limit} bytes; at most {limit} are accepted.",
            fix="Send it in parts, or raise `max_body_bytes`.",
        )
    if not stream.eof:
        raise TritonError("bad_request", f"the body is not {encoding}: it ends too early")
    return decompressed

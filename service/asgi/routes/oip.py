"""Routes of the Open Inference Protocol: the `/v2` that Triton's clients ask, with its extension for sequences."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from service.asgi.http import RawResponse, body_of, encoding_of, idempotency_key_of
from service.asgi.openapi import oip as openapi
from service.codec.formats import JSON, encode
from service.codec.oip import TritonError, config_of, metadata_of, quote
from service.codec.strict_parse import parse
from service.errors import ServiceError
from service.metrics import ModelCounts
from service.models.registry import ServedModel
from service.requests.api_keys import Scope
from service.requests.context import AppContext
from service.requests.handlers import run
from service.requests.hot_routes import RequestHeaders, is_byte_count, make_infer_handler
from service.requests.infer_handler import model_for_oip

EXTENSIONS = (
    "sequence", "sequence(string_id)", "binary_tensor_data", "parameters",
    "model_configuration", "model_repository", "statistics",
)  # fmt: skip

_MODEL = "/v2/models/{model}"
_VERSION = "/versions/{version}"
_WINDOW_BITS: Mapping[str, int] = {"gzip": 31, "deflate": 15}


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""
    routes = OipRoutes(app, context)
    add = app.add_api_route
    for version, more in (("", openapi.DEFAULT), (_VERSION, openapi.VERSION)):
        add(f"{_MODEL}{version}/infer", routes.infer, methods=["POST"], **openapi.infer(more))
    add("/v2", routes.server, methods=["GET"], **openapi.SERVER)
    add("/v2/", routes.server, methods=["GET"], include_in_schema=False)
    add("/v2/health/live", routes.live, methods=["GET"], **openapi.LIVE)
    add("/v2/health/ready", routes.ready, methods=["GET"], **openapi.READY)
    add("/v2/models/stats", routes.all_stats, methods=["GET"], **openapi.ALL_STATS)
    for version, more in (("", openapi.DEFAULT), (_VERSION, openapi.VERSION)):
        add(f"{_MODEL}{version}", routes.metadata, methods=["GET"], **openapi.metadata(more))
        add(f"{_MODEL}{version}/ready", routes.model_ready, methods=["GET"], **openapi.model_ready(more))
        add(f"{_MODEL}{version}/config", routes.config, methods=["GET"], **openapi.config(more))
        add(f"{_MODEL}{version}/stats", routes.stats, methods=["GET"], **openapi.stats(more))
    add("/v2/repository/index", routes.index, methods=["POST"], **openapi.INDEX)
    add("/v2/repository/models/{model}/load", routes.load, methods=["POST"], **openapi.LOAD)
    add("/v2/repository/models/{model}/unload", routes.unload, methods=["POST"], **openapi.UNLOAD)


class OipRoutes:
    """The routes' functions."""

    def __init__(self, app: FastAPI, context: AppContext) -> None:
        self._app = app
        self._context = context

    async def infer(self, request: Request) -> Response:
        """Move a sequence by one timestep, or run a model without state."""
        path, headers = request.path_params, request.headers
        fields = RequestHeaders(
            headers.get("authorization"),
            idempotency_key_of(request),
            None,
            None,
            None,
            JSON,
            JSON,
            _document_bytes(headers.getlist("inference-header-content-length")),
        )
        call = make_infer_handler(self._context, path["model"], path.get("version"), fields)
        body = await body_of(request, self._context, encodings=list(_WINDOW_BITS))
        if (encoding := encoding_of(request)) in _WINDOW_BITS:
            body = _decompressed(body, encoding, self._context.settings.max_body_bytes)
        answer = await run(call, body)
        return RawResponse(answer, call.response_format.value, headers=call.extra_headers)

    # ---------------------------------------------------------------- the server

    async def server(self, request: Request) -> Response:
        """Say what this server is and what of the protocol it has."""
        self._check(request, "read")
        return _document({"name": "stepwell", "version": self._app.version, "extensions": EXTENSIONS})

    async def live(self, _request: Request) -> Response:
        """Say that the process is alive."""
        return _document({"live": True})

    async def ready(self, _request: Request) -> Response:
        """Say whether requests can be served now."""
        ready = not await self._context.check_readiness()
        return _document({"live": True, "ready": ready}, status=200 if ready else 503)

    # ---------------------------------------------------------------- models

    async def metadata(self, request: Request) -> Response:
        """Say what a model takes and gives."""
        served = self._model(request)
        asked = "version" in request.path_params
        versions = [served.version] if asked else self._context.engine.models.versions(served.name)
        return _document(metadata_of(served.name, versions, served.manifest))

    async def model_ready(self, request: Request) -> Response:
        """Say that a model can be asked."""
        return _document({"name": self._model(request).name, "ready": True})

    async def config(self, request: Request) -> Response:
        """Give a model's configuration, as far as it means something here."""
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
        """Give what was counted of a model."""
        return _document({"model_stats": await self._stats(self._model(request))})

    async def all_stats(self, request: Request) -> Response:
        """Give what was counted of every model."""
        self._check(request, "read")
        shelf = self._context.engine.models
        return _document({"model_stats": await self._stats(*map(shelf.get, shelf.names()))})

    # ---------------------------------------------------------------- the repository

    async def index(self, request: Request) -> Response:
        """List the models that are served."""
        self._check(request, "read")
        shelf = self._context.engine.models
        return _document(
            [
                {"name": name, "version": str(version), "state": "READY", "reason": ""}
                for name in shelf.names()
                for version in shelf.versions(name)
            ]
        )

    async def load(self, request: Request) -> Response:
        """Look at the model folders again, in every worker; the model has to be there then."""
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
        report = await self._context.reload()
        failed = next((why for why in report.failed if why.startswith((f"{name}.onnx:", f"{name}/"))), None)
        if failed is not None or name not in self._context.engine.models.names():
            why = failed or "there is no such file in the models folders"
            raise TritonError("bad_request", f"failed to load {quote(name)}, {why}")
        return RawResponse(b"", JSON.value)

    async def unload(self, request: Request) -> Response:
        """Say that models leave with their files."""
        self._check(request, "models")
        raise TritonError(
            "bad_request",
            f"unload of {quote(request.path_params['model'])} is not supported: take its file out of the models "
            "folder, then load any other model or POST /v1/models/reload",
            status=501,
        )

    # ---------------------------------------------------------------- helpers

    def _check(self, request: Request, scope: Scope) -> None:
        self._context.authenticate_and_count(request.headers.get("authorization"), scope)

    def _model(self, request: Request) -> ServedModel:
        """Return the model that the path names, for a caller who may read."""
        self._check(request, "read")
        return model_for_oip(self._context, request.path_params["model"], request.path_params.get("version"))

    async def _stats(self, *served: ServedModel) -> list[dict[str, Any]]:
        """Return what was counted of models."""
        metrics = self._context.metrics
        metrics.refresh()
        counts = await asyncio.to_thread(metrics.counts)
        return [_stats_of(model, counts.get(model.name, ModelCounts())) for model in served]


def _stats_of(served: ServedModel, counts: ModelCounts) -> dict[str, Any]:
    """Return a model's statistics. The queue's time is all but the model run's: waiting for its turn, and the store."""
    answers, waited = counts.answers, max(counts.answer_seconds - counts.row_seconds, 0.0)
    return {
        "name": served.name,
        "version": str(served.version),
        "inference_count": counts.timesteps,
        "execution_count": counts.runs,
        "inference_stats": {
            "success": _duration(counts.answers, counts.answer_seconds),
            "fail": _duration(counts.refusals, counts.refusal_seconds),
            "queue": _duration(answers, waited),
            "compute_input": _duration(answers, 0),
            "compute_infer": _duration(answers, counts.row_seconds),
            "compute_output": _duration(answers, 0),
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
        found = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise TritonError("bad_request", f"the body is not {encoding}: {exc}") from exc
    if len(found) > limit:
        raise ServiceError(
            "too_large",
            f"The body has more than {limit} bytes when it is decompressed; at most those are taken.",
            fix="Send it in parts, or raise `max_body_bytes`.",
        )
    if not stream.eof:
        raise TritonError("bad_request", f"the body is not {encoding}: it ends too early")
    return found

"""The declared routes of the Open Inference Protocol: `/v2`, as Triton's clients use it, with sequences."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Final, cast

from fastapi import FastAPI, Request
from starlette.responses import Response
from zlib_ng import gzip_ng, zlib_ng

from stepwell.addons.oip import models, openapi
from stepwell.addons.oip.errors import TritonError, quote
from stepwell.addons.oip.infer_handler import make_infer_handler, model_for_oip
from stepwell.addons.oip.response_bodies import (
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStats,
    ServerLive,
    ServerReady,
)
from stepwell.asgi.http import RawResponse, authorize, body_of, encoding_of, idempotency_key_of, run_handler
from stepwell.codec.strict.parse import parse
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.requests.context import AppContext
from stepwell.requests.hot_routes import RequestHeaders, is_byte_count
from stepwell.requests.request_ids import request_id_of
from stepwell_client.wire.formats import JSON, encode

_MODEL = "/v2/models/{model}"
_VERSION = "/versions/{version}"


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
        body = await body_of(request, self._context, encodings=list(_DECOMPRESS))
        if (encoding := encoding_of(request)) in _DECOMPRESS:
            body = _decompressed(body, encoding, self._context.settings.max_body_bytes)
        response_body = await run_handler(handler, body, request, self._context)
        return RawResponse(response_body, handler.response_format.value, headers=handler.extra_headers)

    # ---------------------------------------------------------------- the server

    async def server(self, request: Request) -> Response:
        """Return the server's name, its version, and the supported extensions of the protocol."""
        authorize(request, self._context, "read")
        return _document(models.server_metadata(self._app.version))

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
        one_version = "version" in request.path_params
        return _document(models.model_metadata(self._context, self._model(request), one_version=one_version))

    async def model_ready(self, request: Request) -> Response:
        """Return 200 if the model is served, else an error."""
        return _document(ModelReady(self._model(request).name, True))

    async def config(self, request: Request) -> Response:
        """Return the parts of a model's configuration that apply to this service."""
        return _document(models.model_config(self._context, self._model(request)))

    async def stats(self, request: Request) -> Response:
        """Return the statistics of a model."""
        return _document(await models.model_stats(self._context, [self._model(request)]))

    async def all_stats(self, request: Request) -> Response:
        """Return the statistics of every model."""
        authorize(request, self._context, "read")
        return _document(await models.model_stats(self._context))

    # ---------------------------------------------------------------- the repository

    async def index(self, request: Request) -> Response:
        """List the models that are served, and unless the body has `"ready": true`, those that were unloaded."""
        authorize(request, self._context, "read")
        body = await body_of(request, self._context)
        document = parse(body, JSON) if body.strip() else {}
        ready_only = isinstance(document, dict) and document.get("ready") is True
        return _document(models.repository_index(self._context, ready_only=ready_only))

    async def load(self, request: Request) -> Response:
        """Reload the model folders, in every worker; an error if the model is not served afterwards."""
        caller = authorize(request, self._context, "models")
        body = await body_of(request, self._context)
        document = parse(body, JSON) if body.strip() else {}
        has_parameters = isinstance(document, dict) and bool(document.get("parameters"))
        request_id = request_id_of(request.scope["headers"])
        name = request.path_params["model"]
        await models.load_model(self._context, name, caller, request_id, has_parameters=has_parameters)
        return RawResponse(b"", JSON.value)

    async def unload(self, request: Request) -> Response:
        """Stop serving a model, in every worker of every replica, until it is loaded; its streams are kept."""
        caller = authorize(request, self._context, "models")
        request_id = request_id_of(request.scope["headers"])
        await models.unload_model(self._context, request.path_params["model"], caller, request_id)
        return RawResponse(b"", JSON.value)

    # ---------------------------------------------------------------- helpers

    def _model(self, request: Request) -> ServedModel:
        """Return the model in the path, after checking that the caller may read."""
        authorize(request, self._context, "read")
        return model_for_oip(self._context, request.path_params["model"], request.path_params.get("version"))


def _document(document: Any, *, status: int = 200) -> Response:
    return RawResponse(encode(document, JSON), JSON.value, status=status)


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
    try:
        decompressed = _DECOMPRESS[encoding](body, limit + 1)
    except _DECOMPRESS_ERRORS as exc:
        raise TritonError("bad_request", f"the body is not {encoding}: {exc}") from exc
    if len(decompressed) > limit:
        raise ServiceError(
            "too_large",
            f"The decompressed body has more than {limit} bytes; at most {limit} are accepted.",
            fix="Send it in parts, or raise `max_body_bytes`.",
        )
    return decompressed


def _gunzip(body: bytes, limit: int) -> bytes:
    """Return the start of a gzip body, at most `limit` bytes of it; it may have several members (RFC 1952, 2.2)."""
    # The standard library's reader copies what follows a member for each of them, so that many small ones take seconds.
    members: BinaryIO = gzip_ng.open(io.BytesIO(body))  # type: ignore[no-untyped-call]  # has no types
    return members.read(limit)


def _inflate(body: bytes, limit: int) -> bytes:
    """Return the start of a zlib body, at most `limit` bytes of it."""
    stream = zlib.decompressobj()
    decompressed = stream.decompress(body, limit)
    if len(decompressed) < limit and not stream.eof:
        raise EOFError("it ends too early")
    if stream.unused_data:
        raise zlib.error(f"{len(stream.unused_data)} bytes follow its end")
    return decompressed


_DECOMPRESS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {"gzip": _gunzip, "deflate": _inflate}
_DECOMPRESS_ERRORS: Final = (OSError, EOFError, zlib.error, cast("type[Exception]", zlib_ng.error))

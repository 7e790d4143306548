"""The documentation of the Open Inference Protocol's routes in `/docs` and `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from stepwell.addons.api_schemas.routes import IDEMPOTENCY_KEY, PATH, Documented, Schema, ref
from stepwell.addons.oip.infer_bodies import InferBody, InferResponse
from stepwell.addons.oip.response_bodies import (
    IndexEntry,
    ModelStats,
    OipError,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

_HEADERS: Sequence[Schema] = (
    {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer"},
        "description": "Length in bytes of the JSON document, which the tensors' raw bytes follow.",
    },
    IDEMPOTENCY_KEY,
)

DEFAULT: Sequence[Schema] = ()
"""The path parameters of a route without a version."""

VERSION: Sequence[Schema] = ({"name": "version", "in": "path", "required": True, "schema": {"type": "string"}},)
"""The path parameters of a route with a version."""


def _route(answer: Schema | None, errors: Sequence[int] = (), parameters: Sequence[Schema] = ()) -> dict[str, Any]:
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "Done"}}
    if answer is not None:
        responses[200]["content"] = {"application/json": {"schema": answer}}
    for status in errors:
        responses[status] = {"description": "Error", "content": {"application/json": {"schema": ref(OipError)}}}
    return {
        "tags": ["Open Inference Protocol"],
        "openapi_extra": {"parameters": list(parameters)},
        "responses": responses,
    }


def model_route(answer: Documented, version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of a route to a model."""
    return _route(ref(answer), _READ, (PATH["model"], *version))


_READ = (400, 401, 403, 404, 500)
SERVER = _route(ref(ServerMetadata), [401, 403])
LIVE = _route(ref(ServerLive))
READY = _route(ref(ServerReady), [503])
ALL_STATS = _route(ref(ModelStats), [401, 403, 500])
INDEX = _route({"type": "array", "items": ref(IndexEntry)}, [400, 401, 403, 413, 415])
LOAD = {  # the response is empty
    **_route(None, [400, 401, 403, 413, 415, 500, 501], [PATH["model"]]),
    "response_class": Response,
}
UNLOAD = {**_route(None, [400, 401, 403, 404, 500, 503], [PATH["model"]]), "response_class": Response}


def infer(version: Sequence[Schema]) -> dict[str, Any]:
    """Return the documentation of an infer route."""
    documented = _route(ref(InferResponse), (*_READ, 413, 415, 429, 501, 503), (PATH["model"], *version, *_HEADERS))
    octets = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": ref(InferBody)}, "application/octet-stream": octets}
    documented["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return documented

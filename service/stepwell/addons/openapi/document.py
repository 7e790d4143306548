"""The OpenAPI document: what FastAPI makes of the routes, with the documentation of those of the service."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from stepwell.addons.api_schemas.routes import components
from stepwell.addons.openapi.streams import ROUTES

_DESCRIPTION: Final = """\
Recurrent models on live streams: each POST of a timestep advances one stream's hidden state exactly once and returns
the prediction. A retry with the same `seq` (or `Idempotency-Key`) gets the first response again.

Bodies are JSON, or msgpack with `Content-Type: application/msgpack`, where arrays are
`{"d": "float32", "s": [shape], "b": bytes}`. Every error is an `application/problem+json`; its `applied` is whether
the request was applied to the stream.

WebSockets: `/v1/models/{model}/streams/{stream}/feed` accepts step bodies and replies to each in order;
`/v1/models/{model}/feed` accepts messages that name their `stream`, or bulk requests with `streams`;
`/v1/watch` sends predictions as they are committed. Subprotocols: `stepwell.json` and `stepwell.msgpack`. All their
messages are in `/asyncapi.json`.

`/v2` is the Open Inference Protocol, where a sequence is a stream and errors are `{"error": ".."}`.
"""


def document(app: FastAPI) -> dict[str, Any]:
    """Return the application's OpenAPI document."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                for name, value in ROUTES.get(f"{method} {route.path}", {}).items():
                    setattr(route, name, value)
    openapi = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    parts = openapi.setdefault("components", {})
    parts.setdefault("schemas", {}).update(components())
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    openapi["security"] = [{}, {"key": []}]
    return openapi

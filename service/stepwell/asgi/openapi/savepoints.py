"""The documentation of the routes in `routes/savepoints.py`."""

from __future__ import annotations

from typing import Any

from stepwell.asgi.openapi.schemas import STREAM_READ, STREAM_WRITE, Schema, query, route
from stepwell.codec.response_bodies import ImportResponse
from stepwell.codec.savepoint import MEDIA_TYPE

_FILE: dict[str, Any] = {
    MEDIA_TYPE: {
        "schema": {
            "type": "string",
            "format": "binary",
            "description": 'See the page "Savepoints" of the documentation.',
        }
    }
}
_TEXT: Schema = {"type": "string"}

EXPORT = route(
    "many streams",
    path=["model"],
    parameters=[
        query("prefix", _TEXT),
        query("cursor", {**_TEXT, "description": "Of a page: go on behind it."}),
    ],
    problems=(*STREAM_READ, "overloaded"),
)
EXPORT["responses"][200] = {"description": "A savepoint", "content": _FILE}

IMPORT = route(
    "many streams",
    path=["model"],
    parameters=[query("overwrite", {"type": "boolean", "default": False})],
    answer=ImportResponse,
    problems=(*STREAM_WRITE, "overloaded"),
)
IMPORT["openapi_extra"]["requestBody"] = {"required": True, "content": _FILE}

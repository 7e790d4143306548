"""The documentation of the routes in `addon.py`, with the response to an import."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from stepwell.addons.api_schemas.responses import Document
from stepwell.addons.api_schemas.routes import STREAM_READ, STREAM_WRITE, Schema, query, route
from stepwell.addons.savepoints.file import MEDIA_TYPE
from stepwell.codec.step_bodies import StreamId


class RefusedStream(Document, kw_only=True):
    """A stream that was not imported, and the code of the error."""

    stream: StreamId
    code: str


class ImportResponse(Document, kw_only=True):
    """The result of an import of streams."""

    loaded: Annotated[int, Meta(ge=0, description="Streams that are now as in the savepoint.")]
    refused: Annotated[list[RefusedStream], Meta(description="The first 1000.")]
    refused_count: Annotated[int, Meta(ge=0)]


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

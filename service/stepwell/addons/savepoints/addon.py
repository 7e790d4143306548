"""Routes that export and import the streams of a model, as a savepoint."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from stepwell.addons.savepoints import openapi
from stepwell.addons.savepoints.file import (
    MAX_FRAME_BYTES,
    MEDIA_TYPE,
    SavepointFormatError,
    SavepointReader,
    encode_header,
    encode_page,
)
from stepwell.addons.savepoints.records import RecordPage, Savepoints
from stepwell.asgi.http import audited, authorize, encoding_of, model_of, respond
from stepwell.asgi.query import flag_of
from stepwell.asgi.routes.streams import prefix_of
from stepwell.codec.responses import rfc3339
from stepwell.errors import ServiceError
from stepwell.requests.problems import UnreadBodyError, body_timeout
from stepwell.service_addon import ServiceAddon
from stepwell_client.wire.ids import is_stream_id

_log = logging.getLogger(__name__)

_MAX_REFUSED: Final = 1000  # are named in one response
_COMMITTED_AT_ONCE: Final = 500  # streams; the store executes them without a pause, in about two milliseconds
_STREAMS = "/v1/models/{model}/streams"


class SavepointRoutes(ServiceAddon):
    """Two routes, which come before `.../streams/{stream}`, as that matches their paths too."""

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        app.add_api_route(f"{_STREAMS}/export", self.export_streams, methods=["GET"], **openapi.EXPORT)
        app.add_api_route(f"{_STREAMS}/import", self.import_streams, methods=["POST"], **openapi.IMPORT)

    async def export_streams(self, request: Request) -> Response:
        """Return every live stream of a model that belongs to the caller's tenant, as a savepoint."""
        context, query = self.context, request.query_params
        caller = authorize(request, context, "read")
        model, prefix = model_of(request, context).name, prefix_of(query)
        pages = Savepoints(context.engine.streams.deps).pages(
            caller.tenant, model, prefix=prefix, cursor=query.get("cursor") or None
        )
        first = await anext(pages)  # an error of the first page is a problem response; later ones cut the response off
        header = encode_header(model, prefix, rfc3339(time.time_ns() // 1_000_000))
        return StreamingResponse(_frames(header, first, pages, model), media_type=MEDIA_TYPE)

    async def import_streams(self, request: Request) -> Response:
        """Create streams from a savepoint; the response counts them, and names those that were refused."""
        context = self.context
        caller = authorize(request, context, "admin")
        model, overwrite = model_of(request, context).name, flag_of(request.query_params, "overwrite")
        if (found := encoding_of(request)) != "identity":
            problem = f"The body's Content-Encoding is {found[:40]!a}; expected none, or identity."
            raise UnreadBodyError("unsupported_encoding", problem, fix="Send the savepoint as it is.")
        with audited(request, context, "import", model=model, overwrite=overwrite, loaded=0, refused=0) as audit:
            refused = await self._import(request, caller.tenant, model, audit, overwrite=overwrite)
        return respond({"loaded": audit["loaded"], "refused": refused, "refused_count": audit["refused"]}, request)

    async def _import(
        self, request: Request, tenant: str, model: str, counts: dict[str, Any], *, overwrite: bool
    ) -> list[dict[str, str]]:
        """Load the streams of the body, and count them in `loaded` and `refused`; return those that were refused."""
        context, refused = self.context, list[dict[str, str]]()
        savepoints, reader = Savepoints(context.engine.streams.deps), SavepointReader()
        try:
            async for data in _chunks(request, context.settings.receive_timeout_s):
                for page in reader.feed(data):
                    for at in range(0, len(page.streams), _COMMITTED_AT_ONCE):
                        streams = page.streams[at : at + _COMMITTED_AT_ONCE]
                        errors = await savepoints.load(tenant, model, _valid(streams), overwrite=overwrite)
                        counts["loaded"] += len(streams) - len(errors)
                        counts["refused"] += len(errors)
                        named = errors[: _MAX_REFUSED - len(refused)]
                        refused += [{"stream": name, "code": error.code} for name, error in named]
                if reader.buffered_bytes > MAX_FRAME_BYTES:
                    raise SavepointFormatError(f"a page has more than {MAX_FRAME_BYTES} bytes")
            if not reader.at_page_end:
                raise SavepointFormatError("it ends within a page")
        except SavepointFormatError as exc:
            raise UnreadBodyError(
                "bad_request",
                f"The body is not a whole savepoint: {exc}. {counts['loaded']} streams before that were loaded.",
                fix="Send what `GET .../streams/export` returned, to the end of one of its pages.",
                applied="unknown" if counts["loaded"] else "no",
            ) from exc
        return refused


async def _frames(
    header: bytes, first: RecordPage, pages: AsyncIterator[RecordPage], model: str
) -> AsyncIterator[bytes]:
    yield _encode(first, header)
    try:
        async for page in pages:
            yield _encode(page)
    except ServiceError as exc:  # the response has begun: it ends without its last page, which a reader notices
        _log.warning("The export of %s was cut off: %s", model, exc.problem)
        raise


def _encode(page: RecordPage, header: bytes = b"") -> bytes:
    return encode_page(header, page.streams, page.cursor, page.unreadable)


def _valid(streams: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
    if bad := [name for name, _ in streams if not is_stream_id(name)]:
        raise SavepointFormatError(f"{bad[0][:140]!a} is not a stream id")
    return streams


async def _chunks(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    """Yield the body as it arrives."""
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                message = await request.receive()
        except TimeoutError:
            raise body_timeout(timeout_s) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body"):
            return

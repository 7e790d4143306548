"""The WebSocket `/v1/watch`: predictions as they are committed, from whichever worker committed them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import FastAPI
from starlette.websockets import WebSocket

from service.api.context import Context
from service.api.sockets import DRAINING, SLOW_S, TOO_SLOW, Socket
from service.api.watching import document_of, news_of, want_of
from service.engine.watcher import Watcher
from service.errors import ServiceError
from service.wire.document import parse
from service.wire.names import SEQ_LIMIT

_MOST_WANTS = 100


class _Follow(msgspec.Struct, forbid_unknown_fields=True):
    """What one watcher follows: a stream, the streams whose id begins alike, or a whole model."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    stream: str | None = None
    prefix: Annotated[str, msgspec.Meta(max_length=128)] = ""
    since: Annotated[int, msgspec.Meta(ge=0, lt=SEQ_LIMIT)] | None = None


class _Watch(msgspec.Struct, forbid_unknown_fields=True):
    """The first message."""

    watch: Annotated[list[_Follow], msgspec.Meta(min_length=1, max_length=_MOST_WANTS)]
    inputs: bool = False


def add_routes(app: FastAPI, context: Context) -> None:
    """Declare the route."""

    @app.websocket("/v1/watch")
    async def watch(websocket: WebSocket) -> None:
        async with Socket.accepted(websocket, context, "read") as socket:
            await _serve(socket, context)


async def _serve(socket: Socket, context: Context) -> None:
    watcher = _read(await socket.receive(), socket, context)
    watchers = context.engine.watchers
    work: list[asyncio.Task[None]] = []
    try:
        await watchers.add(watcher)
        await socket.send({"watching": len(watcher.wants)})
        work = [asyncio.create_task(_send(socket, watcher)), asyncio.create_task(_wait_for_end(socket))]
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        watchers.remove(watcher)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def _read(message: bytes, socket: Socket, context: Context) -> Watcher:
    """Return who watches what.

    Raises:
        ServiceError: `bad_json`, `bad_request` or `model_not_found`.
    """
    try:
        body = msgspec.convert(parse(message, socket.form), _Watch)
    except msgspec.ValidationError as exc:
        raise ServiceError(
            "bad_request", f"The message is not what to watch: {exc}.", fix='Send {"watch": [{"model": "m"}]}.'
        ) from exc
    wants, since = [], {}
    for follow in body.watch:
        want = want_of(follow.model, follow.stream, follow.prefix, socket.caller, context)
        wants.append(want)
        if follow.since is not None:
            if want.key is None:
                raise ServiceError(
                    "bad_request",
                    "`since` stands without `stream`; expected the last step that you have seen of one stream.",
                    fix="Name the `stream`, or leave `since` out.",
                )
            since[want.key] = follow.since
    return Watcher(wants, inputs=body.inputs, since=since)


async def _send(socket: Socket, watcher: Watcher) -> None:
    """Send news as they come; a reader that does not read loses the oldest, and after a while the socket."""
    try:
        while not watcher.over:
            for news in await news_of(watcher):
                async with asyncio.timeout(SLOW_S):
                    await socket.send(document_of(news, socket.form, inputs=watcher.inputs))
            socket.check()
        await socket.close(DRAINING)
    except TimeoutError:
        await socket.close(TOO_SLOW)


async def _wait_for_end(socket: Socket) -> None:
    """Take what comes, though nothing more is expected, until the reader has gone."""
    while True:
        await socket.receive()

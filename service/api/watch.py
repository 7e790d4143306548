"""The WebSocket `/v1/watch`: predictions as they are committed, from whichever worker committed them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from model_export.manifest import Array
from service.api.auth import Caller
from service.api.context import Context
from service.api.problems import problem_of
from service.api.sockets import POLICY, SLOW_S, TOO_SLOW, UNREADABLE, Socket
from service.engine.watchers import Want, Watcher, Watchers
from service.errors import ServiceError
from service.wire import Format, check_stream_id, encode_state_id
from service.wire.answers import tensor
from service.wire.document import parse

_MOST_WANTS = 100


class _Follow(msgspec.Struct, forbid_unknown_fields=True):
    """What one watcher follows: a stream, the streams whose id begins alike, or a whole model."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    stream: str | None = None
    prefix: Annotated[str, msgspec.Meta(max_length=128)] = ""


class _Watch(msgspec.Struct, forbid_unknown_fields=True):
    """The first message."""

    watch: Annotated[list[_Follow], msgspec.Meta(min_length=1, max_length=_MOST_WANTS)]
    inputs: bool = False


def add_routes(app: FastAPI, context: Context, watchers: Watchers) -> None:
    """Declare the route."""

    @app.websocket("/v1/watch")
    async def watch(websocket: WebSocket) -> None:
        async with Socket.accepted(websocket, context, "read") as socket:
            await _serve(socket, context, watchers)


async def _serve(socket: Socket, context: Context, watchers: Watchers) -> None:
    try:
        watcher = _read(await socket.receive(), socket, context)
    except ServiceError as exc:
        await socket.close(UNREADABLE if exc.code == "bad_json" else POLICY, problem_of(exc))
        return
    await watchers.add(watcher)
    sending = asyncio.create_task(_send(socket, watcher))
    try:
        await socket.send({"watching": len(watcher.wants)})
        while True:  # nothing more is expected; this notices when the reader has gone
            await socket.receive()
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect):
            await sending
        await watchers.remove(watcher)


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
    return Watcher([_want(follow, socket.caller, context) for follow in body.watch], body.inputs)


def _want(follow: _Follow, caller: Caller, context: Context) -> Want:
    context.engine.shelf.get(follow.model)
    stream = None if follow.stream is None else check_stream_id(follow.stream)
    return Want(caller.tenant, follow.model, stream, follow.prefix)


async def _send(socket: Socket, watcher: Watcher) -> None:
    """Send events as they come; a reader that does not read loses the oldest, and after a while the socket."""
    try:
        while True:
            lost, events = await watcher.take()
            messages = [{"gap": lost}] if lost else []
            messages += [_message(event, socket.form, inputs=watcher.inputs) for event in events]
            for message in messages:
                async with asyncio.timeout(SLOW_S):
                    await socket.send(message)
    except TimeoutError:
        await socket.close(TOO_SLOW)


def _message(event: Mapping[str, Any], form: Format, *, inputs: bool) -> dict[str, Any]:
    message = {
        "model": event["model"],
        "stream": event["stream"],
        "step": event["step"],
        "state_id": encode_state_id(event["state_id"]),
        "outputs": _tensors(event["outputs"], form),
    }
    if inputs:
        message["inputs"] = _tensors(event["inputs"], form)
    return message


def _tensors(packed: Mapping[str, Mapping[str, Any]], form: Format) -> dict[str, Any]:
    return {name: tensor(_array(one), form) for name, one in packed.items()}


def _array(packed: Mapping[str, Any]) -> Array:
    return np.frombuffer(packed["b"], packed["d"]).reshape(packed["s"])

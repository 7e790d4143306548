"""The WebSocket `/v1/watch`: predictions as they are committed, whichever worker commits them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from starlette.websockets import WebSocket

from stepwell.addons.api_schemas.sockets import AuthMessage, SocketDocumentation, SocketError
from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.events import event_document, parse_subscription, queued_events
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.messages import (
    HEARTBEAT_S,
    CommitMessage,
    EventsMessage,
    GapMessage,
    WatchingReply,
    WatchRequest,
)
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.asgi.query import flag_of
from stepwell.asgi.websocket import AcceptedWebSocket
from stepwell.codec.strict.parse import parse
from stepwell.errors import ServiceError
from stepwell.requests.close_codes import DRAINING, TOO_SLOW
from stepwell.requests.context import AppContext
from stepwell.requests.slow_readers import SEND_TIMEOUT_S

GROUP_PAUSE_S: Final = 0.01
"""Longest pause between two groups of events, in seconds: what is committed meanwhile is in the next one."""

MAX_GROUP_BYTES: Final = 2**16
"""Most bytes of tensors in a group; a single event may have more."""


DOCUMENTATION: Final = SocketDocumentation(
    "/v1/watch",
    "Sends predictions when they are committed.",
    query={
        "grouped": {
            "type": "boolean",
            "default": False,
            "description": f"Send commits together in one message, and an empty one after {HEARTBEAT_S:g} s without "
            "any.",
        }
    },
    requests={AuthMessage: (), WatchRequest: (WatchingReply, SocketError)},
    events=(CommitMessage, EventsMessage, GapMessage),
)


async def serve(websocket: WebSocket, context: AppContext, hub: WatchHub) -> None:
    """Serve a watcher until it disconnects or this process drains."""
    async with AcceptedWebSocket.accepted(websocket, context, "read") as socket:
        grouped = flag_of(websocket.query_params, "grouped")
        watcher = _read(await socket.receive(), socket, context)
        work: list[asyncio.Task[None]] = []
        try:
            await hub.add(watcher)
            await socket.send({"watching": len(watcher.subscriptions)})
            send = _send(socket, watcher, grouped=grouped)
            work = [asyncio.create_task(send), asyncio.create_task(_wait_for_end(socket))]
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            hub.remove(watcher)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)


def _read(message: bytes, socket: AcceptedWebSocket, context: AppContext) -> Subscriber:
    """Return the subscriber of a watcher's first message.

    Raises:
        ServiceError: `bad_json`, `bad_request` or `model_not_found`.
    """
    try:
        body = msgspec.convert(parse(message, socket.message_format), WatchRequest)
    except msgspec.ValidationError as exc:
        raise ServiceError(
            "bad_request", f"The message is not a watch request: {exc}.", fix='Send {"watch": [{"model": "m"}]}.'
        ) from exc
    subscriptions, since = [], {}
    for entry in body.watch:
        subscription = parse_subscription(entry.model, entry.stream, entry.prefix, socket.caller, context)
        subscriptions.append(subscription)
        if entry.since is not None:
            if subscription.key is None:
                raise ServiceError(
                    "bad_request",
                    "`since` was sent without `stream`; expected the last step that you have received of one stream.",
                    fix="Name the `stream`, or leave `since` out.",
                )
            since[subscription.key] = entry.since
    return Subscriber(subscriptions, inputs=body.inputs, candidate=body.candidate, since=since)


async def _send(socket: AcceptedWebSocket, watcher: Subscriber, *, grouped: bool) -> None:
    """Send events; a client that does not read loses the oldest events, and is disconnected after a timeout."""

    def document(event: CommitEvent | EventGap) -> dict[str, Any]:
        return event_document(event, socket.message_format, watcher)

    try:
        async for events in queued_events(watcher, pause_s=GROUP_PAUSE_S if grouped else 0.0):
            groups: Iterable[list[CommitEvent] | CommitEvent | EventGap] = groups_of(events) if grouped else events
            for group in groups:
                message = {"events": list(map(document, group))} if isinstance(group, list) else document(group)
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await socket.send(message)
            socket.check()
        await socket.close(DRAINING)
    except TimeoutError:
        await socket.close(TOO_SLOW)


def groups_of(events: Sequence[CommitEvent | EventGap]) -> Iterator[list[CommitEvent] | EventGap]:
    """Yield events in their order: commits as lists, gaps alone; without events one empty list, as a heartbeat."""
    found: list[CommitEvent] = []
    nbytes = 0
    for event in events:
        size = MAX_GROUP_BYTES if isinstance(event, EventGap) else event.nbytes
        if found and nbytes + size > MAX_GROUP_BYTES:
            yield found
            found, nbytes = [], 0
        if isinstance(event, EventGap):
            yield event
        else:
            found.append(event)
            nbytes += size
    if found or not events:
        yield found


async def _wait_for_end(socket: AcceptedWebSocket) -> None:
    """Receive and discard messages until the client has disconnected."""
    while True:
        await socket.receive()

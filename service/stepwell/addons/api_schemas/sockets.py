"""The messages of the feeds, a struct each, and `SocketDocumentation`, which names those of a WebSocket.

Messages that step streams are in `codec.step_bodies`. The frequent messages of the service are built as plain values of
the same fields, in `codec.responses`; tests compare both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

from fastapi import FastAPI
from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.addons.api_schemas.responses import BulkResponse, Document, Problem, StepResponse
from stepwell.addons.api_schemas.routes import VERSION
from stepwell.codec.step_bodies import BulkMessage, FeedMessage, StreamId, StreamMessage

MessageId = Annotated[Any, Meta(description="The `id` of the message that this is the reply to, if it had one.")]


class AuthMessage(Document, kw_only=True):
    """The key, as the first message of a client that cannot send headers."""

    auth: Annotated[str, Meta(description="An API key or a token.")]


class FeedReply(StepResponse, kw_only=True):
    """The reply to a message of a feed for one stream."""

    id: MessageId | UnsetType = UNSET


class StreamReply(FeedReply, kw_only=True):
    """The reply to a message for one stream, of a feed for many streams."""

    stream: StreamId


class ColumnsReply(BulkResponse, kw_only=True):
    """The reply to a message with columns."""

    id: MessageId | UnsetType = UNSET


class SocketError(Document, kw_only=True):
    """The reply to a message that was rejected; without `stream` and `id`, the socket itself is rejected and closed."""

    error: Problem
    stream: StreamId | UnsetType = UNSET
    id: MessageId | UnsetType = UNSET


class SocketDocumentation(NamedTuple):
    """The documentation of a WebSocket.

    Attributes:
        address: Its path.
        summary: What it is for.
        query: Its query parameter, by name: the JSON schema.
        requests: The messages that the service receives, with those that it replies with.
        events: The messages that the service sends by itself.
    """

    address: str
    summary: str
    query: Mapping[str, Mapping[str, Any]]
    requests: Mapping[type[Struct], Sequence[type[Struct]]]
    events: Sequence[type[Struct]] = ()


_VERSION: Final = {"version": {**VERSION["schema"], "description": VERSION["description"]}}
FEEDS: Final[dict[str, SocketDocumentation]] = {
    "streamFeed": SocketDocumentation(
        "/v1/models/{model}/streams/{stream}/feed",
        "Steps one stream.",
        query=_VERSION,
        requests={AuthMessage: (), FeedMessage: (FeedReply, SocketError)},
    ),
    "modelFeed": SocketDocumentation(
        "/v1/models/{model}/feed",
        "Steps streams of one model; each message names its stream or streams.",
        query=_VERSION,
        requests={
            AuthMessage: (),
            StreamMessage: (StreamReply, SocketError),
            BulkMessage: (ColumnsReply, SocketError),
        },
    ),
}
"""The feeds, by the names of their channels."""


def document_socket(app: FastAPI, name: str, socket: SocketDocumentation) -> None:
    """Add a WebSocket to `/asyncapi.json`, under the name of its channel."""
    app.state.sockets = documented_sockets(app) | {name: socket}


def documented_sockets(app: FastAPI) -> dict[str, SocketDocumentation]:
    """Return the WebSockets of an application, by the names of their channels."""
    return getattr(app.state, "sockets", FEEDS)

"""The AsyncAPI document of the WebSockets: their channels, their messages, and who sends which.

As in the OpenAPI document, schemas are derived from the structs that decode messages and describe replies.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import FastAPI
from msgspec import Struct

from stepwell.addons.api_schemas.sockets import SocketDocumentation, documented_sockets
from stepwell.requests import close_codes
from stepwell.requests.slow_readers import SEND_TIMEOUT_S
from stepwell_client.wire.ids import STREAM_ID
from stepwell_export.runtime.manifest import NAME

VERSION: Final = "3.0.0"

_DESCRIPTION = f"""\
The WebSockets of Stepwell; HTTP routes are in `/openapi.json`. A feed carries timesteps to the service and predictions
back, in the order of the messages. A watcher receives predictions when they are committed, whoever sent the timesteps.

Messages are JSON in text frames, or with the subprotocol `stepwell.msgpack` msgpack in binary frames, where arrays are
`{{"d": "float32", "s": [shape], "b": bytes}}`; `stepwell.json` names the default. If the service requires a key, the
handshake has `Authorization: Bearer KEY`, or the first message is `{{"auth": KEY}}`.

The service closes a socket with {close_codes.UNREADABLE} (a message cannot be parsed), {close_codes.POLICY} (rejected:
the error is sent before), {close_codes.TOO_BIG} (a message is larger than `max_body_bytes`), {close_codes.FAILED} (an
unexpected error), {close_codes.DRAINING} (this process is about to end: connect again), or {close_codes.TOO_SLOW} (the
client has not read for {SEND_TIMEOUT_S:g} s).
"""

_PARAMETERS: Final = {
    "model": ("Name of a model.", NAME.pattern),
    "stream": ("Id of a stream.", STREAM_ID.pattern),
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the AsyncAPI document of an application, with the WebSockets of its add-ons."""
    sockets = documented_sockets(app)
    messages = sorted({one for socket in sockets.values() for one in _messages(socket)}, key=lambda one: one.__name__)
    _, schemas = msgspec.json.schema_components(messages, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": VERSION,
        "info": {"title": "Stepwell", "version": app.version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {
            "service": {
                "host": "{address}",
                "protocol": "ws",
                "description": "The service, or the proxy in front of it; over TLS the protocol is wss.",
                "variables": {"address": {"default": "127.0.0.1:8000", "description": "HOST:PORT"}},
                "security": [{"$ref": "#/components/securitySchemes/key"}],
            }
        },
        "channels": {name: _channel(socket) for name, socket in sockets.items()},
        "operations": {
            operation: described
            for name, socket in sockets.items()
            for operation, described in _operations(name, socket)
        },
        "components": {
            "messages": {one.__name__: _message(one) for one in messages},
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _messages(socket: SocketDocumentation) -> list[type[Struct]]:
    """Return the messages of a socket, each once."""
    replies = [reply for replies in socket.requests.values() for reply in replies]
    return list(dict.fromkeys([*socket.requests, *replies, *socket.events]))


def _message(message: type[Struct]) -> dict[str, Any]:
    summary = " ".join((message.__doc__ or "").split())
    name = message.__name__
    return {"name": name, "summary": summary, "payload": {"$ref": f"#/components/schemas/{name}"}}


def _channel(socket: SocketDocumentation) -> dict[str, Any]:
    names = [name for name in _PARAMETERS if f"{{{name}}}" in socket.address]
    channel: dict[str, Any] = {
        "address": socket.address,
        "summary": socket.summary,
        "messages": {one.__name__: {"$ref": f"#/components/messages/{one.__name__}"} for one in _messages(socket)},
        "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
    }
    if names:
        channel["parameters"] = {name: {"description": _parameter(*_PARAMETERS[name])} for name in names}
    channel["bindings"]["ws"]["query"] = {"type": "object", "properties": socket.query}
    return channel


def _parameter(text: str, pattern: str) -> str:
    """Return the description of a parameter of an address; AsyncAPI has no field for its pattern."""
    return f"{text} It matches `^{pattern}$`."


def _operations(name: str, socket: SocketDocumentation) -> list[tuple[str, dict[str, Any]]]:
    """Return the operations on a channel, as the service does them: what it receives, and what it sends."""
    channel = {"$ref": f"#/channels/{name}"}

    def message(one: type[Struct]) -> dict[str, str]:
        return {"$ref": f"#/channels/{name}/messages/{one.__name__}"}

    found: list[tuple[str, dict[str, Any]]] = []
    for request, replies in socket.requests.items():
        operation: dict[str, Any] = {"action": "receive", "channel": channel, "messages": [message(request)]}
        if replies:
            operation["reply"] = {"channel": channel, "messages": [message(reply) for reply in replies]}
        found.append((f"{name}.{request.__name__}", operation))
    if socket.events:
        sends = {"action": "send", "channel": channel, "messages": [message(event) for event in socket.events]}
        found.append((f"{name}.events", sends))
    return found

"""`AcceptedWebSocket`: authenticates, receives, sends and closes under any ASGI server; for feeds and `/v1/watch`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from stepwell.asgi.http import problem_response, reject_escaped_slash
from stepwell.errors import ServiceError
from stepwell.requests.auth.api_keys import Caller
from stepwell.requests.auth.api_keys import Scope as KeyScope
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.close_codes import POLICY, UNREADABLE
from stepwell.requests.context import AppContext
from stepwell.requests.problems import problem_document
from stepwell_client.wire.formats import JSON, Format, encode

_CLOSE_TIMEOUT_S = 5.0


def rejecting_sockets(default: ASGIApp, context: AppContext) -> ASGIApp:
    """Return the application for what has no route: for WebSockets a problem, for all else `default`."""

    async def reject(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await default(scope, receive, send)
            return
        error = ServiceError(
            "not_found", f"There is no WebSocket {scope['path'][:200]!a}.", fix="See /asyncapi.json for the WebSockets."
        )
        context.metrics.refusal(error.code)
        await WebSocket(scope, receive, send).send_denial_response(problem_response(error))

    return reject


class AcceptedWebSocket:
    """An accepted WebSocket with one message format and one caller; created by `accepted`."""

    def __init__(self, websocket: WebSocket, auth: SocketAuth, auth_timeout_s: float) -> None:
        self._websocket = websocket
        self._auth = auth
        self._auth_timeout_s = auth_timeout_s  # timeout of the authentication message

    @property
    def message_format(self) -> Format:
        """The format of its messages."""
        return self._auth.message_format

    @property
    def caller(self) -> Caller:
        """The authenticated caller."""
        return self._auth.caller

    @classmethod
    @contextlib.asynccontextmanager
    async def accepted(
        cls, websocket: WebSocket, context: AppContext, scope: KeyScope
    ) -> AsyncIterator[AcceptedWebSocket]:
        """Accept a socket whose caller has the scope; the socket is counted while it is open.

        A wrong origin or key is rejected in the handshake, with a problem. If a key is required and the handshake has
        none, as with a browser, the first message has to be `{"auth": KEY}`. A `ServiceError` that is raised in the
        block is sent to the client, and the socket is closed.

        Raises:
            WebSocketDisconnect: The socket was rejected, or the client has disconnected.
        """
        headers = websocket.headers
        auth = SocketAuth(context, scope, headers.get("authorization"), websocket.scope["subprotocols"])
        socket = cls(websocket, auth, context.settings.receive_timeout_s)
        try:
            reject_escaped_slash(websocket.scope)
            auth.authorize_handshake(headers.get("origin"), headers.get("host"))
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await websocket.send_denial_response(problem_response(exc))
            raise WebSocketDisconnect(POLICY) from exc
        auth.register()
        try:
            await websocket.accept(auth.subprotocol)
            if auth.needs_auth_message:
                await socket._receive_auth()
            yield socket
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await socket.close(UNREADABLE if exc.code == "bad_json" else POLICY, problem_document(exc))
        finally:
            auth.unregister()

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            WebSocketDisconnect: The client has disconnected.
            ServiceError: `unauthenticated`: the key is no longer valid; `forbidden`: it has lost the scope.
        """
        message = await self._next()
        if self._auth.handle_auth_message(message):
            message = await self._next()
        self.check()
        return message

    def check(self) -> None:
        """Check that the key is still valid, at most once a second.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        self._auth.recheck(asyncio.get_running_loop().time())

    async def send(self, document: Mapping[str, Any]) -> None:
        """Send a document; waits while the client does not read.

        Raises:
            WebSocketDisconnect: The client has disconnected.
        """
        await self.send_bytes(encode(document, self.message_format))

    async def send_bytes(self, message: bytes) -> None:
        """Send an encoded document."""
        if self.message_format is JSON:
            await self._websocket.send({"type": "websocket.send", "text": message.decode()})
        else:
            await self._websocket.send({"type": "websocket.send", "bytes": message})

    async def close(self, code: int, problem: Mapping[str, Any] | None = None) -> None:
        """Send the problem, if any, then a close frame; gives up after 5 s or if the client has disconnected."""
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                if problem is not None:
                    await self.send({"error": problem})
                await self._websocket.close(code, "" if problem is None else problem["code"])

    # ---------------------------------------------------------------- helpers

    async def _next(self) -> bytes:
        received = await self._websocket.receive()
        if received["type"] != "websocket.receive":
            raise WebSocketDisconnect(received.get("code", 1006))
        text: str | None = received.get("text")
        data: bytes = received["bytes"] if text is None else text.encode()
        return data

    async def _receive_auth(self) -> None:
        """Authenticate by the first message."""
        try:
            async with asyncio.timeout(self._auth_timeout_s):
                self._auth.handle_auth_message(await self._next())
        except TimeoutError:
            raise self._auth.auth_timeout() from None

"""How WebSockets begin and end under any ASGI server; shared by the feeds and the watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from service.asgi.http import problem_response, reject_escaped_slash
from service.codec import JSON, Format
from service.codec.formats import encode
from service.errors import ServiceError
from service.requests.api_keys import Caller, Scope
from service.requests.close_codes import POLICY, UNREADABLE
from service.requests.context import AppContext
from service.requests.problems import problem_document
from service.requests.socket_auth import SocketAuth

_CLOSE_TIMEOUT_S = 5.0


class AcceptedWebSocket:
    """An accepted WebSocket: one format, one caller."""

    def __init__(self, websocket: WebSocket, visitor: SocketAuth, within_s: float) -> None:
        """Take over a socket; use `accepted`."""
        self._websocket = websocket
        self._visitor = visitor
        self._within_s = within_s  # that a key which is owed may take

    @property
    def message_format(self) -> Format:
        """What its messages are written in."""
        return self._visitor.message_format

    @property
    def caller(self) -> Caller:
        """Who it belongs to."""
        return self._visitor.caller

    @classmethod
    @contextlib.asynccontextmanager
    async def accepted(
        cls, websocket: WebSocket, context: AppContext, scope: Scope
    ) -> AsyncIterator[AcceptedWebSocket]:
        """Accept a socket whose caller may do this; it is counted while it is open.

        A wrong origin or key is refused in the handshake, with a problem. Where keys are asked for and the
        handshake has none, as with a browser, the first message has to be `{"auth": KEY}`. A `ServiceError` that
        comes out of the block is told to the client, and the socket closed.

        Raises:
            WebSocketDisconnect: It was refused, or the client has gone.
        """
        headers = websocket.headers
        visitor = SocketAuth(context, scope, headers.get("authorization"), websocket.scope["subprotocols"])
        socket = cls(websocket, visitor, context.settings.receive_timeout_s)
        try:
            reject_escaped_slash(websocket.scope)
            visitor.authorize_handshake(headers.get("origin"), headers.get("host"))
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await websocket.send_denial_response(problem_response(exc))
            raise WebSocketDisconnect(POLICY) from exc
        visitor.register()
        try:
            await websocket.accept(visitor.subprotocol)
            if visitor.needs_auth_message:
                await socket._take_key()
            yield socket
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await socket.close(UNREADABLE if exc.code == "bad_json" else POLICY, problem_document(exc))
        finally:
            visitor.unregister()

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            WebSocketDisconnect: The client has gone.
            ServiceError: `unauthenticated`: the key is no longer in force.
        """
        message = await self._next()
        if self._visitor.handle_auth_message(message):
            message = await self._next()
        self.check()
        return message

    def check(self) -> None:
        """Check, once in a while, that the key is still in force.

        Raises:
            ServiceError: `unauthenticated` or `forbidden`.
        """
        self._visitor.recheck(asyncio.get_running_loop().time())

    async def send(self, document: Mapping[str, Any]) -> None:
        """Send a document; waits while the client does not read.

        Raises:
            WebSocketDisconnect: The client has gone.
        """
        await self.send_bytes(encode(document, self.message_format))

    async def send_bytes(self, message: bytes) -> None:
        """Send a document that is encoded already."""
        if self.message_format is JSON:
            await self._websocket.send({"type": "websocket.send", "text": message.decode()})
        else:
            await self._websocket.send({"type": "websocket.send", "bytes": message})

    async def close(self, code: int, problem: Mapping[str, Any] | None = None) -> None:
        """Close, after the word why if there is one; a client that has gone or does not read is left alone."""
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

    async def _take_key(self) -> None:
        """Take the key from the first message."""
        try:
            async with asyncio.timeout(self._within_s):
                self._visitor.handle_auth_message(await self._next())
        except TimeoutError:
            raise self._visitor.auth_timeout() from None

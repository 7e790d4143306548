"""How WebSockets begin and end: origin, key, subprotocol, close codes; shared by the feeds and the watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from service.api.auth import ANYONE, Caller, Scope
from service.api.context import Context
from service.api.http import demand_plain_path, problem_response
from service.api.problems import problem_of
from service.errors import ServiceError
from service.wire import JSON, MSGPACK, Format
from service.wire.document import parse
from service.wire.formats import encode

UNREADABLE: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
FAILED: Final = 1011
DRAINING: Final = 1012
TOO_SLOW: Final = 1013

SLOW_S: Final = 10.0
"""Seconds that one send may be blocked before its reader is given up."""

_SUBPROTOCOLS = {"stepwell.json": JSON, "stepwell.msgpack": MSGPACK}
_CLOSE_WITHIN_S = 5.0
_CHECK_KEY_EVERY_S = 1.0


class Socket:
    """An accepted WebSocket: one format, one caller.

    Attributes:
        form: What its messages are written in.
        caller: Who it belongs to.
    """

    def __init__(self, websocket: WebSocket, form: Format, context: Context, scope: Scope) -> None:
        """Take over a socket; use `accepted`."""
        self.form = form
        self.caller: Caller = ANYONE
        self._websocket = websocket
        self._context = context
        self._scope = scope
        self._authorization = websocket.headers.get("authorization")
        self._check_at = 0.0
        self._begun = False

    @classmethod
    @contextlib.asynccontextmanager
    async def accepted(cls, websocket: WebSocket, context: Context, scope: Scope) -> AsyncIterator[Socket]:
        """Accept a socket whose caller may do this; it is counted while it is open.

        A wrong origin or key is refused in the handshake, with a problem. Where keys are asked for and the
        handshake has none, as with a browser, the first message has to be `{"auth": KEY}`. A `ServiceError` that
        comes out of the block is told to the client, and the socket closed.

        Raises:
            WebSocketDisconnect: It was refused, or the client has gone.
        """
        protocol = next((name for name in websocket.scope["subprotocols"] if name in _SUBPROTOCOLS), None)
        socket = cls(websocket, _SUBPROTOCOLS.get(protocol or "", JSON), context, scope)
        late = context.keys.asked and socket._authorization is None
        try:
            demand_plain_path(websocket.scope)
            context.demand_own_origin(websocket.headers.get("origin"), websocket.headers.get("host"))
            _demand_room(context)
            if not late:
                socket._check_key()
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await websocket.send_denial_response(problem_response(exc))
            raise WebSocketDisconnect(POLICY) from exc
        context.websockets += 1
        try:
            await websocket.accept(protocol)
            if late:
                await socket._be_introduced()
            yield socket
        except ServiceError as exc:
            context.metrics.refusal(exc.code)
            await socket.close(UNREADABLE if exc.code == "bad_json" else POLICY, problem_of(exc))
        finally:
            context.websockets -= 1

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            WebSocketDisconnect: The client has gone.
            ServiceError: `unauthenticated`: the key is no longer in force.
        """
        message = await self._next()
        if not self._begun:
            self._begun = True
            if _key_in(message, self.form) is not None:
                message = await self._next()  # browsers introduce themselves also where nobody asks
        now = asyncio.get_running_loop().time()
        if now >= self._check_at:
            self._check_at = now + _CHECK_KEY_EVERY_S
            self._check_key()
        return message

    async def send(self, document: Mapping[str, Any]) -> None:
        """Send a document; waits while the client does not read.

        Raises:
            WebSocketDisconnect: The client has gone.
        """
        await self.send_bytes(encode(document, self.form))

    async def send_bytes(self, message: bytes) -> None:
        """Send a document that is encoded already."""
        if self.form is JSON:
            await self._websocket.send({"type": "websocket.send", "text": message.decode()})
        else:
            await self._websocket.send({"type": "websocket.send", "bytes": message})

    async def close(self, code: int, problem: Mapping[str, Any] | None = None) -> None:
        """Close, after the word why if there is one; a client that has gone or does not read is left alone."""
        if self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
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

    def _check_key(self) -> None:
        self.caller = self._context.caller(self._authorization, self._scope)

    async def _be_introduced(self) -> None:
        """Take the key from the first message."""
        within = self._context.settings.receive_timeout_s
        self._begun = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                key = _key_in(await self._next(), self.form)
                self._authorization = None if key is None else f"Bearer {key}"
        if self._authorization is None:
            raise ServiceError(
                "unauthenticated",
                'The socket has neither an Authorization header nor {"auth": KEY} as its first message, '
                f"within {within:g} s.",
                fix="Send one of them.",
            )
        self._check_key()


def _key_in(message: bytes, form: Format) -> str | None:
    """Return the key of `{"auth": KEY}`, or None where the message is another."""
    if b"auth" not in message[:64]:
        return None
    try:
        document: Any = parse(message, form)
    except ServiceError:
        return None
    key = document.get("auth") if isinstance(document, dict) and len(document) == 1 else None
    return key if isinstance(key, str) else None


def _demand_room(context: Context) -> None:
    most = context.settings.max_websockets
    if context.websockets >= most:
        raise ServiceError(
            "overloaded", f"{context.websockets} WebSockets are open; at most {most} are.", fix="Try again later."
        )

"""`DenyingWebSocketProtocol`: uvicorn's WebSocket protocol, in which a rejected handshake is no error."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class DenyingWebSocketProtocol(WebSocketsSansIOProtocol):
    """A connection whose handshake may be rejected with a response, after which uvicorn would log an error."""

    async def send(self, message: Any) -> None:
        """Send an event; the end of a response that rejects the handshake completes it."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True

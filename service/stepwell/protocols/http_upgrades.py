"""`UpgradingHttpProtocol`: uvicorn's HTTP protocol; an Upgrade to an unsupported protocol is ignored."""

from __future__ import annotations

import sys

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class UpgradingHttpProtocol(HttpToolsProtocol):
    """A connection on which an `Upgrade` to anything but a WebSocket is ignored, as RFC 9110 allows.

    Some clients, Java's among them, offer HTTP/2 with their first request. httptools ends at such a request, and its
    body would be lost.
    """

    _received = b""  # what is parsed
    _rest = b""  # what is to be parsed next

    def data_received(self, data: bytes) -> None:
        """Parse the data; a request whose `Upgrade` is ignored is parsed again without it."""
        self._received, self._rest = data, b""
        super().data_received(data)
        while self._rest:
            self._received, self._rest = self._rest, b""
            super().data_received(self._received)

    def on_headers_complete(self) -> None:
        """Start the request."""
        if not self._ignores_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request's body."""
        if not self._ignores_upgrade():
            super().on_message_complete()

    def handshake_fault(self) -> str | None:
        """Return why the handshake of a WebSocket could not be read, and has no response; None: it could."""
        protocol = self.transport.get_protocol()
        if not isinstance(protocol, WebSocketsSansIOProtocol) or protocol.handshake_initiated:
            return None
        connection_state = protocol.conn
        error = connection_state.handshake_exc
        return None if error is None else str(error.__cause__ or error)

    def _should_upgrade(self) -> bool:
        return bool(self.parser.get_method() == b"GET") and super()._should_upgrade()

    def _ignores_upgrade(self) -> bool:
        is_offer = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return is_offer and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        end = sys.exception()  # uvicorn handles it
        if not self._ignores_upgrade() or not isinstance(end, HttpParserUpgrade):
            super()._unsupported_upgrade_warning()
            return
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.lower().split(b",")]
                head += [b"connection: ", b", ".join(token for token in tokens if token != b"upgrade"), b"\r\n"]
            elif name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._rest = b"".join([*head, b"\r\n", self._received[end.args[0] :]])

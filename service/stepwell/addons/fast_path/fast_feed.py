"""`FastFeedProtocol`: the fast path of live feeds; messages go from the socket to the engine, replies out in one write.

uvicorn's WebSocket protocol and the websockets library open the connection, handle everything unusual (fragments,
pings, closing, protocol errors) and keep it alive. Only whole messages in one frame are read here: nearly all messages
are of this kind, and reading them here is what makes feeds fast. uvicorn and the application handle all other sockets.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stepwell.addons.fast_path.ws_frames import CONTROL, MAX_HEAD_BYTES, encode_frames, next_frame
from stepwell.errors import ServiceError
from stepwell.protocols.ws_denials import DenyingWebSocketProtocol
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.close_codes import DRAINING, FAILED, TOO_SLOW
from stepwell.requests.feed_session import FeedSession, session_type
from stepwell.requests.slow_readers import SEND_TIMEOUT_S
from stepwell_client.wire.formats import JSON

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Request

    from stepwell.requests.context import AppContext

_log = logging.getLogger(__name__)

_FEED: Final = re.compile(
    r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128}))?/feed"
    r"(?:\?version=([1-9][0-9]{0,8}))?"
)
_CLOSE_TIMEOUT_S: Final = 5.0


class FastFeedProtocol(DenyingWebSocketProtocol):
    """uvicorn's WebSocket protocol, with a fast path for feeds."""

    context: ClassVar[AppContext]
    _max_frame_bytes: ClassVar[int]  # bytes of a frame

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session: FeedSession | None = None  # None: not a feed, or not open yet
        self._auth: SocketAuth
        self._parts: list[bytes] = []  # received bytes that are not read yet
        self._buffered = 0  # their number
        self._bytes_needed = 0  # buffered bytes at which reading can continue
        self._bytes_to_skip = 0  # bytes left of a message that is too large
        self._in_fragmented_message = False  # some fragments of a message were received, but not the last
        self._flush_scheduled = False
        self._is_write_paused = False
        self._auth_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- opening

    def handle_connect(self, event: Request) -> None:
        """Open a feed here if the request is plain; uvicorn handles every other request."""
        path = _FEED.fullmatch(event.path)
        if path is None or not self._open(event, *path.groups()):
            super().handle_connect(event)

    def _open(self, event: Request, model: str, stream: str | None, version_text: str | None) -> bool:
        """Open a feed; returns False if there is a reason to reject it, which uvicorn's path then reports."""
        headers = event.headers
        values = [headers.get_all(name) for name in ("Authorization", "Origin", "Host")]
        if any(len(value) > 1 for value in values):
            return False
        authorization, origin, host = (value[0] if value else None for value in values)
        offered = [name.strip() for header in headers.get_all("Sec-WebSocket-Protocol") for name in header.split(",")]
        context, version = self.context, None if version_text is None else int(version_text)
        auth = SocketAuth(context, "step", authorization, offered)
        try:
            auth.authorize_handshake(origin, host)
            context.engine.models.get(model, version)
        except ServiceError:
            return False
        response = self.conn.accept(event)
        if response.status_code != 101 or self.transport.is_closing():
            return False
        del response.headers["Date"]
        for name, value in self.default_headers:
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        if auth.subprotocol is not None:
            response.headers["Sec-WebSocket-Protocol"] = auth.subprotocol
        self.handshake_initiated = self.handshake_complete = True
        self.conn.send_response(response)
        self._send_protocol()
        self._auth = auth
        self._session = session_type(context, next(iter(headers.get_all("traceparent")), None))(
            context,
            auth.message_format,
            model,
            version,
            stream=stream,
            on_ready=self._schedule_flush,
        )
        auth.register()
        self.start_keepalive()
        if auth.needs_auth_message:
            self._auth_timer = self.loop.call_later(context.settings.receive_timeout_s, self._on_auth_timeout)
        return True

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Read frames of a feed; uvicorn handles the bytes of other connections."""
        if self._session is None:
            super().data_received(data)
            return
        if self._bytes_to_skip:
            skipped = min(self._bytes_to_skip, len(data))
            self._bytes_to_skip -= skipped
            data = data[skipped:]
        self._parts.append(data)
        self._buffered += len(data)
        if self._buffered >= self._bytes_needed and not self.read_paused:
            self._read()

    def handle_text(self, event: Frame) -> None:
        """Handle a text message from the library, or the first fragment of one."""
        if self._session is None:
            super().handle_text(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_bytes(self, event: Frame) -> None:
        """Handle a binary message from the library, or the first fragment of one."""
        if self._session is None:
            super().handle_bytes(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_cont(self, event: Frame) -> None:
        """Handle a further fragment of a message."""
        if self._session is None:
            super().handle_cont(event)
        else:
            self._collect(event)

    def _collect(self, event: Frame) -> None:
        self.frames.append(bytes(event.data))
        self._in_fragmented_message = not event.fin
        if event.fin:
            self._handle_frame(b"".join(self.frames))
            self.frames = []

    def _read(self) -> None:
        """Read the complete frames that are buffered, until too many replies are pending."""
        session, position = self._session, 0
        assert session is not None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._bytes_needed = 0
        while (
            position < len(data)
            and not session.is_full
            and not self._is_write_paused
            and not self.transport.is_closing()
        ):
            message, end = next_frame(data, position)
            is_open = session.close_code is None
            if message is not None and is_open and not self._in_fragmented_message:
                self._handle_frame(message)
            elif end - position > self._max_frame_bytes or (end and not is_open and not data[position] & CONTROL):
                if is_open:
                    session.reject_too_large(end - position - MAX_HEAD_BYTES)
                self._bytes_to_skip = max(end - len(data), 0)  # dropped as it is received, never buffered
            elif not end or end > len(data):
                self._bytes_needed = end - position
                break
            else:
                self._delegate_frame(data[position:end])
            position = end
        self._parts = [data[position:]] if position < len(data) else []
        self._buffered = max(len(data) - position, 0)
        if session.is_full or self._is_write_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _handle_frame(self, message: bytes) -> None:
        """Pass a message to the session."""
        session, auth = self._session, self._auth
        assert session is not None
        if session.close_code is not None:
            return
        try:
            if auth.handle_auth_message(message):
                _cancel_timer(self._auth_timer)
                return
            auth.recheck(self.loop.time())
        except ServiceError as exc:
            session.reject_and_close(exc)
            return
        try:
            session.handle_message(message, auth.caller.tenant)
        except Exception:  # noqa: BLE001 - a failure of one feed must not reach the event loop; it is logged
            _log.exception(
                "A feed failed to handle a message, and is closed: %s", session.name, extra=session.log_fields
            )
            self._close(FAILED)

    def _delegate_frame(self, frame: bytes) -> None:
        """Pass a frame to the library."""
        self.conn.receive_data(frame)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self.handle_events()

    def _on_auth_timeout(self) -> None:
        if self._session is not None:
            self._session.reject_and_close(self._auth.auth_timeout())

    # ---------------------------------------------------------------- replies

    def pause_writing(self) -> None:
        """Stop writing, because the client does not read; the connection is closed if this lasts too long."""
        super().pause_writing()
        self._is_write_paused = True
        if self._session is not None:
            self._write_timer = self.loop.call_later(SEND_TIMEOUT_S, self._close, TOO_SLOW)
        else:  # the application closes it before, but its close frame cannot be sent
            self._write_timer = self.loop.call_later(SEND_TIMEOUT_S + _CLOSE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Write again, because the client reads again."""
        super().resume_writing()
        self._is_write_paused = False
        _cancel_timer(self._write_timer)
        if self._session is not None:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        """Send ready replies at the end of this event loop iteration, all in one write."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        session = self._session
        if session is None or self.close_sent or self._is_write_paused or self.transport.is_closing():
            return
        try:
            replies = session.pop_ready()
        except Exception:  # noqa: BLE001 - a failure of one feed must not reach the event loop; it is logged
            _log.exception("A feed failed to encode a reply, and is closed: %s", session.name, extra=session.log_fields)
            self._close(FAILED)
            return
        if replies:
            self.transport.write(encode_frames(replies, text=self._auth.message_format is JSON))
        if session.is_drained:
            self._close(session.close_code)
        elif self.read_paused and not self._is_write_paused:
            self.read_paused = False
            self._read()
            if not self.read_paused:
                self.transport.resume_reading()

    # ---------------------------------------------------------------- closing

    def shutdown(self) -> None:
        """Close the feed once all accepted messages have been replied to."""
        if self._session is None:
            super().shutdown()
        else:
            self.stop_keepalive()
            self._session.close_after_replies(DRAINING)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release timers and counters; the engine completes submitted timesteps, and their replies are dropped."""
        _cancel_timer(self._write_timer)
        if self._session is not None:
            self._auth.unregister()
            _cancel_timer(self._auth_timer)
        super().connection_lost(exc)

    def _close(self, code: int | None) -> None:
        """Send a close frame; the connection is aborted if the client does not close it within 5 s."""
        if code is None or self.close_sent or self.transport.is_closing():
            return
        if self._session is not None:
            self._session.close_code = code
        self.conn.send_close(code)
        self._send_protocol()
        self.close_sent = True
        self.close_timer = self.loop.call_later(_CLOSE_TIMEOUT_S, self.transport.abort)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _send_protocol(self) -> None:
        """Send the bytes that the library has queued."""
        self.transport.write(b"".join(self.conn.data_to_send()))


def fast_feed_class(context: AppContext) -> type[FastFeedProtocol]:
    """Return the WebSocket protocol of a service, with the fast path of feeds."""
    max_frame_bytes = context.settings.max_body_bytes + MAX_HEAD_BYTES
    return type("FastFeedProtocol", (FastFeedProtocol,), {"context": context, "_max_frame_bytes": max_frame_bytes})


def _cancel_timer(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

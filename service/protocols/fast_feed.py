"""`FastFeedProtocol`: live feeds on the fast lane; messages go from the socket to the engine, answers out in one write.

uvicorn's WebSocket protocol and the library under it open the connection, judge what is unusual (fragments, pings,
closing, mistakes) and keep it alive. The usual, a whole message in one frame, is read here: that is what the speed is
about. Any other socket than a plain feed goes uvicorn's and the application's way, untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.codec import JSON
from service.errors import ServiceError
from service.protocols.ws_frames import CONTROL, MAX_HEAD_BYTES, encode_frames, next_frame
from service.requests.close_codes import DRAINING, FAILED, SEND_TIMEOUT_S, TOO_SLOW
from service.requests.feed_session import FeedSession
from service.requests.socket_auth import SocketAuth

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Request

    from service.requests.context import AppContext

_log = logging.getLogger(__name__)

_FEED: Final = re.compile(
    r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128}))?/feed"
    r"(?:\?version=([1-9][0-9]{0,8}))?"
)
_CLOSE_TIMEOUT_S: Final = 5.0


class FastFeedProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with feeds of our own in it."""

    context: ClassVar[AppContext]
    _max_message: ClassVar[int]  # bytes of a frame

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._session: FeedSession | None = None  # None: no feed, or not yet
        self._auth: SocketAuth
        self._parts: list[bytes] = []  # what came and is not read yet
        self._buffered = 0  # bytes of it
        self._bytes_needed = 0  # bytes before it is worth another look
        self._bytes_to_skip = 0  # bytes of a message that is too large
        self._in_fragmented_message = False  # fragments of a message have come, and more will
        self._flush_scheduled = False
        self._is_write_paused = False
        self._key_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ---------------------------------------------------------------- opening

    def handle_connect(self, event: Request) -> None:
        """Open a feed here where the request is plain; uvicorn takes every other."""
        path = _FEED.fullmatch(event.path)
        if path is None or not self._open(event, *path.groups()):
            super().handle_connect(event)

    def _open(self, event: Request, model: str, stream: str | None, number: str | None) -> bool:
        """Open a feed; False where there is anything to refuse."""
        headers = event.headers
        asked = [headers.get_all(name) for name in ("Authorization", "Origin", "Host")]
        if any(len(values) > 1 for values in asked):
            return False
        authorization, origin, host = (values[0] if values else None for values in asked)
        offered = [name.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for name in line.split(",")]
        context, version = self.context, None if number is None else int(number)
        visitor = SocketAuth(context, "step", authorization, offered)
        try:
            visitor.authorize_handshake(origin, host)
            context.engine.models.get(model, version)
        except ServiceError:
            return False
        response = self.conn.accept(event)
        if response.status_code != 101 or self.transport.is_closing():
            return False
        del response.headers["Date"]
        for name, value in self.default_headers:
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        if visitor.subprotocol is not None:
            response.headers["Sec-WebSocket-Protocol"] = visitor.subprotocol
        self.handshake_initiated = self.handshake_complete = True
        self.conn.send_response(response)
        self._send_protocol()
        self._auth = visitor
        self._session = FeedSession(
            context, visitor.message_format, model, version, stream=stream, on_ready=self._schedule_flush
        )
        visitor.register()
        self.start_keepalive()
        if visitor.needs_auth_message:
            self._key_timer = self.loop.call_later(context.settings.receive_timeout_s, self._on_auth_timeout)
        return True

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
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
        """See a message in text, or the first part of one."""
        if self._session is None:
            super().handle_text(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_bytes(self, event: Frame) -> None:
        """See a binary message, or the first part of one."""
        if self._session is None:
            super().handle_bytes(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_cont(self, event: Frame) -> None:
        """See a further part of a message."""
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
        """Read frames as far as they have come, and as long as answers do not pile up."""
        line, at = self._session, 0
        assert line is not None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._bytes_needed = 0
        while at < len(data) and not line.is_full and not self._is_write_paused and not self.transport.is_closing():
            message, end = next_frame(data, at)
            is_open = line.close_code is None
            if message is not None and is_open and not self._in_fragmented_message:
                self._handle_frame(message)
            elif end - at > self._max_message or (end and not is_open and not data[at] & CONTROL):
                if is_open:
                    line.reject_too_large(end - at - MAX_HEAD_BYTES)
                self._bytes_to_skip = max(end - len(data), 0)  # never kept, whatever length it has
            elif not end or end > len(data):
                self._bytes_needed = end - at
                break
            else:
                self._delegate_frame(data[at:end])
            at = end
        self._parts = [data[at:]] if at < len(data) else []
        self._buffered = max(len(data) - at, 0)
        if line.is_full or self._is_write_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _handle_frame(self, message: bytes) -> None:
        """Hand a message over."""
        line, visitor = self._session, self._auth
        assert line is not None
        if line.close_code is not None:
            return
        try:
            if visitor.handle_auth_message(message):
                _cancel_timer(self._key_timer)
                return
            visitor.recheck(self.loop.time())
        except ServiceError as exc:
            line.reject_and_close(exc)
            return
        try:
            line.handle_message(message, visitor.caller.tenant)
        except Exception:  # noqa: BLE001 - one feed's fault must not reach the loop; it is logged
            _log.exception("A feed failed")
            self._close(FAILED)

    def _delegate_frame(self, frame: bytes) -> None:
        """Let the library judge a frame."""
        self.conn.receive_data(frame)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self.handle_events()

    def _on_auth_timeout(self) -> None:
        if self._session is not None:
            self._session.reject_and_close(self._auth.auth_timeout())

    # ---------------------------------------------------------------- answering

    def pause_writing(self) -> None:
        """See that the client does not read."""
        super().pause_writing()
        self._is_write_paused = True
        if self._session is not None:
            self._write_timer = self.loop.call_later(SEND_TIMEOUT_S, self._close, TOO_SLOW)
        else:  # the application closes it meanwhile, which such a client never hears of
            self._write_timer = self.loop.call_later(SEND_TIMEOUT_S + _CLOSE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """See that it reads again."""
        super().resume_writing()
        self._is_write_paused = False
        _cancel_timer(self._write_timer)
        if self._session is not None:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        """Send what is ready in a moment, together with what else gets ready in this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        line = self._session
        if line is None or self.close_sent or self._is_write_paused or self.transport.is_closing():
            return
        try:
            answers = line.pop_ready()
        except Exception:  # noqa: BLE001 - one feed's fault must not reach the loop; it is logged
            _log.exception("A feed failed")
            self._close(FAILED)
            return
        if answers:
            self.transport.write(encode_frames(answers, text=self._auth.message_format is JSON))
        if line.is_drained:
            self._close(line.close_code)
        elif self.read_paused and not self._is_write_paused:
            self.read_paused = False
            self._read()
            if not self.read_paused:
                self.transport.resume_reading()

    # ---------------------------------------------------------------- ending

    def shutdown(self) -> None:
        """End: what was taken is answered, then the feed closed."""
        if self._session is None:
            super().shutdown()
        else:
            self.stop_keepalive()
            self._session.close_after_replies(DRAINING)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what was taken goes on, and nobody hears of it."""
        _cancel_timer(self._write_timer)
        if self._session is not None:
            self._auth.unregister()
            _cancel_timer(self._key_timer)
        super().connection_lost(exc)

    def _close(self, code: int | None) -> None:
        """Send a close frame; a client that does not answer it soon is cut off."""
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
        """Send what the library has to say."""
        self.transport.write(b"".join(self.conn.data_to_send()))


def fast_feed_class(context: AppContext) -> type[FastFeedProtocol]:
    """Return the protocol of a service's WebSockets, with feeds on the lane."""
    longest = context.settings.max_body_bytes + MAX_HEAD_BYTES
    return type("FastFeedProtocol", (FastFeedProtocol,), {"context": context, "_max_message": longest})


def _cancel_timer(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

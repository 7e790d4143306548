"""`FeedProtocol`: live feeds on the fast lane; messages go from the socket to the engine, answers out in one write.

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

from service.api.feed_line import FeedLine
from service.api.sockets import DRAINING, FAILED, SLOW_S, TOO_SLOW
from service.api.visitors import Visitor
from service.errors import ServiceError
from service.lane.frames import CONTROL, LONGEST_HEAD, frames_of, next_frame
from service.wire import JSON

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Request

    from service.api.context import Context

_log = logging.getLogger(__name__)

_FEED: Final = re.compile(
    r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/streams/(?!\.{1,2}/)([A-Za-z0-9._:@-]{1,128}))?/feed"
    r"(?:\?version=([1-9][0-9]{0,8}))?"
)
_CLOSE_WITHIN_S: Final = 5.0


class FeedProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with feeds of our own in it."""

    context: ClassVar[Context]
    _longest: ClassVar[int]  # bytes of a frame

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._line: FeedLine | None = None  # None: no feed, or not yet
        self._visitor: Visitor
        self._parts: list[bytes] = []  # what came and is not read yet
        self._have = 0  # bytes of it
        self._needs = 0  # bytes before it is worth another look
        self._to_skip = 0  # bytes of a message that is too large
        self._is_amid = False  # fragments of a message have come, and more will
        self._will_flush = False
        self._is_write_paused = False
        self._key_timer: asyncio.TimerHandle | None = None
        self._slow_timer: asyncio.TimerHandle | None = None

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
        visitor = Visitor(context, "step", authorization, offered)
        try:
            visitor.demand_entry(origin, host)
            context.engine.shelf.get(model, version)
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
        self._visitor = visitor
        self._line = FeedLine(context, visitor.form, model, version, stream=stream, on_ready=self._soon)
        visitor.enter()
        self.start_keepalive()
        if visitor.owes_key:
            self._key_timer = self.loop.call_later(context.settings.receive_timeout_s, self._came_without_key)
        return True

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._line is None:
            super().data_received(data)
            return
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        self._parts.append(data)
        self._have += len(data)
        if self._have >= self._needs and not self.read_paused:
            self._read()

    def handle_text(self, event: Frame) -> None:
        """See a message in text, or the first part of one."""
        if self._line is None:
            super().handle_text(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_bytes(self, event: Frame) -> None:
        """See a binary message, or the first part of one."""
        if self._line is None:
            super().handle_bytes(event)
        else:
            self.frames = []
            self._collect(event)

    def handle_cont(self, event: Frame) -> None:
        """See a further part of a message."""
        if self._line is None:
            super().handle_cont(event)
        else:
            self._collect(event)

    def _collect(self, event: Frame) -> None:
        self.frames.append(bytes(event.data))
        self._is_amid = not event.fin
        if event.fin:
            self._take(b"".join(self.frames))
            self.frames = []

    def _read(self) -> None:
        """Read frames as far as they have come, and as long as answers do not pile up."""
        line, at = self._line, 0
        assert line is not None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._needs = 0
        while at < len(data) and not line.is_full and not self._is_write_paused and not self.transport.is_closing():
            message, end = next_frame(data, at)
            is_open = line.end is None
            if message is not None and is_open and not self._is_amid:
                self._take(message)
            elif end - at > self._longest or (end and not is_open and not data[at] & CONTROL):
                if is_open:
                    line.refuse_large(end - at - LONGEST_HEAD)
                self._to_skip = max(end - len(data), 0)  # never kept, whatever length it has
            elif not end or end > len(data):
                self._needs = end - at
                break
            else:
                self._take_unusual(data[at:end])
            at = end
        self._parts = [data[at:]] if at < len(data) else []
        self._have = max(len(data) - at, 0)
        if line.is_full or self._is_write_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _take(self, message: bytes) -> None:
        """Hand a message over."""
        line, visitor = self._line, self._visitor
        assert line is not None
        if line.end is not None:
            return
        try:
            if visitor.introduces_itself(message):
                _stop(self._key_timer)
                return
            visitor.check(self.loop.time())
        except ServiceError as exc:
            line.forbid(exc)
            return
        try:
            line.take(message, visitor.caller.tenant)
        except Exception:  # noqa: BLE001 - one feed's fault must not reach the loop; it is logged
            _log.exception("A feed failed")
            self._close(FAILED)

    def _take_unusual(self, frame: bytes) -> None:
        """Let the library judge a frame."""
        self.conn.receive_data(frame)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
        else:
            self.handle_events()

    def _came_without_key(self) -> None:
        if self._line is not None:
            self._line.forbid(self._visitor.came_without_key())

    # ---------------------------------------------------------------- answering

    def pause_writing(self) -> None:
        """See that the client does not read."""
        super().pause_writing()
        self._is_write_paused = True
        if self._line is not None:
            self._slow_timer = self.loop.call_later(SLOW_S, self._close, TOO_SLOW)
        else:  # the application closes it meanwhile, which such a client never hears of
            self._slow_timer = self.loop.call_later(SLOW_S + _CLOSE_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        """See that it reads again."""
        super().resume_writing()
        self._is_write_paused = False
        _stop(self._slow_timer)
        if self._line is not None:
            self._soon()

    def _soon(self) -> None:
        """Send what is ready in a moment, together with what else gets ready in this turn of the loop."""
        if not self._will_flush:
            self._will_flush = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._will_flush = False
        line = self._line
        if line is None or self.close_sent or self._is_write_paused or self.transport.is_closing():
            return
        try:
            answers = line.ready()
        except Exception:  # noqa: BLE001 - one feed's fault must not reach the loop; it is logged
            _log.exception("A feed failed")
            self._close(FAILED)
            return
        if answers:
            self.transport.write(frames_of(answers, text=self._visitor.form is JSON))
        if line.is_over:
            self._close(line.end)
        elif self.read_paused and not self._is_write_paused:
            self.read_paused = False
            self._read()
            if not self.read_paused:
                self.transport.resume_reading()

    # ---------------------------------------------------------------- ending

    def shutdown(self) -> None:
        """End: what was taken is answered, then the feed closed."""
        if self._line is None:
            super().shutdown()
        else:
            self.stop_keepalive()
            self._line.finish(DRAINING)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what was taken goes on, and nobody hears of it."""
        _stop(self._slow_timer)
        if self._line is not None:
            self._visitor.leave()
            _stop(self._key_timer)
        super().connection_lost(exc)

    def _close(self, code: int | None) -> None:
        """Send a close frame; a client that does not answer it soon is cut off."""
        if code is None or self.close_sent or self.transport.is_closing():
            return
        if self._line is not None:
            self._line.end = code
        self.conn.send_close(code)
        self._send_protocol()
        self.close_sent = True
        self.close_timer = self.loop.call_later(_CLOSE_WITHIN_S, self.transport.abort)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _send_protocol(self) -> None:
        """Send what the library has to say."""
        self.transport.write(b"".join(self.conn.data_to_send()))


def feed_class(context: Context) -> type[FeedProtocol]:
    """Return the protocol of a service's WebSockets, with feeds on the lane."""
    longest = context.settings.max_body_bytes + LONGEST_HEAD
    return type("FeedProtocol", (FeedProtocol,), {"context": context, "_longest": longest})


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

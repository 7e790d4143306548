"""`make_feed_session`: the session of a feed, which traces its messages if traces are on and they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepwell.addons.tracing.ids import TracedId
from stepwell.addons.tracing.tracer import RequestTrace, Tracer
from stepwell.codec import Format
from stepwell.requests.context import AppContext
from stepwell.requests.feed_session import FeedSession
from stepwell.requests.problems import status_of
from stepwell.requests.request_ids import TRACEPARENT, log_fields, request_id_of


def make_feed_session(
    context: AppContext,
    message_format: Format,
    model: str,
    version: int | None,
    *,
    stream: str | None,
    on_ready: Callable[[], None],
    traceparent: str | None,
) -> FeedSession:
    """Return a session without pending messages.

    Args:
        context: The dependencies of every route.
        message_format: The format of messages and replies.
        model: The model's name.
        version: The requested version, or None: the default.
        stream: The stream of this feed; None: every message names its own.
        on_ready: Called when a reply is ready.
        traceparent: The header of the request that opened the feed, or None. If it is sampled, every message is traced.
    """
    if (tracer := context.tracer) is not None:
        headers = [] if traceparent is None else [(TRACEPARENT, traceparent.encode("latin-1"))]
        request_id = request_id_of(headers, tracer)
        if type(request_id) is TracedId or tracer.samples_roots:
            session = TracedFeedSession(context, message_format, model, version, stream=stream, on_ready=on_ready)
            session.trace_by(tracer, request_id)
            return session
    return FeedSession(context, message_format, model, version, stream=stream, on_ready=on_ready)


class TracedFeedSession(FeedSession):
    """A session whose messages may be traced; `trace_by` is called before the first one."""

    _tracer: Tracer
    _request_id: bytes
    _traces: dict[Any, RequestTrace]  # by the pending reply

    def trace_by(self, tracer: Tracer, request_id: bytes) -> None:
        """Set what traces the messages, and the id of the request that opened the feed."""
        self._tracer, self._request_id, self._traces = tracer, request_id, {}

    @property
    def log_fields(self) -> Mapping[str, str]:
        """The `extra` of log lines about the feed."""
        return log_fields(self._request_id)

    def handle_message(self, message: bytes, tenant: str) -> None:
        """Submit a message's timesteps, and trace it if it is sampled."""
        request_id = self._tracer.sample(self._request_id)
        trace = self._tracer.start(request_id, self._route, status_of, model=self._model, stream=self._stream)
        if trace is None:
            super().handle_message(message, tenant)
            return
        try:
            super().handle_message(message, tenant)
        except Exception as exc:
            trace.end(exc)
            raise
        pending = self._pending[-1]
        if pending.result is not None:
            trace.end(pending.result)
        else:
            trace.submitted()
            self._traces[pending] = trace

    def on_reply(self, pending: Any) -> None:
        """End the trace of a message that has its result, and report that it can be sent."""
        super().on_reply(pending)
        if (trace := self._traces.pop(pending, None)) is not None:
            trace.end(pending.result)

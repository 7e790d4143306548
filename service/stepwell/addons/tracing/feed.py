"""`TracedFeedSession`: the session of a feed whose messages may be traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepwell.requests.feed_session import FeedSession
from stepwell.requests.problems import status_of
from stepwell.requests.request_ids import log_fields

if TYPE_CHECKING:
    from stepwell.addons.tracing.tracer import RequestTrace, Tracer


class TracedFeedSession(FeedSession):
    """A session whose messages may be traced."""

    def __init__(self, tracer: Tracer, request_id: bytes, *args: Any, **named: Any) -> None:
        """Create it.

        Args:
            tracer: Traces the messages.
            request_id: The id of the request that opened the feed.
            args: As for `FeedSession`, like `named`.
            named: See `args`.
        """
        super().__init__(*args, **named)
        self._tracer, self._request_id = tracer, request_id
        self._traces: dict[Any, RequestTrace] = {}  # by the pending reply

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

"""`Tracer`: the spans of traced requests and of their batches; each is made when all its times are there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from stepwell.addons.tracing.feed import TracedFeedSession
from stepwell.addons.tracing.ids import UntracedId, id_of_child, id_of_root, new_span_id, new_trace_id
from stepwell.addons.tracing.sampler import TraceSampler
from stepwell.errors import ServiceError
from stepwell.requests.request_ids import TRACEPARENT, TracedId, request_id_of
from stepwell.requests.tracer import RequestTracer, Submits
from stepwell.types import BulkParts, BulkPrediction, Prediction
from stepwell_client.wire.ids import encode_state_id

if TYPE_CHECKING:
    from stepwell.requests.feed_session import FeedSession

StatusOf = Callable[[ServiceError], int]
_CACHED: Final = {True: {"stepwell.cached": True}, False: {"stepwell.cached": False}}
_LOAD: Final = "load"
_RUN: Final = "run"


class Span(Struct, frozen=True):
    """A span that has ended.

    Attributes:
        name: What was done.
        trace_id: 128 bits.
        span_id: 64 bits.
        parent_id: 64 bits; 0: it has no parent.
        start_s: On the monotonic clock.
        end_s: On the monotonic clock.
        is_server: It is a request that was received.
        attributes: What it was about; None: nothing more.
        links: Trace id and span id of each span that it belongs together with.
        error: Why it failed; empty: it did not, or the client is to blame.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    start_s: float
    end_s: float
    is_server: bool = False
    attributes: Mapping[str, Any] | None = None
    links: Sequence[tuple[int, int]] = ()
    error: str = ""


@dataclass(slots=True)
class BatchTrace:
    """What a batch did, and when; a span is made of it if one of its requests is traced.

    Attributes:
        model: The model's name.
        rows: Number of its rows.
        started_s: When it was started, on the monotonic clock.
        trace_id: Of its own trace.
        span_id: Of its span.
        phases: Name, start and end of each load, run and commit.
        requests: Trace id and span id of its traced requests.
        has_ended: It has replied to all its rows.
    """

    model: str
    rows: int
    started_s: float
    trace_id: int = 0
    span_id: int = 0
    phases: list[tuple[str, float, float]] = field(default_factory=list)
    requests: list[tuple[int, int]] = field(default_factory=list)
    has_ended: bool = False


# Each batch runs in a task of its own. Callbacks that are scheduled by it inherit the value.
_batch: ContextVar[BatchTrace | None] = ContextVar("batch", default=None)


class Tracer(RequestTracer):
    """Traces requests.

    Attributes:
        samples_roots: Whether requests without `traceparent` may be traced.
        on_request: Called with model, seconds and trace id of each traced request once it has its response; None: there
            is nothing to call.
    """

    def __init__(self, sampler: TraceSampler, emit: Callable[[Span], None]) -> None:
        """Start without open traces."""
        self.samples_roots = sampler.rate > 0
        self._sampler = sampler
        self._emit = emit
        self.on_request: Callable[[str, float, int], None] | None = None
        self._n_open = 0  # traced requests without a response

    def identify(self, request_id: bytes, traceparent: bytes) -> bytes:
        """Return a request's id, as a `TracedId` if it continues a trace.

        Args:
            request_id: The id, or empty.
            traceparent: The valid header.
        """
        if self._sampler.continues(traceparent):
            return id_of_child(request_id, traceparent)
        return UntracedId(request_id) if self.samples_roots else request_id

    def sample(self, request_id: bytes) -> bytes:
        """Return a request's id, as a `TracedId` if the request is traced; it may start a trace."""
        if self.samples_roots and type(request_id) is bytes and (trace_id := self._sampler.sample_root()):
            return id_of_root(request_id, trace_id)
        return request_id

    def start(
        self,
        request_id: bytes,
        route: str,
        status_of: StatusOf,
        *,
        model: str,
        stream: str | None,
        received_s: float | None = None,
    ) -> RequestTrace | None:
        """Return the trace of a request that was received; None: it is not traced. Each trace has to be ended.

        Args:
            request_id: The result of `sample`.
            route: Method and path of the declared route.
            status_of: Returns the HTTP status of an error.
            model: The model's name.
            stream: The stream's id; None: there are several, or it is not known.
            received_s: When it was received, on the monotonic clock; None: now.
        """
        if not isinstance(request_id, TracedId):
            return None
        self._n_open += 1
        attributes = (
            {"stepwell.model": model} if stream is None else {"stepwell.model": model, "stepwell.stream": stream}
        )
        received_s = time.monotonic() if received_s is None else received_s
        return RequestTrace(self, request_id, route, status_of=status_of, attributes=attributes, received_s=received_s)

    def submit(
        self,
        request: Submits,
        body: bytes,
        done: Callable[[Any], None],
        *,
        request_id: bytes,
        route: str,
        status_of: StatusOf,
        stream: str | None = None,
        received_s: float | None = None,
    ) -> None:
        """Submit a request, and trace it if `request_id` is a `TracedId`."""
        if stream is None:
            stream = getattr(getattr(request, "key", None), "stream", None)  # a bulk request has several
        trace = self.start(
            request_id, route, status_of, model=request.served.name, stream=stream, received_s=received_s
        )
        if trace is None:
            request.submit(body, done)
            return

        def on_result(result: Any) -> None:
            done(result)
            trace.end(result)

        try:
            request.submit(body, on_result)
        except Exception as exc:
            trace.end(exc)
            raise
        trace.submitted()

    def feed_session(self, traceparent: str | None) -> Callable[..., FeedSession] | None:
        """Return what creates a session whose messages may be traced: all of them if the header is sampled."""
        headers = [] if traceparent is None else [(TRACEPARENT, traceparent.encode("latin-1"))]
        request_id = request_id_of(headers, self)
        if type(request_id) is not TracedId and not self.samples_roots:
            return None
        return functools.partial(TracedFeedSession, self, request_id)

    # ---------------------------------------------------------------- called for batches

    def batch_started(self, model: str, rows: int) -> None:
        """Follow a batch, which runs in the current task, if it may have a traced request."""
        if self._n_open:
            _batch.set(BatchTrace(model, rows, time.monotonic()))
        elif _batch.get() is not None:
            _batch.set(None)

    def batch_ended(self) -> None:
        """Make the batch's span, if one of its requests is traced."""
        batch = _batch.get()
        if batch is None:
            return
        batch.has_ended = True
        if not batch.requests:
            return
        now = time.monotonic()
        self._emit(
            Span(
                *("batch", batch.trace_id, batch.span_id, 0, batch.started_s, now),
                attributes={"stepwell.model": batch.model, "stepwell.rows": batch.rows},
                links=batch.requests,
            )
        )

    def phase_ended(self, name: str, seconds: float) -> None:
        """Note a phase of the current batch that ends now."""
        batch = _batch.get()
        if batch is not None and not batch.has_ended:
            now = time.monotonic()
            batch.phases.append((name, now - seconds, now))

    # ---------------------------------------------------------------- called by traces

    def request_ended(self, trace: RequestTrace, now: float, attributes: dict[str, Any], error: str) -> None:
        """Make the spans of a request that has its response."""
        self._n_open -= 1
        if self.on_request is not None and trace.submitted_s is not None:
            self.on_request(attributes["stepwell.model"], now - trace.received_s, trace.trace_id)
        batch = _batch.get()
        is_of_batch = batch is not None and not batch.has_ended and trace.received_s <= batch.started_s
        links: Sequence[tuple[int, int]] = ()
        if is_of_batch:
            assert batch is not None
            if not batch.requests:
                batch.trace_id, batch.span_id = new_trace_id(), new_span_id()
            batch.requests.append((trace.trace_id, trace.span_id))
            links = ((batch.trace_id, batch.span_id),)
            self._emit_phases(trace, batch)
        elif trace.submitted_s is not None:
            self._emit_child(trace, "receive", trace.received_s, trace.submitted_s)
        self._emit(
            Span(
                *(trace.route, trace.trace_id, trace.span_id, trace.parent_id, trace.received_s, now),
                is_server=True,
                attributes=attributes,
                links=links,
                error=error,
            )
        )

    def _emit_phases(self, trace: RequestTrace, batch: BatchTrace) -> None:
        """Make the spans below a request's: receive, queue, load, run, commit."""
        submitted = batch.started_s if trace.submitted_s is None else trace.submitted_s
        self._emit_child(trace, "receive", trace.received_s, submitted)
        self._emit_child(trace, "queue", submitted, batch.started_s)
        names = [name for name, *_ in batch.phases]
        if _LOAD not in names and _RUN in names:  # from the cache
            run_started_s = batch.phases[names.index(_RUN)][1]
            self._emit_child(trace, _LOAD, batch.started_s, run_started_s, _CACHED[True])
        for name, start, end in batch.phases:
            self._emit_child(trace, name, start, end, _CACHED[False] if name == _LOAD else None)

    def _emit_child(
        self, trace: RequestTrace, name: str, start: float, end: float, attributes: Mapping[str, Any] | None = None
    ) -> None:
        self._emit(Span(name, trace.trace_id, new_span_id(), trace.span_id, start, end, attributes=attributes))


class RequestTrace:
    """A traced request that has no response yet.

    Attributes:
        route: Method and path of the declared route.
        trace_id: 128 bits.
        span_id: Of its span.
        parent_id: Of its caller's span; 0: none.
        received_s: When it was received, on the monotonic clock.
        submitted_s: When it was submitted to the engine; None: not yet.
    """

    __slots__ = (
        "_attributes",
        "_has_ended",
        "_status_of",
        "_tracer",
        "parent_id",
        "received_s",
        "route",
        "span_id",
        "submitted_s",
        "trace_id",
    )

    def __init__(
        self,
        tracer: Tracer,
        traced: TracedId,
        route: str,
        *,
        status_of: StatusOf,
        attributes: dict[str, Any],
        received_s: float,
    ) -> None:
        self.route = route
        self.trace_id, self.parent_id, self.span_id = traced.trace_id, traced.parent_id, new_span_id()
        self.received_s = received_s
        self.submitted_s: float | None = None
        self._attributes = attributes
        self._has_ended = False
        self._status_of = status_of
        self._tracer = tracer

    def submitted(self) -> None:
        """Note that the request was submitted to the engine."""
        if not self._has_ended:
            self.submitted_s = time.monotonic()

    def end(self, result: Any) -> None:
        """Make the spans.

        Args:
            result: What the engine has returned, or the exception that was raised; only the first call has an effect.
        """
        if self._has_ended:
            return
        self._has_ended = True
        now = time.monotonic()
        attributes = self._attributes
        error = ""
        if isinstance(result, ServiceError):
            status = self._status_of(result)
            attributes |= {"error.type": result.code, "stepwell.applied": result.applied}
            error = result.problem if status >= 500 else ""
        elif isinstance(result, BaseException):
            status, error = 500, "internal error"
            attributes["error.type"] = type(result).__name__
        else:
            status = 200
            attributes |= _attributes_of(result)
        if not self.route.startswith("WS "):
            attributes["http.response.status_code"] = status
        self._tracer.request_ended(self, now, attributes, error)


def _attributes_of(result: Any) -> dict[str, Any]:
    """Return the attributes of what the engine has returned."""
    if isinstance(result, Prediction):
        found: dict[str, Any] = {"stepwell.step": result.step, "stepwell.version": result.version}
        if result.state_id:
            found["stepwell.state_id"] = encode_state_id(result.state_id)
        if result.replayed:
            found["stepwell.replayed"] = True
        return found
    if isinstance(result, BulkPrediction):
        found = {"stepwell.rows": len(result.batch.steps)}
        if len(versions := {*result.versions}) == 1:
            found["stepwell.version"] = versions.pop()
        return found
    return {"stepwell.rows": result.n_rows if isinstance(result, BulkParts) else len(result)}

"""`make_tracer`: the tracer that the `OTEL_*` variables configure, with OpenTelemetry's exporter behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from stepwell.addons.tracing.sampler import TraceSampler
from stepwell.addons.tracing.settings import check_tracing
from stepwell.addons.tracing.tracer import Span, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

_END_S: Final = 3.0  # at the service's end, for what is not sent yet


def make_tracer(version: str, environment: Mapping[str, str]) -> tuple[Tracer, Callable[[], None]] | None:
    """Return the tracer, and a function that sends what is left and ends its thread; None: traces are off.

    They are on if an OTLP endpoint is configured, or the exporter `otlp`.

    Raises:
        MissingExtraError, TracingError: As for `check_tracing`.
    """
    if not check_tracing(environment):
        return None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanContext, TraceFlags

    from stepwell.addons.tracing.otlp import DirectSpanExporter, EndedSpan

    exporter = DirectSpanExporter(SdkSpans(version))
    processor = BatchSpanProcessor(exporter)
    context = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def emit(span: Span) -> None:
        processor.on_end(EndedSpan(context, span))  # type: ignore[arg-type]  # it reads the context alone

    tracer = Tracer(TraceSampler.from_environment(environment), emit)

    def end() -> None:
        give_up = threading.Timer(_END_S, exporter.shutdown)  # it would retry for up to 20 s
        give_up.daemon = True
        give_up.start()
        processor.shutdown()  # type: ignore[no-untyped-call]  # has no types
        give_up.cancel()

    return tracer, end


class SdkSpans:
    """Converts spans to those of OpenTelemetry's SDK.

    They are created as ended spans: starting and ending each by the SDK takes several times as long.
    """

    def __init__(self, version: str) -> None:
        """Create it; `version` is the service's, for the resource."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

        self._span: Callable[..., ReadableSpan] = ReadableSpan
        self._link, self._context = Link, SpanContext
        self._flags = TraceFlags(TraceFlags.SAMPLED)
        self._server, self._internal = SpanKind.SERVER, SpanKind.INTERNAL
        self._status, self._error = Status, StatusCode.ERROR
        self._ok = Status()
        self._shared: dict[str, Any] = {
            "resource": _resource(version),
            "instrumentation_scope": InstrumentationScope("stepwell", version),
        }

    def __call__(self, span: Span) -> ReadableSpan:
        """Return a span of the SDK that has ended."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        return self._span(
            span.name,
            context=self._context(span.trace_id, span.span_id, is_remote=False, trace_flags=self._flags),
            parent=self._parent(span),
            attributes=span.attributes,
            links=[self._link(self._context(*link, is_remote=False, trace_flags=self._flags)) for link in span.links],
            kind=self._server if span.is_server else self._internal,
            status=self._status(self._error, span.error) if span.error else self._ok,
            start_time=int(span.start_s * 1e9) + offset_ns,
            end_time=int(span.end_s * 1e9) + offset_ns,
            **self._shared,
        )

    def _parent(self, span: Span) -> Any:
        if not span.parent_id:
            return None
        return self._context(span.trace_id, span.parent_id, is_remote=span.is_server, trace_flags=self._flags)


def _resource(version: str) -> Resource:
    """Return what the spans are about; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override our names."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    class HashedOnce(Resource):
        """The exporter hashes each span's resource, by encoding it in JSON: a quarter of what a span costs."""

        def __hash__(self) -> int:
            return id(self)

    own = {"service.name": "stepwell", "service.version": version}
    found = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    return HashedOnce(dict(found.attributes), found.schema_url)

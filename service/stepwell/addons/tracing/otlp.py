"""`DirectSpanExporter`: OpenTelemetry's exporter, with messages that are made of our own spans, without the SDK's.

A span of the SDK, and its encoding by the SDK, take several times as long as the message that they become.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext

from stepwell.addons.tracing.tracer import Span

_INTERNAL: Final = trace_pb2.Span.SPAN_KIND_INTERNAL
_SERVER: Final = trace_pb2.Span.SPAN_KIND_SERVER
_ERROR: Final = trace_pb2.Status.STATUS_CODE_ERROR
_HAS_IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE: Final = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class EndedSpan(NamedTuple):
    """A span as the SDK's batch processor passes it on.

    Attributes:
        context: Shows the processor that it is sampled; it looks at nothing else.
        span: The span.
    """

    context: SpanContext
    span: Span


class DirectSpanExporter(OTLPSpanExporter):
    """Sends `EndedSpan`s. All settings, the connection and retries are those of the SDK's exporter."""

    def __init__(self, convert: Callable[[Span], ReadableSpan]) -> None:
        """Create it from the environment variables.

        Args:
            convert: Returns a span of the SDK. It gives the resource, and all spans if the SDK has no way to send an
                encoded message.
        """
        super().__init__()
        self._convert = convert
        sample = encode_spans([convert(Span("", 1, 1, 0, 0.0, 0.0))])
        del sample.resource_spans[0].scope_spans[0].spans[:]
        self._empty = sample

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Send spans, each an `EndedSpan`."""
        if (send := self._sender()) is None:
            return super().export([self._convert(ended.span) for ended in spans])
        result = send(self.encode([ended.span for ended in spans]))
        return SpanExportResult.SUCCESS if result.success else SpanExportResult.FAILURE

    def _sender(self) -> Callable[[bytes], Any] | None:
        """Return what sends an encoded message; it is not documented, and not in every release of the SDK."""
        return getattr(getattr(self, "_client", None), "export", None)

    def encode(self, spans: Sequence[Span]) -> bytes:
        """Return the message with these spans."""
        message = ExportTraceServiceRequest()
        message.CopyFrom(self._empty)
        add = message.resource_spans[0].scope_spans[0].spans.add
        offset_ns = time.time_ns() - time.monotonic_ns()
        for span in spans:
            is_remote = span.is_server and span.parent_id
            encoded = add(
                name=span.name,
                trace_id=_trace_id(span.trace_id),
                span_id=_span_id(span.span_id),
                parent_span_id=_span_id(span.parent_id) if span.parent_id else b"",
                kind=_SERVER if span.is_server else _INTERNAL,
                start_time_unix_nano=int(span.start_s * 1e9) + offset_ns,
                end_time_unix_nano=int(span.end_s * 1e9) + offset_ns,
                flags=_HAS_IS_REMOTE | _IS_REMOTE if is_remote else _HAS_IS_REMOTE,
            )
            if span.attributes:
                _add_attributes(encoded, span.attributes)
            for trace_id, span_id in span.links:
                encoded.links.add(trace_id=_trace_id(trace_id), span_id=_span_id(span_id), flags=_HAS_IS_REMOTE)
            encoded.status.SetInParent()
            if span.error:
                encoded.status.code, encoded.status.message = _ERROR, span.error
        encoded_message: bytes = message.SerializeToString()
        return encoded_message


def _add_attributes(encoded: trace_pb2.Span, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        target = encoded.attributes.add(key=name).value
        kind = type(value)
        if kind is str:
            target.string_value = value
        elif kind is bool:
            target.bool_value = value
        elif kind is int:
            target.int_value = value
        else:
            target.double_value = value


def _trace_id(number: int) -> bytes:
    return number.to_bytes(16)


def _span_id(number: int) -> bytes:
    return number.to_bytes(8)

"""Spans are encoded as OpenTelemetry's own exporter encodes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra otel: pip install stepwell[otel]")

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanContext

from stepwell.addons.tracing.otel import SdkSpans
from stepwell.addons.tracing.otlp import DirectSpanExporter, EndedSpan
from stepwell.addons.tracing.tracer import Span
from tests.addons.tracing.receiver import Receiver, receiver

SPANS = [
    Span("POST /x", 2**127 + 5, 7, 2**63 + 1, 10.5, 11.25, is_server=True, attributes={"a": "text", "n": 3, "t": True}),
    Span("run", 2**127 + 5, 8, 7, 10.5, 10.75, attributes={"x": 0.5}),
    Span("batch", 9, 10, 0, 10.0, 12.0, links=[(2**127 + 5, 7), (3, 4)]),
    Span("POST /y", 11, 12, 0, 1.0, 2.0, is_server=True, error="it failed"),
]


@pytest.fixture
def spans() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


def without_times(data: bytes) -> ExportTraceServiceRequest:
    """Decode a message; the offset between the clocks differs by some nanoseconds."""
    message: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(data)
    for span in message.resource_spans[0].scope_spans[0].spans:
        span.end_time_unix_nano -= span.start_time_unix_nano
        span.start_time_unix_nano = 0
    return message


def test_a_message_equals_that_of_the_sdk() -> None:
    convert = SdkSpans("1.2.3")
    expected = encode_spans([convert(span) for span in SPANS]).SerializeToString()

    assert without_times(DirectSpanExporter(convert).encode(SPANS)) == without_times(expected)


class OlderExporter(DirectSpanExporter):
    """The exporter on a release of the SDK that cannot send an encoded message."""

    def _sender(self) -> None:
        return None


@pytest.mark.parametrize("kind", [DirectSpanExporter, OlderExporter])
def test_spans_arrive_also_if_the_sdk_cannot_send_a_message(
    spans: Receiver, monkeypatch: pytest.MonkeyPatch, kind: type[DirectSpanExporter]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
    exporter = kind(SdkSpans("1.2.3"))
    context = SpanContext(1, 1, is_remote=False)

    exporter.export([EndedSpan(context, span) for span in SPANS])
    exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK has no types here

    assert [span.name for span in spans.spans] == ["POST /x", "run", "batch", "POST /y"]

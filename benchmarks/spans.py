"""CPU of a traced request: making its spans, and encoding their message, by us and by OpenTelemetry's SDK.

    python -m benchmarks.spans

The times are those of one thread, so a busy machine changes them little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from stepwell.addons.tracing.otel import SdkSpans
from stepwell.addons.tracing.otlp import DirectSpanExporter
from stepwell.addons.tracing.sampler import TraceSampler
from stepwell.addons.tracing.tracer import Span, Tracer
from stepwell.errors import ServiceError

REQUESTS = 4096
BATCH = 512  # spans of one message, as the SDK's batch processor sends them


def main() -> None:
    """Print microseconds per request."""
    spans: list[Span] = []
    tracer = Tracer(TraceSampler(1.0, follows_parent=True), spans.append)
    made = _measure(lambda: _trace_all(tracer))
    batches = [spans[start : start + BATCH] for start in range(0, len(spans), BATCH)]
    convert, exporter = SdkSpans("0"), DirectSpanExporter(SdkSpans("0"))
    ours = _measure(lambda: [exporter.encode(batch) for batch in batches])
    sdk = _measure(lambda: [encode_spans([convert(span) for span in batch]).SerializeToString() for batch in batches])
    print(f"a request has {len(spans) / REQUESTS:.0f} spans: {made:.0f} us to make them; the message: {ours:.0f} us,")
    print(f"by the SDK {sdk:.0f} us. With 1 % sampled that is {(made + ours) / 100:.2f} us for each request.")


def _measure(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return 1e6 * (time.thread_time() - started) / REQUESTS


def _status(_error: ServiceError) -> int:
    return 500


def _trace_all(tracer: Tracer) -> None:
    for number in range(REQUESTS):
        _trace(tracer, number)


def _trace(tracer: Tracer, number: int) -> None:
    """Trace a request that is alone in its batch."""
    name, stream = "POST /v1/models/{model}/streams/{stream}/step", f"s{number}"
    received_s = time.monotonic()
    trace = tracer.start(tracer.sample(b""), name, _status, model="m", stream=stream, received_s=received_s)
    assert trace is not None
    trace.submitted()
    tracer.batch_started("m", 1)
    for phase in ("load", "run", "commit"):
        tracer.phase_ended(phase, 1e-4)
    trace.end([1])
    tracer.batch_ended()


if __name__ == "__main__":
    main()

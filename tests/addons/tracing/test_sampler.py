"""The sampler decides as OpenTelemetry's own ones do, whose variables it reads."""

from __future__ import annotations

import random

import pytest

from stepwell.addons.tracing.sampler import TraceSampler

sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling", reason="traces need: pip install 'stepwell[otel]'")
NAMES = ["always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off"]
NAMES += ["parentbased_traceidratio"]


def parents() -> list[tuple[int, int]]:
    """Trace ids and flags of callers; some ids are at the limits of a ratio."""
    chosen = random.Random(7)
    ids = [chosen.getrandbits(128) | 1 for _ in range(400)]
    ids += [(1 << 100) + low for low in (0, 1, 2**62 - 1, 2**62, 2**62 + 1, 2**64 - 1)]
    return [(trace_id, flag) for trace_id in ids for flag in (0, 1)]


def sdk_decides(name: str, ratio: float, trace_id: int, flag: int) -> bool:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    kind = name.removeprefix("parentbased_")
    root = {"always_on": sampling.ALWAYS_ON, "always_off": sampling.ALWAYS_OFF}.get(kind)
    sampler = root or sampling.TraceIdRatioBased(ratio)
    if kind != name:
        sampler = sampling.ParentBased(sampler)
    parent = NonRecordingSpan(SpanContext(trace_id, 1, is_remote=True, trace_flags=TraceFlags(flag)))
    return bool(sampler.should_sample(set_span_in_context(parent), trace_id, "name").decision.is_sampled())


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_continued_as_the_sdk_decides(name: str) -> None:
    for ratio in ("0", "0.25", "1"):
        sampler = TraceSampler.from_environment({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": ratio})
        for trace_id, flag in parents():
            traceparent = f"00-{trace_id:032x}-{1:016x}-0{flag}".encode()
            assert sampler.continues(traceparent) == sdk_decides(name, float(ratio), trace_id, flag), ratio


@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
def test_about_the_ratio_of_the_roots_is_sampled(name: str) -> None:
    sampler = TraceSampler.from_environment({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": "0.1"})

    sampled = [trace_id for _ in range(20_000) if (trace_id := sampler.sample_root())]

    assert 1700 < len(sampled) < 2300
    assert all(trace_id % 2**64 < 0.1 * 2**64 for trace_id in sampled)


def test_without_the_variable_only_callers_decide() -> None:
    sampler = TraceSampler.from_environment({})

    assert sampler == TraceSampler(0.0, follows_parent=True)
    assert not sampler.sample_root()


@pytest.mark.parametrize(
    ("variables", "logged", "expected"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "'jaeger_remote'", TraceSampler(0.0, follows_parent=True)),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1 %"},
            "'1 %'",
            TraceSampler(1.0, follows_parent=False),
        ),
    ],
    ids=["name", "ratio"],
)
def test_an_invalid_value_is_logged(
    variables: dict[str, str], logged: str, expected: TraceSampler, caplog: pytest.LogCaptureFixture
) -> None:
    assert TraceSampler.from_environment(variables) == expected
    assert logged in caplog.text

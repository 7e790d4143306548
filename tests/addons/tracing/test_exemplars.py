"""Exemplars lead from the durations of timesteps to the traces of sampled requests, also in a real Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from stepwell.addons.tracing.exemplars import Exemplars
from stepwell.metrics import SECONDS, Metrics
from tests.addons.releases.fleet import wait_until
from tests.api.running import Service, running_service
from tests.deploy.prometheus import PROMETHEUS, prometheus
from tests.graphs import fold, write_models
from tests.servers import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need: pip install 'stepwell[otel]'")

from tests.addons.tracing.receiver import receiver

SAMPLED, NOT_SAMPLED = "5" * 32, "6" * 32
OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.3"}


@pytest.fixture
def traced(shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that has got one sampled timestep of the model `fold`, and one that is not sampled."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with receiver() as spans:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        models = write_models(tmp_path / "models", fold)
        with running_service(shared_redis.url, models) as service:
            for trace, flag in ((SAMPLED, "01"), (NOT_SAMPLED, "00")):
                headers = {"traceparent": f"00-{trace}-{'7' * 16}-{flag}"}
                step = service.http.post(service.path("fold", trace, "step"), json={"inputs": [1]}, headers=headers)
                step.raise_for_status()
            yield service


def exemplars(service: Service) -> list[tuple[str, float, Exemplar]]:
    """Return model, bound and exemplar of each bucket that has one."""
    page = service.http.get("/metrics", headers=OPENMETRICS).text
    families: Iterable[Metric] = text_string_to_metric_families(page)  # type: ignore[no-untyped-call]  # has no types
    samples = [sample for metric in families for sample in metric.samples]
    return [
        (sample.labels["model"], float(sample.labels["le"]), sample.exemplar)
        for sample in samples
        if sample.exemplar is not None
    ]


def kept(exemplars: Exemplars) -> dict[str, float]:
    """Return the exemplars that are attached to a histogram of the model `pump`, by the bounds of its buckets."""
    metrics = Metrics("1")
    metrics.on_expose(exemplars.attach)
    metrics.replied("pump", [0.004])
    metrics.refresh()
    page = metrics.render(as_openmetrics=True)[0].decode()
    families: Iterable[Metric] = text_string_to_metric_families(page)  # type: ignore[no-untyped-call]  # has no types
    samples = [sample for metric in families for sample in metric.samples if sample.exemplar is not None]
    return {sample.labels["le"]: sample.exemplar.value for sample in samples if sample.exemplar is not None}


def test_a_bucket_keeps_its_newest_exemplar_and_a_bound_belongs_to_its_bucket() -> None:
    exemplars = Exemplars("stepwell_step_seconds", SECONDS)
    for number, seconds in enumerate((0.003, 0.005, 99.0)):
        exemplars.add("pump", seconds, number)

    assert kept(exemplars) == {"0.005": 0.005, "+Inf": 99.0}


def test_the_exemplars_of_a_model_that_is_gone_are_removed() -> None:
    exemplars = Exemplars("stepwell_step_seconds", SECONDS)
    exemplars.add("pump", 0.004, 0xABC)
    exemplars.keep_models([])

    assert kept(exemplars) == {}


def test_the_bucket_of_a_sampled_timestep_has_its_trace(traced: Service) -> None:
    [(model, bound, exemplar)] = exemplars(traced)

    assert (model, exemplar.labels) == ("fold", {"trace_id": SAMPLED})
    assert 0 < exemplar.value <= bound


def test_the_text_format_has_no_exemplars(traced: Service) -> None:
    page = traced.http.get("/metrics")

    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert SAMPLED not in page.text


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (apt install prometheus)")
def test_prometheus_stores_the_exemplar(traced: Service, tmp_path: Path) -> None:
    with prometheus(tmp_path / "prometheus", [f"127.0.0.1:{traced.port}"]) as one:
        wait_until(lambda: SAMPLED in str(one.exemplars("stepwell_step_seconds_bucket")), within_s=60.0)

"""The documented metrics count their events, and all workers share one metrics page."""

from __future__ import annotations

import contextlib
import gc
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from stepwell.addons.drift.metrics import DriftMetrics
from stepwell.addons.drift.report import FeatureReport
from stepwell.addons.releases.metrics import ReleaseMetrics
from stepwell.addons.watch.metrics import watchers_gauge
from stepwell.engine.engine import Engine
from stepwell.metrics import Metrics
from stepwell.models.changes import ModelChange
from stepwell.models.registry import ModelRegistry
from stepwell.settings import METRICS_FOLDER_ENV
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey
from tests.engine.harness import step
from tests.graphs import fold, write_models
from tests.servers import Server

Labels = frozenset[tuple[str, str]]

TABLE = (Path(__file__).parents[1] / "docs" / "monitoring.md").read_text().split("<!-- metrics -->")[1]
DOCUMENTED = {
    name: frozenset(re.findall(r"`(\w+)`", labels))
    for name, labels in re.findall(r"^\| `(\w+)` \| ([^|]*)", TABLE.split("<!-- /metrics -->")[0], re.MULTILINE)
}
"""The labels of each metric on the page about monitoring."""


def drifted(name: str, psi: float | None) -> FeatureReport:
    """A feature of 1,000 values, of which a tenth is missing and a quarter out of range."""
    return FeatureReport(
        tensor=name.partition("[")[0], name=name, is_output=False, count=900, missing=0.1, min=-1.0,
        max=2.0, quantiles={"0.5": 0.5}, outside=0.25, psi=psi, psi_all=psi, psi_tenth=None,
    )  # fmt: skip


def read_drift(metrics: Metrics, read: Callable[[], Mapping[tuple[str, int], Sequence[FeatureReport]]]) -> None:
    """Add the gauges of drift, as its add-on does."""
    drift = DriftMetrics(metrics.registry, is_shared=metrics.is_shared)
    metrics.on_refresh(lambda: drift.refresh(read()))


def count_releases(metrics: Metrics, models: Sequence[str]) -> None:
    """Add the metrics of releases, as their add-on does, and count one event of each kind."""
    releases = ReleaseMetrics(metrics.registry)
    metrics.on_refresh(lambda: releases.keep_models(models))
    releases.add_gauges(metrics)
    metrics.read_gauges(
        streams=lambda: {("pump", "2"): 13},
        release_ended_timestamp_seconds=lambda: {("pump", "gate"): 1.5e9},
        release_gate_waits=lambda: {("pump",): 1.0},
    )
    releases.paired_steps("pump", 1, 2, 6)
    releases.candidate_failed("pump", 2, responds=False)
    releases.candidate_failed("pump", 3, responds=True)
    releases.compared("pump", "y", {0.0: 4, 0.5: 2})


def filled_metrics(models: Sequence[str] = ("pump",)) -> Metrics:
    """Metrics after one event of each kind.

    Args:
        models: Those whose drift is known, each time that it is read.
    """
    metrics = Metrics("1.2.3")
    metrics.bind_gauges(
        queue_rows=lambda: {"pump": 7},
        websockets=lambda: 3,
        ready=lambda: True,
        cached_streams=lambda: {"pump": 11},
        connections=lambda: 4,
        store_used_bytes=lambda: 1000,
        store_max_bytes=lambda: 5000,
    )
    watchers_gauge(metrics.registry).set(2)
    read_drift(metrics, lambda: {(model, 2): [drifted("x[0]", 0.31)] for model in models})
    metrics.steps_applied("pump", "http", 5)
    metrics.batch_run("pump", 4, 0.003)
    metrics.replied("pump", [0.004])
    metrics.store_latency("commit", 0.0007)
    metrics.cache_lookup(3, 1)
    metrics.conflicts(1)
    metrics.replays(2)
    metrics.regressions(1)
    count_releases(metrics, models)
    metrics.request("http", 200, "GET /v1/info")
    metrics.refusal("seq_gap")
    metrics.model_changed(ModelChange("loaded", "pump", 1, bytes(8)))
    return metrics


def page_of(metrics: Metrics) -> tuple[bytes, str]:
    """Return the page with everything that was counted until now."""
    metrics.refresh()
    return metrics.render()


def test_answers_counted_in_bulk_equal_single_ones() -> None:
    together, alone = Metrics("1"), Metrics("1")
    seconds = [0.0001, 0.00011, 0.004, 0.2, 0.2, 30.0]
    together.replied("pump", seconds)
    for each in seconds:
        alone.replied("pump", [each])

    pages = [page_of(metrics)[0] for metrics in (together, alone)]
    durations = [
        {key: number for key, number in samples(page).items() if key[0].startswith("stepwell_step_seconds")}
        for page in pages
    ]
    assert durations[0] == durations[1]
    assert value(pages[0], "stepwell_step_seconds_bucket", model="pump", le="0.0001") == 1
    assert value(pages[0], "stepwell_step_seconds_count", model="pump") == len(seconds)


def test_durations_of_some_microseconds_are_counted_in_different_buckets() -> None:
    metrics = Metrics("1")
    for seconds in (0.000008, 0.000017, 0.000043, 0.000043):
        metrics.batch_run("pump", 1, seconds)
    page = page_of(metrics)[0]
    counts = [
        value(page, "stepwell_model_run_seconds_bucket", model="pump", le=le) for le in ("1e-05", "2e-05", "5e-05")
    ]

    assert counts == [1, 2, 4]
    assert value(page, "stepwell_model_run_seconds_sum", model="pump") == pytest.approx(0.000111)


def samples(page: bytes) -> dict[tuple[str, Labels], float]:
    """Return every sample of a page by name and labels; a duplicate sample is an error."""
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(page: bytes, name: str, **labels: str) -> float:
    return samples(page)[name, frozenset(labels.items())]


def test_the_page_has_exactly_the_documented_metrics_and_labels() -> None:
    families = text_string_to_metric_families(page_of(filled_metrics())[0].decode())
    labels = {
        family.name + "_total" * (family.type == "counter"): {
            frozenset(sample.labels.keys() - {"le"}) for sample in family.samples
        }
        for family in families
    }

    assert labels == {name: {documented} for name, documented in DOCUMENTED.items()}


def test_each_event_is_counted() -> None:
    page = page_of(filled_metrics())[0]
    expected: list[tuple[str, dict[str, str], float]] = [
        ("steps_total", {"model": "pump", "door": "http"}, 5),
        ("requests_total", {"door": "http", "code": "200", "route": "GET /v1/info"}, 1),
        ("refusals_total", {"code": "seq_gap"}, 1),
        ("step_seconds_sum", {"model": "pump"}, 0.004),
        ("model_run_seconds_sum", {"model": "pump"}, 0.003),
        ("store_seconds_sum", {"op": "commit"}, 0.0007),
        ("batch_rows_sum", {"model": "pump"}, 4),
        ("cache_hits_total", {}, 3),
        ("cache_misses_total", {}, 1),
        ("conflicts_total", {}, 1),
        ("replays_total", {}, 2),
        ("store_regressions_total", {}, 1),
        ("release_steps_total", {"model": "pump", "version": "1", "role": "answers"}, 6),
        ("release_steps_total", {"model": "pump", "version": "2", "role": "shadow"}, 6),
        ("release_lost_total", {"model": "pump"}, 2),
        ("release_fell_back_total", {"model": "pump"}, 3),
        ("release_difference_sum", {"model": "pump", "output": "y"}, 1.0),
        ("release_difference_count", {"model": "pump", "output": "y"}, 6),
        ("release_ended_timestamp_seconds", {"model": "pump", "how": "gate"}, 1.5e9),
        ("release_gate_waits", {"model": "pump"}, 1),
        ("queue_rows", {"model": "pump"}, 7),
        ("psi", {"model": "pump", "version": "2", "tensor": "x", "feature": "x[0]"}, 0.31),
        ("outside_ratio", {"model": "pump", "version": "2", "tensor": "x", "feature": "x[0]"}, 0.25),
        ("missing_ratio", {"model": "pump", "version": "2", "tensor": "x", "feature": "x[0]"}, 0.1),
        ("watchers", {}, 2),
        ("websockets", {}, 3),
        ("cached_streams", {"model": "pump"}, 11),
        ("connections", {}, 4),
        ("store_used_memory_bytes", {}, 1000),
        ("store_max_memory_bytes", {}, 5000),
        ("ready", {}, 1),
        ("build_info", {"version": "1.2.3"}, 1),
    ]

    for name, labels, number in expected:
        assert value(page, f"stepwell_{name}", **labels) == number, name


def test_a_status_as_number_and_as_text_is_one_series() -> None:
    metrics = filled_metrics()
    metrics.request("http", "200", "GET /v1/info")

    assert value(page_of(metrics)[0], "stepwell_requests_total", door="http", code="200", route="GET /v1/info") == 2


def test_a_counter_without_labels_exists_before_its_first_event() -> None:
    page, media_type = page_of(Metrics("1"))

    assert value(page, "stepwell_conflicts_total") == 0
    assert media_type == "text/plain; version=0.0.4; charset=utf-8"


def openmetrics_samples(page: bytes) -> list[Sample]:
    families: Iterable[Metric] = openmetrics_families(page.decode())  # type: ignore[no-untyped-call]  # has no types
    return [sample for family in families for sample in family.samples]


def test_the_format_of_openmetrics_has_the_same_values() -> None:
    metrics = filled_metrics()
    page = page_of(metrics)[0]
    body, media_type = metrics.render(as_openmetrics=True)
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in openmetrics_samples(body)}

    assert media_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert found == samples(page)


def test_two_services_in_one_process_count_separately() -> None:
    here, there = filled_metrics(), filled_metrics()
    here.conflicts(5)

    assert value(page_of(there)[0], "stepwell_conflicts_total") == 1


def test_gauges_are_read_for_each_page_and_the_queue_of_a_removed_model_is_empty() -> None:
    rows = {"pump": 7}
    metrics = Metrics("1")
    metrics.bind_gauges(queue_rows=lambda: rows, websockets=lambda: 0, ready=lambda: True)
    rows["pump"] = 9
    assert value(page_of(metrics)[0], "stepwell_queue_rows", model="pump") == 9
    del rows["pump"]

    assert value(page_of(metrics)[0], "stepwell_queue_rows", model="pump") == 0


def test_a_model_that_is_gone_leaves_no_series() -> None:
    there = ["pump"]
    metrics = filled_metrics(there)
    reads: dict[str, Any] = {"queue_rows": lambda: {"pump": 0}, "websockets": int, "ready": bool}
    metrics.bind_gauges(models=lambda: there, **reads)
    before = page_of(metrics)[0]
    there.clear()
    after = page_of(metrics)[0]

    assert b'"pump"' in before
    assert b'"pump"' not in after
    assert value(after, "stepwell_requests_total", door="http", code="200", route="GET /v1/info") == 1
    metrics.steps_applied("pump", "http", 2)
    there.append("pump")
    assert value(page_of(metrics)[0], "stepwell_steps_total", model="pump", door="http") == 2


def test_a_feature_whose_psi_is_not_known_any_more_has_no_series() -> None:
    reports = {("pump", 2): [drifted("x[0]", 0.31), drifted("x[1]", 0.02)]}
    metrics = Metrics("1")
    reads: dict[str, Any] = {"queue_rows": dict, "websockets": int, "ready": bool}
    metrics.bind_gauges(**reads)
    read_drift(metrics, lambda: reports)
    metrics.refresh()
    reports = {("pump", 2): [drifted("x[0]", None), drifted("x[1]", 0.03)]}
    metrics.refresh()

    found = {dict(labels)["feature"]: psi for (name, labels), psi in samples(page_of(metrics)[0]).items()
             if name == "stepwell_psi"}  # fmt: skip
    assert found == {"x[1]": 0.03}


def test_the_process_is_measured_as_the_kernel_measures_it() -> None:
    gc.collect()  # or files that earlier tests have left may be closed meanwhile
    before = page_of(Metrics("1"))[0]
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = used.ru_utime + used.ru_stime + 0.2
    while (used := resource.getrusage(resource.RUSAGE_SELF)).ru_utime + used.ru_stime < until:
        pass
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(Path("/dev/null").open("rb"))
        memory = bytearray(b"x" * 64_000_000)
        after = page_of(Metrics("1"))[0]  # of its own: one of them reads the process every five seconds

    def risen(name: str) -> float:
        return value(after, name) - value(before, name)

    assert risen("process_cpu_seconds_total") >= 0.17  # the kernel counts in hundredths
    assert value(after, "process_cpu_seconds_total") == pytest.approx(used.ru_utime + used.ru_stime, abs=0.5)
    assert risen("process_open_fds") == 40
    assert risen("process_resident_memory_bytes") >= 0.9 * len(memory)
    assert risen("process_start_time_seconds") == 0
    assert value(after, "process_start_time_seconds") <= time.time()


async def test_an_engine_counts_its_steps(tmp_path: Path, shared_redis: Server) -> None:
    counted = Metrics("1")
    shelf = ModelRegistry([write_models(tmp_path, fold=fold)])
    await shelf.reload()
    engine = Engine(StateStore(shared_redis.url), shelf, observer=counted)
    for x in range(3):
        await engine.steps.advance(step("counted", x))
    await engine.close()

    page = page_of(counted)[0]
    assert value(page, "stepwell_steps_total", model="fold", door="http") == 3
    assert value(page, "stepwell_step_seconds_count", model="fold") == 3
    assert value(page, "stepwell_store_seconds_count", op="commit") == 3


async def test_an_engine_counts_the_streams_that_it_has_cached(tmp_path: Path, shared_redis: Server) -> None:
    shelf = ModelRegistry([write_models(tmp_path, fold=fold)])
    await shelf.reload()
    engine = Engine(StateStore(shared_redis.url), shelf)
    before = engine.steps.cached_by_model()
    for stream in ("cached-1", "cached-2", "cached-1"):
        await engine.steps.advance(step(stream, 1))
    after = engine.steps.cached_by_model()
    engine.steps.drop_cached(StreamKey("default", "fold", "cached-1"))
    dropped = engine.steps.cached_by_model()
    await engine.close()

    assert (before, after, dropped) == ({}, {"fold": 2}, {"fold": 1})


# -------------------------------------------------------------------- several workers

_WORKER = """
import sys
from stepwell.metrics import Metrics

metrics = Metrics("1")
queued, ready = int(sys.argv[1]), sys.argv[2] == "ready"
metrics.bind_gauges(queue_rows=lambda: {"pump": queued}, websockets=lambda: 2, ready=lambda: ready)
metrics.steps_applied("pump", "http", 5)
metrics.replied("pump", [0.004])
metrics.refresh()
print("counted", flush=True)
for _ in sys.stdin:
    metrics.refresh()
    sys.stdout.buffer.write(metrics.render()[0].replace(b"\\n", b"\\r") + b"\\n")
    sys.stdout.flush()
"""


class WorkerProcess:
    """A process that counts into a folder that it shares with others."""

    def __init__(self, folder: Path, queued: int = 1, *, ready: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(queued), "ready" if ready else "not"],
            env={METRICS_FOLDER_ENV: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"counted\n"

    def page(self) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().replace(b"\r", b"\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


Pages = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def of_both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pages, bytes]]:
    """The pages of two workers, and that of the first one after the second was killed.

    The first one has 1 queued row, and the second 10 and is not ready.
    """
    folder = tmp_path_factory.mktemp("workers") / "metrics"
    first, second = WorkerProcess(folder, queued=1), WorkerProcess(folder, queued=10, ready=False)
    pages = first.page(), second.page()
    second.kill()
    yield pages, first.page()
    first.kill()


def test_any_worker_serves_the_metrics_of_all(of_both: tuple[Pages, bytes]) -> None:
    """Counters, histograms and queues are summed; the version appears once; ready is 0 while one is not."""
    pages, _ = of_both

    assert [value(page, "stepwell_steps_total", model="pump", door="http") for page in pages] == [10, 10]
    assert value(pages[0], "stepwell_step_seconds_count", model="pump") == 2
    assert value(pages[0], "stepwell_queue_rows", model="pump") == 11
    assert value(pages[0], "stepwell_ready") == 0
    assert value(pages[0], "stepwell_build_info", version="1") == 1


def test_of_a_killed_worker_counts_and_processor_time_are_kept_and_gauges_dropped(
    of_both: tuple[Pages, bytes],
) -> None:
    (both, _), left = of_both

    assert value(left, "stepwell_steps_total", model="pump", door="http") == 10
    assert value(left, "process_cpu_seconds_total") >= value(both, "process_cpu_seconds_total") > 0
    assert value(left, "stepwell_queue_rows", model="pump") == 1
    assert value(left, "stepwell_ready") == 1
    for name in ("process_resident_memory_bytes", "process_open_fds"):
        assert 0 < value(left, name) < 0.7 * value(both, name)


def test_the_start_of_the_service_is_that_of_its_first_worker(folder: Path) -> None:
    first = WorkerProcess(folder)
    alone = value(first.page(), "process_start_time_seconds")
    second = WorkerProcess(folder)
    together = value(second.page(), "process_start_time_seconds")
    first.kill()
    left = value(second.page(), "process_start_time_seconds")
    second.kill()

    assert alone == together == left


def test_several_workers_have_the_same_metric_names(of_both: tuple[Pages, bytes]) -> None:
    labelled_by_what_was_not_told = {name for name, labels in DOCUMENTED.items() if labels} - {
        "stepwell_steps_total",
        "stepwell_step_seconds",
        "stepwell_queue_rows",
        "stepwell_durability_info",
        "stepwell_build_info",
    }
    of_addons = {"stepwell_watchers"}
    families = {family.name for family in text_string_to_metric_families(of_both[0][0].decode())}

    assert families == {
        name.removesuffix("_total") for name in DOCUMENTED.keys() - labelled_by_what_was_not_told - of_addons
    }


def test_a_folder_that_is_configured_too_late_is_reported_and_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(METRICS_FOLDER_ENV, str(folder))
    Metrics("1")

    assert "metrics are of this process alone" in caplog.text
    assert not folder.exists()

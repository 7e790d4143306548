"""`stepwell bench` sends load to a running service on a real store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
from typer.testing import Result

from stepwell.addons.bench.command import bench
from stepwell.addons.bench.latency import LatencyRecorder
from stepwell.addons.bench.workload import BenchStream, Workload
from tests.commands.program import invoke
from tests.graphs import fold, lstm, nan_at, write_model
from tests.processes import ServiceProcess, free_port, service_process

TRANSPORTS = ("http", "websocket", "columns")

app = typer.Typer()
app.command()(bench)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with three models and a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        models = Path(name) / "models"
        write_model(models, "fold", fold)
        write_model(models, "lstm", lstm)
        write_model(models, "broken", lambda: nan_at(1))
        yield Path(name)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServiceProcess]:
    with service_process(folder / "models", folder / "open", "--drain-s", "0") as one:
        yield one


def run_bench(url: str, *words: str, key: str | None = None) -> Result:
    """Run `stepwell bench WORDS`, for a short time by default; a `StepwellError` is in the result's `exception`."""
    quick = ("--seconds", "0.3", "--warmup", "0.1", "--streams", "12", "--connections", "3")
    return invoke(app, [*quick, *words], STEPWELL_URL=url, STEPWELL_KEY=key)


def bench_report(url: str, *words: str, key: str | None = None) -> Any:
    result = run_bench(url, *words, "--json", key=key)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("transport", "model"), [("http", "lstm"), ("websocket", "fold"), ("columns", "lstm")])
def test_answers_are_counted_in_the_order_of_seq(running: ServiceProcess, transport: str, model: str) -> None:
    found = bench_report(running.url, model, "--transport", transport)
    assert found["steps"] > 0
    assert found["errors"] == {}
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert found["steps_per_s"] == pytest.approx(found["steps"] / found["seconds"])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_load_that_only_fails_names_the_errors_and_exits_with_an_error(
    running: ServiceProcess, transport: str
) -> None:
    result = run_bench(running.url, "broken", "--transport", transport, "--warmup", "0.3", "--json")
    assert json.loads(result.stdout)["errors"]["non_finite_state"] > 0
    assert result.exit_code == 1


def test_its_streams_are_deleted_at_the_end(running: ServiceProcess) -> None:
    run_bench(running.url, "fold")
    assert httpx2.get(f"{running.url}/v1/models/fold/streams", timeout=30).json()["streams"] == []


def test_a_feasible_rate_is_kept(running: ServiceProcess) -> None:
    found = bench_report(running.url, "fold", "--rate", "100", "--seconds", "2")
    assert found["requests"] == pytest.approx(100 * found["seconds"], rel=0.2)


def test_the_default_output_is_a_table(running: ServiceProcess) -> None:
    assert "steps/s" in run_bench(running.url, "fold").stdout


def test_the_model_must_be_named_if_there_are_several(running: ServiceProcess) -> None:
    assert "serves 3 models: broken, fold, lstm" in str(run_bench(running.url).exception)


def test_an_unreachable_service_is_reported_in_one_line() -> None:
    assert "No Stepwell service responds at" in str(run_bench(f"http://127.0.0.1:{free_port()}", "fold").exception)


def test_an_api_key_is_sent_over_every_transport(folder: Path) -> None:
    key = "a-key-for-tests"
    scopes = ["step", "read", "admin"]
    keys = [{"id": "t", "sha256": sha256(key.encode()).hexdigest(), "tenant": "t", "scopes": scopes}]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    flags = ("--api-keys-file", str(folder / "keys.json"), "--drain-s", "0")
    with service_process(folder / "models", folder / "guarded", *flags) as guarded:
        assert "unauthenticated" in str(run_bench(guarded.url, "fold").exception)
        for transport in TRANSPORTS:
            assert bench_report(guarded.url, "fold", "--transport", transport, key=key)["steps"] > 0


def test_the_warm_up_is_not_counted() -> None:
    meter = LatencyRecorder()
    meter.replied(9.0)
    meter.failed("overloaded")
    meter.start()
    meter.replied(0.001)
    meter.stop()
    meter.replied(9.0)
    assert (meter.result()["steps"], meter.result()["max_ms"], meter.result()["errors"]) == (1, 1.0, {})


def test_a_request_body_has_the_number_of_its_timestep() -> None:
    plan = Workload.of({"name": "m", "inputs": [{"name": "x", "dtype": "int64", "shape": [2]}]})
    assert json.loads(plan.body(BenchStream("s", step=6)))["seq"] == 7

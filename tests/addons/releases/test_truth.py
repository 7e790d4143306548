"""Which of two versions is better: `backtest`, the release, its table and its gate use the same numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from stepwell.addons.backtest.command import backtest
from stepwell.addons.releases.command import release_app
from stepwell_export.runtime.manifest import Array
from tests.addons.recorded.files import write_npz
from tests.addons.releases.fleet import Fleet, wait_until
from tests.api.running import Service, running_service
from tests.commands.program import invoke
from tests.forecasters import FAR, LABELS, NEAR, ahead, forecaster, new_version, old_version, walks
from tests.graphs import write_model
from tests.servers import Server

STREAMS, TIMESTEPS = 6, 50
MODELS = [f"pump{n}" for n in range(5)]
backtest_app = typer.Typer()
backtest_app.command()(backtest)


@pytest.fixture(scope="module")
def service(shared_redis: Server) -> Iterator[Service]:
    """Models whose version 2 is better in vibration and worse in rpm; `plain` has no feedback rule."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        for model in MODELS:
            write_model(folder, model, old_version, version=1)
            write_model(folder, model, new_version, version=2)
        write_model(folder, "plain", lambda: forecaster(feedback=False), version=1)
        write_model(folder, "plain", lambda: forecaster(rpm=1.0, feedback=False), version=2)
        write_model(folder, "ahead", lambda: ahead(FAR), version=1)
        write_model(folder, "ahead", lambda: ahead(NEAR), version=2)
        with running_service(shared_redis.url, folder) as one:
            yield one


@pytest.fixture
def pumps(service: Service) -> Fleet:
    return Fleet([service], MODELS.pop())


def put(pumps: Fleet, mode: str = "shadow", **more: Any) -> None:
    pumps.put(current=1, candidate=2, mode=mode, percent=100, **more)


def feed(pumps: Fleet, xs: Array, *, at_once: int = 7) -> None:
    """Send streams one timestep at a time at first, then as chunks; one of them sends each chunk twice."""
    for n, rows in enumerate(xs):
        for i in range(3):
            pumps.step(f"s{n}", rows[i].tolist(), seq=i + 1)
        for start in range(3, len(rows), at_once):
            body = {"inputs": [row.tolist() for row in rows[start : start + at_once]], "seq": start + 1}
            for _ in range(1 + (n == 0)):
                pumps.chunk(f"s{n}", body["inputs"], seq=body["seq"])


def counted(pumps: Fleet, n: int) -> dict[str, Any]:
    """Return the errors once so many truths of each label were counted."""
    wait_until(lambda: all(one["n"] >= n for one in pumps.release()["compared"]["error"]["next"].values()))
    return dict(pumps.release()["compared"]["error"])


@pytest.mark.parametrize("mode", ["shadow", "ramp"])
def test_the_figures_are_those_of_the_backtest_and_of_the_table(pumps: Fleet, mode: str, tmp_path: Path) -> None:
    xs = walks(STREAMS, TIMESTEPS)
    put(pumps, mode)
    feed(pumps, xs)
    found = counted(pumps, STREAMS * (TIMESTEPS - 1))

    new, old = write_model(tmp_path, "new", new_version), write_model(tmp_path, "old", old_version)
    words = [str(new), str(write_npz(tmp_path / "d.npz", x__sensors=xs)), "--against", str(old), "--json"]
    report = json.loads(invoke(backtest_app, words).stdout)
    for label in LABELS:
        assert found["next"][label] == pytest.approx(report["error"]["next"][label], rel=1e-9)
    assert found["next"]["vibration"]["high"] < 1 < found["next"]["rpm"]["low"]

    url = str(pumps.replicas[0].http.base_url)
    shown = invoke(release_app, ["show", pumps.model], STEPWELL_URL=url).stdout.splitlines()
    for label, verdict in (("vibration", "better"), ("rpm", "worse")):
        [line] = [line for line in shown if f"next[{label}]" in line and verdict in line]
        assert f"{found['next'][label]['ratio']:.4g}" in line
    labels = pumps.release()["compared"]["outputs"]["next"]["labels"]
    assert (labels["vibration"]["max_abs"], labels["rpm"]["max_abs"]) == pytest.approx((0.4, 60), rel=1e-3)


def test_a_gate_on_the_truth_ends_the_worse_version_within_500_timesteps(pumps: Fleet) -> None:
    put(pumps, gate={"min_compared": 100, "max_error_ratio": 1.05})
    xs = walks(STREAMS, 500 // STREAMS, seed=3)
    feed(pumps, xs)
    wait_until(lambda: pumps.release()["ended"] is not None)
    release = pumps.release()

    assert release["compared"]["steps"] <= 500
    assert release["ended"]["how"] == "aborted"
    assert release["ended"]["why"].startswith("The error of 'next[rpm]' is ")
    assert release["current"] == 1


def test_a_forecast_of_several_timesteps_is_judged_by_each_of_them(service: Service, tmp_path: Path) -> None:
    xs, pumps = walks(STREAMS, TIMESTEPS), Fleet([service], "ahead")
    put(pumps, gate={"min_compared": STREAMS * TIMESTEPS, "max_error_ratio": 1.05})
    feed(pumps, xs)
    found = counted(pumps, STREAMS * (TIMESTEPS - 3))
    wait_until(lambda: pumps.release()["ended"] is not None)

    new, old = (write_model(tmp_path, name, partial(ahead, bias)) for name, bias in (("n", NEAR), ("o", FAR)))
    words = [str(new), str(write_npz(tmp_path / "d.npz", x__sensors=xs)), "--against", str(old), "--json"]
    report = json.loads(invoke(backtest_app, words).stdout)
    for label, figures in report["error"]["next"].items():
        assert found["next"][label] == pytest.approx(figures, rel=1e-9)
    assert pumps.release()["ended"]["why"].startswith("The error of 'next[rpm+3]' is ")


def test_truths_that_are_not_of_the_prediction_before_are_not_counted(pumps: Fleet) -> None:
    put(pumps)
    xs = walks(1, 6)[0].tolist()
    pumps.chunk("s", xs[:3], seq=1)
    pumps.replicas[0].http.post(f"/v1/models/{pumps.model}/streams/s/rollout", json={"horizon": 2, "commit": True})
    pumps.chunk("s", xs[3:5])
    pumps.replicas[0].http.post(f"/v1/models/{pumps.model}/streams/s/reset")
    pumps.chunk("s", xs[4:])

    found = counted(pumps, 4)
    assert [one["n"] for one in found["next"].values()] == [4, 4]


def test_without_a_truth_the_error_is_null_and_a_gate_on_it_is_refused(service: Service) -> None:
    plain = Fleet([service], "plain")
    put(plain)
    body = {"candidate": 2, "mode": "shadow", "percent": 100, "gate": {"max_error_ratio": 1.05}}
    refused = service.http.put("/v1/models/plain/release", json=body)

    assert plain.release()["compared"]["error"] is None
    assert refused.status_code == 422
    assert "no feedback rule" in refused.json()["detail"]


def test_a_gate_has_limits_of_labels_that_are_there(pumps: Fleet) -> None:
    body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100}
    path = f"/v1/models/{pumps.model}/release"
    refused = pumps.replicas[0].http.put(path, json=body | {"gate": {"max_abs": {"next": {"torque": 1}}}})
    put(pumps, gate={"min_compared": 10, "max_abs": {"next": {"vibration": 0.5, "rpm": 30}}})
    feed(pumps, np.zeros((2, 10, 2)))
    wait_until(lambda: pumps.release()["ended"] is not None)

    assert refused.status_code == 422
    assert "the labels vibration, rpm" in refused.json()["detail"]
    assert pumps.release()["ended"]["why"] == "The largest difference of 'next[rpm]' is 60; the limit is 30."

"""`stepwell drift` shows the drift of a model of a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import httpx2
import pytest
import typer
from typer.testing import Result

from stepwell.addons.drift.command import drift
from stepwell.commands.service_calls import StreamsError
from tests.addons.drift.live import WITHIN_S, normal, write_reference_model
from tests.addons.releases.fleet import wait_until
from tests.commands.program import invoke
from tests.graphs import lstm, write_model
from tests.processes import ServiceProcess, service_process


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("drift")
    write_reference_model(folder / "models", "pump", normal(40, 50, 3))
    write_model(folder / "models", "plain", lstm)
    with service_process(folder / "models", folder / "service", "--drain-s", "0") as one:
        yield one


def run_drift(running: ServiceProcess, words: Sequence[str], **env: str) -> Result:
    app = typer.Typer()
    app.command()(drift)
    return invoke(app, words, STEPWELL_URL=running.url, **env)


def test_the_features_that_drifted_most_are_first(running: ServiceProcess) -> None:
    xs = normal(20, 30, 3)
    xs[:, :, 1] += 1
    body = {"streams": [f"s{i}" for i in range(20)], "inputs": {"x": xs.tolist()}}
    assert httpx2.post(f"{running.url}/v1/models/pump/steps", json=body, trust_env=False, timeout=30).is_success

    def as_json() -> dict[str, dict[str, float]]:
        result = run_drift(running, ["--model", "pump", "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, dict[str, float]] = json.loads(result.stdout)["windows"]["1h"]["inputs"]
        return found

    wait_until(lambda: as_json()["x[0]"]["count"] == 600, WITHIN_S)
    lines = run_drift(running, ["--model", "pump"]).stdout.splitlines()
    rows = [line.split() for line in lines if "x[" in line or "y[" in line]

    assert sorted(row[1] for row in rows) == ["x[0]", "x[1]", "x[2]", "y[0]", "y[1]"]
    assert next(row[1] for row in rows if row[0] == "input") == "x[1]"
    psis = [float(row[2]) for row in rows]
    assert psis == sorted(psis, reverse=True)
    assert as_json()["x[1]"]["psi"] in [pytest.approx(psi, rel=0.01) for psi in psis]


def test_no_cell_is_divided_at_80_columns(running: ServiceProcess) -> None:
    """The columns that are needed least are left out, and named."""
    lines, wide = (
        run_drift(running, ["--model", "pump"], COLUMNS=width).stdout.splitlines() for width in ("80", "200")
    )

    assert max(map(len, lines)) <= 80
    assert [len([line for line in one if "x[" in line or "y[" in line]) for one in (lines, wide)] == [5, 5]
    assert len(lines) == len(wide) + ("Without min" in lines[-1])
    assert all(name in lines[2] for name in ("PSI 1h", "PSI 24h"))
    assert all(name in wide[2] for name in ("min", "median", "max"))


def test_a_model_without_a_reference_says_how_to_get_one(running: ServiceProcess) -> None:
    assert "--verify" in run_drift(running, ["--model", "plain"]).stdout


def test_columns_that_need_a_reference_are_left_out_without_one(running: ServiceProcess) -> None:
    text = run_drift(running, ["--model", "plain"]).stdout

    assert "PSI 1h" not in text
    assert "outside" not in text
    assert "median" in text


def test_a_model_that_is_not_there_is_named(running: ServiceProcess) -> None:
    result = run_drift(running, ["--model", "nobody"])

    assert result.exit_code == 1
    assert isinstance(result.exception, StreamsError)
    assert "nobody" in result.exception.problem


def test_the_model_has_to_be_given(running: ServiceProcess) -> None:
    assert run_drift(running, []).exit_code == 2

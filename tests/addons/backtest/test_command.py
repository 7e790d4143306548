"""`stepwell backtest`: the table, JSON, the picture, and the exit code beyond a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from stepwell.addons.backtest.command import backtest
from tests.addons.recorded.files import write_csv
from tests.commands.program import invoke
from tests.graphs import fold_on_a_grid, lstm, write_model

app = typer.Typer()
app.command()(backtest)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command of two models that differ, on a CSV file of three streams."""
    new, old = write_model(tmp_path, "new", lambda: lstm(2, seed=1)), write_model(tmp_path, "old", lambda: lstm(2))
    rng = np.random.default_rng(2)
    rows = [(f"d{n % 3}", *rng.normal(size=2)) for n in range(300)]
    data = write_csv(tmp_path / "data.csv", ["device", "p", "q"], rows)
    return [str(new), str(data), "--against", str(old), "--stream-column", "device", "--input", "x=p,q"]


def test_within_the_limits_the_report_is_printed_and_the_exit_code_is_0(words: list[str]) -> None:
    result = invoke(app, [*words, "--limit", "y=100", "--json"])
    report = json.loads(result.stdout)

    assert result.exit_code == 0
    assert (report["streams"], report["timesteps"], report["ok"]) == (3, 300, True)
    y = report["outputs"]["y"]
    assert 0 < y["mean_abs"] < y["p99_abs"] <= y["max_abs"] < 100
    assert sum(span["timesteps"] for span in y["over_time"]) == 300
    assert report["worst"][0]["max_abs"]["y"] == y["max_abs"]
    assert report["worst"][0]["stream"] == y["at"]["stream"]


def test_beyond_a_limit_the_exit_code_is_1_and_the_picture_is_written(words: list[str], tmp_path: Path) -> None:
    result = invoke(app, [*words, "--limit", "y=0.001", "--plot", str(tmp_path / "out.svg")])

    assert result.exit_code == 1
    assert "output 'y' differs by" in str(result.exception)
    assert "0.001 is allowed" in str(result.exception)
    assert "Streams that differ most" in result.stdout
    assert "limit 0.001" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize("limit", ["z=1", "y=-1", "y=high", "y"])
def test_a_limit_that_cannot_be_meant_is_wrong_usage(words: list[str], limit: str) -> None:
    assert invoke(app, [*words, "--limit", limit]).exit_code == 2


def test_unknown_columns_are_wrong_usage_also_as_a_program(words: list[str]) -> None:
    command = [sys.executable, "-P", "-m", "stepwell", "backtest", *words[:-1], "x=p,nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "has no column nothing; it has device, p, q" in done.stderr


def test_late_rows_are_counted(words: list[str], tmp_path: Path) -> None:
    rows = [("d0", at, 0.5, 0.5) for at in (10, 90, 5)]
    words[1] = str(write_csv(tmp_path / "data.csv", ["device", "at", "p", "q"], rows))
    report = json.loads(invoke(app, [*words, "--time", "at", "--time-unit", "ms", "--order", "20ms", "--json"]).stdout)
    assert (report["timesteps"], report["late"], report["left_out"]) == (2, 1, 0)


def test_models_are_compared_on_the_grid_of_the_new_one(tmp_path: Path) -> None:
    new, old = write_model(tmp_path, "new", fold_on_a_grid), write_model(tmp_path, "old", fold_on_a_grid)
    data = write_csv(tmp_path / "data.csv", ["at", "x"], [(at, 1) for at in (0.2, 0.9, 3)])
    words = [str(new), str(data), "--against", str(old), "--time", "at", "--json"]
    assert json.loads(invoke(app, words).stdout)["timesteps"] == 3

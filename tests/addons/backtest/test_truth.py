"""`stepwell backtest` against the truth: which of two versions is better, in which label."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from stepwell.addons.backtest.command import backtest
from tests.addons.recorded.files import write_csv, write_npz
from tests.commands.program import invoke
from tests.forecasters import (
    FAR,
    LABELS,
    NEAR,
    ahead,
    errors_ahead,
    expected_errors,
    forecaster,
    new_version,
    old_version,
    walks,
)
from tests.graphs import write_model

app = typer.Typer()
app.command()(backtest)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command of two versions of which one is better in vibration and worse in rpm, on random walks."""
    new, old = write_model(tmp_path, "new", new_version), write_model(tmp_path, "old", old_version)
    data = write_npz(tmp_path / "data.npz", x__sensors=walks(8, 60))
    return [str(new), str(data), "--against", str(old)]


def report(words: list[str]) -> dict[str, Any]:
    result = invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_errors_are_those_of_the_whole_sequences_by_label(words: list[str]) -> None:
    found = report(words)["error"]["next"]

    for label, expected in expected_errors(walks(8, 60)).items():
        assert found[label]["n"] == 8 * 59
        assert found[label]["current"] == pytest.approx(expected["current"], rel=1e-5)
        assert found[label]["candidate"] == pytest.approx(expected["candidate"], rel=1e-5)
        assert found[label]["ratio"] == pytest.approx(expected["candidate"] / expected["current"], rel=1e-5)
    assert found["vibration"]["high"] < 1 < found["rpm"]["low"]


def test_the_table_shows_in_which_label_the_candidate_is_better(words: list[str]) -> None:
    lines = invoke(app, words).stdout.splitlines()

    assert any("next[vibration]" in line and "better" in line for line in lines)
    assert any("next[rpm]" in line and "worse" in line for line in lines)


def test_a_column_is_the_truth_of_a_prediction_so_many_rows_earlier(tmp_path: Path) -> None:
    new = write_model(tmp_path, "new", lambda: forecaster(vibration=1.0, feedback=False))
    old = write_model(tmp_path, "old", lambda: forecaster(feedback=False))
    xs = walks(1, 50)[0]
    rows = [("d", *x, *late) for x, late in zip(xs, np.roll(xs, 3, axis=0), strict=True)]
    data = write_csv(tmp_path / "data.csv", ["device", "vibration", "rpm", "v", "r"], rows)
    words = [str(new), str(data), "--against", str(old), "--stream-column", "device", "--truth", "next=v,r"]
    found = report([*words, "--horizon", "3"])["error"]["next"]

    assert found["0"]["n"] == 47
    assert found["0"]["current"] == pytest.approx(0, abs=1e-6)
    assert found["0"]["candidate"] == pytest.approx(1, abs=1e-6)
    assert found["1"]["current"] == found["1"]["candidate"] == pytest.approx(0, abs=1e-3)


def test_a_forecast_of_several_timesteps_has_an_error_for_each_of_them(tmp_path: Path) -> None:
    new, old = (write_model(tmp_path, f"{bias[2, 1]:g}", partial(ahead, bias)) for bias in (NEAR, FAR))
    xs = walks(8, 60)
    data = write_npz(tmp_path / "data.npz", x__sensors=xs)
    found = report([str(new), str(data), "--against", str(old)])["error"]["next"]

    candidate, current = errors_ahead(xs, NEAR), errors_ahead(xs, FAR)
    assert list(found) == list(candidate)
    for label, figures in found.items():
        assert figures["n"] == candidate[label][0]
        assert figures["candidate"] == pytest.approx(candidate[label][1], rel=1e-5)
        assert figures["current"] == pytest.approx(current[label][1], rel=1e-5)
    assert found["vibration+1"]["high"] < 1 < found["rpm+3"]["low"]


def test_columns_are_the_truth_of_each_timestep_ahead(tmp_path: Path) -> None:
    new, old = (write_model(tmp_path, f"{bias[2, 1]:g}", partial(ahead, bias, feedback=False)) for bias in (NEAR, FAR))
    xs = walks(3, 20)
    rows = [(f"d{n}", *x) for n, stream in enumerate(xs) for x in stream]
    data = write_csv(tmp_path / "data.csv", ["device", *LABELS], rows)
    words = [str(new), str(data), "--against", str(old), "--stream-column", "device", "--truth", "next=vibration,rpm"]
    found = report([*words, "--horizon", "1-3"])["error"]["next"]

    for label, (n, error) in errors_ahead(xs, NEAR).items():
        assert (found[label]["n"], found[label]["candidate"]) == (n, pytest.approx(error, rel=1e-5))
    refused = invoke(app, [*words, "--horizon", "1-4"])
    assert "4 timesteps ahead; 'next' has shape [3, 2]" in str(refused.exception)


def test_without_a_truth_the_error_is_null(tmp_path: Path) -> None:
    new = write_model(tmp_path, "new", lambda: forecaster(rpm=1.0, feedback=False))
    old = write_model(tmp_path, "old", lambda: forecaster(feedback=False))
    data = write_npz(tmp_path / "data.npz", x__sensors=walks(2, 5))

    assert report([str(new), str(data), "--against", str(old)])["error"] is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--truth", "nothing=a,b"], "outputs that can be compared are next"),
        (["--truth", "next=a"], "1 column; it has 2 numbers"),
        (["--horizon", "2"], "a feedback rule's truth is 1 later"),
        (["--truth", "next=a,b", "--horizon", "3-2"], "neither a number of rows nor a range such as 1-12"),
        (["--truth", "next=a,b", "--horizon", "-1"], "neither a number of rows nor a range"),
        (["--limit", "next[torque]=1"], "there is no output next[torque]"),
    ],
)
def test_a_truth_or_a_limit_that_cannot_be_meant_is_refused(words: list[str], flags: list[str], expected: str) -> None:
    result = invoke(app, [*words, *flags])

    assert result.exit_code in {1, 2}
    assert expected in " ".join((result.output + str(result.exception)).replace("│", " ").split())


def test_a_limit_is_that_of_a_label(words: list[str]) -> None:
    assert invoke(app, [*words, "--limit", "next[rpm]=61", "--limit", "next[vibration]=0.5"]).exit_code == 0
    result = invoke(app, [*words, "--limit", "next[rpm]=61", "--limit", "next[vibration]=0.3"])

    assert "output 'next[vibration]' differs by 0.4" in str(result.exception)
    labels = report(words)["outputs"]["next"]["labels"]
    assert labels["rpm"]["max_abs"] == pytest.approx(60, rel=1e-3)
    assert labels["vibration"]["max_abs"] == pytest.approx(0.4, rel=1e-3)

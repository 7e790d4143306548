"""`stepwell release` shows and changes the release of a model in a running service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import Result

from stepwell.addons.releases.command import release_app
from stepwell.commands.service_calls import StreamsError
from tests.commands.program import invoke
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess, service_process

MODELS = [f"pump{i}" for i in range(8)]


@pytest.fixture(scope="module")
def running() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        for model in MODELS:
            write_model(folder / "models", model, lambda: fold(3), version=1)
            write_model(folder / "models", model, lambda: fold(5), version=2)
        with service_process(folder / "models", folder / "service", "--drain-s", "0") as one:
            yield one


@pytest.fixture
def model() -> str:
    return MODELS.pop()


def run_release(running: ServiceProcess, *words: str) -> Result:
    return invoke(release_app, words, STEPWELL_URL=running.url)


def done(running: ServiceProcess, *words: str) -> str:
    result = run_release(running, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def as_json(running: ServiceProcess, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(running, *words, "--json"))
    return found


def test_a_release_is_started_ramped_and_promoted(running: ServiceProcess, model: str) -> None:
    started = as_json(
        running, "start", model, "--candidate", "2", "--current", "1", "--mode", "ramp", "--schedule", "0:5,600:50"
    )
    more = as_json(running, "percent", model, "--percent", "50", "--revision", "1")
    ended = as_json(running, "promote", model, "--why", "it is better")
    swept = as_json(running, "move", model, "--limit-per-s", "100")

    assert (started["current"], started["candidate"], started["mode"]) == (1, 2, "ramp")
    assert started["schedule"] == [[0, 5], [600, 50]]
    assert (more["percent"], more["revision"]) == (50, 2)
    assert (ended["current"], ended["ended"]["why"]) == (2, "it is better")
    assert swept["moved"] == 0
    assert as_json(running, "show", model)["revision"] == 3


def test_an_abort_has_its_reason(running: ServiceProcess, model: str) -> None:
    done(running, "start", model, "--candidate", "2", "--current", "1", "--mode", "shadow", "--percent", "100")
    text = done(running, "abort", model, "--why", "worse on pumps")

    assert "version 1 is current" in text
    assert "version 2 was aborted" in text
    assert "worse on pumps" in text


def test_a_candidate_in_the_shadow_is_shown_as_that(running: ServiceProcess, model: str) -> None:
    done(running, "start", model, "--candidate", "2", "--current", "1", "--mode", "shadow", "--percent", "100")
    text = done(running, "show", model)

    assert "streams count for the version that responds" in text
    assert ["2", "shadow"] in [line.split()[:2] for line in text.splitlines()]
    assert "ramping" not in text


def test_all_options_reach_the_release(running: ServiceProcess, model: str, tmp_path: Path) -> None:
    gate = {"min_compared": 10, "max_abs": {"y": 0.5}}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    words = ("--candidate", "2", "--current", "1", "--mode", "ramp", "--percent", "1", "--take", "reset")
    more = ("--warm-steps", "7", "--new-only", "--rollback", "--gate", str(tmp_path / "gate.json"), "--revision", "0")
    found = as_json(running, "start", model, *words, *more)

    assert (found["take"], found["warm_steps"], found["existing"], found["rollback"]) == ("reset", 7, False, True)
    assert found["gate"] == gate
    text = done(running, "show", model)
    assert "version 2 is the candidate: ramp, 1 % of the streams, take reset, 7 warm steps, new streams only" in text
    assert "gate: min_compared 10, max_abs y 0.5" in text


def test_the_table_has_a_row_for_each_version(running: ServiceProcess, model: str) -> None:
    text = done(running, "show", model)

    assert f"{model}, no release: version 2 is current" in text
    rows = [line.split()[:2] for line in text.splitlines() if "inactive" in line or " current " in line]
    assert ["1", "inactive"] in rows
    assert ["2", "current"] in rows


def test_what_the_service_rejects_is_an_error_with_its_reason(running: ServiceProcess, model: str) -> None:
    unknown = run_release(running, "start", model, "--candidate", "9", "--mode", "ramp", "--percent", "1")
    no_release = run_release(running, "promote", model)

    assert isinstance(unknown.exception, StreamsError)
    assert "no version 9; versions are [1, 2]" in unknown.exception.problem
    assert isinstance(no_release.exception, StreamsError)
    assert "bad_release" in no_release.exception.problem


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("percent", "pump"), "--percent"),
        (("percent", "pump", "5", "--percent", "5"), "twice"),
        (("percent", "pump", "--percent", "101"), "100"),
        (("percent", "pump", "--schedule", "0:1:2"), "not a schedule"),
        (("percent", "pump", "--schedule", "now"), "not a schedule"),
        (("percent", "pump", "--schedule", "0:nan"), "finite"),
        (("percent", "pump", "nan"), "100"),
        (("percent", "pump", "5", "--key", "secret\n"), "line end"),
        (("start", "pump", "--candidate", "2", "--mode", "canary", "--percent", "1"), "canary"),
        (("start", "pump", "--candidate", "2", "--percent", "1"), "--mode"),
        (("start", "pump", "--candidate", "2", "--mode", "ramp", "--percent", "1", "--gate", "no.json"), "no.json"),
    ],
)
def test_wrong_usage_exits_with_2(running: ServiceProcess, words: tuple[str, ...], reason: str) -> None:
    result = run_release(running, *words)

    assert result.exit_code == 2
    assert reason in result.stderr


def test_watching_prints_the_release_again_when_it_changes(running: ServiceProcess, model: str) -> None:
    command = [sys.executable, "-m", "stepwell", "release", "show", model, "--watch", "--json", "--url", running.url]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        body = {"current": 1, "candidate": 2, "mode": "ramp", "percent": 5}
        httpx2.put(
            f"{running.url}/v1/models/{model}/release", json=body, trust_env=False, timeout=30
        ).raise_for_status()
        while (found := json.loads(watching.stdout.readline()))["candidate"] is None:
            assert found["revision"] == 0
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0

    assert (first["revision"], found["revision"], found["candidate"]) == (0, 1, 2)

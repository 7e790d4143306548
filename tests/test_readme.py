"""The examples of the README run unchanged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.graphs import lstm, write_model
from tests.processes import ServiceProcess, service_process

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """Return the code between the two comments of a name."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", README, re.S)
    assert found, f"README has no block {name!r}"
    return found[1]


@pytest.fixture(scope="module")
def demo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    models = Path(str(files("stepwell.addons.demo") / "models"))
    with service_process(models, tmp_path_factory.mktemp("sw")) as one:
        yield one


def with_port(code: str, one: ServiceProcess) -> str:
    """Return the example with the port of the test's service."""
    assert ":8000" in code
    return code.replace(":8000", f":{one.port}")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_gets_the_shown_answer_and_a_second_time_the_same(demo_service: ServiceProcess) -> None:
    shown = json.loads(README.split("```json\n")[1].split("```")[0])
    command = with_port(block("curl"), demo_service)

    first, again = (json.loads(subprocess.check_output(["sh", "-c", command])) for _ in range(2))

    assert list(shown) == list(first)
    assert (first["step"], first["created"], len(first["outputs"]["activity"])) == (1, True, 4)
    assert shown["outputs"]["activity"] == pytest.approx(first["outputs"]["activity"], abs=0.005)
    assert again["replayed"] is True
    assert again["outputs"] == first["outputs"]


def test_the_example_in_process_prints_two_predictions(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "pump", lambda: lstm(features=3))

    done = subprocess.run([sys.executable, "-c", block("in-process")], cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"\[[^]]+\]", done.stdout)) == 2


def test_the_websocket_example_prints_three_steps(demo_service: ServiceProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-c", with_port(block("websocket"), demo_service)], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert re.findall(r"'step': (\d)", done.stdout) == ["1", "2", "3"]

"""What the README shows runs as it stands."""

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

from tests.processes import Service, service

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The code between the two comments of a name."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", README, re.S)
    assert found, f"README has no block {name!r}"
    return found[1]


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def demo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = Path(str(files("service.demo") / "models"))
    with service(models, tmp_path_factory.mktemp("sw")) as one:
        yield one


def here(code: str, one: Service) -> str:
    """The example, on the port that the test has."""
    assert ":8000" in code
    return code.replace(":8000", f":{one.port}")


@needs_curl
def test_the_curl_example_answers_the_first_step(demo_service: Service) -> None:
    command = here(block("curl"), demo_service)

    first, again = (json.loads(subprocess.check_output(["sh", "-c", command])) for _ in range(2))

    assert (first["step"], first["created"], len(first["outputs"]["activity"])) == (1, True, 4)
    assert again["replayed"] is True
    assert again["outputs"] == first["outputs"]


@needs_curl
def test_the_answer_that_is_shown_has_the_keys_of_the_real_one(demo_service: Service) -> None:
    shown = json.loads(README.split("```json\n")[1].split("```")[0])
    command = here(block("curl"), demo_service).replace("my-watch", "another-watch")

    real = json.loads(subprocess.check_output(["sh", "-c", command]))

    assert list(shown) == list(real)
    assert shown["outputs"]["activity"] == pytest.approx(real["outputs"]["activity"], abs=0.005)


def test_the_websocket_example_prints_three_steps(demo_service: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-c", here(block("websocket"), demo_service)], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert re.findall(r"'step': (\d)", done.stdout) == ["1", "2", "3"]

"""The examples in docs/oip.md run unchanged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.addons.grpc_api.conftest import GrpcService
from tests.api.running import Service, running_service
from tests.servers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "oip.md").read_text()


@pytest.fixture(scope="module")
def demo(shared_redis: Server) -> Iterator[Service]:
    with running_service(shared_redis.url, Path(str(files("stepwell.addons.demo") / "models")), lane=True) as one:
        yield one


def block(name: str, port: int, *, usual: int = 8000) -> str:
    """Return the code between the two comments of a name, with the port of the test's service."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", PAGE, re.S)
    assert found, f"the page has no block {name!r}"
    assert f":{usual}" in found[1]
    return found[1].replace(f":{usual}", f":{port}")


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")
def test_the_example_of_tritonclient_prints_three_steps(demo: Service) -> None:
    done = subprocess.run([sys.executable, "-c", block("tritonclient", demo.port)], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert re.findall(r"'step': (\d)", done.stdout) == ["1", "2", "3"]


@pytest.mark.skipif(find_spec("tritonclient") is None, reason="tritonclient is not installed: STEPWELL_EXTRAS=triton")
def test_the_example_of_tritonclient_over_grpc_prints_three_steps(shared_redis: Server, tmp_path: Path) -> None:
    pytest.importorskip("grpc_reflection", reason="gRPC is not installed: STEPWELL_EXTRAS=grpc")
    models = Path(str(files("stepwell.addons.demo") / "models"))
    with GrpcService(models, tmp_path, "--redis", shared_redis.url, "--drain-s", "0").running() as own:
        code = block("tritonclient-grpc", own.grpc_port, usual=8001)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["1", "2", "3"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_starts_a_sequence(demo: Service) -> None:
    answer = json.loads(subprocess.check_output(["sh", "-c", block("infer", demo.port)]))

    assert answer["parameters"] == {"sequence_id": 42, "step": 1, "replayed": False}
    assert answer["outputs"][0]["shape"] == [1, 4]

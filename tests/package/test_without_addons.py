"""Each add-on can be left out: without its folder and what it registers, the service starts and steps streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold, fold_reference, write_model
from tests.package.environment import CLEAN, ROOT
from tests.processes import ServiceProcess
from tests.servers import Server

PACKAGE = ROOT / "service" / "stepwell"
ADDONS = sorted(path.stem for path in (PACKAGE / "addons").iterdir() if not path.stem.startswith("_"))
STEP = """
import stepwell
with stepwell.Client(":memory:", models="models") as client:
    print(client.model("fold").stream("a").step([7]).output.tolist())
"""

pytestmark = [pytest.mark.slow]


def registered_without(addon: str) -> str:
    """Return what our project file registers, but for an add-on, in the format of installed packages."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = []
    for group, points in groups.items():
        lines += [
            f"[{group}]",
            *(f"{name}={at}" for name, at in points.items() if at.split(":")[0].split(".")[2] != addon),
        ]
    return "\n".join(lines)


def answer_with_a_store(url: str, folder: Path, env: Mapping[str, str]) -> list[int]:
    """Return the prediction of the first timestep of a stream, from a service that uses a store at a URL."""
    launch = [sys.executable, "-P", "-m", "stepwell", "serve"]
    service = ServiceProcess(folder / "models", folder / "service", "--redis", url, env=env, launch=launch).start()
    try:
        path = f"{service.url}/v1/models/fold/streams/without/step"
        found: list[int] = httpx2.post(path, json={"inputs": [7]}, trust_env=False).json()["outputs"]["y"]
        return found
    finally:
        service.stop()


@pytest.mark.parametrize("addon", ADDONS)
def test_the_service_steps_streams_without(addon: str, tmp_path: Path, shared_redis: Server) -> None:
    being_written = shutil.ignore_patterns("*.pyc.*")
    # With the byte code, which stays valid: compiling all modules takes longer than the test.
    shutil.copytree(PACKAGE, tmp_path / "stepwell", ignore=being_written, copy_function=os.link)
    left_out = tmp_path / "stepwell" / "addons" / addon
    if left_out.is_dir():
        shutil.rmtree(left_out)
    else:
        left_out.with_suffix(".py").unlink()
    metadata = tmp_path / "stepwell-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: stepwell\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(registered_without(addon))
    write_model(tmp_path / "models", "fold", fold)
    env = CLEAN | {"PYTHONPATH": str(tmp_path)}
    if addon == "embedded_store":
        assert answer_with_a_store(shared_redis.url, tmp_path, env) == fold_reference([7])
        return

    done = subprocess.run([sys.executable, "-c", STEP], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.stdout == f"{fold_reference([7])}\n", done.stderr

"""Each add-on can be left out: without its folder and what it registers, the service starts and steps streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold, fold_reference, write_model
from tests.package.environment import CLEAN, ROOT
from tests.processes import ServiceProcess
from tests.servers import Server

PACKAGE = ROOT / "service" / "stepwell"
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
"""What our project file registers, by group."""


def folder_of(point: str) -> str:
    """Return the add-on of an entry point, such as `stepwell.addons.drift.addon:Drift`."""
    return point.split(":", maxsplit=1)[0].split(".")[2]


PARTS = {path.stem for path in (PACKAGE / "addons").iterdir() if not path.stem.startswith("_")}
OF_THE_SERVICE = {
    folder_of(at) for group in ("addons", "settings", "stores") for at in POINTS[f"stepwell.{group}"].values()
}
LEFT_OUT = [pytest.param({name}, id=name) for name in sorted(OF_THE_SERVICE)]
SHARED = {"api_schemas", "between_workers", "packed_states", "server_sent_events", "waiting"}
"""What several add-ons of the service use; it registers nothing."""
LEFT_OUT.append(pytest.param(PARTS - OF_THE_SERVICE - SHARED, id="those that the service does not load"))
"""The service loads none of the last ones, so that it starts without each if it starts without all."""

STEP = """
import stepwell
with stepwell.Client(":memory:", models="models") as client:
    print(client.model("fold").stream("a").step([7]).output.tolist())
"""

pytestmark = [pytest.mark.slow]


def registered_without(addons: Collection[str]) -> str:
    """Return what our project file registers, but for some add-ons, in the format of installed packages."""
    lines = []
    for group, points in POINTS.items():
        lines += [f"[{group}]", *(f"{name}={at}" for name, at in points.items() if folder_of(at) not in addons)]
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


@pytest.mark.many
@pytest.mark.parametrize("addons", LEFT_OUT)
def test_the_service_steps_streams_without(addons: Collection[str], tmp_path: Path, shared_redis: Server) -> None:
    being_written = shutil.ignore_patterns("*.pyc.*")
    # With the byte code, which stays valid: compiling all modules takes longer than the test.
    shutil.copytree(PACKAGE, tmp_path / "stepwell", ignore=being_written, copy_function=os.link)
    for addon in addons:
        left_out = tmp_path / "stepwell" / "addons" / addon
        if left_out.is_dir():
            shutil.rmtree(left_out)
        else:
            left_out.with_suffix(".py").unlink()
    metadata = tmp_path / "stepwell-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: stepwell\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(registered_without(addons))
    write_model(tmp_path / "models", "fold", fold)
    env = CLEAN | {"PYTHONPATH": str(tmp_path)}
    if "embedded_store" in addons:
        assert answer_with_a_store(shared_redis.url, tmp_path, env) == fold_reference([7])
        return

    done = subprocess.run([sys.executable, "-c", STEP], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.stdout == f"{fold_reference([7])}\n", done.stderr

"""Wheels that are built from source, environments that they are installed into, and the service that runs there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.graphs import fold, write_model
from tests.processes import ServiceProcess

ROOT = Path(__file__).parents[2]
SOURCES = {"stepwell": ROOT, "stepwell_export": ROOT / "model_export", "stepwell_client": ROOT / "clients" / "python"}
"""The folder of each distribution's project file, by its package."""
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("STEPWELL_", "PYTHON"))}
SHARED = "\n".join(path for path in sys.path if path.endswith("-packages")) + "\n"


def build(target: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist of a source tree without a network, and return the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, env=CLEAN, check=True, capture_output=True)
    [built] = folder.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return built


@dataclass(frozen=True)
class Environment:
    """An environment with wheels and the third-party packages of the tests, and a folder that is no clone."""

    bin: Path
    folder: Path

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        program = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(program, cwd=self.folder, env=CLEAN | env, capture_output=True, text=True)


def install(root: Path, *wheels: Path) -> Environment:
    """Make an environment with wheels and the third-party packages of the tests, and a folder beside it."""
    pytest.importorskip("pip", reason="pip is not installed")
    venv.create(root, symlinks=True)  # without pip, which takes seconds
    [packages] = root.glob("lib/python*/site-packages")
    shared = packages / "shared.pth"
    command = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", "--quiet", *map(str, wheels)], check=True, env=CLEAN)
    shared.write_text(SHARED)
    folder = root.with_name(f"{root.name}-elsewhere")
    folder.mkdir()
    return Environment(root / "bin", folder)


@contextmanager
def serve(installed: Environment, *flags: str) -> Iterator[ServiceProcess]:
    """Run the installed service with the model `fold`, which it vets as it would for its users."""
    write_model(installed.folder / "models", "fold", fold)
    one = ServiceProcess(
        installed.folder / "models",
        installed.folder,
        *flags,
        env={"STEPWELL_MODEL_PROBE_S": "60"},
        launch=["env", "-C", str(installed.folder), str(installed.bin / "stepwell"), "serve"],
    ).start()
    try:
        yield one
    finally:
        one.stop()

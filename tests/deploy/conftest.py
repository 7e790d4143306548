"""The tests of the compose stack run on request only: they build images and take minutes."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of the stack unless `-m compose` selects them and Docker is available."""
    if "compose" not in config.getoption("markexpr"):
        why = "builds and runs the whole stack with Docker: ./stepwell test -m compose"
    elif shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        why = "no Docker engine answers"
    else:
        return
    for item in items:
        if item.get_closest_marker("compose"):
            item.add_marker(pytest.mark.skip(reason=why))

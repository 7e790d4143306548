"""The stack runs only when it is asked for: it builds images and takes minutes."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that need the stack, unless `-m compose` asks for them and a Docker engine is there."""
    if "compose" not in config.getoption("markexpr"):
        why = "builds and runs the whole stack with Docker: ./stepwell test -m compose"
    elif shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        why = "no Docker engine answers"
    else:
        return
    for item in items:
        if item.get_closest_marker("compose"):
            item.add_marker(pytest.mark.skip(reason=why))

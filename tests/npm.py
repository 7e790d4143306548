"""`npm_install`: packages of npm for a test, which is skipped without npm or a network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def npm_install(folder: Path, *packages: str) -> Path:
    """Install packages, and those of the folder's package.json; return its `node_modules`.

    The test is skipped if there is no npm, or if it cannot install them.
    """
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm: apt-get install npm")
    install = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"]
    try:
        done = subprocess.run([*install, *packages], cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install did not end within 60 s: is there a network?")
    if done.returncode != 0:
        pytest.skip(f"npm install failed: {done.stderr[-300:]}")
    return folder / "node_modules"

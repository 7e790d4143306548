"""Node and packages of npm for a test, which is skipped without them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NEEDS_NODE = "needs Node 20.10 or later: apt-get install nodejs"


def node_command() -> list[str] | None:
    """Return the command of a Node that can run the TypeScript client, with its WebSocket; None without one."""
    node = shutil.which("node")
    if node is None:
        return None
    for flags in ([], ["--experimental-websocket"]):
        command = [node, *flags]
        look = [*command, "-e", "process.exit(Number(typeof WebSocket === 'undefined'))"]
        if subprocess.run(look, capture_output=True).returncode == 0:
            return command
    return None


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

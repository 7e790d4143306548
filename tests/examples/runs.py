"""Runs scripts of examples/ as users do: in a separate process, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"


def run_python(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments in a folder, with no STEPWELL_ variables but the given ones."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")} | variables
    env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # examples train, which takes longer than compiling with optimizations
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=150, check=False
    )

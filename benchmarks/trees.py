"""Runs the service of another checkout of this project, with the packages of this Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]


def service_of(tree: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs `stepwell` from a checkout, and its environment, without settings of the service.

    Args:
        tree: The checkout, such as `git worktree add --detach FOLDER COMMIT` makes it.
    """
    tree = tree.resolve()
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    if (tree / "service" / "stepwell").is_dir():
        env["PYTHONPATH"] = ":".join(str(tree / part) for part in ("service", "model_export", "clients/python"))
        return [sys.executable, "-P", "-m", "stepwell"], env
    env["PYTHONPATH"] = str(tree)  # `service` itself was the package until there were three distributions
    return [sys.executable, "-P", "-c", "from service.cli import main; main()"], env

"""CONTRIBUTING.md names existing files, and every folder at the top."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (REPOSITORY / "service" / "stepwell", REPOSITORY / "model_export" / "stepwell_export")
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()
NAMED = sorted(set(re.findall(r"`(\.?\w[\w.-]*(?:/[\w.-]*)+)`", TEXT)))


def test_every_path_exists() -> None:
    folders = (REPOSITORY, *PACKAGES)

    assert [name for name in NAMED if not any((one / name.removeprefix("./")).exists() for one in folders)] == []


def test_the_tree_has_every_folder_at_the_top() -> None:
    listed = subprocess.check_output(["git", "ls-tree", "-d", "--name-only", "HEAD"], cwd=REPOSITORY, text=True)
    named = {path.partition("/")[0] for path in NAMED}

    assert [name for name in listed.split() if name[0] != "." and name not in named] == []

"""The built site; its tests are skipped where MkDocs is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.site.pages import Site

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site, as `scripts/docs build` makes it."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: STEPWELL_EXTRAS=docs ./stepwell --version")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "scripts.site", "build", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Site(folder)

"""The second of two runs leaves out files whose tests have all passed in the first, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = """
from tests.environments import add_options as pytest_addoption, leave_out_passed, write_passed as pytest_configure

def pytest_collection_modifyitems(config, items):
    leave_out_passed(config, items)
"""
PLAIN = "def test_one(): pass\ndef test_two(): pass\n"
WITH_EXTRA = """
import os, pytest

def test_without(): pass

@pytest.mark.skipif("EXTRA" not in os.environ, reason="the extra is not installed")
def test_with(): pass
"""
ONE_MORE = """
import os, pytest

@pytest.mark.parametrize("name", ["a", "b"] if "EXTRA" in os.environ else ["a"])
def test_each(name): pass
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    files = {"conftest": CONFTEST, "test_plain": PLAIN, "test_extra": WITH_EXTRA, "test_more": ONE_MORE}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    return tmp_path


def run(clone: Path, *words: str, **env: str) -> set[str]:
    """Run the tests in two processes, and return the names of those that passed."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "xdist", "-n", "2", *words]
    # Without the plugins that are not used here, of which some load for long.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("::")[1].strip() for line in done.stdout.splitlines() if " PASSED " in line}


def test_a_file_runs_again_if_a_test_of_it_was_skipped_or_is_new(clone: Path) -> None:
    first = run(clone, "--write-passed", str(clone / "passed"))
    second = run(clone, "--without-passed", str(clone / "passed"), EXTRA="1")

    assert first == {"test_one", "test_two", "test_without", "test_each[a]"}
    assert second == {"test_without", "test_with", "test_each[a]", "test_each[b]"}

"""The second of two runs leaves out files whose tests have all passed in the first, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    return tmp_path


def run(clone: Path, *words: str, **env: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(clone),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **env}
    done = subprocess.run([*command, *words, str(clone)], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_file_runs_again_if_a_test_of_it_was_skipped_or_is_new(clone: Path) -> None:
    run(clone, "-n", "2", "--write-passed", str(clone / "passed"))
    text = run(clone, "-n", "2", "--without-passed", str(clone / "passed"), EXTRA="1")

    assert "4 passed" in text
    assert "test_plain" not in text
    for name in ("test_without", "test_with", "test_each[a]", "test_each[b]"):
        assert f"{name}\n" in text.replace(" \n", "\n")


def test_where_nothing_else_is_installed_nothing_runs_but_what_was_skipped(clone: Path) -> None:
    run(clone, "--write-passed", str(clone / "passed"))
    text = run(clone, "--without-passed", str(clone / "passed"))

    assert "1 passed, 1 skipped, 3 deselected" in text

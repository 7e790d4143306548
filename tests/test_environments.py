"""The second of two runs leaves out files whose tests have all passed in the first, but a quarter of them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from tests.environments import add_options as pytest_addoption, leave_out_passed, write_passed as pytest_configure

def pytest_collection_modifyitems(config, items):
    leave_out_passed(config, items)
"""
PLAIN = "def test_it(): pass\n"
N_PLAIN = 40
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
RAN = re.compile(r"test_\w+\.py::\w+(?:\[\w\])?(?= PASSED)|PASSED test_\w+\.py::\w+")
DEPENDENT = {"test_extra.py::test_without", "test_extra.py::test_with", "test_more.py::test_each"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Forty files that need no extra and two that do."""
    plain = {f"test_plain_{number}": PLAIN for number in range(N_PLAIN)}
    for name, text in {"conftest": CONFTEST, "test_extra": WITH_EXTRA, "test_more": ONE_MORE, **plain}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def run(clone: Path, *words: str, **env: str) -> list[str]:
    """Run the tests of the clone; returns the names of those that ran."""
    options = ["-v", "-p", "xdist.plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(clone)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    command = [sys.executable, "-m", "pytest", *options, *words, str(clone)]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[-1].partition("[")[0] for line in sorted(set(RAN.findall(done.stdout)))]


def test_a_file_runs_again_if_a_test_of_it_was_skipped_or_is_new_and_so_does_a_quarter_of_the_others(
    clone: Path,
) -> None:
    first = run(clone, "-n", "2", "--write-passed", str(clone / "passed"))
    again = run(clone, "--without-passed", str(clone / "passed"), "--sample", "a", EXTRA="1")
    other = run(clone, "--without-passed", str(clone / "passed"), "--sample", "b", EXTRA="1")

    assert len(first) == N_PLAIN + 2
    assert set(again) & set(other) >= DEPENDENT
    for sampled in (set(again) - DEPENDENT, set(other) - DEPENDENT):
        assert 0 < len(sampled) < N_PLAIN / 2
    assert set(again) != set(other)


def test_everything_runs_again_on_another_version_of_python(clone: Path) -> None:
    run(clone, "--write-passed", str(clone / "passed"))
    text = (clone / "passed").read_text()
    (clone / "passed").write_text(text.replace(platform.python_version(), "3.11.0rc1", 1))

    assert len(run(clone, "--without-passed", str(clone / "passed"))) == N_PLAIN + 2

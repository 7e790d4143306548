"""`.ci/tests`: a test that failed runs once more, alone; what fails twice fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAILS_ONCE = """
from pathlib import Path
def test_it():
    again = Path(__file__).with_suffix(".ran")
    ran, _ = again.exists(), again.touch()
    assert ran
"""
FAILS = "def test_it():\n    assert False\n"
PASSES = "def test_it():\n    pass\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the script, this Python in its environment, and a `./stepwell test` that runs pytest."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "tests", tmp_path / ".ci")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "stepwell").write_text('#!/bin/sh\nshift\nexec .venv/bin/python -m pytest -pxdist.plugin "$@" tests\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    for program in (python, tmp_path / "stepwell"):
        program.chmod(0o755)
    return tmp_path


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load of the installed plugins of pytest only those that are named: it takes longer than the tests here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(repository: Path, **tests: str) -> subprocess.CompletedProcess[str]:
    """Run the script on test files, each given by its path with `__` between folders."""
    for name, text in tests.items():
        file = repository / "tests" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return subprocess.run([repository / ".ci" / "tests"], capture_output=True, text=True, check=False, timeout=120)


def test_a_test_that_passes_alone_is_named(repository: Path) -> None:
    ended = run(repository, test_a=PASSES, test_b=FAILS_ONCE)

    assert ended.returncode == 0
    assert "FAILED ONCE, and passed alone:\ntests/test_b.py::test_it" in ended.stdout


def test_a_test_that_fails_twice_fails(repository: Path) -> None:
    ended = run(repository, test_a=FAILS_ONCE, test_b=FAILS)

    assert ended.returncode == 1
    assert "FAILED ONCE" not in ended.stdout


def test_a_promise_that_is_broken_once_is_broken(repository: Path) -> None:
    assert run(repository, exactly_once__test_a=FAILS_ONCE).returncode == 1


def test_many_failures_are_no_accident(repository: Path) -> None:
    assert run(repository, test_a=FAILS_ONCE, test_b=FAILS_ONCE, test_c=FAILS_ONCE, test_d=FAILS_ONCE).returncode == 1


def test_a_file_that_cannot_be_read_fails(repository: Path) -> None:
    assert run(repository, test_a="import nowhere_to_be_found").returncode == 2

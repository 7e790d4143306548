"""A temporary folder is deleted at the end, or by the next process if its own was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell.commands.temporary import temporary_folder

OTHER = """
import sys
from stepwell.commands.temporary import temporary_folder

with temporary_folder("sw-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that has a temporary folder, and this folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OTHER], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_the_folder_of_a_process_that_runs_is_left_alone(other: tuple[subprocess.Popen[str], Path]) -> None:
    with temporary_folder("sw-") as own:
        assert other[1].is_dir()
        assert own.is_dir()
    assert not own.exists()


def test_the_folder_of_a_killed_process_is_deleted_by_the_next(other: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = other
    process.kill()
    process.wait()
    assert folder.is_dir()

    with temporary_folder("sw-"):
        assert not folder.exists()

"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepwell_export.runtime.errors import FileError
from stepwell_export.runtime.files import check_target, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old and longer")
    with path.open("rb") as reader:  # who has the old file open goes on with the old file
        write_atomically(path, b"new")

        assert reader.read() == b"old and longer"
    assert path.read_bytes() == b"new"


def test_others_may_read_it_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a.onnx", b"new")
    finally:
        os.umask(before)

    assert (tmp_path / "a.onnx").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    """A folder stands where the file should go: the last move is what fails."""
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(FileError):
        write_atomically(tmp_path / "a.onnx", b"new")

    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "models" / "pump" / "a.onnx"
    check_target(path)
    assert list(tmp_path.iterdir()) == []

    write_atomically(path, b"new")

    assert path.read_bytes() == b"new"


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("notes")
    for act in (check_target, lambda path: write_atomically(path, b"")):
        with pytest.raises(FileError, match=r"a\.onnx cannot be written"):
            act(tmp_path / "models" / "a.onnx")


def test_a_target_is_named_as_the_model_folder_wants_it(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        check_target(tmp_path / "pump")

    assert "ends in .onnx" in caught.value.problem
    assert "pump.onnx" in caught.value.fix

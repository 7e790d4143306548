"""`adopt_file` writes what `stepwell adopt` writes; the command's tests are in tests/commands/test_adopt.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_export.adopt.adopt_file import adopt_file
from model_export.errors import UnclearModelError
from model_export.manifest import sidecar_of
from model_export.step_model import StepModel
from tests import graphs

pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A step graph without a manifest."""
    path = graphs.write_model(tmp_path, "fold", graphs.fold)
    sidecar_of(path).unlink(missing_ok=True)
    return path


def test_a_manifest_is_written_beside_the_graph(graph: Path) -> None:
    adopted = adopt_file(str(graph), name="sum", replace=True)

    assert adopted.path == sidecar_of(graph)
    assert StepModel(graph).manifest.name == "sum"


def test_a_target_without_a_change_is_refused(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError, match="each needs the other"):
        adopt_file(graph, target=tmp_path / "new.onnx", replace=True)

    assert not (tmp_path / "new.onnx").exists()

"""`adopt_file` writes what `stepwell adopt` writes; the command's tests are in tests/commands/test_adopt.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.step_model import StepModel
from tests import graphs

pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A step graph without a manifest."""
    path = graphs.write_model(tmp_path, "fold", graphs.fold)
    sidecar_of(path).unlink(missing_ok=True)
    return path


@pytest.fixture
def lstm(tmp_path: Path) -> Path:
    """A graph with the input x, the states h and c, and the output y, without a manifest."""
    path = tmp_path / "pump.onnx"
    path.write_bytes(graphs.lstm()[0])
    return path


def test_a_manifest_is_written_beside_the_graph(graph: Path) -> None:
    adopted = adopt_file(str(graph), name="sum", replace=True)

    assert adopted.path == sidecar_of(graph)
    assert StepModel(graph).manifest.name == "sum"


def test_a_target_without_a_change_is_refused(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError, match="each needs the other"):
        adopt_file(graph, target=tmp_path / "new.onnx", replace=True)

    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "a b"}, "The argument name is 'a b'"),
        ({"states": [("h", "h_next")]}, "The argument states is [('h', 'h_next')]"),
        ({"outputs": {"y": "maybe"}}, "The argument outputs['y'] is 'maybe'"),
        ({"windows": {"x": 1.5}}, "The argument windows['x'] is 1.5"),
        ({"windows": {"x": 0}}, "The argument windows['x'] is 0"),
        ({"shapes": {"x": 4}}, "The argument shapes['x'] is 4"),
        ({"batch_axes": {"x": "first"}}, "The argument batch_axes['x'] is 'first'"),
        ({"feedback": ["x"]}, "The argument feedback is ['x']"),
        ({"store_dtype": "int8"}, "The argument store_dtype is 'int8'"),
        ({"changes": ["fold"], "target": "new.onnx"}, "The argument changes[0] is 'fold'"),
        ({"verify": 3}, "The argument verify is 3"),
        ({"source": b"bytes"}, "The argument source is b'bytes'"),
    ],
)
def test_an_argument_of_another_type_is_named_and_nothing_is_written(
    lstm: Path, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_file(**{"source": lstm, **arguments})

    assert caught.value.problem.startswith(problem)
    assert [path.name for path in lstm.parent.iterdir()] == [lstm.name]


def test_one_output_is_the_next_value_of_one_state(lstm: Path) -> None:
    with pytest.raises(UnclearModelError) as caught:
        adopt_file(lstm, states={"h": "h_next", "c": "h_next"})

    assert "`--state` names 'h_next' as the next value of 2 states" in caught.value.problem

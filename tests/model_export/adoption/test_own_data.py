"""Own sequences that a model is adopted with are run, and their distributions become the reference for drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.runtime.errors import FileError, TensorError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped
from tests import graphs

SEQUENCES, STEPS = 70, 9


@pytest.fixture
def own() -> Array:
    return np.random.default_rng(4).normal(3, 2, (SEQUENCES, STEPS, 4)).astype(np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """An LSTM without a manifest."""
    path = tmp_path / "pump.onnx"
    path.write_bytes(graphs.lstm()[0])
    return path


def test_the_manifest_has_the_distributions_of_the_inputs_and_of_the_predictions(graph: Path, own: Array) -> None:
    np.savez(graph.with_suffix(".npz"), x=own)
    adopt_file(graph, verify=graph.with_suffix(".npz"))
    model = StepModel(graph)
    found, y = model.manifest.reference, stepped(model, {"x": own})[0]["y"]

    assert found is not None
    assert (found.sequences, found.timesteps) == (SEQUENCES, SEQUENCES * STEPS)
    assert [found.inputs[f"x[{i}]"].min for i in range(4)] == own.min(axis=(0, 1)).tolist()
    assert [found.outputs[f"y[{i}]"].max for i in range(2)] == y.max(axis=(0, 1)).tolist()


def test_the_reference_of_a_changed_graph_is_in_the_written_file(tmp_path: Path) -> None:
    path = tmp_path / "sum.onnx"
    path.write_bytes(graphs.moving_sum()[0])
    np.savez(tmp_path / "own.npz", x=np.ones((2, 5, 2), np.float32))
    target = tmp_path / "new" / "sum.onnx"
    adopt_file(
        path, windows={"x": 3}, shapes={"x": [2]}, changes=["fold-context"], target=target, verify=tmp_path / "own.npz"
    )
    found = StepModel(target).manifest.reference

    assert found is not None
    assert found.timesteps == 10


def test_sequences_of_another_shape_are_refused_and_nothing_is_written(graph: Path) -> None:
    np.savez(graph.with_suffix(".npz"), x=np.ones((5, 3), np.float32))

    with pytest.raises(TensorError, match=r"shape \[1, 5, 3\]"):
        adopt_file(graph, verify=graph.with_suffix(".npz"))
    assert sorted(path.name for path in graph.parent.iterdir()) == ["pump.npz", "pump.onnx"]


def test_a_missing_file_is_reported_by_its_name(graph: Path) -> None:
    with pytest.raises(FileError, match=r"own\.npz is not there"):
        adopt_file(graph, verify=graph.with_name("own.npz"))


def test_a_prediction_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    path, own = tmp_path / "root.onnx", np.ones((5, 9, 2), np.float32)
    path.write_bytes(
        graphs.graph_from_text("""
        root (float[B,2] x, float[B,2] s) => (float[B,2] y, float[B,2] s_next) {
            limit = Constant <value = float {50.0}> ()
            left = Sub (limit, x)
            y = Sqrt (left)
            s_next = Add (s, x)
        }""")
    )
    own[3, 2, 1] = 60
    np.savez(tmp_path / "own.npz", x=own)
    notes = adopt_file(path, verify=tmp_path / "own.npz").adoption.notes

    assert [note for note in notes if "output y is not finite (NaN or infinite) on own.npz" in note]


def test_rows_that_own_sequences_show_to_mix_leave_the_comparison_with_the_original_graph(tmp_path: Path) -> None:
    """It was made row by row too, and still holds where rows run one at a time."""
    path = tmp_path / "sum.onnx"
    path.write_bytes(
        graphs.graph_from_text("""
        sum (float[B,N] x) => (float[B,1] y) {
            axis = Constant <value = int64[1] {1}> ()
            limit = Constant <value = float {50.0}> ()
            none = Constant <value = float {0.0}> ()
            sum = ReduceSum <keepdims = 1> (x, axis)
            largest = ReduceMax <keepdims = 0> (x)
            large = Greater (largest, limit)
            more = Where (large, largest, none)
            y = Add (sum, more)
        }""")
    )
    np.savez(tmp_path / "own.npz", x=100 * np.arange(1, 21, dtype=np.float32).reshape(2, 5, 2))
    adopted = adopt_file(
        path, windows={"x": 3}, shapes={"x": [2]}, changes=["fold-context"], target=tmp_path / "new.onnx",
        verify=tmp_path / "own.npz",
    )  # fmt: skip

    assert adopted.manifest.batch.mode == "single"
    assert adopted.manifest.verified is not None
    assert adopted.manifest.verified.against == "sum.onnx as it was"

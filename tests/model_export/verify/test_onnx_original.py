"""The file that was given is what a step graph is compared with: its bytes, without a changed node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming import convert
from stepwell_export.verify.onnx_original import InputLayout, OnnxOriginal, OutputLayout
from stepwell_export.verify.reference import PrefixAnswers
from tests.model_export.streaming.zoo_parts import GRU, X, graph, ints

TIMED = OutputLayout(time=1, batch=0)
SUM = "y = CumSum (x, one)"


def original(model: onnx.ModelProto | Path, *, only_steps: int | None = None) -> OnnxOriginal:
    return OnnxOriginal(model, [InputLayout("x", "float32", (2, 3, 4), 0, 1)], {"y": TIMED}, only_steps=only_steps)


def answers(file: OnnxOriginal, data: Array) -> Array:
    """Return the answers of every timestep."""
    found = file({"x": data})["y"]
    assert not isinstance(found, PrefixAnswers)
    return found


def drawn(rows: int, steps: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, steps, 4)).astype(np.float32)


def test_a_file_gives_what_onnxruntime_gives_for_it(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", drawn(5, 7)
    onnx.save(graph(f"({X}) => (float[batch, time, 4] y) {{ {SUM} }}", one=np.int64(1)), str(path))

    found = answers(original(path), data)

    assert np.array_equal(found, onnxruntime.InferenceSession(str(path)).run(None, {"x": data})[0])


def test_declared_sizes_are_no_limit_of_a_file_without_them_in_its_nodes() -> None:
    model = graph(f"(float[1, 3, 4] x) => (float[1, 3, 4] y) {{ {SUM} }}", one=np.int64(1))

    found = answers(original(model), drawn(5, 9))

    np.testing.assert_allclose(found, drawn(5, 9).cumsum(1), atol=1e-5)


def test_a_size_in_a_node_is_one() -> None:
    model = graph(
        "(float[1, 3, 4] x) => (float[1, 3, 4] y) { y = Reshape (x, shape) }", shape=ints(1, 3, 4)
    )  # fmt: skip

    with pytest.raises(ModelLoadError, match=r"failed on x \[1, 9, 4\]"):
        original(model)({"x": drawn(5, 9)})


def test_onnx_runs_what_onnxruntime_does_not() -> None:
    """Recurrences with `layout` 1."""
    model = graph(
        f"({X}) => (float[batch, time, d, 5] y) {{ y = GRU <hidden_size = 5, layout = 1> (x, W, R, B) }}", **GRU
    )
    file = original(model)

    assert answers(file, drawn(2, 6)).shape == (2, 6, 1, 5)
    assert file.against == f"onnx {onnx.__version__}"


def test_nodes_of_one_name_are_run() -> None:
    model = graph(f"({X}) => (float[batch, time, 4] y) {{ [a] t = Tanh (x) [a] y = CumSum (t, one) }}", one=np.int64(1))

    np.testing.assert_allclose(answers(original(model), drawn(2, 6)), np.tanh(drawn(2, 6)).cumsum(1), atol=1e-5)


def test_one_row_keeps_its_axis_behind_a_squeeze_without_axes() -> None:
    model = graph(f"({X}) => (float[batch, time, 4] y) {{ {SUM.replace('y', 's')} y = Squeeze (s) }}", one=np.int64(1))

    assert answers(original(model), drawn(1, 6)).shape == (1, 6, 4)


def test_a_file_of_one_length_has_answers_for_no_beginning() -> None:
    model = graph("(float[batch, 6, 4] x) => (float[batch, 4] y) { y = Gather <axis = 1> (x, last) }", last=np.int64(5))
    file = OnnxOriginal(
        model, [InputLayout("x", "float32", (2, 6, 4), 0, 1)], {"y": OutputLayout(None, 0)}, only_steps=6
    )
    found = file({"x": drawn(2, 6)})["y"]

    assert isinstance(found, PrefixAnswers)
    assert list(found.steps) == [6]


def test_lengths_that_are_the_declared_one_are_compared_at_that_length() -> None:
    model = graph(
        "(float[20, 3, 4] x) => (float[20, 1, 3, 5] y) { y = GRU <hidden_size = 5> (x, W, R, B, lens) }",
        lens=np.full(3, 20, np.int32), **GRU,
    )  # fmt: skip
    _, report = verify_model(convert(model, name="lengths", time_axes={"x": 0}))

    assert report.parity.steps == 20
    assert [skipped.what for skipped in report.skipped] == ["long run"]

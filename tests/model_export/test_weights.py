"""`compress_weights` stores weights in fewer bits, wherever they stand in a graph."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from stepwell_export.runtime.manifest import Array
from stepwell_export.weights import Weights, compress_weights
from tests import graphs

RNG = np.random.default_rng(7)


def dense(weights: Array) -> onnx.ModelProto:
    size, units = weights.shape
    return onnx.load_model_from_string(
        graphs.graph_from_text(f"g (float[B,{size}] x) => (float[B,{units}] y) {{ y = MatMul (x, W) }}", {"W": weights})
    )


def run(model: onnx.ModelProto, **feeds: Array) -> Array:
    onnx.checker.check_model(model)
    found: Array = ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    return found


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def initializers(model: onnx.ModelProto) -> dict[str, str]:
    return {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(("weights", "part"), [("fp16", 2), ("int8", 4)])
def test_the_file_is_a_half_or_a_quarter(weights: Weights, part: int) -> None:
    full = dense(normal(128, 96))

    assert compress_weights(full, weights).ByteSize() * part < full.ByteSize() * 1.1


@pytest.mark.parametrize(("weights", "allowed"), [("fp16", 2**-11), ("int8", 0.5 / 127)])
def test_a_weight_moves_by_half_a_unit_of_its_format_at_most(weights: Weights, allowed: float) -> None:
    values = normal(32, 24)
    stored = run(compress_weights(dense(values), weights), x=np.eye(32, dtype=np.float32))
    largest = np.abs(values).max() if weights == "int8" else np.abs(values)

    assert (np.abs(stored - values) <= allowed * largest * (1 + 1e-6)).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_each_slice_has_a_scale_of_its_own_along_the_better_axis(axis: int) -> None:
    sizes = np.where(np.arange(32) % 2, 1, 0.01).astype(np.float32)
    values = normal(32, 32) * np.expand_dims(sizes, 1 - axis)
    stored = run(compress_weights(dense(values), "int8"), x=np.eye(32, dtype=np.float32))
    units = np.abs(values).max(axis=1 - axis, keepdims=True) / 127

    assert (np.abs(stored - values) <= 0.5001 * units).all()


def test_the_given_model_is_left_as_it_was() -> None:
    full = dense(normal(32, 24))
    before = full.SerializeToString()
    compress_weights(full, "int8")

    assert full.SerializeToString() == before


@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_onnxruntime_expands_the_weights_at_load(weights: Weights, tmp_path: object) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    ort.InferenceSession(compress_weights(dense(normal(32, 24)), weights).SerializeToString(), options)

    assert [node.op_type for node in onnx.load(f"{tmp_path}/optimized.onnx").graph.node] == ["MatMul"]


def test_a_weight_beyond_float16_stays_as_it_is() -> None:
    huge = normal(32, 24) * np.float32(1e6)

    assert initializers(compress_weights(dense(huge), "fp16")) == {"W": "float32"}


@pytest.mark.parametrize("weights", ["fp16"])
def test_a_weight_that_is_not_finite_stays_as_it_is(weights: Weights) -> None:
    masked = normal(32, 24)
    masked[0] = -np.inf

    assert initializers(compress_weights(dense(masked), weights)) == {"W": "float32"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_a_table_of_a_mask_stays_as_it_is(weights: Weights) -> None:
    """It has the lowest number of float32, which neither format can hold."""
    table = np.where(np.tri(20, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)

    (stored,) = compress_weights(dense(table), weights).graph.initializer

    np.testing.assert_array_equal(numpy_helper.to_array(stored), table)


@pytest.mark.parametrize("weights", ["fp16"])
def test_small_weights_and_integers_stay_as_they_are(weights: Weights) -> None:
    small, table = dense(normal(4, 4)), dense(normal(4, 4))
    table.graph.initializer.append(numpy_helper.from_array(np.arange(500).reshape(20, 25), "table"))

    assert initializers(compress_weights(small, weights)) == {"W": "float32"}
    assert initializers(compress_weights(table, weights)) == {"W": "float32", "table": "int64"}


def test_a_weight_that_a_caller_may_replace_stays_as_it_is() -> None:
    model = dense(normal(32, 24))
    model.graph.input.append(helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, [32, 24]))

    assert initializers(compress_weights(model, "fp16")) == {"W": "float32"}


@pytest.mark.parametrize("shape", [(300,)])
def test_a_vector_is_halved_but_never_int8(shape: tuple[int, ...]) -> None:
    text = "g (float[B,300] x) => (float[B,300] y) { y = Add (x, b) }"
    model = onnx.load_model_from_string(graphs.graph_from_text(text, {"b": normal(*shape)}))

    assert initializers(compress_weights(model, "fp16")) == {"b.float16": "float16"}
    assert initializers(compress_weights(model, "int8")) == {"b": "float32"}


@pytest.mark.parametrize("weights", ["fp16"])
def test_a_constant_node_is_a_weight_too(weights: Weights) -> None:
    values = normal(32, 24)
    model = dense(values)
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(values, "")))
    stored = compress_weights(model, weights)

    assert stored.ByteSize() < model.ByteSize() * 0.6
    np.testing.assert_allclose(run(stored, x=np.eye(32, dtype=np.float32)), values, atol=0.02)


@pytest.mark.parametrize("weights", ["fp16"])
def test_weights_in_a_subgraph_are_stored_in_fewer_bits_too(weights: Weights) -> None:
    values = normal(24, 24)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["s", "V"], ["s_next"]), helper.make_node("Add", ["s_next", "row"], ["y"])],
        "body",
        [helper.make_tensor_value_info("s", 1, [3, 24]), helper.make_tensor_value_info("row", 1, [3, 24])],
        [helper.make_tensor_value_info("s_next", 1, [3, 24]), helper.make_tensor_value_info("y", 1, [3, 24])],
        [numpy_helper.from_array(values, "V")],
    )
    graph = helper.make_graph(
        [helper.make_node("Scan", ["s0", "x"], ["s_end", "y"], body=body, num_scan_inputs=1)],
        "g",
        [helper.make_tensor_value_info("s0", 1, [3, 24]), helper.make_tensor_value_info("x", 1, [5, 3, 24])],
        [helper.make_tensor_value_info("s_end", 1, [3, 24]), helper.make_tensor_value_info("y", 1, [5, 3, 24])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"s0": normal(3, 24) * np.float32(0.01), "x": normal(5, 3, 24) * np.float32(0.01)}
    stored = compress_weights(model, weights)

    assert stored.ByteSize() < model.ByteSize() * 0.7
    assert np.abs(run(stored, **feeds) - run(model, **feeds)).max() < 0.05 * np.abs(run(model, **feeds)).max()


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("weights", ["fp16", "int8"])
def test_fused_recurrent_operators_run_with_weights_in_fewer_bits(operator: str, weights: Weights) -> None:
    """In a process of its own: an onnxruntime that cannot do this has been seen to die of it."""
    script = f"""
import numpy as np, onnx, onnxruntime as ort
from onnx import helper, numpy_helper
from stepwell_export.weights import compress_weights

rng = np.random.default_rng(0)
gates = {{"LSTM": 4, "GRU": 3, "RNN": 1}}["{operator}"]
weights = {{"W": rng.normal(size=(1, gates * 32, 16)), "R": rng.normal(size=(1, gates * 32, 32))}}
graph = helper.make_graph(
    [helper.make_node("{operator}", ["x", "W", "R"], ["y"], hidden_size=32)],
    "g",
    [helper.make_tensor_value_info("x", 1, ["T", "B", 16])],
    [helper.make_tensor_value_info("y", 1, ["T", 1, "B", 32])],
    [numpy_helper.from_array(value.astype(np.float32) * 0.1, name) for name, value in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
x = rng.normal(size=(7, 3, 16)).astype(np.float32)
want, got = (
    ort.InferenceSession(m.SerializeToString()).run(None, {{"x": x}})[0]
    for m in (model, compress_weights(model, "{weights}"))
)
print(np.abs(want - got).max())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 0.02

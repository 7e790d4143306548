"""A graph in memory runs with its large weights where they are; they are neither written to bytes nor copied."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.outside_weights import file_bytes, to_array, with_weights_outside
from stepwell_export.runtime.session import open_session
from tests.model_export.streaming.zoo_parts import graph

SIZE = 600
LARGE = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) / SIZE**2
X = np.ones((2, SIZE), np.float32)
TEXT = f"(float[n, {SIZE}] x) => (float[n, {SIZE}] y) {{ a = MatMul (x, W)\nb = Add (a, S)\ny = Relu (b) }}"


def model() -> onnx.ModelProto:
    """Return a graph with a large weight and a small one."""
    return graph(TEXT, W=LARGE, S=np.full(SIZE, -0.5, np.float32))


def test_a_graph_gives_the_same_with_its_weights_outside() -> None:
    whole = model()

    loaded = GraphSession(whole)

    np.testing.assert_allclose(loaded.run({"x": X})["y"], np.maximum(X @ LARGE - 0.5, 0), rtol=1e-5)
    assert {name: weight.shape for name, weight in loaded.weights.items()} == {"W": (SIZE, SIZE), "S": (SIZE,)}
    assert whole == model(), "the graph itself is left alone"


def test_large_weights_are_outside_and_small_ones_are_not() -> None:
    lean, outside = with_weights_outside(model())

    assert list(outside) == ["W"]
    assert lean.ByteSize() < 2 * X.nbytes


def test_equal_weights_of_two_models_are_one_array() -> None:
    _, first = with_weights_outside(model())
    _, second = with_weights_outside(model())

    assert first["W"] is second["W"]


def test_a_weight_that_is_an_input_too_stays_inside() -> None:
    whole = model()
    whole.graph.input.append(onnx.helper.make_tensor_value_info("W", onnx.TensorProto.FLOAT, LARGE.shape))

    assert not with_weights_outside(whole)[1]


def test_every_tensor_can_be_an_output() -> None:
    found = GraphSession(model(), ["b", "a"], as_written=True).run({"x": X})

    assert list(found) == ["x", "b", "a"]
    np.testing.assert_allclose(found["b"], found["a"] - 0.5)


def test_a_loop_that_never_ends_is_ended_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell_export.runtime.session.TRIAL_SECONDS", 0.2)
    endless = graph(
        """(float[b, t, 4] x) => (float[b, t, 4] y) {
            turns = Constant <value_int = 9223372036854775807> ()
            goes_on = Constant <value = bool {1}> ()
            y = Loop <body = turn (int64 i, bool c, float[b, t, 4] v) => (bool c_out, float[b, t, 4] v_out) {
                c_out = Identity (c)
                v_out = Neg (v)
            }> (turns, goes_on, x)
        }"""
    )

    with pytest.raises(RefusedModelError, match=r"still running after 0.2 seconds on x \[1, 3, 4\].*never ends"):
        GraphSession(endless).run({"x": np.ones((1, 3, 4), np.float32)})


def test_a_session_reads_weights_where_they_are() -> None:
    lean, outside = with_weights_outside(model())
    weight = np.array(outside["W"])
    session = open_session(lean.SerializeToString(), where="the graph", weights={"W": weight})
    weight[:] = 1

    (found,) = session.run(None, {"x": X})

    np.testing.assert_allclose(found, np.full_like(found, SIZE - 0.5))


def test_a_copy_of_a_graph_names_the_same_weights() -> None:
    lean, outside = with_weights_outside(model())
    again, found = with_weights_outside(lean)

    assert again == lean
    assert np.shares_memory(found["W"], outside["W"])
    assert np.shares_memory(to_array(copy.deepcopy(lean).graph.initializer[0]), outside["W"])


def test_weights_that_differ_in_one_number_are_two() -> None:
    whole, other = model(), LARGE.copy()
    other[0, 1] += 1
    lean, outside = with_weights_outside(whole)
    changed, kept = with_weights_outside(graph(TEXT, W=other, S=np.zeros(SIZE, np.float32)))

    assert not np.shares_memory(outside["W"], kept["W"])
    np.testing.assert_array_equal(to_array(changed.graph.initializer[0]), other)
    np.testing.assert_array_equal(to_array(lean.graph.initializer[0]), LARGE)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_file_of_a_graph_with_its_weights_outside_has_the_bytes_of_the_graph(dtype: str) -> None:
    whole = graph(TEXT, W=LARGE.astype(dtype), S=np.full(SIZE, -0.5, np.float32))
    whole.graph.initializer.append(onnx.numpy_helper.from_array(LARGE.astype(dtype)[1:], "another"))
    whole.producer_name, whole.graph.doc_string = "somebody", "text"
    whole.metadata_props.add(key="key", value="value")
    lean, outside = with_weights_outside(whole)

    assert set(outside) == {"W", "another"}
    assert file_bytes(lean) == whole.SerializeToString()
    assert file_bytes(whole) == whole.SerializeToString()


def test_a_file_names_no_weight_in_memory() -> None:
    lean, _outside = with_weights_outside(model())
    lean.graph.initializer[0].external_data[0].value = "0/0"

    with pytest.raises(onnx.checker.ValidationError, match="0/0"):
        to_array(lean.graph.initializer[0])

"""A graph in memory runs with its large weights where they are; they are neither written to bytes nor copied."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.session import with_weights_outside
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

"""What counts as a decision of an original, and which way it went, in each framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.decisions.onnx import OnnxObserver
from stepwell_export.verify.decisions.record import Observed
from tests import graphs

SMALL, LARGE = np.full((1, 4, 2), 0.1, np.float32), np.full((1, 4, 2), 9.0, np.float32)


def outcomes(seen: Observed) -> dict[str, dict[str, bool]]:
    """Return the outcomes by operation."""
    return {decision.name.split()[0]: decision.outcomes for decision in seen.decisions.values()}


# ------------------------------------------------------------------------------------------------ ONNX

X = "(float[1, T, 2] x) => (float[1, n, 2] y)"
F3, TRUE = np.array(3, np.float32), np.array(True)
BODIES = {
    "Scan": "z = ReduceSum <keepdims = 0> (x, axes) c, y1 = Scan <num_scan_inputs = 1, body = b "
    "(float[2] s, float[2] v) => (float[2] t, float[2] w) { t = Add (s, v) g = Greater (t, f3) w = Cast <to = 1> (g) }"
    "> (start, x0) y = Unsqueeze (y1, nil)",
    "Loop": "c, y1 = Loop <body = b (int64 i, bool on, float[2] s) => (bool go, float[2] t, float[2] w) "
    "{ v = Gather (x0, i) t = Add (s, v) g = Greater (t, f3) w = Cast <to = 1> (g) go = Identity (on) }"
    "> (four, true, start) y = Unsqueeze (y1, nil)",
    "If": "m = ReduceMax <keepdims = 0> (x) q = Greater (m, f3) y = If <then_branch = a () => (float[1, T, 2] p) "
    "{ d = Sub (x, f3) p = Relu (d) }, else_branch = e () => (float[1, T, 2] o) { o = Identity (x) }> (q)",
}


def onnx_graph(body: str) -> OnnxObserver:
    """Return an observer of a graph on `x`, of one sequence of four timesteps."""
    weights: dict[str, Array] = {
        "f3": F3, "f0": np.array(0, np.float32), "small": np.array(1e-6, np.float32), "true": TRUE,
        "four": np.array(4), "nil": np.array([0]), "axes": np.array([1]), "start": np.zeros(2, np.float32),
        "minus": np.array([-1]), "c10": np.array(10),
    }  # fmt: skip
    text = f"g {X} {{ x0 = Squeeze (x, nil) {body} }}"
    return OnnxObserver(onnx.load_from_string(graphs.graph_from_text(text, weights)))


@pytest.mark.parametrize("kind", ["Scan", "Loop"])
def test_a_decision_in_a_body_went_the_way_of_any_iteration(kind: str) -> None:
    observer = onnx_graph(BODIES[kind])

    assert outcomes(observer.observe({"x": SMALL}))["Greater"] == {"true": False, "false": True}
    assert outcomes(observer.observe({"x": SMALL + 1}))["Greater"] == {"true": True, "false": True}


def test_a_decision_in_a_branch_that_did_not_run_went_no_way() -> None:
    observer = onnx_graph(BODIES["If"])

    seen = outcomes(observer.observe({"x": SMALL}))
    assert seen["If"] == {"true": False, "false": True}
    assert seen["Relu"] == {"above 0": False, "at or below 0": False}

    assert outcomes(observer.observe({"x": LARGE}))["Relu"] == {"above 0": True, "at or below 0": False}


@pytest.mark.parametrize(
    "body",
    [
        "n = IsNaN (x) y = Where (n, f0, x)",
        "y = Max (x, small)",
        "s = Shape (x) e = Equal (s, minus) i = Cast <to = 1> (e) m = ReduceMax <keepdims = 0> (i) y = Add (x, m)",
        "g = Greater (f3, f0) y = Where (g, x, x)",
    ],
    ids=["guard against NaN", "guard of a division", "shape that leaves one open", "constants alone"],
)
def test_what_is_no_decision_is_not_recorded(body: str) -> None:
    assert onnx_graph(body).observe({"x": SMALL}).decisions == {}


def test_a_decision_by_a_size_that_is_always_the_same_is_settled() -> None:
    """The features of a graph are of a fixed number; a condition on it is no decision, one on timesteps is."""
    fixed = onnx_graph("s = Shape <start = 2> (x) b = Less (s, c10) y = Where (b, x, x)").observe({"x": SMALL})
    timesteps = onnx_graph("s = Shape <start = 1, end = 2> (x) b = Less (s, c10) y = Where (b, x, x)")
    seen = timesteps.observe({"x": SMALL})
    seen.add(timesteps.observe({"x": SMALL[:, :3]}))

    assert [decision.never for decision in fixed.decisions.values()] == [[]]
    assert [decision.never for decision in seen.decisions.values()] == [["false"]]


# ------------------------------------------------------------------------------------------------ JAX


def jax_outcomes(run: Callable[[Any], Any], x: Array) -> dict[str, dict[str, bool]]:
    """Return what a function of JAX decides on one array."""
    pytest.importorskip("jax", reason="JAX is not installed")
    from stepwell_export.verify.decisions.jax import JaxObserver

    return outcomes(JaxObserver(run, framework="none").observe([x]))


def test_a_decision_in_a_scan_of_jax_went_the_way_of_any_timestep() -> None:
    lax = pytest.importorskip("jax.lax", reason="JAX is not installed")

    def run(x: Any) -> Any:
        return lax.scan(lambda s, v: (s + v, s + v > 3.0), x[0, 0] * 0, x[0])[1]

    assert jax_outcomes(run, SMALL)["Greater"] == {"true": False, "false": True}
    assert jax_outcomes(run, SMALL + 1)["Greater"] == {"true": True, "false": True}


def test_a_decision_in_a_loop_of_jax_is_recorded() -> None:
    lax = pytest.importorskip("jax.lax", reason="JAX is not installed")

    def run(x: Any) -> Any:
        return lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] + (x[0, c[0]] > 3.0)), (0, x[0, 0] * 0))

    assert jax_outcomes(run, SMALL)["Greater"] == {"true": False, "false": True}
    assert jax_outcomes(run, LARGE)["Greater"] == {"true": True, "false": False}


def test_a_loop_of_jax_that_never_ran_is_recorded() -> None:
    lax = pytest.importorskip("jax.lax", reason="JAX is not installed")

    def run(x: Any) -> Any:
        return lax.while_loop(lambda c: c > 3, lambda c: c - (c > 0), x[0, 0, 0])

    assert jax_outcomes(run, SMALL)["loop"] == {"run": False}
    assert jax_outcomes(run, LARGE)["loop"] == {"run": True}


def test_decisions_of_jax_are_recorded_after_the_original_has_given_up_its_weights() -> None:
    """Keras donates variables to the compiled model."""
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    from stepwell_export.verify.decisions.jax import JaxObserver

    weights = jnp.full((1, 1), 3.0)
    recorder = JaxObserver(lambda x: jnp.where(x > weights, x, 0), framework="none")
    recorder.observe([SMALL])
    weights.delete()

    assert outcomes(recorder.observe([LARGE]))["Greater"]["true"]


def test_a_decision_in_the_cell_of_a_recurrent_layer_of_keras_is_recorded() -> None:
    """The layer's loop is of Keras, and what it applies to each timestep is not."""
    keras = pytest.importorskip("keras", reason="needs Keras")
    from stepwell_export.verify.decisions.jax import JaxObserver

    class Cell(keras.layers.Layer):  # type: ignore[misc, name-defined, unused-ignore]  # keras has no types
        state_size = output_size = 2

        def call(self, x: Any, states: Any) -> Any:
            h = x + states[0]
            return keras.ops.where(h > 5, 7 * h, h), [h]

    layer = keras.layers.RNN(Cell(), return_sequences=True)
    observer = JaxObserver(layer, framework=str(Path(keras.__file__).parent))
    small, large = (outcomes(observer.observe([x])) for x in (SMALL, LARGE))

    assert (small["Greater"], large["Greater"]) == ({"true": False, "false": True}, {"true": True, "false": False})
    assert (small["Where"], large["Where"]) == ({"true": False, "false": True}, {"true": True, "false": False})
    assert 5.0 in observer.observe([SMALL]).values


def test_a_branch_of_jax_and_what_it_decides_are_recorded() -> None:
    lax = pytest.importorskip("jax.lax", reason="JAX is not installed")

    def run(x: Any) -> Any:
        return lax.cond(x.max() > 3, lambda v: v * (v > 100.0), lambda v: v, x)

    seen = jax_outcomes(run, SMALL)
    assert seen["cond"] == {"false": True, "true": False}
    assert jax_outcomes(run, LARGE)["cond"] == {"false": False, "true": True}


def test_what_jax_does_to_be_accurate_is_no_decision() -> None:
    nn = pytest.importorskip("jax.nn", reason="JAX is not installed")
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")

    def run(x: Any) -> Any:
        return jnp.nan_to_num(nn.softmax(x) + nn.gelu(x) + nn.softplus(x) + jnp.hypot(x, x) + jnp.var(x) + x[:, -1:])

    assert jax_outcomes(run, SMALL) == {}


# ------------------------------------------------------------------------------------------------ PyTorch


@pytest.mark.torch
def test_what_only_guards_a_number_is_no_decision_in_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from stepwell_export.verify.decisions.torch import TorchObserver

    def run(values: Any) -> Any:
        (x,) = values
        x = torch.where(torch.isnan(x), 0.0, x)
        x = torch.where(torch.ne(x, x), 0.0, x)
        return torch.nn.functional.normalize(x) / x.abs().sum().clamp(min=1e-6)

    assert TorchObserver(torch.nn.Identity(), run, ["x"])({"x": SMALL}).decisions == {}


@pytest.mark.torch
def test_a_decision_of_torch_has_the_users_line() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from stepwell_export.verify.decisions.torch import TorchObserver

    seen = TorchObserver(torch.nn.Identity(), lambda values: values[0] > 3, ["x"])({"x": SMALL})
    [decision] = seen.decisions.values()

    assert str(decision).startswith("Greater at test_recorders.py:")
    assert str(decision).endswith("was never true")

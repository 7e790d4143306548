"""Sums over time that weights apply to: what large numbers, masks and long streams do to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from stepwell_export.verify.reference import PrefixAnswers
from stepwell_export.verify.runners import stepped
from tests.model_export.mutants import Mutate, mutated
from tests.model_export.streaming.zoo import ZOO
from tests.model_export.streaming.zoo_parts import graph, ints
from tests.model_export.streaming.zoo_pooling import masked, pooled

_NEVER = np.float32(-np.inf)
_SUM = "w = Softmax <axis = 1> (f) p = Mul (w, x) y = ReduceSum <keepdims = 0> (p, one)"


def model_of(candidate: ConvertedModel) -> StepModel:
    return StepModel(candidate.proto.SerializeToString(), candidate.manifest)


@pytest.mark.parametrize(
    "name",
    ["heads_in_the_batch", "mean_of_what_counts"],
)
def test_a_row_that_is_pooled_gives_bit_for_bit_what_it_gives_alone(name: str) -> None:
    model, rng = model_of(convert(ZOO[name].build(), name=name)), np.random.default_rng(3)
    inputs = {"x": rng.standard_normal((32, 5, 4)).astype(np.float32)}

    together, _ = stepped(model, inputs)
    alone, _ = stepped(model, {"x": inputs["x"][7:8]})

    assert np.array_equal(together["y"][7:8], alone["y"], equal_nan=True)


@pytest.mark.parametrize(
    "nodes",
    ["f = Where (m, s, never)",
     "a = Where (m, s, lowest) b = Where (m, s, lowest) f = Add (a, b)"],
)  # fmt: skip
def test_a_softmax_of_nothing_is_nan_until_something_counts(nodes: str) -> None:
    """As in the original; no state becomes NaN or infinite by it."""
    lowest = np.finfo(np.float32).min
    candidate = convert(masked(f"{nodes} {_SUM}", never=_NEVER, lowest=lowest), name="masked")
    model = model_of(candidate)
    x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    x[0, :3, 0], x[0, 3:, 0] = -1, 1
    states = model.initial_states(1)
    answers = []
    for t in range(6):
        found, states = model.step({"x": x[:, t]}, states)
        answers.append(found["y"][0])
        assert all(np.isfinite(value).all() for value in states.values())
    prefixes = candidate.original({"x": x})["y"]
    assert isinstance(prefixes, PrefixAnswers)

    assert np.isnan(answers[:3]).all()
    assert not np.isnan(answers[3:]).any()
    np.testing.assert_allclose(answers[-1], prefixes.values[0, -1], atol=1e-6)


def test_what_a_mask_leaves_out_by_a_large_number_weighs_nothing_and_counts_where_nothing_else_does() -> None:
    """Scores of -1e9 are finite: where all are masked, the softmax weighs all alike."""
    candidate = convert(masked(f"f = Where (m, s, large) {_SUM}", large=np.float32(-1e9)), name="masked")
    verify_model(candidate, long_steps=100)
    x = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(np.float32)
    x[..., 0] = -1

    answers, _ = stepped(model_of(candidate), {"x": x})

    np.testing.assert_allclose(answers["y"][0, -1], x[0].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["pooled_by_einsum", "attention_pooling"])
def test_the_mean_of_equal_values_stays_what_it_is_in_a_long_stream(name: str) -> None:
    """A sum of floats no longer grows as its values do once it is large; then it would drift away from its count."""
    model = model_of(convert(ZOO[name].build(), name=name))
    x = {"x": np.full((1, 4), 3, np.float32)}
    _, states = model.step(x, model.initial_states(1))
    for key, value in states.items():
        if key.endswith((".sum", ".weights", "timesteps")):
            states[key] = (value * 2**25).astype(value.dtype)
    means = [key for key in states if key.endswith(".mean")]
    before = {key: states[key].copy() for key in means}
    for _ in range(1000):
        _, states = model.step(x, states)

    assert means
    for key in means:
        np.testing.assert_allclose(states[key], before[key], rtol=1e-6)


BOUNDED = {
    "a tangent": "f = Tanh (s)",
    "a product of gates": "g = Sigmoid (s) h = Sin (s) f = Mul (g, h)",
    "weights of bounded features": "t = Tanh (x) f = MatMul (t, V)",
    "weights and a bias": "t = Softsign (x) q = MatMul (t, V) f = Sub (q, low)",
    "normalised features": "n = LayerNormalization (x, G) f = MatMul (n, V)",
    "a quotient": "t = Tanh (s) f = Div (t, scale)",
    "a choice": "t = Tanh (s) n = Neg (t) f = Where (m, t, n)",
    "layouts": "t = Tanh (s) u = Transpose <perm = [1, 0, 2]> (t) f = Transpose <perm = [1, 0, 2]> (u)",
    "an operator": "u = Transpose <perm = [1, 0, 2]> (x) y4, h = GRU <hidden_size = 1> (u, W, R) "
    "q = Squeeze (y4, one) f = Transpose <perm = [1, 0, 2]> (q)",
}
UNBOUNDED = {
    "any features": "f = Identity (s)",
    "large weights": "t = Tanh (s) f = Mul (t, large)",
    "a rectifier": "f = Relu (s)",
    "a large number where a mask is": "t = Tanh (s) r = Cast <to = 1> (m) g = Mul (r, large) f = Sub (t, g)",
    "an operator with a clipped sum": "t = Tanh (s) q = Softplus (s) f = Add (t, q)",
}
UNBOUNDED["an operator whose gate may be negative"] = BOUNDED["an operator"].replace(
    "hidden_size = 1", 'hidden_size = 1, activations = ["Tanh", "Tanh"]'
)
GIVEN = {"G": np.full(4, 2, np.float32), "W": (1, 3, 4), "R": (1, 3, 1), "large": np.float32(1e4),
         "scale": np.float32(0.5)}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "is_bounded"), [(n, True) for n in BOUNDED.values()] + [(n, False) for n in UNBOUNDED.values()]
)
def test_scores_that_operators_keep_small_need_no_largest_one(nodes: str, is_bounded: bool) -> None:
    candidate = convert(masked(f"{nodes} {_SUM}", **GIVEN), name="bounded")
    states = {state.input.rpartition(".")[2] for state in candidate.manifest.states}

    assert {"weights", "mean"} <= states
    assert ("largest_score" in states) != is_bounded


@pytest.mark.parametrize("nodes", ["e = Exp (s) f = Neg (e)", "g = Neg (s) r = Relu (g) f = Div (minus, r)"])
def test_a_softmax_is_a_number_again_after_scores_that_overflow(nodes: str) -> None:
    """Their operands are finite, and they are minus infinity: the original gives NaN until another score comes."""
    model = pooled(f"{nodes} {_SUM}", minus=np.float32(-1), V=np.eye(4, 1, dtype=np.float32))
    x = np.ones((1, 3, 4), np.float32)
    x[0, :, 0] = [100, 100, -0.5]

    answers, _ = stepped(model_of(convert(model, name="overflow")), {"x": x})

    np.testing.assert_allclose(answers["y"][0, -1], x[0, -1], atol=1e-6)


def test_texts_beside_a_softmax_have_no_range() -> None:
    model = pooled(f'texts = Constant <value_strings = ["a", "b"]> () t = Gather (texts, one) f = Tanh (s) {_SUM}')

    assert verify_model(convert(model, name="texts"), long_steps=0)[1].parity.max_abs <= 1e-5


def test_a_mean_of_integers_is_divided_as_the_original_divides() -> None:
    model = graph("(int32[batch, time, 4] x) => (int32[batch, 4] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }")

    assert verify_model(convert(model, name="integers"), long_steps=100)[1].parity.max_abs == 0


def over_time(kind: str) -> onnx.ModelProto:
    """Return a graph that reduces integers over time; the axes of a sum are an input since opset 13."""
    node = f"{kind} <keepdims = 0> (x, one)" if kind == "ReduceSum" else f"{kind} <axes = [1], keepdims = 0> (x)"
    return graph(f"(int32[batch, time, 4] x) => (int32[batch, 4] y) {{ y = {node} }}", one=ints(1))


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean"])
def test_a_sum_of_integers_is_limited_as_the_original_limits_it(kind: str) -> None:
    """ONNX Runtime adds up exactly, and limits the total to what the type holds."""
    model = over_time(kind)
    rows = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 9, 4)).astype(np.int32)
    rows[0] = np.abs(rows[0] // 2)
    made = convert(model, name="integers")

    answers, _ = stepped(model_of(made), {"x": rows})

    want = made.original({"x": rows})["y"]
    assert isinstance(want, PrefixAnswers)
    np.testing.assert_array_equal(answers["y"][:, -1], want.values[:, -1])


@pytest.mark.parametrize("kind", ["ReduceProd", "ReduceL2"])
def test_a_product_of_integers_over_time_is_refused(kind: str) -> None:
    model = over_time(kind)

    with pytest.raises(RefusedModelError, match="multiplies integers of int32"):
        convert(model, name="product")


def unscaled(proto: onnx.ModelProto, manifest: Any) -> None:
    """What was summed up before is not scaled down when a larger score comes."""
    state = manifest.states[0].input
    as_is = {state, *(node.output[0] for node in proto.graph.node if node.op_type == "Reshape" and state in node.input)}
    (node,) = [node for node in proto.graph.node if node.op_type == "Mul" and not as_is.isdisjoint(node.input)]
    node.op_type, node.input[:] = "Identity", [name for name in node.input if name in as_is]


def begins_high(proto: onnx.ModelProto, manifest: Any) -> None:
    """The largest score so far begins at zero."""
    manifest.states[1].init = "zeros"


@pytest.mark.parametrize("wrong", [unscaled, begins_high])
def test_wrong_sums_of_weights_are_caught(wrong: Mutate) -> None:
    """Each shows with scores that are far below zero."""
    right = convert(masked(f"a = Abs (s) f = Mul (a, scale) {_SUM}", scale=np.float32(-400)), name="pooled")
    verify_model(right, long_steps=0)

    with pytest.raises(ParityError):
        verify_model(mutated(right, wrong), long_steps=0)


@pytest.mark.parametrize("head", ["", "xs = Slice (x, two, end, one)"], ids=["of all timesteps", "from the third on"])
def test_an_extreme_and_its_place_share_the_extreme_so_far(head: str) -> None:
    name = "xs" if head else "x"
    model = pooled(
        f"{head} m = ReduceMax <axes = [1], keepdims = 0> ({name}) a = ArgMax <axis = 1, keepdims = 0> ({name}) "
        "c = Cast <to = 1> (a) y = Add (m, c)",
        end=ints(2**62),
    )  # fmt: skip
    made = convert(model, name="m")
    _, report = verify_model(made, long_steps=100)

    assert sum(state.shape == [4] for state in made.manifest.states) == 2
    assert report.parity.max_abs == 0

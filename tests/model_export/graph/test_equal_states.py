"""`without_equal_tensors`: a step graph carries once what always holds the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stepwell_export.graph.unit_axes import without_equal_tensors
from stepwell_export.runtime.manifest import InputSpec, Manifest, OutputSpec, PackedTensor, StateSpec
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.streaming.zoo_parts import graph

TWO = "(float[batch, 4] x, float[batch, 4] a, float[batch, 4] b)"
OUT = "(float[batch, 4] y, float[batch, 4] a_next, float[batch, 4] b_next)"
ALIKE = "a_next = Add (a, x) b_next = Add (b, x) y = Mul (a_next, b_next)"

# what makes them two: nodes that compute them
DIFFERENT = {
    "another input": "n = Neg (x) a_next = Add (a, x) b_next = Add (b, n) y = Mul (a_next, b_next)",
    "another operator": "a_next = Add (a, x) b_next = Sub (b, x) y = Mul (a_next, b_next)",
    "an attribute": "e = Elu <alpha = 1.0> (x) f = Elu <alpha = 2.0> (x) a_next = Add (a, e) b_next = Add (b, f) "
    "y = Mul (a_next, b_next)",
    "each other": "a_next = Add (b, x) n = Neg (a) b_next = Add (n, x) y = Mul (a_next, b_next)",
}


def state(name: str, shape: tuple[int, ...] = (4,)) -> StateSpec:
    return StateSpec(input=name, output=f"{name}_next", dtype="float32", shape=list(shape))


def running(model: onnx.ModelProto, states: list[StateSpec]) -> StepModel:
    manifest = Manifest(
        name="m",
        inputs=[InputSpec(name="x", dtype="float32", shape=[4])],
        states=states,
        outputs=[OutputSpec(name="y", dtype="float32", shape=[4])],
    )
    return StepModel(model.SerializeToString(), manifest)


def assert_same_answers(before: onnx.ModelProto, states: list[StateSpec]) -> list[str]:
    """Compare a step graph with what is left of it, over a few timesteps of one row and of several."""
    old, copied = running(before, states), onnx.ModelProto()
    copied.CopyFrom(before)
    made, kept, _ = without_equal_tensors(copied, states)
    new = running(made, kept)
    for rows in (1, 3):
        x = np.random.default_rng(rows).standard_normal((rows, 5, 4)).astype(np.float32)
        want, _ = old.chunk({"x": x}, old.initial_states(rows))
        found, _ = new.chunk({"x": x}, new.initial_states(rows))
        np.testing.assert_array_equal(found["y"], want["y"])
    return [spec.input for spec in kept]


def test_states_that_are_computed_alike_are_one() -> None:
    assert assert_same_answers(graph(f"{TWO} => {OUT} {{ {ALIKE} }}", opset=20), [state("a"), state("b")]) == ["a"]


def test_states_of_the_same_computation_in_other_nodes_are_one() -> None:
    nodes = "e = Exp (x) f = Exp (x) a_next = Add (a, e) b_next = Add (b, f) y = Mul (a_next, b_next)"

    assert assert_same_answers(graph(f"{TWO} => {OUT} {{ {nodes} }}", opset=20), [state("a"), state("b")]) == ["a"]


def test_a_state_that_follows_from_an_equal_one_is_found_too() -> None:
    """`c` adds up `a` and `d` adds up `b`, which is `a`."""
    takes = "(float[batch, 4] x, float[batch, 4] a, float[batch, 4] b, float[batch, 4] c, float[batch, 4] d)"
    gives = OUT[:-1] + ", float[batch, 4] c_next, float[batch, 4] d_next)"
    nodes = "a_next = Add (a, x) b_next = Add (b, x) c_next = Add (c, a) d_next = Add (d, b) y = Mul (c_next, d_next)"

    model = graph(f"{takes} => {gives} {{ {nodes} }}", opset=20)

    assert assert_same_answers(model, [state(name) for name in "abcd"]) == ["a", "c"]


@pytest.mark.parametrize("why", DIFFERENT)
def test_states_that_are_computed_differently_stay_two(why: str) -> None:
    model = graph(f"{TWO} => {OUT} {{ {DIFFERENT[why]} }}", opset=20)

    assert assert_same_answers(model, [state("a"), state("b")]) == ["a", "b"]


def test_states_that_begin_differently_stay_two() -> None:
    ones = PackedTensor.pack(np.ones(4, np.float32))
    states = [state("a"), StateSpec(input="b", output="b_next", dtype="float32", shape=[4], init=ones)]

    assert assert_same_answers(graph(f"{TWO} => {OUT} {{ {ALIKE} }}", opset=20), states) == ["a", "b"]


def test_states_of_other_shapes_stay_two() -> None:
    takes, gives = (part.replace("4] b", "1] b") for part in (TWO, OUT))
    nodes = "m = ReduceMean <keepdims = 1> (x, last) a_next = Add (a, m) b_next = Add (b, m) y = Mul (a_next, b_next)"
    model = graph(f"{takes} => {gives} {{ {nodes} }}", opset=20, last=np.array([1]))

    assert assert_same_answers(model, [state("a"), state("b", shape=(1,))]) == ["a", "b"]


def test_a_graph_without_equal_tensors_is_left_as_it_is() -> None:
    model = graph(f"{TWO} => {OUT} {{ {DIFFERENT['another input']} }}", opset=20)
    before = model.SerializeToString()

    made, kept, _ = without_equal_tensors(model, [state("a"), state("b")])

    assert made is model
    assert made.SerializeToString() == before
    assert [spec.input for spec in kept] == ["a", "b"]


def test_what_two_nodes_compute_alike_is_computed_once() -> None:
    model = graph("(float[batch, 4] x) => (float[batch, 4] y) { a = Tanh (x) b = Tanh (x) c = Neg (b) d = Neg (a) "
                  "y = Add (c, d) }", opset=20)  # fmt: skip

    made, _, _ = without_equal_tensors(model, [])

    assert [node.op_type for node in made.graph.node] == ["Tanh", "Neg", "Add"]
    onnx.checker.check_model(made, full_check=True)

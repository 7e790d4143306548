"""What no step graph can equal is refused with the node, its operator and the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import ParityError, RefusedModelError, UnclearModelError
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo_parts import GRU, graph, ints
from tests.model_export.streaming.zoo_refused import REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_cannot_be_stepped_is_refused_by_its_node(name: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        convert(REFUSED[name].build(), name=name)

    assert REFUSED[name].told in caught.value.problem
    assert caught.value.fix


def test_parity_decides_what_no_rule_catches() -> None:
    """The loop's counter begins anew at each step; a loop that computes with it is caught by comparison."""
    model = graph(
        """(float[batch, time, 4] x) => (float[batch, time, 4] y) {
            xt = Transpose <perm = [1, 0, 2]> (x)
            shape = Shape (xt)
            steps = Gather <axis = 0> (shape, zero)
            sum, yt = Loop (steps, yes, start) <body =
                body (int64 i, bool go, float[4] s) => (bool on, float[4] sn, float[b, 4] yi) {
                    xi = Gather <axis = 0> (xt, i)
                    n = Cast <to = 1> (i)
                    yi = Mul (xi, n)
                    sn = Identity (s)
                    on = Identity (go)
                }>
            y = Transpose <perm = [1, 0, 2]> (yt)
        }""",
        zero=np.int64(0), yes=np.array(True), start=np.zeros(4, np.float32),
    )  # fmt: skip

    with pytest.raises(ParityError, match=r"first differs at timestep 2.*likeliest layer is 'Loop_\d' \(Loop\)"):
        verify_model(convert(model, name="counted"), long_steps=100)


def test_a_graph_without_memory_is_not_guessed_at() -> None:
    model = graph("(float[batch, time, 4] x) => (float[batch, time, 4] y) { y = Tanh (x) }")

    with pytest.raises(UnclearModelError, match="Nothing is carried from timestep to timestep when axis 1 of 'x'"):
        convert(model, name="tanh")


def test_a_graph_for_many_rows_only_is_refused() -> None:
    model = graph(
        """(float[time, batch, 4] x) => (float[time, d, batch, 5] y) {
            h = GRU <hidden_size = 5> (x, W, R, B)
            y = Reshape (h, two_rows)
        }""",
        two_rows=np.array([0, 0, 2, 5]), **GRU,
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match="takes 2 rows at once and no other number"):
        convert(model, name="two")


def test_an_input_that_is_no_tensor_is_refused() -> None:
    model = graph("(seq(float[b, 4]) x) => (float[t, b, 4] y) { y = ConcatFromSequence <axis = 0, new_axis = 1> (x) }")

    with pytest.raises(RefusedModelError, match="Input 'x' is sequence_type; expected a tensor"):
        convert(model, name="list")


@pytest.mark.parametrize("opset", [13, 18])
def test_an_output_that_is_a_list_is_refused(opset: int) -> None:
    model = graph(
        """(float[batch, time, 4] x) => (float[batch, time, 4] y, seq(float[batch, time, 4]) both) {
            y = CumSum (x, one)
            both = SequenceConstruct (x, y)
        }""",
        opset=opset, one=np.int64(1),
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match="Output 'both' is a list of tensors; expected a tensor"):
        convert(model, name="list")


def test_a_difference_without_layers_to_compare_is_reported_with_that_reason() -> None:
    """Windows that end at different timesteps begin differently, and no node has one timestep of them."""
    model = graph(
        """(float[batch, time, 4] x) => (float[batch, 4] y) {
            now = Slice (x, five, end, one)
            before = Slice (x, six, last, one)
            moved = Sub (now, before)
            y = ReduceMean <axes = [1], keepdims = 0> (moved)
        }""",
        one=ints(1), five=ints(-5), six=ints(-6), last=ints(-1), end=ints(2**31),
    )  # fmt: skip

    with pytest.raises(ParityError, match="no layer's output stands in the step graph"):
        verify_model(convert(model, name="windows"), long_steps=0)


def test_inputs_of_different_lengths_are_not_read_at_one_rate() -> None:
    model = graph(
        """(float[batch, 10, 4] x, float[batch, 20, 4] z) => (float[batch, 4] y) {
            c = CumSum (x, one)
            m = ReduceMax <axes = [1], keepdims = 0> (c)
            n = ReduceMax <axes = [1], keepdims = 0> (z)
            y = Add (m, n)
        }""",
        one=np.int64(1),
    )  # fmt: skip

    for given in ({}, {"x": 1}):
        with pytest.raises(UnclearModelError, match="timesteps: 10 on axis 1 of 'x', 20 on axis 1 of 'z'"):
            convert(model, name="two", time_axes=given)

    assert len(convert(model, name="two", time_axes={"x": 1, "z": 1}).manifest.inputs) == 2


def test_attention_of_the_last_timestep_needs_a_declared_length() -> None:
    """Each new last timestep attends to all timesteps before, which are not kept without a length."""
    model = graph(
        """(float[batch, time, 4] x) => (float[batch, 4] y) {
            h = CumSum (x, axis)
            last = Gather <axis = 1> (h, end)
            query = Unsqueeze (last, two)
            [scores] s = MatMul (h, query)
            p = Softmax <axis = 1> (s)
            w = Mul (p, h)
            y = ReduceSum <keepdims = 0> (w, one)
        }""",
        axis=np.int64(1), end=np.int64(-1), one=np.array([1]), two=np.array([2]),
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match=r"'scores' .* attends to all timesteps before") as caught:
        convert(model, name="luong")

    assert "`--length N`" in caught.value.fix
    assert verify_model(convert(model, name="luong", length=20), long_steps=0)[1].parity.max_abs <= 1e-5


def test_a_lag_that_is_longer_than_the_runs_is_refused_for_that() -> None:
    """It is no fault of a rule, and of no node behind it either."""
    graph = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 20]>
        g (float[B,T,3] x) => (float[B,T,3] y) {
            pads = Constant <value = int64[6] {0, 60, 0, 0, 0, 0}> ()
            padded = Pad (x, pads)
            zero = Constant <value = int64[1] {0}> ()
            end = Constant <value = int64[1] {-60}> ()
            axis = Constant <value = int64[1] {1}> ()
            late = Slice (padded, zero, end, axis)
            sum = Add (x, late)
            y = Tanh (sum)
        }""")

    with pytest.raises(RefusedModelError, match="goes back 60 timesteps, and the graph was run over 47"):
        convert(graph, name="lag")

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
        """(float[time, 2, 4] x) => (float[time, d, 2, 5] y) {
            h = GRU <hidden_size = 5> (x, W, R, B)
            y = Reshape (h, two_rows)
        }""",
        two_rows=np.array([0, 0, 2, 5]), **GRU,
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match="takes 2 rows at once and no other number"):
        convert(model, name="two")


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

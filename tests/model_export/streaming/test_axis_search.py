"""Where time and batch are is found by running the graph; names decide between equals, the user over all."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.streaming.axes.axis_search import find_inputs
from stepwell_export.streaming.axes.inputs import ROWS
from stepwell_export.streaming.axes.measured_shapes import TensorRuns
from stepwell_export.streaming.normal_form.plain_form import load_graph
from tests.model_export.streaming.zoo_parts import GRU, graph, ints

ONE: dict[str, Any] = {"one": np.int64(1)}
SUM = "{ y = CumSum (x, one) }"
RNN_OVER_0 = "{ y = GRU <hidden_size = 5> (x, W, R, B) }"


def read(model: onnx.ModelProto, **time_axes: int | None) -> dict[str, tuple[int | None, int | None, str]]:
    """Return batch axis, time axis and role by input."""
    plain, declared, _ = load_graph(model, {})
    found = find_inputs(TensorRuns(plain), declared, time_axes=time_axes)
    return {one.name: (one.batch, one.time, one.role) for one in found.inputs}


@pytest.mark.parametrize(
    ("text", "weights", "batch", "time"),
    [
        (f"(float[batch, time, 4] x) => (float[a, b, 4] y) {SUM}", ONE, 0, 1),
        (f"(float[N, T, 4] x) => (float[a, b, 4] y) {SUM}", ONE, 0, 1),
        (f"(float[T, N, 4] x) => (float[a, b, 1, 5] y) {RNN_OVER_0}", GRU, 1, 0),
        (f"(float[p, q, 4] x) => (float[a, b, 1, 5] y) {RNN_OVER_0}", GRU, 1, 0),
        ("(float[p, 4, q] x) => (float[a, 3, b] y) { y = Conv <pads = [2, 0]> (x, V) }", {"V": (3, 4, 3)}, 0, 2),
        ("(float[p, q] x) => (float[a, b] y) { y = CumSum (x, one) }", ONE, 0, 1),
        ("(float[20] x) => (float[a] y) { y = CumSum (x, zero) }", {"zero": np.int64(0)}, None, 0),
        (
            "(float[n, 1, t, 9] x) => (float[a, 1, b, 9] y) { y = Conv <pads = [2, 1, 0, 1]> (x, V) }",
            {"V": (1, 1, 3, 3)}, 0, 2,
        ),
    ],
)  # fmt: skip
def test_time_is_what_the_operators_run_over(text: str, weights: dict[str, Any], batch: int | None, time: int) -> None:
    assert read(graph(text, **weights)) == {"x": (batch, time, "external")}


def test_a_window_of_as_many_timesteps_as_there_were_rows_in_a_run_is_no_batch() -> None:
    text = """(float[p, q, 4] x) => (float[1, a, 5] y) {
        last = Slice (x, start, end, one) turned = Transpose <perm = [1, 0, 2]> (last)
        all, y = GRU <hidden_size = 5> (turned, W, R, B)
    }"""

    for size in ROWS:
        assert read(graph(text, start=ints(-size), end=ints(2**62), one=ints(1), **GRU)) == {"x": (0, 1, "external")}


def test_an_axis_without_any_declared_name_is_found_too() -> None:
    model = graph(f"(float[a, b, 4] x) => (float[a, b, 1, 5] y) {RNN_OVER_0}", **GRU)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.Clear()

    assert read(model) == {"x": (1, 0, "external")}


def test_what_the_user_says_wins() -> None:
    model = graph("(float[batch, time, 4] x) => (float[batch, time, 4] y) { y = Tanh (x) }")

    assert read(model, x=0)["x"][1] == 0
    assert read(model, x=-2)["x"][1] == 1


def test_the_batch_axis_that_the_user_says_wins_too() -> None:
    model = graph(f"(float[batch, time, 4] x) => (float[a, b, 4] y) {SUM}", **ONE)
    plain, declared, _ = load_graph(model, {})

    [one] = find_inputs(TensorRuns(plain), declared, time_axes={"x": 1}, batch_axes={"x": 2}).inputs

    assert (one.batch, one.time) == (2, 1)


@pytest.mark.parametrize(("axes", "told"), [({"x": 3}, "the input has 3 axes"), ({"z": 1}, "no input ['z']")])
def test_an_axis_that_is_not_there_is_told(axes: dict[str, int], told: str) -> None:
    with pytest.raises(UnclearModelError) as caught:
        read(graph(f"(float[batch, time, 4] x) => (float[a, b, 4] y) {SUM}", **ONE), **axes)

    assert told in caught.value.problem


def test_two_sequences_have_their_time_together() -> None:
    model = graph(
        "(float[batch, time, 4] x, int64[batch, time] z) => (float[batch, time, 4] y) "
        "{ e = Gather (table, z) a = Add (x, e) y = CumSum (a, one) }", table=(9, 4), **ONE,
    )  # fmt: skip

    assert read(model) == {"x": (0, 1, "external"), "z": (0, 1, "external")}


def test_an_input_without_time_stands_for_the_whole_sequence() -> None:
    model = graph(
        "(float[batch, time, 4] x, float[batch, 4] who) => (float[batch, time, 4] y) "
        "{ u = Unsqueeze (who, ones) a = Add (x, u) y = CumSum (a, one) }", ones=ints(1), **ONE,
    )  # fmt: skip

    assert read(model)["who"] == (0, None, "external")


def test_what_a_recurrence_starts_from_is_a_state_and_its_lengths_are_none_of_the_callers_affair() -> None:
    model = graph(
        "(float[T, N, 4] x, int32[N] n, float[1, N, 5] h) => (float[T, 1, N, 5] y) "
        "{ c = Identity (h) y = GRU <hidden_size = 5> (x, W, R, B, n, c) }", **GRU,
    )  # fmt: skip

    assert read(model) == {"x": (1, 0, "external"), "n": (0, None, "length"), "h": (1, None, "state")}


def test_a_graph_that_runs_with_one_size_only_is_told_with_what_went_wrong() -> None:
    model = graph("(float[time, 4] x) => (float[12] y) { y = Reshape (x, twelve) }", twelve=ints(12))

    with pytest.raises(UnclearModelError, match=r"No axis of .* can be read as time.*failed on x") as caught:
        read(model)
    assert "--time-axis" in caught.value.fix


def test_inputs_of_different_lengths_are_refused_with_the_options_for_either_reading() -> None:
    text = "(float[batch, 100, 4] x, float[batch, 1, 4] s) => (float[a, b, 4] y) { c = CumSum (x, one) y = Add (c, s) }"

    with pytest.raises(UnclearModelError, match="100 on axis 1 of 'x', 1 on axis 1 of 's'") as caught:
        read(graph(text, **ONE))

    assert "`--time-axis s=none`. Where all are: `--time-axis x=1 --time-axis s=1`" in caught.value.fix
    assert read(graph(text, **ONE), s=None) == {"x": (0, 1, "external"), "s": (0, None, "external")}
    assert read(graph(text, **ONE), x=1, s=1) == {"x": (0, 1, "external"), "s": (0, 1, "external")}

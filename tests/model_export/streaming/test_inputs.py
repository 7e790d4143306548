"""Time and batch are where the caller says, else where the declared names say, else behind and at the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.streaming import convert
from stepwell_export.streaming.axes.inputs import read_inputs
from stepwell_export.streaming.normal_form.plain_form import load_graph
from tests.model_export.streaming.zoo_parts import GRU, graph, ints

ONE: dict[str, Any] = {"one": np.int64(1)}
SUM = "{ y = CumSum (x, one) }"
RNN_OVER_0 = "{ y = GRU <hidden_size = 5> (x, W, R, B) }"
SEQUENCE = "(float[p, q, 4] x) => (float[p, q, 4] y)"


def read(model: onnx.ModelProto, **time_axes: int | None) -> dict[str, tuple[int | None, int | None, str]]:
    """Return batch axis, time axis and role by input."""
    plain, declared, _ = load_graph(model, {})
    inputs = read_inputs(plain.graph, declared, time_axes=time_axes).inputs
    return {one.name: (one.batch, one.time, one.role) for one in inputs}


@pytest.mark.parametrize(
    ("dims", "batch", "time"),
    [
        ("batch, time, 4", 0, 1),
        ("N, T, 4", 0, 1),
        ("T, N, 4", 1, 0),
        ("batch, 4, frames", 0, 2),
        ("time, 4", None, 0),
        ("time", None, 0),
        ("p, q, 4", 0, 1),
        ("p, 4, q", 0, 2),
        ("p, q", 0, 1),
        ("a", None, 0),
        ("batch, 20, 4", 0, 1),
        ("1, 20, 4", 0, 1),
        ("20, 4", 0, 1),
    ],
)
def test_names_say_where_time_and_batch_are_and_else_they_are_behind_and_at_the_front(
    dims: str, batch: int | None, time: int
) -> None:
    model = graph(f"(float[{dims}] x) => (float[{dims}] y) {{ y = Tanh (x) }}")

    assert read(model) == {"x": (batch, time, "external")}


@pytest.mark.parametrize(
    ("dims", "given", "batch", "time"),
    [
        ("batch, time, 4", 0, 1, 0),
        ("p, q, 4", 0, 1, 0),
        ("p, q, 4", -2, 0, 1),
        ("20, 4", 0, None, 0),
        ("p, q", 0, 1, 0),
    ],
)
def test_what_the_caller_gives_wins_and_the_batch_is_beside_it(
    dims: str, given: int, batch: int | None, time: int
) -> None:
    model = graph(f"(float[{dims}] x) => (float[{dims}] y) {{ y = Tanh (x) }}")

    assert read(model, x=given)["x"][:2] == (batch, time)


def test_the_batch_axis_that_the_caller_gives_wins_too() -> None:
    plain, declared, _ = load_graph(graph(f"(float[batch, time, 4] x) => (float[a, b, 4] y) {SUM}", **ONE), {})

    [one] = read_inputs(plain.graph, declared, time_axes={"x": 1}, batch_axes={"x": 2}).inputs

    assert (one.batch, one.time) == (2, 1)


@pytest.mark.parametrize(("axes", "told"), [({"x": 3}, "the input has 3 axes"), ({"z": 1}, "no input ['z']")])
def test_an_axis_that_is_not_there_is_told(axes: dict[str, int], told: str) -> None:
    with pytest.raises(UnclearModelError) as caught:
        read(graph(f"{SEQUENCE} {SUM}", **ONE), **axes)

    assert told in caught.value.problem


def test_two_sequences_have_their_time_together() -> None:
    model = graph(
        "(float[batch, time, 4] x, int64[batch, time] z) => (float[batch, time, 4] y) "
        "{ e = Gather (table, z) a = Add (x, e) y = CumSum (a, one) }", table=(9, 4), **ONE,
    )  # fmt: skip

    assert read(model) == {"x": (0, 1, "external"), "z": (0, 1, "external")}


@pytest.mark.parametrize("dims", ["batch, time", "p, q", "p, 20"])
def test_an_input_of_written_sizes_beside_a_sequence_stands_for_the_whole_of_it(dims: str) -> None:
    batch = dims.split(",", maxsplit=1)[0]
    model = graph(
        f"(float[{dims}, 4] x, float[{batch}, 4] who) => (float[{dims}, 4] y) "
        "{ u = Unsqueeze (who, ones) a = Add (x, u) y = CumSum (a, one) }", ones=ints(1), **ONE,
    )  # fmt: skip

    assert read(model) == {"x": (0, 1, "external"), "who": (0, None, "external")}


def test_what_a_recurrence_starts_from_is_a_state_and_its_lengths_are_none_of_the_callers_affair() -> None:
    model = graph(
        "(float[T, N, 4] x, int32[N] n, float[1, N, 5] h) => (float[T, 1, N, 5] y) "
        "{ c = Identity (h) y = GRU <hidden_size = 5> (x, W, R, B, n, c) }", **GRU,
    )  # fmt: skip

    assert read(model) == {"x": (1, 0, "external"), "n": (0, None, "length"), "h": (1, None, "state")}


def test_a_recurrence_over_what_was_read_as_the_batch_is_refused_with_the_flag_that_makes_it_time() -> None:
    model = graph(f"{SEQUENCE.replace('(float[p, q, 4] y)', '(float[p, 1, q, 5] y)')} {RNN_OVER_0}", **GRU)

    with pytest.raises(RefusedModelError, match="rows of a batch depend on each other") as caught:
        convert(model, name="m")

    assert "If that axis is time: `--time-axis x=0`." in caught.value.fix
    assert convert(model, name="m", time_axes={"x": 0}).manifest.states


@pytest.mark.parametrize("declared", ["12, 4", "b, 12, 4"])
def test_a_graph_that_runs_for_no_other_number_of_timesteps_is_refused_with_what_went_wrong(declared: str) -> None:
    model = graph(f"(float[{declared}] x) => (float[12] y) {{ y = Reshape (x, twelve) }}", twelve=ints(12))

    with pytest.raises(
        UnclearModelError, match=r"does not run with axis 1 of 'x' read as time: .*failed on x"
    ) as caught:
        convert(model, name="m")

    assert "Export it with a dynamic time axis" in caught.value.fix
    assert "--time-axis" in caught.value.fix


def test_inputs_of_different_lengths_are_refused_with_the_options_for_either_reading() -> None:
    text = "(float[batch, 100, 4] x, float[batch, 1, 4] s) => (float[a, b, 4] y) { c = CumSum (x, one) y = Add (c, s) }"

    with pytest.raises(UnclearModelError, match="100 on axis 1 of 'x', 1 on axis 1 of 's'") as caught:
        read(graph(text, **ONE))

    assert "`--time-axis s=none`. Where all are: `--time-axis x=1 --time-axis s=1`" in caught.value.fix
    assert read(graph(text, **ONE), s=None) == {"x": (0, 1, "external"), "s": (0, None, "external")}
    assert read(graph(text, **ONE), x=1, s=1) == {"x": (0, 1, "external"), "s": (0, 1, "external")}

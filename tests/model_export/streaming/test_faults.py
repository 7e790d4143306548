"""Graphs that were once exported wrong, or failed for the wrong reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.graph import nodes
from stepwell_export.runtime.errors import InternalError, ModelLoadError, RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from stepwell_export.streaming.rules.table import RULES
from tests.model_export.streaming.zoo_parts import GRU, LSTM, X, graph, ints


def test_an_answer_with_the_shape_of_a_state_is_answered() -> None:
    """`embedding` has the shape of the initial state `h0` and is not its next value; `hn` is."""
    model = graph(
        """(float[batch, time, 4] x, float[batch, 5] h0) => (float[batch, time, 5] y, float[batch, 5] embedding,
            float[batch, 5] hn) {
            xt = Transpose <perm = [1, 0, 2]> (x)
            h = Unsqueeze (h0, zero)
            yt, last = GRU <hidden_size = 5> (xt, W, R, B, , h)
            hn = Squeeze (last, zero)
            embedding = MatMul (hn, D)
            ys = Squeeze (yt, one)
            y = Transpose <perm = [1, 0, 2]> (ys)
        }""",
        zero=ints(0), one=ints(1), D=(5, 5), **GRU,
    )  # fmt: skip

    made = convert(model, name="three")
    verify_model(made, long_steps=100)

    assert [output.name for output in made.manifest.outputs] == ["y", "embedding"]


def test_the_tail_of_a_cache_is_carried_and_not_answered() -> None:
    """What was joined in front of the sequence comes back as its last timesteps: that is its next value."""
    model = graph(
        """(float[batch, 4, time] x, float[batch, 4, 2] past) => (float[batch, 3, time] y, float[batch, 4, 2] present) {
            joined = Concat <axis = 2> (past, x)
            y = Conv (joined, V)
            present = Slice (joined, start, end, two)
        }""",
        V=(3, 4, 3), start=ints(-2), end=ints(2**62), two=ints(2),
    )  # fmt: skip

    assert [output.name for output in convert(model, name="cache").manifest.outputs] == ["y"]


@pytest.mark.parametrize("axis", [np.array([1]), np.array([-2])])
def test_a_running_sum_may_have_its_axis_in_a_list(axis: np.ndarray) -> None:
    model = graph(
        "(float[batch, time, 4] x) => (float[batch, time, 4] y) { y = CumSum (x, axis) }", axis=axis.astype(np.int64)
    )

    assert verify_model(convert(model, name="sum"), long_steps=100)[1].parity.max_abs <= 1e-5


@pytest.mark.parametrize(
    ("node", "operator"),
    [
        ("noise = RandomNormalLike (ys)", "RandomNormalLike"),
        ("noise = Dropout (ys, half, yes)", "Dropout"),
    ],
)
def test_a_random_operator_is_refused_as_one(node: str, operator: str) -> None:
    model = graph(
        f"""(float[batch, time, 4] x) => (float[time, batch, 5] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x)
            yt = GRU <hidden_size = 5> (xt, W, R, B)
            ys = Squeeze (yt, one)
            {node}
            y = Add (ys, noise)
        }}""",
        one=ints(1), half=np.float32(0.5), yes=np.array(True), **GRU,
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match=f"operator {operator} .* reaches output 'y'"):
        convert(model, name="noise")


def test_ids_are_drawn_from_the_whole_table_that_they_are_looked_up_in() -> None:
    model = graph(
        """(int64[batch, time] ids) => (float[time, d, batch, 5] y) {
            near = Identity (ids)
            e = Gather (table, near)
            xt = Transpose <perm = [1, 0, 2]> (e)
            y = GRU <hidden_size = 5> (xt, W, R, B)
        }""",
        table=(50, 4), **GRU,
    )  # fmt: skip
    made = convert(model, name="words")
    assert made.samplers is not None

    drawn = made.samplers["random"](np.random.default_rng(0), 9, 64)["ids"]

    assert set(np.unique(drawn)) == set(range(50))


@pytest.mark.parametrize("declared", ["batch"])
@pytest.mark.parametrize(("operator", "weights", "states"), [("GRU", GRU, ", h0"), ("LSTM", LSTM, ", h0, h0")])
def test_an_initial_state_of_three_rows_is_refused_by_its_node(
    operator: str, weights: dict[str, Any], states: str, declared: str
) -> None:
    model = graph(
        f"""(float[{declared}, 10, 4] x) => (float[{declared}, 10, 5] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x)
            yt = {operator} <hidden_size = 5> (xt, W, R, B, {states})
            ys = Squeeze (yt, one)
            y = Transpose <perm = [1, 0, 2]> (ys)
        }}""",
        one=ints(1), h0=(1, 3, 5), **weights,
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match=rf"\({operator}\) starts from 'h0', which holds 3 rows"):
        convert(model, name="three")


def test_how_often_nodes_are_looked_at_grows_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a recurrence's final state is used is not searched for in the whole graph again."""
    looks, captures = 0, nodes.captures

    def counted(node: onnx.NodeProto) -> Any:
        nonlocal looks
        looks += 1
        return captures(node)

    monkeypatch.setattr(nodes, "captures", counted)
    found = []
    for layers in (8, 16, 32):
        looks = 0
        lines = [
            f"a{k}, h{k} = GRU <hidden_size = 5> (s{k}, W, R, B) s{k + 1} = Squeeze (a{k}, one)" for k in range(layers)
        ]
        text = f"s0 = Identity (x) {' '.join(lines)} y = Identity (s{layers})"
        header = "(float[time, batch, 5] x) => (float[time, batch, 5] y)"
        convert(graph(f"{header} {{ {text} }}", one=ints(1), W=(1, 15, 5), R=(1, 15, 5), B=(1, 30)), name="deep")
        found.append(looks)

    assert found[2] - found[1] < 2.5 * (found[1] - found[0])


LAYERS = "b = Add (c, V) t = Exp (b)"


@pytest.mark.parametrize(
    ("operator", "cut", "layer"),
    [
        *((operator, (-5, 2**62), LAYERS) for operator in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")),
        ("ReduceMean", (-7, -2), LAYERS),
        ("ReduceL1", (-7, -2), "t = Identity (c)"),
    ],
)
def test_a_reduction_of_the_last_timesteps_begins_with_fewer(operator: str, cut: tuple[int, int], layer: str) -> None:
    """A sequence of three timesteps has three last ones: the mean is theirs, and the others are no zeros."""
    model = graph(
        f"({X}) => (float[batch, 4] y) {{ c = Slice (x, start, end, axis) {layer} y = {operator} <axes = [1], "
        "keepdims = 0> (t) }",
        start=ints(cut[0]), end=ints(cut[1]), axis=ints(1), V=(4,),
    )  # fmt: skip

    assert verify_model(convert(model, name="last"), long_steps=100)[1].parity.max_abs <= 1e-5


def test_a_fault_of_a_rule_is_called_a_fault_of_stepwell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(walk: Any, node: onnx.NodeProto) -> None:
        raise KeyError(node.output[0])

    monkeypatch.setitem(RULES, "CumSum", fails)
    model = graph("(float[batch, time, 4] x) => (float[batch, time, 4] y) { y = CumSum (x, one) }", one=ints(1))

    with pytest.raises(
        InternalError, match=r"A fault of Stepwell.*the rule of .*'?CumSum.*KeyError: 'y', test_faults.py"
    ):
        convert(model, name="sum")


def test_a_squeeze_with_an_empty_list_of_axes_keeps_the_row_of_a_batch_of_one() -> None:
    """onnxruntime takes it for one without axes, which drops all axes of length 1."""
    model = graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x) yt = GRU <hidden_size = 5> (xt, W, R, B)
            ys = Squeeze (yt, none) y = Transpose <perm = [1, 0, 2]> (ys)
        }}""",
        none=ints(), **GRU,
    )  # fmt: skip

    made = convert(model, name="m")
    step = StepModel(made.proto.SerializeToString(), made.manifest)

    answers, _ = step.step({"x": np.zeros((1, 4), np.float32)}, step.initial_states(1))
    assert answers["y"].shape == (1, 5)


def test_a_graph_that_is_none_is_refused_as_onnxruntime_refuses_it() -> None:
    """A Gather needs two inputs; what looks for loops reads the second one."""
    model = graph(
        f"({X}) => (float[batch, time, 4] y) {{ t = Gather <axis = 1> (x) y = CumSum (t, one) }}", one=ints(1)
    )

    with pytest.raises(ModelLoadError, match="onnxruntime"):
        convert(model, name="m")


def test_a_convolution_whose_weights_are_the_sequence_is_refused() -> None:
    model = graph(
        "(float[batch, 4, time] x) => (float[batch, batch, n] y) { p = Pad (x, pads) y = Conv (p, x) }",
        pads=ints(0, 0, 2, 0, 0, 0),
    )

    with pytest.raises(RefusedModelError, match="takes a sequence for its weights"):
        convert(model, name="m")

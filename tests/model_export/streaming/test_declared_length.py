"""A graph that was trained on sequences of a declared length: attention covers that many, positions end after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from stepwell_export.verify.runners import stepped
from tests.model_export.streaming.zoo_length import (
    BANDED,
    DECLARED,
    LENGTH,
    LOWER,
    RANGES,
    masked_keys,
    one_head,
)
from tests.model_export.streaming.zoo_parts import GRU, graph, ints
from tests.model_export.streaming.zoo_refused import REFUSED


def positions() -> onnx.ModelProto:
    """Return a graph that adds a table's rows to the timesteps and sums them up."""
    return graph(
        """(float[batch, time, 4] x) => (float[batch, time, 4] y) {
            sizes = Shape (x)
            steps = Gather <axis = 0> (sizes, one)
            p = Slice (table, zero, steps, zero)
            moved = Add (x, p)
            y = CumSum (moved, axis)
        }""",
        one=ints(1), zero=ints(0), axis=np.int64(1), table=(LENGTH, 4),
    )  # fmt: skip


@pytest.mark.parametrize(("wave", "size"), [("Cos", 1), ("Sin", 3)])
def test_waves_by_position_are_a_table_though_their_last_digits_depend_on_the_length(wave: str, size: int) -> None:
    model = graph(
        f"""(float[batch, time, {size}] x) => (float[batch, time, {size}] y) {{
            sizes = Shape (x)
            steps = Gather <axis = 0> (sizes, one)
            places = Range (zero, steps, one)
            real = Cast <to = 1> (places)
            column = Unsqueeze (real, last)
            angles = Mul (column, speeds)
            waves = {wave} (angles)
            moved = Add (x, waves)
            y = CumSum (moved, axis)
        }}""",
        one=np.int64(1), zero=np.int64(0), axis=np.int64(1), last=ints(1),
        speeds=np.array([1.0, 0.1, 0.01], np.float32)[:size],
    )  # fmt: skip

    graph_bytes, _ = verify_model(convert(model, name="waves", length=LENGTH))

    assert [state.input for state in StepModel(graph_bytes).manifest.states] == ["timesteps", "CumSum_8.sum"]


TRIANGLE = (
    "shape = Shape <start = 1> (s) full = Expand (never, shape) low = Trilu <upper = 1> (full, one) m = Add (s, low)"
)


@pytest.mark.parametrize("mask", [f"{RANGES} m = Where (seen, s, never)", TRIANGLE], ids=["choice", "triangle"])
def test_scores_before_the_first_timestep_are_masked_by_a_sum(mask: str) -> None:
    """It takes less time than a choice, which is left where scores may be no number there."""
    made = convert(one_head(mask), name="m", length=LENGTH)

    assert "Where" not in {node.op_type for node in made.proto.graph.node}


def causal_operator() -> onnx.ModelProto:
    """Return the operator Attention without a mask, causal, as PyTorch's exporter writes it from opset 23 on."""
    return graph(
        """(float[batch, time, 4] x) => (float[batch, time, 4] y) {
            k = MatMul (x, W)
            y = Attention <is_causal = 1, q_num_heads = 2, kv_num_heads = 2> (x, k, k)
        }""",
        opset=23, W=(4, 4),
    )  # fmt: skip


def test_the_causal_attention_operator_is_refused_without_a_declared_length() -> None:
    with pytest.raises(RefusedModelError, match="attends to all timesteps before") as caught:
        convert(causal_operator(), name="m")

    assert "--length N" in caught.value.fix


def grouped_operator() -> onnx.ModelProto:
    """Return the operator Attention with two heads of queries for each of keys and values."""
    return graph(
        """(float[batch, time, 8] x) => (float[batch, time, 8] y) {
            qs = Reshape (x, four)
            q = Transpose <perm = [0, 2, 1, 3]> (qs)
            half = MatMul (x, W)
            ks = Reshape (half, two)
            k = Transpose <perm = [0, 2, 1, 3]> (ks)
            a = Attention <is_causal = 1> (q, k, k)
            back = Transpose <perm = [0, 2, 1, 3]> (a)
            b = Reshape (back, flat)
            keys = MatMul (b, V)
            y = Attention <is_causal = 1, q_num_heads = 4, kv_num_heads = 2> (b, keys, keys)
        }""",
        opset=23, four=np.array([0, 0, 4, 2]), two=np.array([0, 0, 2, 2]), flat=np.array([0, 0, 8]), W=(8, 4),
        V=(8, 4),
    )  # fmt: skip


def test_the_operator_with_fewer_heads_for_keys_keeps_those_alone() -> None:
    graph_bytes, report = verify_model(convert(grouped_operator(), name="m", length=LENGTH))

    shapes = [state.shape for state in StepModel(graph_bytes).manifest.states if state.dtype == "float32"]
    assert report.parity.max_abs <= 1e-5
    assert all(np.prod(shape) == 2 * 1 * 2 * (LENGTH - 1) for shape in shapes)


@pytest.mark.many
@pytest.mark.parametrize("build", DECLARED.values(), ids=[*DECLARED])
def test_a_graph_of_a_declared_length_equals_itself_step_by_step(build: Callable[[], onnx.ModelProto]) -> None:
    graph_bytes, report = verify_model(convert(build(), name="m", length=LENGTH))

    assert report.parity.steps == LENGTH
    assert report.parity.max_abs <= 1e-5
    assert not report.weak
    assert StepModel(graph_bytes).batched


@pytest.mark.parametrize(("name", "length"), [*((name, None) for name in BANDED), ("heads", LENGTH)])
def test_a_mask_of_the_last_timesteps_makes_the_states_short(name: str, length: int | None) -> None:
    graph_bytes, report = verify_model(convert(BANDED[name](), name=name, length=length), long_steps=100)

    assert report.parity.max_abs <= 1e-5
    assert all(max(state.shape, default=0) <= 4 for state in StepModel(graph_bytes).manifest.states)


@pytest.mark.parametrize("nodes", ["h = Add (x, table) y = CumSum (h, axis)", "f = Flatten (x) y = Gemm (f, W)"])
def test_a_length_that_is_written_into_the_graph_is_refused_whatever_is_declared(nodes: str) -> None:
    made = graph(
        f"(float[batch, {LENGTH}, 4] x) => (float[batch, a, b] y) {{ {nodes} }}", table=(LENGTH, 4),
        W=(4 * LENGTH, 3), axis=np.int64(1),
    )  # fmt: skip

    for length in (None, LENGTH):
        with pytest.raises(UnclearModelError, match="does not run with axis 1 of 'x' read as time") as caught:
            convert(made, name="m", length=length)
        assert "Export it with a dynamic time axis" in caught.value.fix


def test_a_mask_that_looks_ahead_is_refused_whatever_the_declared_length() -> None:
    ahead = one_head(
        "seen = Slice (table, zeros, both, axes) m = Where (seen, s, never)",
        table=LOWER | np.eye(LENGTH, k=1, dtype=bool),
    )
    with pytest.raises(RefusedModelError, match="attends to timesteps to come"):
        convert(ahead, name="m", length=LENGTH)


def test_masked_timesteps_that_look_at_everything_are_refused_unless_they_are_masked_again() -> None:
    with pytest.raises(RefusedModelError, match="attends to timesteps to come"):
        convert(
            masked_keys("c = Unsqueeze (counts, inner) e = And (c, seen) m = Where (e, s, low)", again=False),
            name="m",
            length=LENGTH,
        )


def test_as_many_static_ids_as_timesteps_are_no_sequence_where_the_user_says_so() -> None:
    started = graph(
        f"""(float[batch, {LENGTH}, 3] x, int64[batch, {LENGTH}] who) => (float[t, batch, 5] y) {{
            e = Gather (table, who) f = Reshape (e, flat) s = MatMul (f, V) start = Unsqueeze (s, zero)
            xt = Transpose <perm = [1, 0, 2]> (x)
            yt = GRU <hidden_size = 5> (xt, K, R, B, , start)
            y = Squeeze (yt, one)
        }}""",
        table=(7, 4), flat=np.array([-1, 4 * LENGTH]), V=(4 * LENGTH, 5), zero=ints(0), one=ints(1), K=(1, 15, 3),
        R=GRU["R"], B=GRU["B"],
    )  # fmt: skip

    for length in (None, LENGTH):
        graph_bytes, report = verify_model(
            convert(started, name="m", time_axes={"x": 1, "who": None}, length=length), long_steps=0
        )
        shapes = {one.name: one.shape for one in StepModel(graph_bytes).manifest.inputs}
        assert report.parity.max_abs <= 1e-5
        assert shapes == {"x": [3], "who": [LENGTH]}


def test_a_table_of_positions_gives_no_number_after_its_end() -> None:
    graph_bytes, _ = verify_model(convert(positions(), name="m", length=LENGTH))
    values = np.random.default_rng(0).standard_normal((2, LENGTH + 1, 4)).astype(np.float32)

    found = stepped(StepModel(graph_bytes), {"x": values})[0]["y"]

    assert np.isfinite(found[:, :LENGTH]).all()
    assert np.isnan(found[:, LENGTH]).all()


def test_rows_at_different_positions_have_their_own_values() -> None:
    model = StepModel(verify_model(convert(positions(), name="m", length=LENGTH))[0])
    x = np.ones((1, 4), np.float32)
    _, late = model.step({"x": x}, model.initial_states(1))
    both = {name: np.concatenate([late[name], row]) for name, row in model.initial_states(1).items()}

    together = model.step({"x": np.ones((2, 4), np.float32)}, both)[0]["y"]

    first = model.step({"x": x}, model.initial_states(1))[0]["y"]
    second = model.step({"x": x}, late)[0]["y"]
    np.testing.assert_array_equal(together, np.concatenate([second, first]))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("growing_attention", "`--length N`"),
        ("looked_up_positions", "`--length 100`"),
        ("table_of_positions", "`--length"),
    ],
)
def test_without_a_declared_length_the_refusal_names_the_flag(name: str, told: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        convert(REFUSED[name].build(), name="m")

    assert told in caught.value.fix


@pytest.mark.parametrize("length", [None, LENGTH])
def test_the_attention_operator_over_the_whole_sequence_looks_ahead(length: int | None) -> None:
    """A declared length does not help, so the refusal must not name it."""
    whole = graph(
        "(float[batch, time, 4] x) => (float[batch, time, 4] y) {"
        "y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, x, x) }",
        opset=23,
    )

    with pytest.raises(RefusedModelError, match="attends to timesteps to come") as refused:
        convert(whole, name="m", length=length)

    assert "--length" not in refused.value.fix


@pytest.mark.parametrize(
    "made",
    ["w = Softmax <axis = 0> (p)", 'w = Pad <mode = "edge"> (p, behind)', "w = Neg (q) q = Slice (p, one, last)"],
)
def test_what_the_length_makes_of_positions_is_refused(made: str) -> None:
    """One timestep of it is not what the node makes of the position of that timestep."""
    model = graph(
        f"""(float[batch, time, 4] x) => (float[batch, 4] y) {{
            sizes = Shape (x) steps = Gather <axis = 0> (sizes, one) p = Slice (table, zero, steps, zero)
            {made} a = MatMul (w, V) b = ReduceSum <keepdims = 0> (a, zero) c = ReduceSum <keepdims = 0> (x, one)
            y = Mul (b, c)
        }}""",
        one=ints(1), zero=ints(0), last=ints(2**31 - 1), behind=ints(0, 0, 1, 0), table=(LENGTH, 4), V=(4, 4),
    )  # fmt: skip

    with pytest.raises(RefusedModelError, match="positions"):
        convert(model, name="m", length=LENGTH)


def test_a_declared_length_of_one_timestep_is_refused() -> None:
    with pytest.raises(RefusedModelError, match="declared length is 1 timesteps; expected at least 2"):
        convert(positions(), name="m", length=1)


def test_a_file_is_exported_with_its_declared_length(tmp_path: Path) -> None:
    source = tmp_path / "positions.onnx"
    onnx.save(positions(), source)

    exported = export_source(str(source), tmp_path / "m.onnx", length=LENGTH)

    assert exported.report.parity.steps == LENGTH

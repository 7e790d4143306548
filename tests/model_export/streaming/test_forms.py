"""Forms of operators that few exporters write: old versions, several axes at once, rows folded into other axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.chunk.selection import AT_ONCE, dynamic_graph
from stepwell_export.converted import verify_model
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo_parts import GRU, X, batch_first, channels, graph, ints

Build = Callable[[], onnx.ModelProto]


def summed(nodes: str, *, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """Return a graph of `(batch, time, 4)` from `x` to `y`, with a running sum `c` that makes it recurrent."""
    return graph(
        f"({X}) => (float[batch, time, last] y) {{ c = CumSum (x, axis) {nodes} }}",
        opset=opset, axis=np.int64(1), **weights,
    )  # fmt: skip


def folded_rows() -> onnx.ModelProto:
    """A GRU whose batch is the rows times two groups of features, as in models that share it between bands."""
    return graph(
        f"""({X}) => (float[batch, time, 2, 5] y) {{
            a = Reshape (x, apart)
            b = Transpose <perm = [1, 0, 2, 3]> (a)
            xt = Reshape (b, together)
            yt = GRU <hidden_size = 5> (xt, W, R, B)
            d = Reshape (yt, back)
            y = Transpose <perm = [1, 0, 2, 3]> (d)
        }}""",
        apart=ints(0, 0, 2, 2), together=ints(0, -1, 2), back=ints(0, -1, 2, 5), W=(1, 15, 2), R=GRU["R"], B=GRU["B"],
    )  # fmt: skip


def predictions_fed_back() -> onnx.ModelProto:
    """A GRU whose prediction is its next input, four times behind the end of the sequence, as in a forecast."""
    turns = [
        f"x{k} = Unsqueeze (p{k - 1}, zero) o{k}, h{k} = GRU <hidden_size = 5> (x{k}, W, R, B, , h{k - 1}) "
        f"s{k} = Squeeze (h{k}, zero) p{k} = MatMul (s{k}, D)"
        for k in range(1, 5)
    ]
    each = " ".join(f"u{k} = Unsqueeze (p{k}, one)" for k in range(5))
    return graph(
        f"""({X}) => (float[batch, 5, 4] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x)
            o0, h0 = GRU <hidden_size = 5> (xt, W, R, B)
            s0 = Squeeze (h0, zero) p0 = MatMul (s0, D)
            {" ".join(turns)} {each}
            y = Concat <axis = 1> (u0, u1, u2, u3, u4)
        }}""",
        zero=ints(0), one=ints(1), D=(5, 4), **GRU,
    )  # fmt: skip


FORMS: dict[str, Build] = {
    "pad_of_time_and_features": lambda: channels(
        "a = Pad (x, pads) y = Conv (a, W)", W=(3, 6, 3), pads=ints(0, 1, 2, 0, 1, 0)
    ),
    "pad_with_axes": lambda: graph(
        "(float[batch, 4, time] x) => (float[batch, 3, time] y) { a = Pad (x, pads, , axis) y = Conv (a, W) }",
        opset=18, W=(3, 4, 3), pads=ints(2, 0), axis=ints(2),
    ),
    "slice_of_time_and_features": lambda: channels(
        "a = Pad (x, pads) y = Slice (a, first, ends, axes)",
        pads=ints(0, 0, 2, 0, 0, 0), first=ints(0, 1), ends=ints(-2, 3), axes=ints(2, 1),
    ),
    "pad_and_slice_of_old_versions": lambda: graph(
        """(float[batch, 4, time] x) => (float[batch, 3, time] y) {
            a = Pad <pads = [0, 1, 2, 0, 0, 0]> (x)
            y = Slice <axes = [2, 1], starts = [0, 1], ends = [-2, 4]> (a)
        }""",
        opset=9,
    ),
    "samples_padded_in_two_parts": lambda: graph(
        """(float[batch, time, 2] x) => (float[batch, time, 3] y) {
            s = Reshape (x, flat) a = Pad (s, pads)
            c = Conv <strides = [2], pads = [1, 0]> (a, W) y = Transpose <perm = [0, 2, 1]> (c)
        }""",
        flat=ints(0, 1, -1), pads=ints(0, 0, 1, 0, 0, 0), W=(3, 1, 4),
    ),
    "same_lower": lambda: channels('y = Conv <auto_pad = "SAME_LOWER"> (x, W)', W=(3, 4, 2)),
    "two_nodes_of_one_name": lambda: batch_first(
        """[gru] a = GRU <hidden_size = 5> (xt, W, R, B) s = Squeeze (a, one)
        [gru] yt = GRU <hidden_size = 5> (s, V, R, B)""",
        **GRU, V=(1, 15, 5),
    ),
    "sum_over_features": lambda: summed("y = CumSum (c, features)", features=np.int64(2)),
    "sum_behind_a_pad": lambda: graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            a = Pad (x, pads) b = CumSum (a, axis) y = Slice (b, first, end, one)
        }}""",
        pads=ints(0, 1, 0, 0, 0, 0), axis=np.int64(1), first=ints(0), end=ints(-1), one=ints(1),
    ),
    "ones_in_front_of_what_was_cut": lambda: graph(
        """(float[1, 4, time] x) => (float[1, 3, time] y) { a = Conv (x, W) y = Concat <axis = 2> (front, a) }""",
        W=(3, 4, 3), front=np.ones((1, 3, 2), np.float32),
    ),
    "mean_of_everything_but_time": lambda: summed("m = ReduceMean <axes = [2]> (c) y = Sub (c, m)"),
    "repeated_for_each_row": lambda: summed(
        """s = Shape (x) b = Slice (s, none, one, none) t = Concat <axis = 0> (b, one, one)
        r = Tile (bias, t) y = Add (c, r)""",
        none=ints(0), one=ints(1), bias=(1, 1, 4),
    ),
    "squeezed_by_an_old_version": lambda: summed(
        "a = Unsqueeze <axes = [3]> (c) b = Squeeze (a) y = Identity (b)", opset=12
    ),
    "folded_rows": folded_rows,
    "batch_and_time_on_one_axis_and_back": lambda: summed(
        """s = Shape (x) both = Slice (s, none, two, none) f = Reshape (c, flat) d = MatMul (f, V)
        t = Concat <axis = 0> (both, five) y = Reshape (d, t)""",
        none=ints(0), two=ints(2), five=ints(5), flat=ints(-1, 4), V=(4, 5),
    ),
    "predictions_fed_back": predictions_fed_back,
    "classes_one_hot": lambda: graph(
        """(int64[batch, time] x) => (float[batch, time, 3] y) {
            h = OneHot <axis = -1> (x, six, values)
            c = CumSum (h, axis)
            y = MatMul (c, W)
        }""",
        six=np.int64(6), values=np.array([0, 1], np.float32), axis=np.int64(1), W=(6, 3),
    ),
    "written_out_with_an_axis_of_one_timestep": lambda: graph(
        "(float[batch, 6, 4] x) => (float[batch, 6, 4] y) { h0 = Slice (x, at0, at1, at1) "
        + " ".join(
            f"x{t} = Slice (x, at{t}, at{t + 1}, at1) a{t} = MatMul (h{t - 1}, W) b{t} = Add (a{t}, x{t}) "
            f"h{t} = Tanh (b{t})"
            for t in range(1, 6)
        )
        + " y = Concat <axis = 1> (h0, h1, h2, h3, h4, h5) }",
        W=(4, 4), **dict[str, Any]({f"at{t}": ints(t) for t in range(7)}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_an_operator_equals_itself_step_by_step(name: str) -> None:
    content, report = verify_model(convert(FORMS[name](), name=name), long_steps=100)

    assert report.parity.max_abs <= 1e-5
    assert not report.weak
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)


def test_a_mean_over_time_counts_by_the_node_that_its_count_becomes() -> None:
    """A second node would count the same, and a chunk would run the mean timestep by timestep."""
    model = graph(f"({X}) => (float[batch, 4] y) {{ y = ReduceMean <axes = [1], keepdims = 0> (x) }}")
    candidate = convert(model, name="mean")
    how, *_ = dynamic_graph(candidate.proto, candidate.manifest)

    assert [node.op_type for node in candidate.proto.graph.node].count("Add") == 2  # the count, and the mean
    assert how == AT_ONCE

"""Graphs with something rare in them, which none of the compared sequences shows: each is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, LSTM, RNN, X, batch_first, graph, ints

Case = Callable[[], onnx.ModelProto]

T = "sizes = Shape (x) steps = Gather <axis = 0> (sizes, one)"
SUM = "s = CumSum (x, one)"


def _twice_if(condition: str, given: str = "", x: str = X, **weights: Any) -> onnx.ModelProto:
    """Return running sums, twice as large where a condition `c` holds."""
    return graph(
        f"""({x}) => (float[batch, time, 4] y) {{
            {T} {SUM} {given} {condition}
            y = If (c) <
                then_branch = t () => (float[b, t, f] p) {{ p = Add (s, s) }},
                else_branch = e () => (float[b, t, f] m) {{ m = Identity (s) }}>
        }}""",
        one=np.int64(1), **weights,
    )  # fmt: skip


BY_LENGTH: dict[str, Case] = {
    "more_than_100": lambda: _twice_if("c = Greater (steps, most)", most=np.int64(100)),
    "more_than_any_run": lambda: _twice_if("c = Greater (steps, most)", most=np.int64(3600)),
    "exactly_60": lambda: _twice_if("c = Equal (steps, just)", just=np.int64(60)),
    "every_fiftieth": lambda: _twice_if(
        "r = Mod (steps, fifty) c = Equal (r, last)", fifty=np.int64(50), last=np.int64(49)
    ),
    "many_numbers": lambda: _twice_if("n = Size (x) c = Greater (n, most)", most=np.int64(10**7)),
    "many_rows": lambda: _twice_if(
        "rows = Gather <axis = 0> (sizes, zero) c = Greater (rows, most)", zero=np.int64(0), most=np.int64(20)
    ),
    "length_of_a_part": lambda: _twice_if(
        "cut = Slice (x, start, end, axis) of = Shape (cut) n = Gather <axis = 0> (of, one) c = Greater (n, zero)",
        start=ints(3000), end=ints(10**9), axis=ints(1), zero=np.int64(0),
    ),
    "length_of_a_convolution": lambda: _twice_if(
        "xt = Transpose <perm = [0, 2, 1]> (x) v = Conv (xt, V) of = Shape (v) n = Gather <axis = 0> (of, two) "
        "c = Greater (n, most)", V=(2, 4, 3), two=np.int64(2), most=np.int64(2500),
    ),
}  # fmt: skip
"""Branches by the number of timesteps or rows."""


def _with_lengths(lengths: list[int], x: str, more: str = "", *, cell: str = "GRU") -> onnx.ModelProto:
    weights = {"GRU": GRU, "LSTM": LSTM, "RNN": RNN}[cell]
    return graph(
        f"({x}{more}) => (float[time, 1, batch, 5] y) {{ y = {cell} <hidden_size = 5> (x, W, R, B, lens) }}",
        lens=np.array(lengths, np.int32), **weights,
    )  # fmt: skip


def _with_counted_lengths(most: int) -> onnx.ModelProto:
    return graph(
        """(float[time, 1, 4] x) => (float[time, 1, 1, 5] y) {
            sizes = Shape (x)
            steps = Slice (sizes, zero, one)
            few = Min (steps, most)
            lens = Cast <to = 6> (few)
            y = GRU <hidden_size = 5> (x, W, R, B, lens)
        }""",
        zero=ints(0), one=ints(1), most=ints(most), **GRU,
    )  # fmt: skip


LENGTHS: dict[str, Case] = {
    "the_size_of_a_state": lambda: _with_lengths([5, 5], "float[time, 2, 4] x", ", float[5, 5] unused"),
    "the_number_of_features": lambda: _with_lengths([4, 4], "float[time, 2, 4] x"),
    "one_row": lambda: _with_lengths([1], "float[time, 1, 4] x", cell="RNN"),
    "the_number_of_rows": lambda: _with_lengths([3, 3, 3], "float[time, 3, 4] x", cell="LSTM"),
    "the_length_of_another_input": lambda: _with_lengths([20], "float[time, 1, 4] x", ", float[20, 2] table"),
    "at_most_100": lambda: _with_counted_lengths(100),
    "at_most_3000": lambda: _with_counted_lengths(3000),
}
"""Lengths of sequences that equal some declared size, or the number of timesteps up to a limit."""


def _moved_by(number: str, **weights: Any) -> onnx.ModelProto:
    """Return running sums and a number `n` which is 0 in all compared sequences."""
    return graph(
        f"({X}) => (float[batch, time, 4] y) {{ {SUM} {number} f = Cast <to = 1> (n) y = Add (s, f) }}",
        one=np.int64(1), limit=np.float32(8), zero=np.int64(0), **weights,
    )  # fmt: skip


HIGH = "high = Greater (x, limit)"
COUNT = f"{HIGH} h = Cast <to = 7> (high) k = ReduceMax <keepdims = 0> (h)"

SIZES: dict[str, Case] = {
    "places": lambda: _moved_by(f"{HIGH} z = NonZero (high) of = Shape (z) n = Gather <axis = 0> (of, one)"),
    "picked": lambda: _moved_by(
        f"{HIGH} flat = Reshape (high, all) picked = Compress (x, flat) n = Size (picked)", all=ints(-1)
    ),
    "kinds": lambda: _moved_by(
        f"{HIGH} h = Cast <to = 1> (high) u = Unique (h) m = Size (u) n = Sub (m, one)"
    ),
    "counted": lambda: _moved_by(f"{COUNT} r = Range (zero, k, one) n = Size (r)"),
    "filled": lambda: _moved_by(
        f"{COUNT} k1 = Reshape (k, all) e = ConstantOfShape (k1) n = Size (e)", all=ints(-1)
    ),
    "cut": lambda: _moved_by(
        f"{COUNT} k1 = Reshape (k, all) e = Slice (table, first, k1) n = Size (e)", all=ints(-1), first=ints(0),
        table=(9,),
    ),
    "repeated": lambda: _moved_by(
        f"{COUNT} k1 = Reshape (k, all) e = Tile (table, k1) n = Size (e)", all=ints(-1), table=(9,)
    ),
    "spread": lambda: _moved_by(
        f"{COUNT} k1 = Add (k, one) k2 = Reshape (k1, all) e = Expand (table, k2) m = Size (e) n = Sub (m, one)",
        all=ints(-1), table=(1,),
    ),
    "branch": lambda: graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            {SUM} {HIGH} z = NonZero (high) n = Size (z) c = Greater (n, zero)
            y = If (c) <
                then_branch = t () => (float[b, t, f] p) {{ p = Add (s, s) }},
                else_branch = e () => (float[b, t, f] m) {{ m = Identity (s) }}>
        }}""",
        one=np.int64(1), limit=np.float32(8), zero=np.int64(0),
    ),
}  # fmt: skip
"""Sizes that depend on values."""


def _loop(goes_on: str, *, begins: str = "", turns: str = "steps", **weights: Any) -> onnx.ModelProto:
    """Return a running sum by a Loop; `goes_on` makes `go` in its body, `begins` makes `first` before it."""
    return graph(
        f"""(float[time, batch, 4] x) => (float[time, batch, 4] y) {{
            sizes = Shape (x) steps = Gather <axis = 0> (sizes, zero) few = Min (steps, most)
            row = Slice (sizes, one1, three1) h0 = ConstantOfShape (row)
            {begins or "first = Identity (true)"}
            hT, y = Loop ({turns}, first, h0) <body = b (int64 i, bool c, float[n, f] h) =>
                (bool go, float[n, f] hn, float[n, f] out) {{
                    xi = Gather <axis = 0> (x, i) hn = Add (h, xi) out = Identity (hn) {goes_on}
                }}>
        }}""",
        zero=np.int64(0), one1=ints(1), three1=ints(3), true=np.array(True), most=np.int64(3000), **weights,
    )  # fmt: skip


LOOPS: dict[str, Case] = {
    "until_the_sum_is_large": lambda: _loop(
        "top = ReduceMax <keepdims = 0> (hn) go = Less (top, limit)", limit=np.float32(1e6)
    ),
    "until_an_alarm": lambda: _loop("top = ReduceMax <keepdims = 0> (xi) go = Less (top, limit)", limit=np.float32(9)),
    "for_3000_turns": lambda: _loop("go = Less (i, last)", last=np.int64(2999)),
    "unless_it_begins_high": lambda: _loop(
        "go = Identity (c)", begins="top = ReduceMax <keepdims = 0> (x) first = Less (top, limit)", limit=np.float32(9)
    ),
    "unless_it_is_long": lambda: _loop("go = Identity (c)", begins="first = Less (steps, most)"),
    "while_it_went_on_and_is_low": lambda: _loop(
        "top = ReduceMax <keepdims = 0> (xi) low = Less (top, limit) go = And (c, low)", limit=np.float32(9)
    ),
    "at_most_3000_turns": lambda: _loop("go = Identity (c)", turns="few"),
}
"""Loops that may end before the last timestep."""


def _front(part: str, rest: str, *, inputs: str = X, **weights: Any) -> onnx.ModelProto:
    """Return a graph with a `part` of two timesteps in front of the sequence, as `p`."""
    return graph(
        f"({inputs}) => (float[batch, time, 4] y) {{ {part} p = Concat <axis = 1> (front, x) {rest} }}",
        one=np.int64(1), first=ints(0), two=ints(2), axis=ints(1), limit=np.float32(100), **weights,
    )  # fmt: skip


CONV = "t = Transpose <perm = [0, 2, 1]> (p) v = Conv (t, V) y = Transpose <perm = [0, 2, 1]> (v)"
TABLE = np.concatenate([np.ones((3000, 4)), np.full((2000, 4), 2)]).astype(np.float32)
RANGE = f"{T} zeroth = Sub (one, one) places = Range (zeroth, steps, one)"


def _by_place(nodes: str, *, inputs: str = X, **weights: Any) -> onnx.ModelProto:
    """Return running sums of the sequence times a factor `f`, which is 1 for the first 3000 timesteps."""
    return graph(
        f"({inputs}) => (float[batch, time, 4] y) {{ {nodes} m = Mul (x, f) y = CumSum (m, one) }}",
        one=np.int64(1), **weights,
    )  # fmt: skip


def _from(start: str, **weights: Any) -> onnx.ModelProto:
    """Return a GRU that starts from `h`."""
    return batch_first(
        f"sizes = Shape (x) rows = Slice (sizes, none, one) steps = Slice (sizes, one, two) {start} "
        "yt = GRU <hidden_size = 5> (xt, W, R, B, , h)",
        none=ints(0), two=ints(2), five=ints(5), **weights, **GRU,
    )  # fmt: skip


CONSTANT: dict[str, Case] = {
    "an_input_in_front_that_rarely_counts": lambda: _front(
        "over = Sub (u, limit) r = Relu (over) front = Reshape (r, rows)", CONV, inputs=f"{X}, float[batch, 8] u",
        V=(4, 4, 3), rows=ints(-1, 2, 4),
    ),
    "an_input_in_front_that_rarely_counts_in_a_sum": lambda: _front(
        "over = Sub (u, limit) r = Relu (over) front = Reshape (r, rows)", "c = CumSum (p, one) t = Slice (c, two, "
        "last, axis) y = Relu (t)", inputs=f"{X}, float[batch, 8] u", rows=ints(-1, 2, 4), last=ints(10**12),
    ),
    "a_front_by_the_length": lambda: _front(
        f"{T} late = Greater (steps, most) f = Cast <to = 1> (late) row = Slice (sizes, first, axis) "
        "of = Concat <axis = 0> (row, two, four) front = Expand (f, of)", CONV, V=(4, 4, 3), most=np.int64(3000),
        four=ints(4),
    ),
    "a_window_longer_than_any_run": lambda: graph(
        f"({X}) => (float[batch, time, 4] y) {{ t = Slice (x, start, end, axis) y = CumSum (t, one) }}",
        start=ints(-3600), end=ints(10**12), axis=ints(1), one=np.int64(1),
    ),
    "the_first_3000": lambda: graph(
        f"({X}) => (float[batch, time, 4] y) {{ t = Slice (x, start, end, axis) y = CumSum (t, one) }}",
        start=ints(0), end=ints(3000), axis=ints(1), one=np.int64(1),
    ),
    "all_but_those_3000_ago": lambda: graph(
        f"({X}) => (float[batch, time, 4] y) {{ {T} d = Sub (steps, most) e = Max (d, none) start = Reshape (e, axis) "
        "t = Slice (x, start, end, axis) y = CumSum (t, one) }", end=ints(10**12), axis=ints(1), one=np.int64(1),
        most=np.int64(3000), none=np.int64(0),
    ),
    "a_table_that_changes_late": lambda: _by_place(
        f"{T} end = Reshape (steps, row) f = Slice (table, first, end, first)", table=TABLE, row=ints(1), first=ints(0)
    ),
    "a_factor_by_the_length": lambda: _by_place(
        f"{T} late = Greater (steps, most) f = Where (late, three, single)", most=np.int64(3000), three=np.float32(3),
        single=np.float32(1),
    ),
    "the_last_up_to_3000": lambda: graph(
        f"({X}) => (float[batch, 4] y) {{ {T} k = Sub (steps, one) e = Min (k, most) c = CumSum (x, one) "
        "y = Gather <axis = 1> (c, e) }", one=np.int64(1), most=np.int64(3000),
    ),
    "a_factor_of_the_hundredth_row": lambda: _by_place(
        "sizes = Shape (x) rows = Gather <axis = 0> (sizes, none) r = Range (none, rows, one) g = Greater (r, most) "
        "w = Where (g, three, single) f = Reshape (w, wide)", none=np.int64(0), most=np.int64(100),
        three=np.float32(3), single=np.float32(1), wide=ints(-1, 1, 1),
    ),
    "a_factor_by_the_number_of_rows": lambda: _by_place(
        "sizes = Shape (x) rows = Gather <axis = 0> (sizes, none) g = Greater (rows, most) "
        "f = Where (g, three, single)", none=np.int64(0), most=np.int64(100), three=np.float32(3),
        single=np.float32(1),
    ),
    "padded_from_timestep_3000_on": lambda: graph(
        f"({X}) => (float[batch, time, 4] y) {{ {T} d = Sub (steps, most) e = Max (d, none) f = Reshape (e, axis) "
        "pads = Concat <axis = 0> (zeros1, f, zeros4) p = Pad (x, pads) y = CumSum (p, one) }", axis=ints(1),
        one=np.int64(1), most=np.int64(3000), none=np.int64(0), zeros1=ints(0), zeros4=ints(0, 0, 0, 0),
    ),
    "a_start_by_the_length": lambda: _from(
        "shape = Concat <axis = 0> (one, rows, five) z = ConstantOfShape (shape) late = Greater (steps, most) "
        "f = Cast <to = 1> (late) h = Add (z, f)", most=ints(3000),
    ),
    "a_start_by_the_row": lambda: _from(
        "r = Squeeze (rows) z = Sub (r, r) u = Div (r, r) places = Range (z, r, u) late = Greater (places, most) "
        "f = Cast <to = 1> (late) g = Reshape (f, shape) h = Expand (g, five)", most=np.int64(100),
        shape=ints(1, -1, 1),
    ),
}  # fmt: skip
"""What is constant in the compared sequences alone."""


def _with_all(nodes: str, *, opset: int = 17, **weights: Any) -> onnx.ModelProto:
    """Return running sums and `n`, which all timesteps make, and which is 0 in all compared sequences."""
    return graph(
        f"({X}) => (float[batch, time, 4] y) {{ {SUM} over = Sub (x, limit) r = Relu (over) {nodes} y = Add (s, n) }}",
        one=np.int64(1), limit=np.float32(100), opset=opset, **weights,
    )  # fmt: skip


AHEAD: dict[str, Case] = {
    "a_product_of_all": lambda: _with_all('n = Einsum <equation = "btf,bsf->btf"> (x, r)'),
    "a_product_of_all_in_letters": lambda: _with_all('n = Einsum <equation = "b...f,bsf->b...f"> (x, r)'),
    "normalised_over_time": lambda: _with_all(
        "t = Transpose <perm = [0, 2, 1]> (r) i = InstanceNormalization (t, gain, none) "
        "n = Transpose <perm = [0, 2, 1]> (i)", gain=np.ones(4, np.float32), none=np.zeros(4, np.float32),
    ),
    "a_length_of_one": lambda: _with_all("small = Add (r, tiny) l = LpNormalization <axis = 1> (small) n = Mul (l, r)",
                                         tiny=np.float32(1e-3)),
    "reversed": lambda: _with_all(
        f"{T} k = Sub (steps, one) rt = Transpose <perm = [1, 0, 2]> (r) of = Shape (rt) rows = Slice (of, i1, i2) "
        "lens = Expand (steps, rows) v = ReverseSequence <time_axis = 0, batch_axis = 1> (rt, lens) "
        "n = Transpose <perm = [1, 0, 2]> (v)", i1=ints(1), i2=ints(2),
    ),
    "exchanged": lambda: _with_all(
        "t = Transpose <perm = [0, 2, 1]> (r) m = MatMul (r, t) w = MatMul (m, r) n = Relu (w)"
    ),
    "the_next_value": lambda: _with_all(
        "cut = Slice (r, first, end, axis) n = Pad (cut, pads)", first=ints(1), end=ints(10**9), axis=ints(1),
        pads=ints(0, 0, 0, 0, 1, 0),
    ),
    "the_largest_of_all": lambda: _with_all("m = Hardmax <axis = 1> (r) n = Mul (m, r)"),
}  # fmt: skip
"""What looks ahead only where a value is large."""


def _chosen(branch: str) -> onnx.ModelProto:
    """Return running sums, or what a `branch` makes of the sequence where an input is above a limit."""
    return graph(
        f"""({X}, float[1] u) => (float[batch, time, 4] y) {{
            {SUM} above = Greater (u, limit) c = Squeeze (above)
            y = If (c) <
                then_branch = t () => (float[b, t, f] p) {{ {branch} }},
                else_branch = e () => (float[b, t, f] m) {{ m = Identity (s) }}>
        }}""",
        one=np.int64(1), limit=np.float32(100), axis=ints(1),
    )  # fmt: skip


AHEAD |= {
    "a_branch_that_adds_up": lambda: _chosen("p = CumSum (s, one)"),
    "a_branch_that_sums_all": lambda: _chosen("r = ReduceSum (x, axis) p = Add (s, r)"),
    "a_branch_over_all": lambda: _chosen("p = Softmax <axis = 1> (s)"),
}

OUTPUTS: dict[str, Case] = {
    "the_number_of_timesteps": lambda: graph(
        f"({X}) => (float[batch, time, 4] y, int64 n) {{ {T} y = CumSum (x, one) n = Identity (steps) }}",
        one=np.int64(1),
    ),
    "the_places": lambda: graph(
        f"({X}) => (float[batch, time, 4] y, int64[time] n) {{ {RANGE} y = CumSum (x, one) n = Mul (places, places) }}",
        one=np.int64(1),
    ),
    "the_shape": lambda: graph(
        f"({X}) => (float[batch, time, 4] y, int64[3] n) {{ n = Shape (x) y = CumSum (x, one) }}", one=np.int64(1)
    ),
}
"""Outputs that follow from the sizes."""

HOSTILE = {
    f"{group}-{name}": build
    for group, cases in {
        "by_length": BY_LENGTH, "lengths": LENGTHS, "sizes": SIZES, "loops": LOOPS, "constant": CONSTANT,
        "ahead": AHEAD, "outputs": OUTPUTS,
    }.items()
    for name, build in cases.items()
}  # fmt: skip

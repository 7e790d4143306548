"""What sums over time weigh: by a softmax over time in any layout, with masks; other sums over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import Entry, X, graph, ints

_SOFTMAX = "the weighted mean, the sum of the weights, the largest score unless all are small"


def pooled(nodes: str, shape: str = "batch, 4", **weights: Any) -> onnx.ModelProto:
    """Return a graph from `x` of `(batch, time, 4)` to `y`, with scores `s` of `(batch, time, 1)`."""
    given: dict[str, Any] = {"V": (4, 1), "one": ints(1), "two": ints(2)} | weights
    return graph(f"({X}) => (float[{shape}] y) {{ s = MatMul (x, V) {nodes} }}", **given)


def masked(nodes: str, **weights: Any) -> onnx.ModelProto:
    """Return the same with a mask `m` of `(batch, time, 1)`, which often begins with what does not count."""
    return pooled(f"first = Gather <axis = 2> (x, none) m = Greater (first, low) {nodes}", none=ints(0),
                  low=np.float32(0), **weights)  # fmt: skip


def heads() -> onnx.ModelProto:
    """Attention as two heads write it that share a batch axis with the rows."""
    return pooled(
        """xt = Transpose <perm = [0, 2, 1]> (x) k = Reshape (xt, together) v = Transpose <perm = [0, 2, 1]> (k)
        u = MatMul (x, U) ut = Transpose <perm = [0, 2, 1]> (u) scores = Reshape (ut, flat)
        w = Softmax <axis = 2> (scores) c = MatMul (w, v) y = Reshape (c, back)""",
        together=ints(-1, 2, 0), flat=ints(-1, 1, 0), back=ints(-1, 4),
        U=(4, 2),
    )  # fmt: skip


ZOO: dict[str, Entry] = {
    "pooled_by_einsum": Entry(
        lambda: pooled('f = Squeeze (s, two) w = Softmax <axis = 1> (f) '
                       'y = Einsum <equation = "bt,btd->bd"> (w, x)'),
        "an Einsum over time of a softmax over time", _SOFTMAX,
    ),
    "pooled_by_einsum_of_three": Entry(
        lambda: pooled('u = MatMul (x, U) w = Softmax <axis = 1> (u) g = Sigmoid (x) '
                       'y = Einsum <equation = "...th,...td,...te->...hd"> (w, x, g)', "batch, 3, 4", U=(4, 3)),
        "an Einsum with several heads, of three factors, one of which it sums over features", _SOFTMAX,
    ),
    "heads_in_the_batch": Entry(heads, "two heads, folded into the batch axis", _SOFTMAX),
    "repeated_weights": Entry(
        lambda: pooled("w = Softmax <axis = 1> (s) f = Reshape (w, rows) r = Unsqueeze (f, one) e = Tile (r, four) "
                       "t = Transpose <perm = [0, 2, 1]> (e) p = Mul (t, x) y = ReduceSum <keepdims = 0> (p, minus)",
                       rows=ints(0, -1), four=ints(1, 4, 1), minus=ints(-2)),
        "weights that are flattened, repeated and transposed", _SOFTMAX,
    ),
    "softmax_masked_by_a_large_number": Entry(
        lambda: masked("f = Where (m, s, large) w = Softmax <axis = 1> (f) p = Mul (w, x) "
                       "y = ReduceSum <keepdims = 0> (p, one)", large=np.float32(np.finfo(np.float32).min)),
        "a softmax over time, masked by the lowest number", _SOFTMAX,
    ),
    "mean_of_what_counts": Entry(
        lambda: masked("r = Cast <to = 1> (m) p = Mul (x, r) a = ReduceSum <keepdims = 0> (p, one) "
                       "f = Squeeze (r, two) n = ReduceSum (f, one) c = Clip (n, least) y = Div (a, c)",
                       least=np.float32(1e-6)),
        "a sum of what a mask lets through, divided by its count", "both sums",
    ),
    "places_of_extremes": Entry(
        lambda: pooled("r = Round (x) a = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (r) "
                       "b = ArgMin <axis = -2, keepdims = 0> (r) c = Sub (a, b) d = Cast <to = 1> (c) "
                       "t = Transpose <perm = [0, 2, 1]> (x) k = Conv (t, W) e = ArgMin <axis = 2> (k) "
                       "f = Squeeze (e, two) g = Cast <to = 1> (f) y = Add (d, g)", W=(4, 4, 3)),
        "places of the largest and smallest over time, the first or last of equal ones; behind a convolution",
        "each extreme so far and its place",
    ),
    "reduced_ends": Entry(
        lambda: pooled("l = Slice (x, start, end, one) a = ReduceLogSumExp <axes = [1], keepdims = 0> (l) "
                       "b = ArgMax <axis = 1, keepdims = 0> (l) c = Cast <to = 1> (b) y = Add (a, c)",
                       start=ints(-4), end=ints(2**62)),
        "the logarithm of a sum of exponentials of the last four timesteps, and the place of the largest in them",
        "the past three timesteps; at the beginning as many as there are",
    ),
    "mean_by_hand": Entry(
        lambda: pooled("l = Shape (x) t = Slice (l, one, two) n = Cast <to = 1> (t) "
                       "v = ReduceSum <keepdims = 0> (x, one) r = Sqrt (n) a = Div (v, n) b = Div (v, r) "
                       "y = Add (a, b)"),
        "a sum over time divided by the number of timesteps, and by its root", "the sum so far",
    ),
    "sums_of_squares": Entry(
        lambda: pooled("a = ReduceSumSquare <axes = [1], keepdims = 0> (x) b = ReduceL1 <axes = [1, 2]> (x) "
                       "c = Squeeze (b, two) d = ReduceL2 <axes = [1], keepdims = 0> (x) "
                       "e = Div (a, c) y = Add (d, e)"),
        "sums over time of squares and of absolute values, and the root of the former", "the sums so far",
    ),
}  # fmt: skip

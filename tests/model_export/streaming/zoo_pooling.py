"""What sums over time weigh: by a softmax over time in any layout, by quotients of sums over time, with masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import Entry, X, graph, ints

_SOFTMAX = "the weighted mean, the sum of the weights, the largest score unless all are small"
_VARIANCE = "a running mean, and a variance"
_QUOTIENT = "the weighted mean and the sum of the weights"


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
    "weighted_then_multiplied": Entry(
        lambda: pooled('w = Softmax <axis = 1> (s) a = Einsum <equation = "bti,btd->dtb"> (w, x) '
                       'g = Transpose <perm = [2, 1, 0]> (x) b = Mul (a, g) '
                       'c = ReduceMean <axes = [1], keepdims = 0> (b) y = Transpose (c)'),
        "a mean over time of what is weighted by an Einsum, moved and multiplied again", _SOFTMAX,
    ),
    "pooled_on_the_right": Entry(
        lambda: pooled("w = Softmax <axis = 1> (s) t = Transpose <perm = [0, 2, 1]> (x) c = MatMul (t, w) "
                       "y = Squeeze (c, two)"),
        "a product with the weights on the right", _SOFTMAX,
    ),
    "heads_in_the_batch": Entry(heads, "two heads, folded into the batch axis", _SOFTMAX),
    "repeated_weights": Entry(
        lambda: pooled("w = Softmax <axis = 1> (s) f = Reshape (w, rows) r = Unsqueeze (f, one) e = Tile (r, four) "
                       "t = Transpose <perm = [0, 2, 1]> (e) p = Mul (t, x) y = ReduceSum <keepdims = 0> (p, minus)",
                       rows=ints(0, -1), four=ints(1, 4, 1), minus=ints(-2)),
        "weights that are flattened, repeated and transposed", _SOFTMAX,
    ),
    "weights_of_two_heads": Entry(
        lambda: pooled("u = MatMul (x, U) a = Softmax <axis = 1> (s) b = Softmax <axis = 1> (u) d = Mul (b, two_) "
                       "w = Concat <axis = 2> (a, d) c, e = Split <axis = 2> (w) "
                       "f = Gather <axis = 2> (e, nil) g = Unsqueeze (f, two) h = Slice (c, zero, one, two) "
                       "i = Mul (h, x) j = Mul (g, x) k = ReduceSum <keepdims = 0> (i, one) "
                       "l = ReduceSum <keepdims = 0> (j, one) y = Concat <axis = 1> (k, l)", "batch, 8",
                       U=(4, 1), two_=np.float32(2), nil=np.int64(0), zero=ints(0)),
        "weights of two heads joined, cut apart again and summed one by one", _SOFTMAX,
    ),
    "softmax_by_hand": Entry(
        lambda: pooled("big = Mul (s, scale) m = ReduceMax <axes = [1]> (big) d = Sub (big, m) e = Exp (d) "
                       "n = ReduceSum (e, one) w = Div (e, n) p = Mul (w, x) y = ReduceSum <keepdims = 0> (p, one)",
                       scale=np.float32(60)),
        "a softmax written out: exponentials of large scores less their maximum, divided by their sum", _SOFTMAX,
    ),
    "softmax_from_logarithms": Entry(
        lambda: pooled("a = LogSoftmax <axis = 1> (s) b = Exp (a) p = Mul (b, x) l = ReduceSum <keepdims = 0> (p, one) "
                       "e = Exp (s) n = ReduceSum (e, one) o = Log (n) m = ReduceMax <axes = [1]> (s) c = Sub (s, m) "
                       "r = Sub (o, m) d = Sub (c, r) f = Exp (d) q = Mul (f, x) "
                       "k = ReduceSum <keepdims = 0> (q, one) y = Concat <axis = 1> (k, l)", "batch, 8"),
        "exponentials of a LogSoftmax, and of scores less the logarithm of the sum of theirs", _SOFTMAX,
    ),
    "softmax_masked_by_a_large_number": Entry(
        lambda: masked("f = Where (m, s, large) w = Softmax <axis = 1> (f) p = Mul (w, x) "
                       "y = ReduceSum <keepdims = 0> (p, one)", large=np.float32(np.finfo(np.float32).min)),
        "a softmax over time, masked by the lowest number", _SOFTMAX,
    ),
    "softmax_of_what_counts": Entry(
        lambda: masked("f = Where (m, s, never) w = Softmax <axis = 1> (f) z = Where (m, w, zero) p = Mul (z, x) "
                       "y = ReduceSum <keepdims = 0> (p, one)", never=np.float32(-np.inf), zero=np.float32(0)),
        "a softmax over time, masked by minus infinity, with zeros where nothing counts", _SOFTMAX,
    ),
    "exponentials_of_what_counts": Entry(
        lambda: masked("h = ReduceMax <axes = [1]> (s) d = Sub (s, h) e = Exp (d) r = Cast <to = 1> (m) f = Mul (e, r) "
                       "n = ReduceSum (f, one) o = Add (n, tiny) w = Div (f, o) p = Mul (w, x) "
                       "y = ReduceSum <keepdims = 0> (p, one)", tiny=np.float32(1e-6)),
        "exponentials times a mask, divided by their sum and a small number", _SOFTMAX,
    ),
    "masked_after_the_softmax": Entry(
        lambda: masked("w = Softmax <axis = 1> (s) r = Cast <to = 1> (m) f = Mul (w, r) n = ReduceSum (f, one) "
                       "o = Add (n, tiny) v = Div (f, o) t = Transpose <perm = [0, 2, 1]> (v) c = MatMul (t, x) "
                       "y = Squeeze (c, one)", tiny=np.float32(1e-6)),
        "a softmax over time, masked and divided by its sum again", _SOFTMAX,
    ),
    "mean_of_what_counts": Entry(
        lambda: masked("r = Cast <to = 1> (m) p = Mul (x, r) a = ReduceSum <keepdims = 0> (p, one) "
                       "f = Squeeze (r, two) n = ReduceSum (f, one) c = Clip (n, least) y = Div (a, c)",
                       least=np.float32(1e-6)),
        "a sum of what a mask lets through, divided by its count", _QUOTIENT,
    ),
    "shares_of_a_sum": Entry(
        lambda: pooled("t = Tanh (s) e = Exp (t) n = ReduceSum (e, one) o = Add (n, tiny) w = Div (e, o) "
                       "p = Mul (x, w) y = ReduceSum <keepdims = 0> (p, one)", tiny=np.float32(1e-7)),
        "exponentials divided by their sum over time, as weights of a sum over time", _QUOTIENT,
    ),
    "weighted_before_the_quotient": Entry(
        lambda: pooled("g = Sigmoid (s) p = Mul (g, x) n = ReduceSum (g, one) q = Div (p, n) "
                       "y = ReduceSum <keepdims = 0> (q, one)"),
        "what is weighted by gates, divided by their sum over time and summed over time", _QUOTIENT,
    ),
    "shares_of_itself": Entry(
        lambda: pooled("e = Exp (x) n = ReduceSum (e, one) q = Div (e, n) g = Mul (q, s) "
                       "y = ReduceSum <keepdims = 0> (g, one)"),
        "values divided by their own sum over time, times scores", _QUOTIENT,
    ),
    "times_an_answer": Entry(
        lambda: pooled("m = ReduceMean <axes = [1]> (x) p = Mul (m, x) q = Tanh (m) r = Div (p, q) "
                       "y = ReduceMean <axes = [1], keepdims = 0> (r)"),
        "each timestep times an answer for the whole sequence, averaged over time", "running means and a sum",
    ),
    "product_over_time": Entry(
        lambda: pooled("g = Sigmoid (x) h = Add (g, half) y = ReduceProd <axes = [1], keepdims = 0> (h)",
                       half=np.float32(0.5)),
        "a product over time", "the product so far",
    ),
    "variance": Entry(
        lambda: pooled("m = ReduceMean <axes = [1]> (x) d = Sub (x, m) q = Mul (d, d) "
                       "y = ReduceMean <axes = [1], keepdims = 0> (q)"),
        "the variance over time", _VARIANCE,
    ),
    "variance_by_hand": Entry(
        lambda: pooled("l = Shape (x) t = Gather (l, place) n = Cast <to = 1> (t) m = ReduceMean <axes = [1]> (x) "
                       "d = Sub (x, m) q = Pow (d, square) v = ReduceSum <keepdims = 0> (q, one) o = Add (n, half) "
                       "w = Div (v, o) y = Sqrt (w)", place=np.int64(1), square=np.float32(2), half=np.float32(0.5)),
        "the root of a sum of squares of differences from the mean, divided by a number of timesteps", _VARIANCE,
    ),
    "variance_of_timesteps_and_features": Entry(
        lambda: pooled("l = Shape (x) t = Gather (l, place) n = Cast <to = 1> (t) m = ReduceMean <axes = [1, 2]> (x) "
                       "d = Sub (x, m) v = ReduceSumSquare <axes = [1, 2]> (d) q = Squeeze (v, two) y = Div (q, n)",
                       "batch, 1", place=np.int64(1)),
        "the sum of squares of differences from the mean over time and features, divided by the timesteps", _VARIANCE,
    ),
    "variance_behind_a_convolution": Entry(
        lambda: pooled("c = Transpose <perm = [0, 2, 1]> (x) k = Conv (c, W) m = ReduceMean <axes = [2]> (k) "
                       "d = Sub (k, m) q = Mul (d, d) y = ReduceMean <axes = [2], keepdims = 0> (q)", W=(4, 4, 3)),
        "the variance over time behind a convolution without padding", _VARIANCE,
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

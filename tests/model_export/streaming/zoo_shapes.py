"""What happens within a timestep, and how exporters write down shapes."""

from __future__ import annotations

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, Entry, X, graph, ints


def with_function() -> onnx.ModelProto:
    return graph(
        f"({X}) => (float[batch, time, 4] y) {{ a = local.Gate (x) y = CumSum (a, one) }}",
        head=', "local" : 1',
        functions='<domain: "local", opset_import: ["" : 17]> Gate (v) => (w) { s = Sigmoid (v) w = Mul (v, s) }',
        one=np.int64(1),
    )


def shape_chain() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[rows, 3] y) {{
            shape = Shape (x)
            rows = Gather <axis = 0> (shape, zeroth)
            steps = Gather <axis = 0> (shape, first)
            total = Mul (rows, steps)
            flat = Concat <axis = 0> (total, four)
            folded = Reshape (x, flat)
            a = Gemm (folded, Wa, Ba)
            back = Concat <axis = 0> (rows, steps, three)
            b = Reshape (a, back)
            c = CumSum (b, one)
            y = Reshape (c, end)
        }}""",
        zeroth=ints(0), first=ints(1), four=ints(4), three=ints(3), one=np.int64(1), end=ints(-1, 3), Wa=(4, 3),
        Ba=(3,),
    )  # fmt: skip


def everything_per_timestep() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[batch, time, 4] y, float[batch, time, 2] z) {{
            a = LayerNormalization <axis = -1> (x, scale, bias)
            b = MatMul (a, W)
            c = Softmax <axis = -1> (b)
            m = ReduceMean <axes = [2], keepdims = 1> (c)
            d = Sub (c, m)
            e, mask = Dropout (d)
            ct = Transpose <perm = [0, 2, 1]> (e)
            f = BatchNormalization (ct, scale, bias, mean, var)
            g = Transpose <perm = [0, 2, 1]> (f)
            y = CumSum (g, one)
            p, z = Split <axis = 2> (y, halves)
        }}""",
        scale=(4,), bias=(4,), W=(4, 4), mean=(4,), var=np.array([0.5, 1, 2, 3], np.float32), one=np.int64(1),
        halves=ints(2, 2),
    )  # fmt: skip


def images() -> onnx.ModelProto:
    return graph(
        """(float[batch, time, 1, 8, 8] x) => (float[batch, time, 5] y) {
            folded = Reshape (x, one_by_one)
            c = Conv <strides = [2, 2]> (folded, V)
            r = Relu (c)
            p = GlobalAveragePool (r)
            q = Flatten (p)
            shape = Shape (x)
            both = Slice (shape, zero, two)
            size = Concat <axis = 0> (both, four)
            u = Reshape (q, size)
            t = Transpose <perm = [1, 0, 2]> (u)
            g = GRU <hidden_size = 5> (t, W, R, B)
            gs = Squeeze (g, one)
            y = Transpose <perm = [1, 0, 2]> (gs)
        }""",
        one_by_one=ints(-1, 1, 8, 8), V=(4, 1, 3, 3), zero=ints(0), one=ints(1), two=ints(2), four=ints(4), **GRU,
    )  # fmt: skip


ZOO: dict[str, Entry] = {
    "shape_chain": Entry(
        shape_chain, "Shape, Gather, Concat, Reshape: batch and time folded, also in the answer", "shapes for one step",
    ),
    "everything_per_timestep": Entry(
        everything_per_timestep, "normalisation, softmax, split, dropout over features", "as it is",
    ),
    "ids": Entry(
        lambda: graph("(int64[batch, time] ids) => (float[batch, time, 5] y) { x = Gather <axis = 0> (table, ids) "
                      "t = Transpose <perm = [1, 0, 2]> (x) yt = GRU <hidden_size = 5> (t, W, R, B) "
                      "ys = Squeeze (yt, one) y = Transpose <perm = [1, 0, 2]> (ys) }",
                      table=(9, 4), one=ints(1), **GRU),
        "an embedding of ids", "as it is",
    ),
    "static_input": Entry(
        lambda: graph(f"({X}, float[batch, 3] who) => (float[batch, time, 4] y) {{ e = MatMul (who, V) "
                      "u = Unsqueeze (e, one) s = Shape (x) w = Expand (u, s) a = Mul (x, w) y = CumSum (a, axis) }",
                      V=(3, 4), one=ints(1), axis=np.int64(1)),
        "an input without time axis, repeated over time", "sent with every timestep",
    ),
    "double_precision": Entry(
        lambda: graph("(double[batch, time, 4] x) => (double[batch, time, 4] y) { c = CumSum (x, one) y = Tanh (c) }",
                      one=np.int64(1)),
        "float64", "states in float64",
    ),
    "per_timestep_images": Entry(
        images, "a network of each image, batch and time folded, then a GRU", "as it is; h as state",
    ),
    "function": Entry(with_function, "local functions", "inlined"),
    "positions_in_floats": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y) {{ s = Shape (x) t = Gather (s, where) "
                      "f = Cast <to = 1> (t) e = Add (f, first) n = Range (first, e, first) "
                      "u = Unsqueeze (n, one) c = CumSum (x, axis) y = Div (c, u) }",
                      where=np.int64(1), first=np.float32(1), one=ints(1), axis=np.int64(1)),
        "the mean of the timesteps so far, counted by a Range of floats", "the sum, and a state that counts",
    ),
    "one_dimension": Entry(
        lambda: graph("(float[time] x) => (float[time] y) { y = CumSum (x, zero) }", zero=np.int64(0)),
        "no batch axis", "one row a run",
    ),
    "all_fixed": Entry(
        lambda: graph("(float[1, 20, 4] x) => (float[1, 20, 5] y) { xt = Transpose <perm = [1, 0, 2]> (x) "
                      "yt = GRU <hidden_size = 5> (xt, W, R, B, , h0) ys = Squeeze (yt, one) "
                      "y = Transpose <perm = [1, 0, 2]> (ys) }",
                      one=ints(1), h0=np.zeros((1, 1, 5), np.float32), **GRU),
        "batch and length fixed by the exporter", "both free again",
    ),
    "made_for_one_row": Entry(
        lambda: graph("(float[1, time, 4] x) => (float[1, time, 4] y) { c = CumSum (x, one) m = ReduceMean <axes = "
                      "[0, 2], keepdims = 1> (c) y = Sub (c, m) }", one=np.int64(1)),
        "a graph for one row that takes rows together where it is given several", "one row a run",
    ),
}  # fmt: skip

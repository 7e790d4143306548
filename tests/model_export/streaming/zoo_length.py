"""Graphs of a declared length: attention to all timesteps before, masks and tables by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, X, graph, ints
from tests.model_export.streaming.zoo_refused import CAUSAL

LENGTH = 20
LOWER = np.tril(np.ones((LENGTH, LENGTH), bool))
BLOCKS = LOWER & np.kron(np.eye(4, dtype=bool), np.ones((5, 5), bool))
NEVER = np.float32(-np.inf)

RANGES = """
    places = Range (nil, steps, one)
    rows = Unsqueeze (places, last)
    columns = Unsqueeze (places, first)
    seen = GreaterOrEqual (rows, columns)
"""
CUT = "seen = Slice (table, zeros, both, axes)"
OF_STEPS = (
    "sizes = Shape (x) steps = Gather <axis = 0> (sizes, one) step = Gather (sizes, last) both = Tile (step, two)"
)
HEADS = """
    qs = Reshape (q, heads) qt = Transpose <perm = [0, 2, 1, 3]> (qs)
    ks = Reshape (k, heads) kt = Transpose <perm = [0, 2, 3, 1]> (ks)
    vs = Reshape (v, heads) vt = Transpose <perm = [0, 2, 1, 3]> (vs)
    s = MatMul (qt, kt)
"""
BACK = "a = MatMul (p, vt) at = Transpose <perm = [0, 2, 1, 3]> (a) y = Reshape (at, flat)"
PROJECTED = "q = MatMul (x, Wq) k = MatMul (x, Wk) v = MatMul (x, Wv)"


def attending(
    nodes: str, *, inputs: str = X, outputs: str = "float[batch, time, 4] y", opset: int = 17, **weights: Any
) -> onnx.ModelProto:
    """Return a graph around queries, keys and values; `steps` is the number of timesteps."""
    given: dict[str, Any] = {
        "Wq": (4, 4), "Wk": (4, 4), "Wv": (4, 4), "nil": np.int64(0), "one": np.int64(1), "first": ints(0),
        "last": ints(1), "two": ints(2), "zeros": ints(0, 0), "axes": ints(0, 1), "heads": ints(0, 0, 2, 2),
        "flat": ints(0, 0, 4), "never": NEVER,
    }  # fmt: skip
    text = f"({inputs}) => ({outputs}) {{ {OF_STEPS} {PROJECTED} {nodes} }}"
    given |= weights
    return graph(text, opset=opset, **{name: value for name, value in given.items() if name in text})


def one_head(mask: str, **weights: Any) -> onnx.ModelProto:
    """Return attention of one head with a mask from `s` to `m`."""
    return attending(
        f"kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) {mask} "
        "p = Softmax <axis = -1> (m) y = MatMul (p, v)",
        **weights,
    )


def pairs(nodes: str, **weights: Any) -> onnx.ModelProto:
    """Return attention whose scores are made of the sum of each query and each key, `pair`."""
    return attending(
        f"qu = Unsqueeze (q, two) ku = Unsqueeze (k, last) pair = Add (qu, ku) {RANGES} {nodes} "
        "m = Where (seen, s, never) p = Softmax <axis = -1> (m) y = MatMul (p, v)",
        **weights,
    )


def masked_keys(mask: str, *, again: bool = True, **weights: Any) -> onnx.ModelProto:
    """Return attention of several heads whose keys are masked by an input, with the causal mask `seen`.

    Args:
        mask: From `s` to `m`.
        again: Whether the answers of masked timesteps are masked too.
        weights: More of them.
    """
    back = BACK.replace("y =", "z =") if again else BACK
    here = "here = Unsqueeze (counts, two) y = Where (here, z, nothing)" if again else ""
    return attending(
        f"{HEADS} {RANGES} {mask} p = Softmax <axis = -1> (m) {back} {here}",
        inputs=f"{X}, bool[batch, time] counts", whole=np.float32(1), low=np.float32(-1e9), inner=ints(1, 2),
        half=np.float32(0.5), nothing=np.zeros((), np.float32), **weights,
    )  # fmt: skip


def from_the_end() -> onnx.ModelProto:
    """Return attention of the last state of a GRU to all of its states."""
    return graph(
        f"""({X}) => (float[batch, 5] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x)
            ht, last = GRU <hidden_size = 5> (xt, W, R, B)
            hs = Squeeze (ht, one)
            h = Transpose <perm = [1, 0, 2]> (hs)
            q = Transpose <perm = [1, 0, 2]> (last)
            k = Transpose <perm = [0, 2, 1]> (h)
            s = MatMul (q, k)
            p = Softmax <axis = -1> (s)
            a = MatMul (p, h)
            y = Squeeze (a, one)
        }}""",
        one=ints(1), **GRU,
    )  # fmt: skip


def two_layers() -> onnx.ModelProto:
    """Return two layers of attention with positions, each beside what it looks at."""
    return attending(
        f"""{RANGES}
        e = Gather (positions, places)
        h = Add (v, e)
        kt = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, kt)
        m = Where (seen, s, never)
        p = Softmax <axis = -1> (m)
        a = MatMul (p, h)
        b = Add (a, h)
        bt = Transpose <perm = [0, 2, 1]> (b)
        s2 = MatMul (b, bt)
        m2 = Where (seen, s2, never)
        p2 = Softmax <axis = -1> (m2)
        a2 = MatMul (p2, b)
        y = Add (a2, b)""",
        positions=(LENGTH, 4),
    )


def to_something_static() -> onnx.ModelProto:
    """Return causal attention, whose answers attend to an input without timesteps."""
    return attending(
        f"""kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) {CAUSAL}
        p = Softmax <axis = -1> (m)
        h = MatMul (p, v)
        there = Transpose <perm = [0, 2, 1]> (memory)
        s2 = MatMul (h, there)
        p2 = Softmax <axis = -1> (s2)
        y = MatMul (p2, memory)""",
        inputs=f"{X}, float[batch, 3, 4] memory",
    )


DECLARED: dict[str, Callable[[], onnx.ModelProto]] = {
    "trilu": lambda: one_head(CAUSAL),
    "ranges_added": lambda: one_head(
        f"{RANGES} real = Cast <to = 1> (seen) less = Sub (whole, real) low = Mul (less, large) m = Add (s, low)",
        whole=np.float32(1), large=np.float32(-1e9),
    ),
    "cut_from_a_table": lambda: one_head(f"{CUT} m = Where (seen, s, never)", table=LOWER),
    "blocks": lambda: one_head(f"{CUT} m = Where (seen, s, never)", table=BLOCKS),
    "biases_of_pairs": lambda: one_head(
        f"{RANGES} bias = Slice (table, zeros, both, axes) b = Add (s, bias) m = Where (seen, b, never)",
        table=(LENGTH, LENGTH),
    ),
    "biases_of_keys": lambda: one_head(
        f"{RANGES} real = Cast <to = 1> (columns) slope = Mul (real, less) b = Add (s, slope) "
        "m = Where (seen, b, never)", less=np.float32(-0.1),
    ),
    "banded": lambda: one_head(
        f"{RANGES} age = Sub (rows, columns) near = Less (age, five) both_ = And (seen, near) "
        "m = Where (both_, s, never)", five=np.int64(5),
    ),
    "angles_between_pairs": lambda: one_head(  # of the zeros before the first timestep they are no number
        f"{RANGES} qn = ReduceL2 <axes = [2]> (q) kn = ReduceL2 <axes = [2]> (k) "
        "kw = Transpose <perm = [0, 2, 1]> (kn) both_ = MatMul (qn, kw) angle = Div (s, both_) "
        "m = Where (seen, angle, never)",
    ),
    "sizes_of_keys_above_a_least_one": lambda: one_head(  # the zeros before the first timestep are below it
        f"{RANGES} squares = Mul (k, k) sums = MatMul (squares, ones) roots = Sqrt (sums) sizes_ = Max (roots, least) "
        "kw = Transpose <perm = [0, 2, 1]> (sizes_) part = Div (s, kw) m = Where (seen, part, never)",
        ones=np.ones((4, 1), np.float32), least=np.float32(1e-3),
    ),
    "einsum": lambda: attending(
        'qs = Reshape (q, heads) ks = Reshape (k, heads) vs = Reshape (v, heads) '
        's = Einsum <equation = "aecd, abcd -> acbe"> (ks, qs) '
        f'{CAUSAL} p = Softmax <axis = -1> (m) at = Einsum <equation = "acbe,aecd->abcd"> (p, vs) '
        'y = Reshape (at, flat)'
    ),
    "keys_in_front": lambda: attending(
        f"qt = Transpose <perm = [0, 2, 1]> (q) s = MatMul (k, qt) {RANGES} seen_ = Transpose (seen) "
        "m = Where (seen_, s, never) p = Softmax <axis = 1> (m) pt = Transpose <perm = [0, 2, 1]> (p) "
        "y = MatMul (pt, v)"
    ),
    "grouped_heads": lambda: attending(
        "qs = Reshape (q, heads) qt = Transpose <perm = [0, 2, 1, 3]> (qs) kw = MatMul (x, Vk) vw = MatMul (x, Vv) "
        "ku = Unsqueeze (kw, last) kt = Transpose <perm = [0, 1, 3, 2]> (ku) vu = Unsqueeze (vw, last) "
        f"s = MatMul (qt, kt) {RANGES} m = Where (seen, s, never) p = Softmax <axis = -1> (m) a = MatMul (p, vu) "
        "at = Transpose <perm = [0, 2, 1, 3]> (a) y = Reshape (at, flat)",
        Vk=(4, 2), Vv=(4, 2),
    ),
    "additive": lambda: pairs("t = Tanh (pair) w = Mul (t, scale) s = ReduceSum <keepdims = 0> (w, end)",
                              scale=(4,), end=ints(-1)),
    "distances_along_an_axis_of_a_node": lambda: pairs(
        "t = Mul (pair, pair) axis = Constant <value = int64[1] {-1}> () w = ReduceSum <keepdims = 0> (t, axis) "
        "s = Neg (w)",
    ),
    "summed_by_hand": lambda: attending(
        f"kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) {CAUSAL} p = Softmax <axis = -1> (m) "
        "pu = Unsqueeze (p, end) vu = Unsqueeze (v, last) w = Mul (pu, vu) y = ReduceSum <keepdims = 0> (w, two)",
        end=ints(-1),
    ),
    "two_layers": two_layers,
    "to_something_static": to_something_static,
    "keys_masked_by_a_sum": lambda: masked_keys(
        "r = Cast <to = 1> (counts) c = Unsqueeze (r, inner) d = Sub (whole, c) low_ = Mul (d, low) l = Add (s, low_) "
        "m = Where (seen, l, never)"
    ),
    "keys_masked_by_a_choice": lambda: masked_keys(
        "c = Unsqueeze (counts, inner) e = And (c, seen) m = Where (e, s, low)"
    ),
    "operator_with_masked_keys": lambda: attending(
        "c = Unsqueeze (counts, inner) t = Shape <start = 1, end = 2> (x) o = Concat <axis = 0> (ones, t, t) "
        "e = Expand (c, o) z = Attention <is_causal = 1, q_num_heads = 2, kv_num_heads = 2> (q, k, v, e) "
        "here = Unsqueeze (counts, two) y = Where (here, z, nothing)",
        inputs=f"{X}, bool[batch, time] counts", opset=23, inner=ints(1, 2), nothing=np.zeros((), np.float32),
        ones=ints(1, 1),
    ),
    "from_the_end": from_the_end,
}  # fmt: skip

NEAR = "age = Sub (rows, columns) near = Less (age, five) band = And (seen, near)"

BANDED: dict[str, Callable[[], onnx.ModelProto]] = {
    "heads": lambda: attending(
        f"{HEADS} {RANGES} {NEAR} m = Where (band, s, never) p = Softmax <axis = -1> (m) {BACK}", five=np.int64(5)
    ),
    "einsum": lambda: attending(
        'qs = Reshape (q, heads) ks = Reshape (k, heads) vs = Reshape (v, heads) '
        f's = Einsum <equation = "bihd,bjhd->bhij"> (qs, ks) {RANGES} {NEAR} m = Where (band, s, never) '
        'p = Softmax <axis = -1> (m) at = Einsum <equation = "bhij,bjhd->bihd"> (p, vs) y = Reshape (at, flat)',
        five=np.int64(5),
    ),
    "additive": lambda: pairs(
        "t = Tanh (pair) w = Mul (t, scale) s_ = ReduceSum <keepdims = 0> (w, end) "
        "age = Sub (rows, columns) far = GreaterOrEqual (age, five) s = Where (far, never, s_)",
        scale=(4,), end=ints(-1), five=np.int64(5),
    ),
    "keys_masked": lambda: masked_keys(
        f"{NEAR} c = Unsqueeze (counts, inner) e = And (c, band) m = Where (e, s, low)", five=np.int64(5)
    ),
}  # fmt: skip
"""Attention with a mask of the last five timesteps, which needs no declared length."""

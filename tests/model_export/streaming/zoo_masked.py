"""Recurrences that hold their state at masked timesteps, and bodies of Scan that have operators with states."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import LSTM, Entry, X, graph, ints

MASKED = 0.25
"""A timestep is masked where all of its values are this number."""

SIZES: dict[str, Any] = {"v": np.float32(MASKED), "s0": ints(0), "s1": ints(1), "five": ints(5)}

MASK = """
    equal = Equal (x, v)
    differs = Not (equal)
    numbers = Cast <to = 1> (differs)
    any = ReduceMax <axes = [2]> (numbers)
    m = Cast <to = 9> (any)
"""
"""A mask of `(batch, time, 1)`."""

ZEROS = """
    shape = Shape (x)
    rows = Slice (shape, s0, s1)
    size = Concat <axis = 0> (rows, five)
    z = ConstantOfShape (size)
"""

LSTM_BODY = """
    body (float[n, 5] h, float[n, 5] c, float[n, 5] last, float[n, k] xi, bool[n, 1] mi)
    => (float[n, 5] hn, float[n, 5] cn, float[n, 5] on, float[n, 5] yi) {
        x1 = Unsqueeze (xi, s0)
        h1 = Unsqueeze (h, s0)
        c1 = Unsqueeze (c, s0)
        a, hb, cb = LSTM <hidden_size = 5> (x1, W, R, B, , h1, c1)
        hs = Squeeze (hb, s0)
        cs = Squeeze (cb, s0)
        hn = Where (mi, hs, h)
        cn = Where (mi, cs, c)
        on = Where (mi, hs, last)
        yi = Identity (on)
    }
"""

GRU_BODY = """
    body (float[n, 5] h, float[n, k] xi, bool[n, 1] mi) => (float[n, 5] hn, float[n, 5] yi) {
        x1 = Unsqueeze (xi, s0)
        h1 = Unsqueeze (h, s0)
        a, hb = GRU <hidden_size = 5> (x1, W2, R2, B2, , h1)
        hs = Squeeze (hb, s0)
        hn = Where (mi, hs, h)
        yi = Where (mi, hs, zero)
    }
"""


AXES = "scan_input_axes = [1, 1], scan_output_axes = [1]"
SECOND: dict[str, Any] = {"W2": (1, 15, 5), "R2": (1, 15, 5), "B2": (1, 30)}


def masked_lstm() -> onnx.ModelProto:
    """Its output at a masked timestep is the one before, as that of Keras' layers is."""
    return graph(
        f"""({X}) => (float[batch, time, 5] y, float[batch, 5] oT) {{
            {MASK} {ZEROS}
            [rnn] hT, cT, oT, y = Scan <num_scan_inputs = 2, {AXES}, body = {LSTM_BODY}> (z, z, z, x, m)
        }}""",
        **SIZES, **LSTM,
    )  # fmt: skip


def masked_stack() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            {MASK} {ZEROS}
            [first] hT, cT, oT, below = Scan <num_scan_inputs = 2, {AXES}, body = {LSTM_BODY}> (z, z, z, x, m)
            [second] gT, y = Scan <num_scan_inputs = 2, {AXES}, body = {GRU_BODY}> (z, below, m)
        }}""",
        zero=np.float32(0), **SIZES, **LSTM, **SECOND,
    )  # fmt: skip


ZOO: dict[str, Entry] = {
    "masked_lstm": Entry(
        masked_lstm, "an LSTM in a Scan that holds its state at masked timesteps",
        "the operator on one timestep, its states held; chunks by Scan",
    ),
    "masked_stack": Entry(
        masked_stack, "a masked LSTM below a masked GRU whose output is 0 there", "the states of each held",
    ),
}  # fmt: skip

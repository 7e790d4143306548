"""What is shifted, cut and padded over time by several ways of saying so, and what came so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, Entry, X, channels, graph, ints

CUTS: dict[str, Any] = {"zero": ints(0), "one": ints(1), "end": ints(-1), "most": ints(2**62)}


def shifts() -> onnx.ModelProto:
    """Return the timestep before, and the one before that, by five ways of saying so, side by side."""
    return graph(
        f"""({X}) => (float[batch, time, 20] y) {{
            first = Slice (x, zero, one, one)
            size = Shape (first)
            nothing = Expand (nil, size)
            before = Slice (x, zero, end, one)
            a = Concat <axis = 1> (nothing, before)
            b = Concat <axis = 1> (first, before)
            longer = Concat <axis = 1> (nothing, x)
            c = Slice (longer, zero, end, one)
            older = Slice (x, zero, two, one)
            d = Pad (older, pads)
            sizes = Shape (x)
            rows = Gather <axis = 0> (sizes, zero)
            shape = Concat <axis = 0> (rows, tail)
            zeros = ConstantOfShape (shape)
            e = Concat <axis = 1> (zeros, before)
            y = Concat <axis = 2> (a, b, c, d, e)
        }}""",
        **CUTS, nil=np.float32(0), two=ints(-2), pads=ints(0, 2, 0, 0, 0, 0), tail=ints(1, 4),
    )  # fmt: skip


def differences() -> onnx.ModelProto:
    """Return what changed since the timestep before, padded in front again, in front of a GRU."""
    return graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            later = Slice (x, one, most, one)
            before = Slice (x, zero, end, one)
            change = Sub (later, before)
            normed = LayerNormalization (change, scale)
            a = Pad (normed, pad, half)
            first = Slice (x, zero, one, one)
            b = Concat <axis = 1> (first, change)
            later3 = Slice (x, three, most, one)
            before3 = Slice (x, zero, end3, one)
            product = Mul (later3, before3)
            c = Pad (product, pad3)
            bent = Tanh (change)
            padded = Pad (bent, pad3)
            turned = Transpose <perm = [0, 2, 1]> (padded)
            made = Conv (turned, K)
            d = Transpose <perm = [0, 2, 1]> (made)
            all = Concat <axis = 2> (a, b, c, d)
            allt = Transpose <perm = [1, 0, 2]> (all)
            yt = GRU <hidden_size = 5> (allt, V, R, B)
            ys = Squeeze (yt, one)
            y = Transpose <perm = [1, 0, 2]> (ys)
        }}""",
        **CUTS, scale=np.ones(4, np.float32), half=np.float32(0.5), pad=ints(0, 1, 0, 0, 0, 0), three=ints(3),
        end3=ints(-3), pad3=ints(0, 3, 0, 0, 0, 0), K=(2, 4, 3), V=(1, 15, 14), R=GRU["R"], B=GRU["B"],
    )  # fmt: skip


def transposed() -> onnx.ModelProto:
    """Return a transposed convolution whose end is cut to the length of its input, so that it is causal."""
    return graph(
        """(float[batch, time, 4] x) => (float[batch, time, 3] y) {
            t = Transpose <perm = [0, 2, 1]> (x)
            c = ConvTranspose (t, W, B)
            b = Transpose <perm = [0, 2, 1]> (c)
            r = Relu (b)
            sizes = Shape (x)
            steps = Gather <axis = 0> (sizes, one)
            y = Slice (r, zero, steps, one, one)
        }""",
        zero=ints(0), one=ints(1), W=(4, 3, 3), B=(3,),
    )  # fmt: skip


ZOO: dict[str, Entry] = {
    "shifts": Entry(shifts, "the timestep before by several ways of saying so", "a delay for each"),
    "differences": Entry(
        differences, "differences, cut in front and padded there again, in front of a GRU",
        "delays; what pads stands in until the differences begin",
    ),
    "edge_through_layers": Entry(
        lambda: channels(
            'p = Pad <mode = "edge"> (x, pads) r = Relu (p) d = Add (r, p) y = Conv (d, W)',
            pads=ints(0, 0, 2, 0, 0, 0), W=(3, 4, 3),
        ),
        "padding with the first timestep, then layers, then a convolution", "a buffer that begins with it",
    ),
    "transposed_and_cut_to_length": Entry(
        transposed, "a transposed convolution, cut to the input's length",
        "a buffer of past timesteps",
    ),
}  # fmt: skip

"""Recurrences: operators with a state, Scan, Loop, running sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, LSTM, RNN, Entry, X, batch_first, graph, ints

LEARNED = """
    shape = Shape (x)
    rows = Gather <axis = 0> (shape, zeroth)
    size = Concat <axis = 0> (one, rows, five)
    h0 = Expand (learned, size)
"""


SCAN_BODY = """
    body (float[b, 5] h, float[b, 4] xi) => (float[b, 5] hn, float[b, 5] yi) {
        a = MatMul (xi, Wx)
        b = MatMul (h, Wh)
        s = Add (a, b)
        hn = Tanh (s)
        yi = Identity (hn)
    }
"""


# as tf2onnx writes a Keras layer that has no operator of its own
KERAS_LOOP = """
    (float[batch, time, 4] x) => (float[batch, time, 5] y, float[batch, 5] last) {
        xt = Transpose <perm = [1, 0, 2]> (x)
        shape = Shape (xt)
        steps = Gather <axis = 0> (shape, zero)
        rows = Gather <axis = 0> (shape, ones)
        size = Concat <axis = 0> (rows, five)
        h0 = ConstantOfShape (size)
        unused, last, yt = Loop (most, yes, zero, h0) <body =
            body (int64 turn, bool go, int64 i, float[b, 5] h)
            => (bool on, int64 inext, float[b, 5] hn, float[b, 5] yi) {
                xi = Gather <axis = 0> (xt, i)
                a = MatMul (xi, Wx)
                b = MatMul (h, Wh)
                s = Add (a, b)
                hn = Tanh (s)
                yi = Identity (hn)
                inext = Add (i, one)
                on = Less (inext, steps)
            }>
        y = Transpose <perm = [1, 0, 2]> (yt)
    }
"""


# as PyTorch scripts `for i in range(x.size(1)): ...; ys.append(h)`
SCRIPTED_LOOP = """
    (float[batch, time, 4] x) => (float[batch, time, 5] y) {
        shape = Shape (x)
        steps = Gather <axis = 0> (shape, one)
        rows = Gather <axis = 0> (shape, zeros)
        size = Concat <axis = 0> (rows, five)
        h0 = ConstantOfShape (size)
        empty = SequenceEmpty <dtype = 1> ()
        last, ys = Loop (steps, yes, h0, empty) <body =
            body (int64 i, bool go, float[b, 5] h, seq(float[b, 5]) l)
            => (bool on, float[b, 5] hn, seq(float[b, 5]) ln) {
                xi = Gather <axis = 1> (x, i)
                a = MatMul (xi, Wx)
                b = MatMul (h, Wh)
                s = Add (a, b)
                hn = Tanh (s)
                ln = SequenceInsert (l, hn)
                on = Identity (go)
            }>
        y = ConcatFromSequence <axis = 1, new_axis = 1> (ys)
    }
"""


# as PyTorch scripts `ys[:, i] = h`
FILLING_LOOP = """
    (float[batch, time, 4] x) => (float[batch, time, 5] y) {
        shape = Shape (x)
        steps = Gather <axis = 0> (shape, one)
        rows = Gather <axis = 0> (shape, zeros)
        long = Unsqueeze (steps, zeros)
        size = Concat <axis = 0> (rows, five)
        all = Concat <axis = 0> (rows, long, five)
        h0 = ConstantOfShape (size)
        y0 = ConstantOfShape (all)
        last, y = Loop (steps, yes, h0, y0) <body =
            body (int64 i, bool go, float[b, 5] h, float[b, t, 5] ys)
            => (bool on, float[b, 5] hn, float[b, t, 5] yn) {
                xi = Gather <axis = 1> (x, i)
                a = MatMul (xi, Wx)
                b = MatMul (h, Wh)
                s = Add (a, b)
                hn = Tanh (s)
                at = Unsqueeze (i, zeros)
                next = Add (at, ones)
                before = Slice (ys, zeros, at, ones)
                behind = Slice (ys, next, most, ones)
                here = Unsqueeze (hn, ones)
                yn = Concat <axis = 1> (before, here, behind)
                on = Identity (go)
            }>
    }
"""


def stacked_with_states() -> onnx.ModelProto:
    return graph(
        """(float[batch, time, 4] x, float[2, batch, 5] h0, float[2, batch, 5] c0)
        => (float[batch, time, 5] y, float[2, batch, 5] hn, float[2, batch, 5] cn) {
            xt = Transpose <perm = [1, 0, 2]> (x)
            ha = Slice (h0, s0, s1, s0)
            hb = Slice (h0, s1, s2, s0)
            ca = Slice (c0, s0, s1, s0)
            cb = Slice (c0, s1, s2, s0)
            [first] a, hna, cna = LSTM <hidden_size = 5> (xt, W, R, B, , ha, ca)
            as = Squeeze (a, s1)
            [second] b, hnb, cnb = LSTM <hidden_size = 5> (as, W2, R, B, , hb, cb)
            bs = Squeeze (b, s1)
            y = Transpose <perm = [1, 0, 2]> (bs)
            hn = Concat <axis = 0> (hna, hnb)
            cn = Concat <axis = 0> (cna, cnb)
        }""",
        s0=ints(0), s1=ints(1), s2=ints(2), W2=(1, 20, 5), **LSTM,
    )  # fmt: skip


def frequency() -> onnx.ModelProto:
    """A bidirectional GRU over 6 frequencies in each timestep, then one over time in each frequency."""
    return graph(
        """(float[batch, time, 6, 4] x) => (float[batch, time, 6, 5] y) {
            shape = Shape (x)
            rows = Slice (shape, s0, s1)
            steps = Slice (shape, s1, s2)
            folded = Reshape (x, flat)
            ft = Transpose <perm = [1, 0, 2]> (folded)
            [across] f = GRU <hidden_size = 2, direction = "bidirectional"> (ft, Wf, Rf)
            fp = Transpose <perm = [2, 0, 1, 3]> (f)
            back = Concat <axis = 0> (rows, steps, six4)
            u = Reshape (fp, back)
            ut = Transpose <perm = [1, 0, 2, 3]> (u)
            tflat = Concat <axis = 0> (steps, minus1, four)
            v = Reshape (ut, tflat)
            [along] g = GRU <hidden_size = 5> (v, W, R, B)
            gs = Squeeze (g, s1)
            unfold = Concat <axis = 0> (steps, rows, six5)
            gu = Reshape (gs, unfold)
            y = Transpose <perm = [1, 0, 2, 3]> (gu)
        }""",
        s0=ints(0), s1=ints(1), s2=ints(2), flat=ints(-1, 6, 4), six4=ints(6, 4), six5=ints(6, 5), minus1=ints(-1),
        four=ints(4), Wf=(2, 6, 4), Rf=(2, 6, 2), **GRU,
    )  # fmt: skip


def from_a_picture() -> onnx.ModelProto:
    return graph(
        f"""({X}, float[batch, 3] who) => (float[batch, time, 5] y) {{
            start = MatMul (who, Wi)
            h0 = Unsqueeze (start, zero)
            xt = Transpose <perm = [1, 0, 2]> (x)
            [rnn] yt = RNN <hidden_size = 5> (xt, W, R, B, , h0)
            ys = Squeeze (yt, one)
            y = Transpose <perm = [1, 0, 2]> (ys)
        }}""",
        Wi=(3, 5), zero=ints(0), one=ints(1), **RNN,
    )  # fmt: skip


def places(steps: int) -> dict[str, Any]:
    """Return the place of every timestep as a weight."""
    return {f"at{t}": np.int64(t) for t in range(steps)}


def unrolled(steps: int) -> str:
    """Return a recurrence with a copy of its nodes for every timestep, which gives all of its values and the last."""
    copies = "".join(
        f"x{t} = Gather <axis = 1> (x, at{t}) a{t} = MatMul (x{t}, Wx) b{t} = MatMul (h{t}, Wh) "
        f"c{t} = Add (a{t}, b{t}) h{t + 1} = Tanh (c{t}) u{t} = Unsqueeze (h{t + 1}, ones) "
        for t in range(steps)
    )
    return (
        f"(float[batch, {steps}, 4] x) => (float[N, T, 5] y, float[N, 5] hn) {{ sx = Shape (x) r = Gather (sx, zero) "
        f"z = Concat <axis = 0> (r, five) h0 = ConstantOfShape (z) {copies}"
        f"y = Concat <axis = 1> ({', '.join(f'u{t}' for t in range(steps))}) hn = Neg (h{steps}) }}"
    )


ZOO: dict[str, Entry] = {
    "lstm": Entry(
        lambda: batch_first("[lstm] yt = LSTM <hidden_size = 5> (xt, W, R, B)", **LSTM),
        "LSTM over time, batch first", "the operator on one timestep, h and c as states",
    ),
    "lstm_layout_1": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 1, 5] y) "
                      "{ y = LSTM <hidden_size = 5, layout = 1> (x, W, R, B) }", **LSTM),
        "LSTM with layout 1, which onnxruntime refuses", "layout 0 between transpositions",
    ),
    "lstm_extras": Entry(
        lambda: batch_first("yt = LSTM <hidden_size = 5, clip = 0.7, input_forget = 0, "
                            'activations = ["HardSigmoid", "Tanh", "Softsign"], activation_alpha = [0.3], '
                            "activation_beta = [0.4]> (xt, W, R, B, , , , P)", P=(1, 15), **LSTM),
        "LSTM with peepholes, clip and other activations", "the operator on one timestep",
    ),
    "gru": Entry(
        lambda: batch_first("[gru] yt = GRU <hidden_size = 5, linear_before_reset = 1> (xt, W, R, B)", **GRU),
        "GRU over time", "the operator on one timestep, h as state",
    ),
    "learned_initial_state": Entry(
        lambda: batch_first(LEARNED + "yt = GRU <hidden_size = 5> (xt, W, R, B, , h0)", learned=(1, 1, 5),
                            zeroth=ints(0), five=ints(5), **GRU),
        "an initial state that was learned", "kept as the state's initial value",
    ),
    "stacked_with_states": Entry(
        stacked_with_states, "two layers, their states stacked in one input and output", "a state for each layer",
    ),
    "initial_state_computed": Entry(
        from_a_picture, "an initial state computed from an input without time", "taken at the first timestep alone",
    ),
    "sequence_lens": Entry(
        lambda: graph("(float[T, N, 4] x, int32[N] lens) => (float[T, d, N, 5] y) "
                      "{ y = GRU <hidden_size = 5> (x, W, R, B, lens) }", **GRU),
        "sequence_lens", "dropped: a stream has no length",
    ),
    "lengths_as_declared": Entry(
        lambda: graph("(float[3, 20, 4] x) => (float[20, 1, 3, 5] y) { xt = Transpose <perm = [1, 0, 2]> (x) "
                      "y = GRU <hidden_size = 5> (xt, W, R, B, lens) }", lens=np.full(3, 20, np.int32), **GRU),
        "sequence_lens written into the graph, all of them the declared length", "dropped",
    ),
    "other_axes": Entry(
        frequency, "a bidirectional GRU over frequency, a GRU over time in each frequency",
        "left alone; one state for all frequencies",
    ),
    "squeeze_without_axes": Entry(
        lambda: graph("(float[T, N, 4] x) => (float[T, N, 5] y) { yt = GRU <hidden_size = 5> (x, W, R, B) "
                      "y = Squeeze (yt) }", **GRU),
        "Squeeze without axes", "only the axes of length 1 in the sequence graph",
    ),
    "cumsum": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y, float[batch, time, 4] z) {{ y = CumSum (x, one) "
                      "z = CumSum <exclusive = 1> (x, one) }", one=np.int64(1)),
        "running sums", "the sum as a state",
    ),
    "scan": Entry(
        lambda: graph("(float[T, N, 4] x, float[N, 5] h0) => (float[N, 5] hn, float[T, N, 5] y) { "
                      f"hn, y = Scan <num_scan_inputs = 1, body = {SCAN_BODY}> (h0, x) }}", Wx=(4, 5), Wh=(5, 5)),
        "Scan over time with its state as input and output", "the nodes of its body on one timestep",
    ),
    "loop_that_fills": Entry(
        lambda: graph(FILLING_LOOP, zeros=ints(0), ones=ints(1), one=np.int64(1), five=ints(5), most=ints(2**62),
                      yes=np.array(True), Wx=(4, 5), Wh=(5, 5)),
        "a loop over time that fills a tensor", "its body; the tensor has one timestep",
    ),
    "loop_of_keras": Entry(
        lambda: graph(KERAS_LOOP, zero=np.int64(0), one=np.int64(1), ones=ints(1), five=ints(5),
                      most=np.int64(2**62), yes=np.array(True), Wx=(4, 5), Wh=(5, 5)),
        "a loop over time as tf2onnx writes it", "its body; floats become states, the counter begins anew",
    ),
    "unrolled": Entry(
        lambda: graph(unrolled(6), zero=ints(0), five=ints(5), ones=ints(1), Wx=(4, 5), Wh=(5, 5),
                      **places(6)),
        "a loop over time that the exporter wrote out for every timestep", "a Scan again, and the nodes of its body",
    ),
    "loop_of_torch": Entry(
        lambda: graph(SCRIPTED_LOOP, zeros=ints(0), one=np.int64(1), five=ints(5), yes=np.array(True),
                      Wx=(4, 5), Wh=(5, 5)),
        "a loop over time as PyTorch scripts it, with a list", "its body; the list has one element",
    ),
}  # fmt: skip

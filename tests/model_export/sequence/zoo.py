"""Small sequence graphs of every kind that can be stepped, written by hand as exporters write them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser

from model_export.manifest import Array


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of graph.

    Attributes:
        build: Makes it.
        shows: What it stands for.
        how: How it is stepped.
    """

    build: Callable[[], onnx.ModelProto]
    shows: str
    how: str


def graph(text: str, *, opset: int = 17, head: str = "", functions: str = "", **weights: Any) -> onnx.ModelProto:
    """Return a model from ONNX' own text form.

    Args:
        text: `(inputs) => (outputs) { nodes }`.
        opset: Version of the operators.
        head: More for the model's header.
        functions: Local functions in text form.
        weights: A tensor, or the shape of one of random numbers, by name.
    """
    header = f'<ir_version: 8, opset_import: ["" : {opset}{head}]>'
    model = onnx.parser.parse_model(f"{header}\ng {text}\n{functions}")
    for name, value in weights.items():
        array = random(name, *value) if isinstance(value, tuple) else np.asarray(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def random(name: str, *shape: int) -> Array:
    """Return random weights of a trained model's size, the same ones for the same name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.standard_normal(shape) * 0.8 / np.sqrt(max(shape[-1:], default=1))).astype(np.float32)


def ints(*values: int) -> Array:
    """Return axes, shapes or indices."""
    return np.array(values, np.int64)


X = "float[batch, time, 4] x"
BTC = "float[batch, channels, time] y"
LSTM: dict[str, Any] = {"W": (1, 20, 4), "R": (1, 20, 5), "B": (1, 40)}
GRU: dict[str, Any] = {"W": (1, 15, 4), "R": (1, 15, 5), "B": (1, 30)}
RNN: dict[str, Any] = {"W": (1, 5, 4), "R": (1, 5, 5), "B": (1, 10)}


def batch_first(nodes: str, **weights: Any) -> onnx.ModelProto:
    """Return a graph of `(batch, time, 4)` around nodes from `xt`, time first, to `yt` of `(time, 1, batch, 5)`."""
    return graph(
        f"""({X}) => (float[batch, time, 5] y) {{
            xt = Transpose <perm = [1, 0, 2]> (x)
            {nodes}
            ys = Squeeze (yt, one)
            y = Transpose <perm = [1, 0, 2]> (ys)
        }}""",
        one=ints(1),
        **weights,
    )


def channels(nodes: str, rest: str = "", **weights: Any) -> onnx.ModelProto:
    """Return a graph of `(batch, 4, time)` from `x` to `y`."""
    return graph(f"(float[batch, 4, time] x) => ({BTC}) {{ {nodes} {rest} }}", **weights)


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


def conv2d() -> onnx.ModelProto:
    """Causal in time, padded and strided in frequency, as in speech enhancement, with its way back."""
    return graph(
        """(float[batch, 1, time, 9] x) => (float[batch, 1, time, 9] y) {
            [down] a = Conv <pads = [2, 1, 0, 1], strides = [1, 2]> (x, Wa, Ba)
            b = PRelu (a, slope)
            [up] c = ConvTranspose <pads = [0, 1, 2, 1], strides = [1, 2], output_padding = [0, 0]> (b, Wb, Bb)
            y = Sigmoid (c)
        }""",
        Wa=(3, 1, 3, 3), Ba=(3,), slope=(3, 1, 1), Wb=(3, 1, 3, 3), Bb=(1,),
    )  # fmt: skip


def with_function() -> onnx.ModelProto:
    return graph(
        f"({X}) => (float[batch, time, 4] y) {{ a = local.Gate (x) y = CumSum (a, one) }}",
        head=', "local" : 1',
        functions='<domain: "local", opset_import: ["" : 17]> Gate (v) => (w) { s = Sigmoid (v) w = Mul (v, s) }',
        one=np.int64(1),
    )


def known_branch() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            shape = Shape (x)
            width = Gather <axis = 0> (shape, two)
            is4 = Equal (width, four)
            a = If (is4) <
                then_branch = t () => (float[b, t, f] p) {{ q = Tanh (x) p = Mul (q, half) }},
                else_branch = e () => (float[b, t, f] m) {{ m = ReduceMean <axes = [1]> (x) }}>
            y = CumSum (a, axis)
        }}""",
        two=np.int64(2), four=np.int64(4), half=np.float32(0.5), axis=np.int64(1),
    )  # fmt: skip


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


def positions() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            shape = Shape (x)
            steps = Gather <axis = 0> (shape, one)
            places = Range (zero, steps, one)
            column = Unsqueeze (places, ones)
            real = Cast <to = 1> (column)
            angle = Mul (real, speeds)
            wave = Sin (angle)
            y = Add (x, wave)
        }}""",
        zero=np.int64(0), one=np.int64(1), ones=ints(1), speeds=(1, 4),
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


ZOO: dict[str, Entry] = {
    "lstm": Entry(
        lambda: batch_first("[lstm] yt = LSTM <hidden_size = 5> (xt, W, R, B)", **LSTM),
        "LSTM over time, batch first", "the operator on one timestep, h and c as states",
    ),
    "lstm_time_first": Entry(
        lambda: graph("(float[T, N, 4] x) => (float[T, d, N, 5] y, float[d, N, 5] h, float[d, N, 5] c) "
                      "{ y, h, c = LSTM <hidden_size = 5> (x, W, R, B) }", **LSTM),
        "LSTM over time, time first, with its final states as answers", "the operator on one timestep",
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
    "rnn_relu": Entry(
        lambda: batch_first('yt = RNN <hidden_size = 5, activations = ["Relu"]> (xt, W, R, B)', **RNN),
        "RNN over time", "the operator on one timestep, h as state",
    ),
    "learned_initial_state": Entry(
        lambda: batch_first(LEARNED + "yt = GRU <hidden_size = 5> (xt, W, R, B, , h0)", learned=(1, 1, 5),
                            zeroth=ints(0), five=ints(5), **GRU),
        "an initial state that was learned", "kept as the state's initial value",
    ),
    "initial_state_given": Entry(
        lambda: graph("(float[T, N, 4] x, float[1, N, 5] h0) => (float[T, d, N, 5] y, float[1, N, 5] hn) "
                      "{ y, hn = GRU <hidden_size = 5> (x, W, R, B, , h0) }", **GRU),
        "initial and final state as input and output", "the state of the step graph",
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
    "other_axes": Entry(
        frequency, "a bidirectional GRU over frequency, a GRU over time in each frequency",
        "left alone; one state for all frequencies",
    ),
    "last_by_state": Entry(
        lambda: graph(f"({X}) => (float[batch, 2] y) {{ xt = Transpose <perm = [1, 0, 2]> (x) "
                      "yt, h = GRU <hidden_size = 5> (xt, W, R, B) hs = Squeeze (h, zero) y = Gemm (hs, V) }",
                      V=(5, 2), zero=ints(0), **GRU),
        "a head on the final state", "an answer for the timesteps so far, at every timestep",
    ),
    "last_by_gather": Entry(
        lambda: graph(f"({X}) => (float[batch, 4] y) {{ c = CumSum (x, one) y = Gather <axis = 1> (c, last) }}",
                      one=np.int64(1), last=np.int64(-1)),
        "a head on the last timestep by Gather", "an answer for the timesteps so far",
    ),
    "last_by_slice": Entry(
        lambda: graph(f"({X}) => (float[batch, n, 4] y) {{ c = CumSum (x, one) y = Slice (c, start, end, axes) }}",
                      one=np.int64(1), start=ints(-3), end=ints(2**62), axes=ints(1)),
        "a head on the last three timesteps", "a buffer of two",
    ),
    "squeeze_without_axes": Entry(
        lambda: graph("(float[T, N, 4] x) => (float[T, N, 5] y) { yt = GRU <hidden_size = 5> (x, W, R, B) "
                      "y = Squeeze (yt) }", **GRU),
        "Squeeze without axes", "only the axes of length 1 in the sequence graph",
    ),
    "pad_then_conv": Entry(
        lambda: channels("p = Pad (x, pads) y = Conv (p, W, B)", pads=ints(0, 0, 2, 0, 0, 0), W=(3, 4, 3), B=(3,)),
        "a causal convolution: Pad, then Conv", "a buffer of past timesteps",
    ),
    "asymmetric_pads": Entry(
        lambda: channels("y = Conv <pads = [6, 0], dilations = [3], group = 2> (x, W, B)", W=(4, 2, 3), B=(4,)),
        "a dilated causal convolution by its own padding", "a buffer of past timesteps",
    ),
    "padded_with_ones": Entry(
        lambda: channels("p = Pad (x, pads, one) y = Conv (p, W)", pads=ints(0, 0, 2, 0, 0, 0), W=(3, 4, 3),
                         one=np.float32(1)),
        "padding with another number", "that number as the buffer's initial value",
    ),
    "chomp": Entry(
        lambda: channels("c = Conv <pads = [4, 4], dilations = [2]> (x, W, B) y = Slice (c, zero, end, axes)",
                         zero=ints(0), end=ints(-4), axes=ints(2), W=(3, 4, 3), B=(3,)),
        "padding on both sides, the end cut off again", "a buffer; what is cut off is never computed",
    ),
    "chomp_by_length": Entry(
        lambda: channels("c = Conv <pads = [2, 2]> (x, W) s = Shape (x) t = Gather (s, axes) "
                         "y = Slice (c, zero, t, axes)", zero=ints(0), axes=ints(2), W=(3, 4, 3)),
        "the end cut off to the input's length", "a buffer; what is cut off is never computed",
    ),
    "padded_once": Entry(
        lambda: channels("p = Pad (x, pads) a = Conv (p, W, B) b = Relu (a) c = Conv <dilations = [2]> (b, V, C) "
                         "y = Tanh (c)", pads=ints(0, 0, 6, 0, 0, 0), W=(3, 4, 3), B=(3,), V=(2, 3, 3), C=(2,)),
        "two convolutions, the padding for both in front", "buffers that begin with what the padding makes of them",
    ),
    "residual_tcn": Entry(
        lambda: channels("a = Conv <pads = [2, 0]> (x, W, B) b = Relu (a) c = Add (b, x) "
                         "d = Conv <pads = [4, 0], dilations = [2]> (c, W, B) e = Relu (d) y = Add (e, c)",
                         W=(4, 4, 3), B=(4,)),
        "a temporal convolutional network with residuals", "a buffer for each convolution",
    ),
    "valid_conv": Entry(
        lambda: channels("a = Conv (x, W) b = Relu (a) r = Slice (x, start, end, axes) y = Add (b, r)",
                         W=(4, 4, 3), start=ints(2), end=ints(2**62), axes=ints(2)),
        "a convolution without padding, the residual cut to fit", "answers from the third timestep on are compared",
    ),
    "valid_conv_then_padded": Entry(
        lambda: channels("a = Conv (x, W, B) b = Conv <pads = [2, 0]> (a, V, B) y = Relu (b)", W=(4, 4, 3), B=(4,),
                         V=(4, 4, 3)),
        "a padded convolution behind one without padding", "the padding until the first one answers",
    ),
    "valid_conv_then_lstm": Entry(
        lambda: graph("(float[batch, 4, time] x) => (float[steps, d, batch, 5] y, float[d, batch, 5] h) { "
                      "a = Conv (x, V) t = Transpose <perm = [2, 0, 1]> (a) "
                      "y, h = LSTM <hidden_size = 5> (t, W, R, B) }", V=(4, 4, 3), **LSTM),
        "an LSTM behind a convolution without padding", "the state waits until the convolution answers",
    ),
    "conv2d": Entry(conv2d, "Conv and ConvTranspose over time and frequency", "buffers along time alone"),
    "max_pool": Entry(
        lambda: channels("y = MaxPool <kernel_shape = [3], pads = [2, 0]> (x)"),
        "left-padded maximum", "a buffer that begins with the lowest number",
    ),
    "average_pool": Entry(
        lambda: channels("p = Pad (x, pads) y = AveragePool <kernel_shape = [4]> (p)", pads=ints(0, 0, 3, 0, 0, 0)),
        "moving average", "a buffer of past timesteps",
    ),
    "delta_by_shift": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 8] y) {{ p = Pad (x, pads) q = Slice (p, zero, end, axes) "
                      "d = Sub (x, q) y = Concat <axis = 2> (x, d) }",
                      pads=ints(0, 1, 0, 0, 0, 0), zero=ints(0), end=ints(-1), axes=ints(1)),
        "differences, by a shifted copy", "a delay of one timestep",
    ),
    "delta_then_pad": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y) {{ a = Slice (x, one, most, one) b = Slice (x, zero, end, "
                      "one) d = Sub (a, b) y = Pad (d, pads) }",
                      zero=ints(0), one=ints(1), end=ints(-1), most=ints(2**62), pads=ints(0, 1, 0, 0, 0, 0)),
        "differences, padded in front", "a delay, and the padding at the first timestep",
    ),
    "delta_behind_first": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y) {{ a = Slice (x, one, most, one) b = Slice (x, zero, end, "
                      "one) d = Sub (a, b) f = Slice (x, zero, one, one) y = Concat <axis = 1> (f, d) }",
                      zero=ints(0), one=ints(1), end=ints(-1), most=ints(2**62)),
        "differences behind the first timestep itself", "a delay; the first timestep is its own answer",
    ),
    "edge_padding": Entry(
        lambda: channels('p = Pad <mode = "edge"> (x, pads) y = Conv (p, W)', pads=ints(0, 0, 2, 0, 0, 0), W=(3, 4, 3)),
        "padding with the first timestep", "a buffer that begins with it",
    ),
    "first_repeated": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y) {{ f = Slice (x, zero, one, one) "
                      "b = Slice (x, zero, end, one) p = Concat <axis = 1> (f, b) y = Sub (x, p) }",
                      zero=ints(0), one=ints(1), end=ints(-1)),
        "differences that begin with zero", "a delay that begins with the first timestep",
    ),
    "shape_of_the_first": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y) {{ f = Slice (x, zero, one, one) s = Shape (f) "
                      "z = ConstantOfShape (s) p = Concat <axis = 1> (z, x) y = Slice (p, zero, end, one) }",
                      zero=ints(0), one=ints(1), end=ints(-1)),
        "a part of which only the shape is used", "never computed",
    ),
    "shifted_in": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 5] y) {{ s = Shape (x) r = Gather (s, zero) "
                      "z = Concat <axis = 0> (r, tail) start = Expand (token, z) p = Concat <axis = 1> (start, x) "
                      "q = Slice (p, zero, end, one) t = Transpose <perm = [1, 0, 2]> (q) "
                      "yt = GRU <hidden_size = 5> (t, W, R, B) ys = Squeeze (yt, one) "
                      "y = Transpose <perm = [1, 0, 2]> (ys) }",
                      zero=ints(0), one=ints(1), end=ints(-1), tail=ints(1, 4), token=(1, 1, 4), **GRU),
        "a start token in front, the last timestep cut off", "a delay that begins with the token",
    ),
    "cumsum": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y, float[batch, time, 4] z) {{ y = CumSum (x, one) "
                      "z = CumSum <exclusive = 1> (x, one) }", one=np.int64(1)),
        "running sums", "the sum as a state",
    ),
    "scan": Entry(
        lambda: graph("(float[T, N, 4] x, float[N, 5] h0) => (float[N, 5] hn, float[T, N, 5] y) { "
                      f"hn, y = Scan <num_scan_inputs = 1, body = {SCAN_BODY}> (h0, x) }}", Wx=(4, 5), Wh=(5, 5)),
        "Scan over time with its state as input and output", "one turn of it",
    ),
    "scan_axis_1": Entry(
        lambda: graph(f"({X}) => (float[N, T, 5] y) {{ sx = Shape (x) r = Gather (sx, zero) z = Concat <axis = 0> "
                      "(r, five) h0 = ConstantOfShape (z) hn, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], "
                      f"scan_output_axes = [1], body = {SCAN_BODY}> (h0, x) }}",
                      zero=ints(0), five=ints(5), Wx=(4, 5), Wh=(5, 5)),
        "Scan over another axis than the first", "one turn of it",
    ),
    "loop_of_keras": Entry(
        lambda: graph(KERAS_LOOP, zero=np.int64(0), one=np.int64(1), ones=ints(1), five=ints(5),
                      most=np.int64(2**62), yes=np.array(True), Wx=(4, 5), Wh=(5, 5)),
        "a loop over time as tf2onnx writes it", "one turn; floats become states, the counter begins anew",
    ),
    "loop_of_torch": Entry(
        lambda: graph(SCRIPTED_LOOP, zeros=ints(0), one=np.int64(1), five=ints(5), yes=np.array(True),
                      Wx=(4, 5), Wh=(5, 5)),
        "a loop over time as PyTorch scripts it, with a list", "one turn; the list has one element",
    ),
    "shape_chain": Entry(
        shape_chain, "Shape, Gather, Concat, Reshape: batch and time folded, also in the answer", "shapes for one step",
    ),
    "positions": Entry(
        positions, "sines of the position", "a state that counts; one row a run",
    ),
    "everything_per_timestep": Entry(
        everything_per_timestep, "normalisation, softmax, split, dropout over features", "as it is",
    ),
    "softmax_over_many_axes": Entry(
        lambda: graph("(float[N, T, 4] x) => (float[N, T, 4] y) { c = CumSum (x, one) y = Softmax <axis = 2> (c) }",
                      opset=12, one=np.int64(1)),
        "Softmax of older opsets", "as it is",
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
    "function": Entry(with_function, "local functions", "inlined"),
    "known_branch": Entry(known_branch, "If whose condition follows from sizes", "the branch that is taken"),
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
    "batch_of_one": Entry(
        lambda: graph("(float[1, time, 4] x) => (float[1, time, 4] y) { a = Reshape (x, shape) b = CumSum (a, one) "
                      "y = Reshape (b, shape) }", shape=ints(1, -1, 4), one=np.int64(1)),
        "a graph for one row only", "one row a run",
    ),
    "length_in_shapes": Entry(
        lambda: graph("(float[1, 20, 4] x) => (float[1, 20, 5] y) { f = Reshape (x, flat) g = MatMul (f, V) "
                      "u = Reshape (g, back) t = Transpose <perm = [1, 0, 2]> (u) "
                      "yt = GRU <hidden_size = 5> (t, W, R, B) ys = Squeeze (yt, one) "
                      "y = Transpose <perm = [1, 0, 2]> (ys) }",
                      flat=ints(20, 4), back=ints(1, 20, 4), V=(4, 4), one=ints(1), **GRU),
        "the length written into shapes by the exporter", "compared at that length",
    ),
}  # fmt: skip

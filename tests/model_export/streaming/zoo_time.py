"""What looks back a fixed way: convolutions, pooling, differences, shifts, heads, attention over a window."""

from __future__ import annotations

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, LSTM, Entry, X, channels, graph, ints


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


def windowed_attention() -> onnx.ModelProto:
    return graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            q = MatMul (x, Wq)
            k = MatMul (x, Wk)
            v = MatMul (x, Wv)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (q, kt)
            shape = Shape (x)
            steps = Gather <axis = 0> (shape, one)
            places = Range (zero, steps, one)
            rows = Unsqueeze (places, ones)
            columns = Unsqueeze (places, zeros)
            age = Sub (rows, columns)
            past = GreaterOrEqual (age, zero)
            near = Less (age, five)
            seen = And (past, near)
            real = Cast <to = 1> (age)
            slope = Mul (real, minus)
            weighed = Add (scores, slope)
            masked = Where (seen, weighed, never)
            p = Softmax <axis = -1> (masked)
            y = MatMul (p, v)
        }}""",
        Wq=(4, 4), Wk=(4, 4), Wv=(4, 4), zero=np.int64(0), one=np.int64(1), zeros=ints(0), ones=ints(1),
        five=np.int64(5), minus=np.float32(-0.3), never=np.float32(-np.inf),
    )  # fmt: skip


def keys_and_values() -> onnx.ModelProto:
    """Attention that takes past keys, looks at six timesteps before the present one, and gives the last six back."""
    return graph(
        f"""({X}, float[batch, 6, 4] past) => (float[batch, time, 4] y, float[batch, 6, 4] present) {{
            q = MatMul (x, Wq)
            new = MatMul (x, Wk)
            k = Concat <axis = 1> (past, new)
            kt = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (q, kt)
            shape = Shape (x)
            steps = Gather <axis = 0> (shape, one)
            all = Add (steps, six)
            here = Range (zero, steps, one)
            there = Range (zero, all, one)
            rows = Unsqueeze (here, ones)
            columns = Unsqueeze (there, zeros)
            ahead = Sub (columns, rows)
            near = GreaterOrEqual (ahead, zero)
            past_ = LessOrEqual (ahead, six)
            seen = And (near, past_)
            masked = Where (seen, scores, never)
            p = Softmax <axis = -1> (masked)
            y = MatMul (p, k)
            present = Slice (k, last, most, ones)
        }}""",
        Wq=(4, 4), Wk=(4, 4), zero=np.int64(0), one=np.int64(1), six=np.int64(6), zeros=ints(0), ones=ints(1),
        last=ints(-6), most=ints(2**62), never=np.float32(-np.inf),
    )  # fmt: skip


def attention_operator() -> onnx.ModelProto:
    """As PyTorch's exporter writes attention from opset 23 on."""
    return graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            q = MatMul (x, Wq)
            k = MatMul (x, Wk)
            v = MatMul (x, Wv)
            shape = Shape (x)
            steps = Gather <axis = 0> (shape, one)
            places = Range (zero, steps, one)
            rows = Unsqueeze (places, ones)
            columns = Unsqueeze (places, zeros)
            age = Sub (rows, columns)
            near = Less (age, four)
            y = Attention <is_causal = 1, q_num_heads = 2, kv_num_heads = 2> (q, k, v, near)
        }}""",
        opset=23,
        Wq=(4, 4), Wk=(4, 4), Wv=(4, 4), zero=np.int64(0), one=np.int64(1), zeros=ints(0), ones=ints(1),
        four=np.int64(4),
    )  # fmt: skip


ZOO: dict[str, Entry] = {
    "attention_operator": Entry(
        attention_operator, "the operator Attention with a mask for the last four timesteps",
        "written out; keys and values of the window as states",
    ),
    "last_by_slice": Entry(
        lambda: graph(f"({X}) => (float[batch, n, 4] y) {{ c = CumSum (x, one) y = Slice (c, start, end, axes) }}",
                      one=np.int64(1), start=ints(-3), end=ints(2**62), axes=ints(1)),
        "a head on the last three timesteps", "a buffer of two",
    ),
    "pad_then_conv": Entry(
        lambda: channels("p = Pad (x, pads) y = Conv (p, W, B)", pads=ints(0, 0, 2, 0, 0, 0), W=(3, 4, 3), B=(3,)),
        "a causal convolution: Pad, then Conv", "a buffer of past timesteps",
    ),
    "chomp": Entry(
        lambda: channels("c = Conv <pads = [4, 4], dilations = [2]> (x, W, B) y = Slice (c, zero, end, axes)",
                         zero=ints(0), end=ints(-4), axes=ints(2), W=(3, 4, 3), B=(3,)),
        "padding on both sides, the end cut off again", "a buffer; what is cut off is never computed",
    ),
    "padded_once": Entry(
        lambda: channels("p = Pad (x, pads) a = Conv (p, W, B) b = Relu (a) c = Conv <dilations = [2]> (b, V, C) "
                         "y = Tanh (c)", pads=ints(0, 0, 6, 0, 0, 0), W=(3, 4, 3), B=(3,), V=(2, 3, 3), C=(2,)),
        "two convolutions, the padding for both in front", "buffers that begin with what the padding makes of them",
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
    "shifted_in": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 5] y) {{ s = Shape (x) r = Gather (s, zero) "
                      "z = Concat <axis = 0> (r, tail) start = Expand (token, z) p = Concat <axis = 1> (start, x) "
                      "q = Slice (p, zero, end, one) t = Transpose <perm = [1, 0, 2]> (q) "
                      "yt = GRU <hidden_size = 5> (t, W, R, B) ys = Squeeze (yt, one) "
                      "y = Transpose <perm = [1, 0, 2]> (ys) }",
                      zero=ints(0), one=ints(1), end=ints(-1), tail=ints(1, 4), token=(1, 1, 4), **GRU),
        "a start token in front, the last timestep cut off", "a delay that begins with the token",
    ),
    "cached_convolution": Entry(
        lambda: graph("(float[batch, 4, time] x, float[batch, 4, 2] cache) => (float[batch, 3, time] y, "
                      "float[batch, 4, 2] next) { p = Concat <axis = 2> (cache, x) y = Conv (p, W) "
                      "next = Slice (p, last, most, axes) }", W=(3, 4, 3), last=ints(-2), most=ints(2**62),
                      axes=ints(2)),
        "a convolution with its past timesteps as input and output", "the buffer",
    ),
    "keys_and_values": Entry(
        keys_and_values, "attention with past keys and values as input and output", "keys and values as states",
    ),
    "windowed_attention": Entry(
        windowed_attention,
        "attention over the last five timesteps, nearer ones weighing more", "keys and values of the window as states",
    ),
    "mean_and_extremes_over_time": Entry(
        lambda: graph(f"({X}) => (float[batch, 4] m, float[batch, 5] y) {{ t = Transpose <perm = [1, 0, 2]> (x) "
                      "yt = GRU <hidden_size = 5> (t, W, R, B) ys = Squeeze (yt, one) "
                      "h = Transpose <perm = [1, 0, 2]> (ys) mean = ReduceMean <axes = [1], keepdims = 0> (h) "
                      "high = ReduceMax <axes = [1], keepdims = 0> (h) low = ReduceMin <axes = [1], keepdims = 0> (h) "
                      "span = Sub (high, low) y = Add (mean, span) m = ReduceSum <keepdims = 0> (x, one) }",
                      one=ints(1), **GRU),
        "mean, maximum, minimum and sum over time, as of a pooling head", "running ones, and a count",
    ),
    "first_timestep": Entry(
        lambda: graph(f"({X}) => (float[batch, time, 4] y, float[batch, time, 2] z) {{ c = CumSum (x, axis) "
                      "f = Slice (c, zero, one, one) y = Sub (c, f) g = Gather <axis = 1> (x, first) h = MatMul (g, W) "
                      "u = Unsqueeze (h, one) v = MatMul (x, W) z = Add (v, u) }",
                      axis=np.int64(1), zero=ints(0), one=ints(1), first=np.int64(0), W=(4, 2)),
        "each timestep beside the first one", "the first timestep",
    ),
    "attention_pooling": Entry(
        lambda: graph(f"({X}) => (float[batch, 4] y) {{ c = CumSum (x, axis) s = MatMul (c, V) "
                      "w = Softmax <axis = 1> (s) p = Mul (w, x) y = ReduceSum <keepdims = 0> (p, one) }",
                      axis=np.int64(1), V=(4, 1), one=ints(1)),
        "a sum over time, weighted by a softmax over time",
        "the weighted mean, the sum of the weights, the largest score unless all are small",
    ),
}  # fmt: skip

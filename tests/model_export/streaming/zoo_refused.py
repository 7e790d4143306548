"""Sequence graphs that no step graph can equal, with the node to blame and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.model_export.streaming.zoo_parts import GRU, LSTM, X, batch_first, channels, graph, ints


@dataclass(frozen=True, slots=True)
class Refused:
    """One graph.

    Attributes:
        build: Makes it.
        told: What the error has: the node, its operator, the reason.
    """

    build: Callable[[], onnx.ModelProto]
    told: str


def per_timestep(nodes: str, **weights: Any) -> onnx.ModelProto:
    """Return a graph of `(batch, time, 4)` from `x` to `y`, with a running sum that makes it recurrent."""
    return graph(f"({X}) => (float[batch, time, 4] y) {{ c = CumSum (x, axis) {nodes} }}", axis=np.int64(1), **weights)


def attention(mask: str = "", **weights: Any) -> onnx.ModelProto:
    """Return attention without, or with a mask that lets all of the past through."""
    return graph(
        f"""({X}) => (float[batch, time, 4] y) {{
            xt = Transpose <perm = [0, 2, 1]> (x)
            {"[scores] s = MatMul (x, xt)" if mask else "[scores] m = MatMul (x, xt)"}
            {mask}
            p = Softmax <axis = -1> (m)
            y = MatMul (p, x)
        }}""",
        **weights,
    )


CAUSAL = """
    shape = Shape (s)
    full = ConstantOfShape <value = float[1] {1.0}> (shape)
    lower = Trilu <upper = 0> (full)
    seen = Cast <to = 9> (lower)
    m = Where (seen, s, never)
"""

REFUSED: dict[str, Refused] = {
    "reverse": Refused(
        lambda: batch_first('[back] yt = LSTM <hidden_size = 5, direction = "reverse"> (xt, W, R, B)', **LSTM),
        "'back' (LSTM) is reverse over time",
    ),
    "bidirectional": Refused(
        lambda: graph('(float[T, N, 4] x) => (float[T, d, N, 5] y) { [both] y = GRU <hidden_size = 5, '
                      'direction = "bidirectional"> (x, W, R, B) }', W=(2, 15, 4), R=(2, 15, 5), B=(2, 30)),
        "'both' (GRU) is bidirectional over time",
    ),
    "lengths_that_differ": Refused(
        lambda: graph("(float[T, N, 4] x, int32[N] n) => (float[T, d, N, 5] y, float[N] z) { z = Cast <to = 1> (n) "
                      "[gru] y = GRU <hidden_size = 5> (x, W, R, B, n) }", **GRU),
        "'gru' (GRU) takes the length of every sequence (sequence_lens)",
    ),
    "reverse_sum": Refused(
        lambda: graph(f"({X}) => (float[N, T, 4] y) {{ [sum] y = CumSum <reverse = 1> (x, axis) }}", axis=np.int64(1)),
        "'sum' (CumSum) runs from the end of the sequence",
    ),
    "scan_backwards": Refused(
        lambda: graph("(float[T, N, 4] x, float[N, 4] s) => (float[T, N, 4] y) { [scan] sn, y = Scan "
                      "<num_scan_inputs = 1, scan_input_directions = [1], body = body (float[N, 4] a, float[N, 4] b) "
                      "=> (float[N, 4] c, float[N, 4] d) { c = Add (a, b) d = Identity (c) }> (s, x) }"),
        "'scan' (Scan) runs backwards over time",
    ),
    "same_padding": Refused(
        lambda: channels("[conv] y = Conv <pads = [1, 1]> (x, W)", W=(3, 4, 3)),
        "looks 1 timestep(s) ahead; node 'conv' (Conv)",
    ),
    "pad_behind": Refused(
        lambda: channels("[pad] p = Pad (x, pads) y = Conv (p, W)", pads=ints(0, 0, 1, 0, 0, 1), W=(3, 4, 3)),
        "looks 1 timestep(s) ahead; node 'pad' (Pad)",
    ),
    "next_timestep": Refused(
        lambda: per_timestep("n = Slice (c, one, most, one) [pad] y = Pad (n, pads)", one=ints(1), most=ints(2**62),
                             pads=ints(0, 0, 0, 0, 1, 0)),
        "looks 1 timestep(s) ahead; node 'pad' (Pad)",
    ),
    "stride": Refused(
        lambda: channels("[conv] y = Conv <strides = [2]> (x, W)", W=(3, 4, 3)),
        "'conv' (Conv) has stride 2 over time",
    ),
    "every_second": Refused(
        lambda: per_timestep("[cut] y = Slice (c, zero, most, one, two)", zero=ints(0), most=ints(2**62), one=ints(1),
                             two=ints(2)),
        "'cut' (Slice) takes every 2th timestep only",
    ),
    "upsampling": Refused(
        lambda: channels("[up] y = ConvTranspose <strides = [2]> (x, W)", W=(4, 3, 3)),
        "'up' (ConvTranspose) gives 2 timesteps for one",
    ),
    "repeated": Refused(
        lambda: channels("[up] y = Resize (x, , scales)", scales=np.array([1, 1, 2], np.float32)),
        "'up' (Resize) gives 2 times as many timesteps",
    ),
    "norm_over_time": Refused(
        lambda: per_timestep("m = ReduceL2 <axes = [1]> (c) y = Mul (c, m)"),
        "'m', which is known after the last timestep only, at every timestep",
    ),
    "mean": Refused(
        lambda: per_timestep("[mean] m = ReduceMean <axes = [1]> (c) y = Sub (c, m)"),
        "'m', which is known after the last timestep only, at every timestep",
    ),
    "softmax": Refused(
        lambda: per_timestep("[soft] y = Softmax <axis = 1> (c)"),
        "'soft' (Softmax) mixes timesteps",
    ),
    "softmax_of_another_sequence": Refused(
        lambda: per_timestep("[soft] s = Softmax <axis = 1> (c) p = Mul (s, x) y = Add (p, x)"),
        "'soft' (Softmax) mixes timesteps",
    ),
    "softmax_of_a_padded_sequence": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ p = Pad (x, pads) [soft] s = Softmax <axis = 1> (p) q = Mul (s, p) "
                      "y = ReduceSum <keepdims = 0> (q, one) }", pads=ints(0, 1, 0, 0, 0, 0), one=ints(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "weights_of_a_shifted_sequence": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ p = Pad (x, pads) d = Slice (p, zero, end, one) "
                      "[soft] s = Softmax <axis = 1> (x) q = Mul (s, d) y = ReduceSum <keepdims = 0> (q, one) }",
                      pads=ints(0, 1, 0, 0, 0, 0), zero=ints(0), end=ints(-1), one=ints(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "weights_in_another_order": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ [soft] s = Softmax <axis = 1> (x) r = Reshape (s, turned) "
                      "t = Transpose <perm = [0, 2, 1]> (r) q = Mul (t, x) y = ReduceSum <keepdims = 0> (q, one) }",
                      turned=ints(0, 4, -1), one=ints(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "product_of_two_softmaxes": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ [soft] s = Softmax <axis = 1> (x) n = Neg (x) "
                      "t = Softmax <axis = 1> (n) q = Mul (s, t) y = ReduceSum <keepdims = 0> (q, one) }", one=ints(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "weights_that_are_averaged_over_heads": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ [soft] s = Softmax <axis = 1> (x) "
                      'w = Einsum <equation = "bth->bt"> (s) y = Einsum <equation = "bt,btd->bd"> (w, x) }'),
        "'soft' (Softmax) mixes timesteps",
    ),
    "shares_as_an_answer": Refused(
        lambda: graph(f"({X}) => (float[N, T, 4] y) {{ e = Exp (x) n = ReduceSum (e, one) [share] y = Div (e, n) }}",
                      one=ints(1)),
        "'share' (Div) needs 'n', which is known after the last timestep only, at every timestep",
    ),
    "zeros_of_another_mask": Refused(
        lambda: graph(f"({X}) => (float[N, 4] y) {{ m = Greater (x, zero) l = Less (x, zero) f = Where (m, x, never) "
                      "[soft] s = Softmax <axis = 1> (f) z = Where (l, s, zero) q = Mul (z, x) "
                      "y = ReduceSum <keepdims = 0> (q, one) }",
                      zero=np.float32(0), never=np.float32(-np.inf), one=ints(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "old_softmax": Refused(
        lambda: graph(f"({X}) => (float[N, T, 4] y) {{ c = CumSum (x, axis) [soft] y = Softmax <axis = 1> (c) }}",
                      opset=12, axis=np.int64(1)),
        "'soft' (Softmax) mixes timesteps",
    ),
    "instance_norm": Refused(
        lambda: channels("[norm] y = InstanceNormalization (x, one, one)", one=np.ones(4, np.float32)),
        "'norm' (InstanceNormalization) mixes timesteps",
    ),
    "layer_norm_over_time": Refused(
        lambda: channels("[norm] y = LayerNormalization <axis = -1> (x, one)", one=np.ones(1, np.float32)),
        "'norm' (LayerNormalization) mixes timesteps",
    ),
    "flipped": Refused(
        lambda: per_timestep("[flip] y = Slice (c, last, first, one, back)", last=ints(-1), first=ints(-(2**62)),
                             one=ints(1), back=ints(-1)),
        "'flip' (Slice) reads the sequence backwards",
    ),
    "reversed": Refused(
        lambda: per_timestep("s = Shape (x) n = Gather (s, one) r = Gather (s, zero) l = Expand (n, r) "
                             "[turn] y = ReverseSequence <batch_axis = 0, time_axis = 1> (c, l)",
                             zero=ints(0), one=ints(1)),
        "'turn' (ReverseSequence) mixes timesteps",
    ),
    "attention": Refused(attention, "'scores' (MatMul) attends to timesteps to come"),
    "growing_attention": Refused(
        lambda: attention(CAUSAL, never=np.float32(-np.inf)),
        "'scores' (MatMul) attends to all timesteps before, so its state would grow without end",
    ),
    "encoder": Refused(
        lambda: graph(f"({X}) => (float[N, T, 5] y) {{ xt = Transpose <perm = [1, 0, 2]> (x) "
                      "yt, h = GRU <hidden_size = 5> (xt, W, R, B) s = Squeeze (yt, one) [both] z = Add (s, h) "
                      "y = Transpose <perm = [1, 0, 2]> (z) }", one=ints(1), **GRU),
        "'both' (Add) needs 'h', which is known after the last timestep only",
    ),
    "third_timestep": Refused(
        lambda: per_timestep("[third] f = Slice (c, two, three, one) y = Sub (c, f)", two=ints(2), three=ints(3),
                             one=ints(1)),
        "'third' (Slice) takes timesteps at fixed places of the sequence",
    ),
    "table_of_positions": Refused(
        lambda: per_timestep("s = Shape (x) t = Gather (s, one) [cut] p = Slice (table, zero, t, zero) y = Add (c, p)",
                             table=(100, 4), zero=ints(0), one=ints(1)),
        "'cut' (Slice) gives values by the position in the sequence",
    ),
    "looked_up_positions": Refused(
        lambda: per_timestep("s = Shape (x) t = Gather (s, one) p = Range (zero, t, one) [look] e = Gather (table, p) "
                             "y = Add (c, e)", table=(100, 4), zero=np.int64(0), one=np.int64(1)),
        "'look' (Gather) looks up positions in a table that ends after 100 timesteps",
    ),
    "divided_by_length": Refused(
        lambda: per_timestep("s = Shape (x) t = Gather (s, one) n = Cast <to = 1> (t) [div] y = Div (c, n)",
                             one=np.int64(1)),
        "'div' (Div) uses 'n', which depends on the number of timesteps",
    ),
    "reflected": Refused(
        lambda: channels('[pad] p = Pad <mode = "reflect"> (x, pads) y = Conv (p, W)', pads=ints(0, 0, 2, 0, 0, 0),
                         W=(3, 4, 3)),
        "'pad' (Pad) pads 2 timestep(s) in front with values of the sequence (reflect)",
    ),
    "split_in_time": Refused(
        lambda: graph(f"({X}) => (float[N, a, 4] y) {{ c = CumSum (x, one) [cut] y, z = Split <axis = 1, "
                      "num_outputs = 2> (c) }", opset=18, one=np.int64(1)),
        "'cut' (Split) cuts the sequence into pieces",
    ),
    "average_of_fewer": Refused(
        lambda: channels("[pool] y = AveragePool <kernel_shape = [3], pads = [2, 0]> (x)"),
        "'pool' (AveragePool) averages over fewer timesteps at the beginning",
    ),
    "two_sequences_in_time": Refused(
        lambda: graph(f"({X}) => (float[N, twice, 4] y) {{ c = CumSum (x, one) [join] y = Concat <axis = 1> (c, x) }}",
                      one=np.int64(1)),
        "'join' (Concat) puts 2 sequences one behind the other in time",
    ),
    "picked_by_values": Refused(
        lambda: graph(f"({X}, int64[1] at) => (float[batch, time, 4] y) {{ c = CumSum (x, one) r = Add (at, at) "
                      "[pick] p = Gather <axis = 1> (c, r) y = Sub (c, p) }", one=np.int64(1)),
        "'pick' (Gather) picks timesteps by values that are computed on the way",
    ),
    "branch_by_a_size": Refused(
        lambda: graph(f"""({X}) => (float[batch, time, 4] y) {{
            c = CumSum (x, one) sizes = Shape (x) width = Gather <axis = 0> (sizes, two) is4 = Equal (width, four)
            [branch] y = If (is4) <
                then_branch = t () => (float[b, t, f] p) {{ p = Tanh (c) }},
                else_branch = e () => (float[b, t, f] m) {{ m = Neg (c) }}>
        }}""", one=np.int64(1), two=np.int64(2), four=np.int64(4)),
        "'branch' (If) chooses a branch by sizes, which may be the numbers of timesteps and rows",
    ),
    "rows_added_up": Refused(
        lambda: per_timestep("[all] s = ReduceSum <keepdims = 0> (x) y = Sub (c, s)"),
        "The rows of a batch depend on each other: Node 'all' (ReduceSum) reduces over the rows of the batch",
    ),
    "largest_timesteps": Refused(
        lambda: graph(f"({X}) => (float[N, 3, 4] y) {{ c = CumSum (x, one) [top] y, p = TopK <axis = 1> (c, three) }}",
                      one=np.int64(1), three=ints(3)),
        "'top' (TopK) sorts the timesteps of the whole sequence",
    ),
    "mean_for_every_timestep": Refused(
        lambda: per_timestep("m = ReduceMean <axes = [1]> (c) s = Shape (x) [spread] y = Expand (m, s)"),
        "'spread' (Expand) spreads what is known after the last timestep only over all timesteps",
    ),
}  # fmt: skip

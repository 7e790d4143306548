"""Versions of one model over int64 `x` and `y` of shape `[1]`, that fail, count or keep their state differently."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.runtime.manifest import Manifest
from tests.graphs import Built, _s, _t, graph_from_text, lstm, manifest_of


def adder() -> Built:
    """A running sum: `s' = s + x`, `y = s'`."""
    return _sum("total = Add (s, x)")


def raising_at(size: int) -> Built:
    """A running sum that onnxruntime cannot compute for `x` of `size` or more: an index that is out of range."""
    return _sum("taken = Gather (numbers, x)\n total = Add (s, taken)", {"numbers": np.arange(size, dtype=np.int64)})


def hanging() -> Built:
    """A running sum that runs a loop of `x` turns, the largest `x` of the batch: it does not end for 10**12."""
    return _sum("""longest = ReduceMax <keepdims = 0> (x)
            zero = Constant <value = int64 {0}> ()
            turns = Max (longest, zero)
            yes = Constant <value = bool {1}> ()
            last = Loop <body = turn (int64 i, bool go_on, int64 v) => (bool still, int64 v_next) {
                still = Identity (go_on)
                v_next = Mul (i, v)
            }> (turns, yes, zero)
            plus = Add (s, x)
            total = Add (plus, last)""")


def seen() -> Built:
    """Counts the timesteps that its own state has seen: `n' = n + 1`, `y = n'`."""
    graph = graph_from_text("""
        seen (int64[B,1] x, int64[B,1] n) => (int64[B,1] y, int64[B,1] n_next) {
            one = Constant <value = int64[1] {1}> ()
            nothing = Sub (x, x)
            more = Add (n, one)
            n_next = Add (more, nothing)
            y = Identity (n_next)
        }""")
    return graph, _manifest("n", 1)


def lstm_with_a_wrong_weight() -> Built:
    """The model `tests.graphs.lstm` with one weight that is greater by 1."""
    graph, manifest = lstm()
    model = onnx.load_model_from_string(graph)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "W")
    weights = numpy_helper.to_array(tensor).copy()
    weights[0, 0] += 1
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return bytes(model.SerializeToString()), manifest


def gru(features: int = 4, units: int = 6, seed: int = 3) -> Built:
    """A GRU cell and a dense layer of 2, float32, with the inputs and outputs of `tests.graphs.lstm`: state `h`."""
    rng = np.random.default_rng(seed)
    weights = {
        "W": rng.normal(0, 0.4, (features + units, 2 * units)).astype(np.float32),
        "U": rng.normal(0, 0.4, (features + units, units)).astype(np.float32),
        "V": rng.normal(0, 0.5, (units, 2)).astype(np.float32),
    }
    graph = graph_from_text(
        f"""
        gru (float[B,{features}] x, float[B,{units}] h) => (float[B,2] y, float[B,{units}] h_next) {{
            xh = Concat <axis = 1> (x, h)
            xhW = MatMul (xh, W)
            gates = Sigmoid (xhW)
            z, r = Split <axis = 1> (gates)
            rh = Mul (r, h)
            xrh = Concat <axis = 1> (x, rh)
            xrhU = MatMul (xrh, U)
            n = Tanh (xrhU)
            h_n = Sub (h, n)
            zh = Mul (z, h_n)
            h_next = Add (n, zh)
            y = MatMul (h_next, V)
        }}""",
        weights,
    )
    return graph, manifest_of(
        name="gru",
        inputs=[_t("x", "float32", [features])],
        states=[_s("h", "h_next", "float32", [units])],
        outputs=[_t("y", "float32", [2])],
    )


def widening_lstm(units: int = 8, more: int = 4) -> bytes:
    """The translation of the states of `tests.graphs.lstm` to those of a wider one: zeros are appended."""
    return graph_from_text(f"""
        widening_lstm (float[B,{units}] h, float[B,{units}] c)
            => (float[B,{units + more}] h_next, float[B,{units + more}] c_next) {{
            zeros = Constant <value = int64[4] {{0, 0, 0, {more}}}> ()
            h_next = Pad (h, zeros)
            c_next = Pad (c, zeros)
        }}""")


def wide_fold(factor: int) -> Built:
    """`tests.graphs.fold` with a state of two numbers, the second of which counts timesteps."""
    graph = graph_from_text(f"""
        wide_fold (int64[B,1] x, int64[B,2] g) => (int64[B,1] y, int64[B,2] g_next) {{
            factor = Constant <value = int64[1] {{{factor}}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            h, n = Split <axis = 1> (g)
            scaled = Mul (h, factor)
            plus = Add (scaled, x)
            y = Add (plus, one)
            more = Add (n, one)
            g_next = Concat <axis = 1> (y, more)
        }}""")
    return graph, _manifest("g", 2)


def widening() -> bytes:
    """The translation of `fold`'s state to that of `wide_fold`."""
    return graph_from_text("""
        widening (int64[B,1] h) => (int64[B,2] g) {
            none = Sub (h, h)
            g = Concat <axis = 1> (h, none)
        }""")


def widening_by(more: int) -> bytes:
    """`widening`, after which the state of `fold` is greater by a number."""
    return graph_from_text(f"""
        widening (int64[B,1] h) => (int64[B,2] g) {{
            more = Constant <value = int64[1] {{{more}}}> ()
            none = Sub (h, h)
            greater = Add (h, more)
            g = Concat <axis = 1> (greater, none)
        }}""")


def widening_below(limit: int) -> bytes:
    """`widening`, which onnxruntime cannot compute for a state of `limit` or more: an index that is out of range."""
    numbers = {"numbers": np.arange(limit, dtype=np.int64)}
    return graph_from_text(
        """
        widening (int64[B,1] h) => (int64[B,2] g) {
            none = Sub (h, h)
            same = Gather (numbers, h)
            g = Concat <axis = 1> (same, none)
        }""",
        numbers,
    )


def _sum(body: str, weights: dict[str, np.ndarray] | None = None) -> Built:
    graph = graph_from_text(
        f"""
        adder (int64[B,1] x, int64[B,1] s) => (int64[B,1] y, int64[B,1] s_next) {{
            {body}
            s_next = Identity (total)
            y = Identity (total)
        }}""",
        weights,
    )
    return graph, _manifest("s", 1)


def _manifest(state: str, size: int) -> Manifest:
    return manifest_of(
        name="fold",
        inputs=[_t("x", "int64", [1])],
        states=[_s(state, f"{state}_next", "int64", [size])],
        outputs=[_t("y", "int64", [1])],
    )

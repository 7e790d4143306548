"""Small step graphs with predictable results, as `(ONNX bytes, Manifest)`, and functions that write them to files.

Graphs are written in ONNX's text syntax. Some have a reference implementation in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest, PackedTensor

Built = tuple[bytes, Manifest]
"""An ONNX file without manifest, and the manifest that fits it."""

Build = Callable[[], Built]
"""Any of the functions below."""

FOLD_FACTOR = 1_000_003


def write_model(folder: Path, name: str, build: Build, *, version: int | None = None) -> Path:
    """Write a servable model file: `folder/NAME.onnx`, or `folder/NAME/VERSION/model.onnx`.

    Args:
        folder: The model folder; created if it is missing.
        name: The model's name; it goes into the manifest.
        build: One of the functions of this module, or any that returns `Built`.
        version: The version, for Triton's layout; None for the flat one.

    Returns:
        The file, with the manifest in its `metadata_props`.
    """
    graph, manifest = build()
    path = folder / f"{name}.onnx" if version is None else folder / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(with_manifest(graph, manifest.model_copy(update={"name": name})))
    return path


def write_models(folder: Path, *builds: Callable[[], Built], **named: Callable[[], Built]) -> Path:
    """Write models, each under its function's name or the given one, and return the folder."""
    for name, build in {**{build.__name__: build for build in builds}, **named}.items():
        write_model(folder, name, build)
    return folder


def with_manifest(graph: bytes, manifest: Manifest) -> bytes:
    """Return the ONNX file with the manifest in its `metadata_props`."""
    model = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(model, {METADATA_KEY: manifest.to_json()})
    return bytes(model.SerializeToString())


def graph_from_text(text: str, weights: Mapping[str, Array] | None = None) -> bytes:
    """Return an ONNX file (opset 17) from the body `name (inputs) => (outputs) { nodes }` and initializers."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (weights or {}).items())
    return bytes(model.SerializeToString())


def manifest_of(**parts: Any) -> Manifest:
    """Return a manifest from the file format's own keys."""
    return Manifest.model_validate(parts)


# -------------------------------------------------------------------- exact integers


def fold(factor: int = FOLD_FACTOR) -> Built:
    """Fold every input into one 64-bit number: any lost, duplicated or swapped step stays visible.

    `h' = h * factor + x + 1` with wrap-around, `y = h'`; x and h are int64 of shape [1].
    """
    graph = graph_from_text(f"""
        fold (int64[B,1] x, int64[B,1] h) => (int64[B,1] y, int64[B,1] h_next) {{
            factor = Constant <value = int64[1] {{{factor}}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            scaled = Mul (h, factor)
            plus = Add (scaled, x)
            h_next = Add (plus, one)
            y = Identity (h_next)
        }}""")
    return graph, manifest_of(
        name="fold",
        inputs=[_t("x", "int64", [1])],
        states=[_s("h", "h_next", "int64", [1])],
        outputs=[_t("y", "int64", [1])],
    )


def fold_on_a_grid() -> Built:
    """The fold, of a model that was trained on a grid of one second."""
    graph, manifest = fold()
    return graph, manifest.model_copy(update={"every": "1s"})


def fold_of_two_outputs() -> Built:
    """The fold with a second output: `z = -y`."""
    graph, manifest = fold()
    proto = onnx.load_from_string(graph)
    proto.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["z"]))
    proto.graph.output.add().CopyFrom(proto.graph.output[0])
    proto.graph.output[-1].name = "z"
    outputs = [*manifest.outputs, manifest.outputs[0].model_copy(update={"name": "z"})]
    return proto.SerializeToString(), manifest.model_copy(update={"outputs": outputs})


def fold_reference(xs: Iterable[int], *, start: int = 0, factor: int = FOLD_FACTOR) -> list[int]:
    """Return the predictions of `fold` for `xs`, from state `start`."""
    answers = []
    h = start
    for x in xs:
        h = (h * factor + x + 1 + 2**63) % 2**64 - 2**63
        answers.append(h)
    return answers


def count(start: int = 0) -> Built:
    """Count steps from `start`, a non-zero initial state: `n' = n + 1`, `y = n'`; the input is ignored."""
    graph = graph_from_text("""
        count (float[B,1] x, int64[B,1] n) => (int64[B,1] y, int64[B,1] n_next) {
            one = Constant <value = int64[1] {1}> ()
            n_next = Add (n, one)
            nothing = Cast <to = 7> (x)
            zero = Sub (nothing, nothing)
            y = Add (n_next, zero)
        }""")
    return graph, manifest_of(
        name="count",
        inputs=[_t("x", "float32", [1])],
        states=[_s("n", "n_next", "int64", [1], init=_packed(np.array([start], np.int64)))],
        outputs=[_t("y", "int64", [1])],
    )


def two_inputs() -> Built:
    """Two inputs of different shape and dtype, two outputs: `s' = s + a + b`, `total = s'`, `last = b`."""
    graph = graph_from_text("""
        two_inputs (int64[B,2] a, int32[B] b, int64[B,2] s)
            => (int64[B,2] total, int32[B] last, int64[B,2] s_next) {
            wide = Cast <to = 7> (b)
            axis = Constant <value = int64[1] {1}> ()
            column = Unsqueeze (wide, axis)
            plus = Add (s, a)
            s_next = Add (plus, column)
            total = Identity (s_next)
            last = Identity (b)
        }""")
    return graph, manifest_of(
        name="two_inputs",
        inputs=[_t("a", "int64", [2]), _t("b", "int32", [])],
        states=[_s("s", "s_next", "int64", [2])],
        outputs=[_t("total", "int64", [2]), _t("last", "int32", [])],
    )


def latch() -> Built:
    """A boolean input, state and output: once true, true forever."""
    graph = graph_from_text("""
        latch (bool[B,2] x, bool[B,2] on) => (bool[B,2] y, bool[B,2] on_next) {
            on_next = Or (x, on)
            y = Identity (on_next)
        }""")
    return graph, manifest_of(
        name="latch",
        inputs=[_t("x", "bool", [2])],
        states=[_s("on", "on_next", "bool", [2])],
        outputs=[_t("y", "bool", [2])],
    )


# -------------------------------------------------------------------- floats


def lstm(features: int = 4, units: int = 8, seed: int = 0) -> Built:
    """An LSTM cell and a dense layer of 2, float32: inputs `x`, states `h` and `c`, output `y`."""
    rng = np.random.default_rng(seed)
    weights = {
        "W": rng.normal(0, 0.4, (features + units, 4 * units)).astype(np.float32),
        "b": rng.normal(0, 0.1, 4 * units).astype(np.float32),
        "V": rng.normal(0, 0.5, (units, 2)).astype(np.float32),
    }
    graph = graph_from_text(
        f"""
        lstm (float[B,{features}] x, float[B,{units}] h, float[B,{units}] c)
            => (float[B,2] y, float[B,{units}] h_next, float[B,{units}] c_next) {{
            xh = Concat <axis = 1> (x, h)
            xhW = MatMul (xh, W)
            z = Add (xhW, b)
            zi, zf, zg, zo = Split <axis = 1> (z)
            i = Sigmoid (zi)
            f = Sigmoid (zf)
            g = Tanh (zg)
            o = Sigmoid (zo)
            fc = Mul (f, c)
            ig = Mul (i, g)
            c_next = Add (fc, ig)
            c_tanh = Tanh (c_next)
            h_next = Mul (o, c_tanh)
            y = MatMul (h_next, V)
        }}""",
        weights,
    )
    return graph, manifest_of(
        name="lstm",
        inputs=[_t("x", "float32", [features])],
        states=[_s("h", "h_next", "float32", [units]), _s("c", "c_next", "float32", [units])],
        outputs=[_t("y", "float32", [2])],
    )


def total(size: int = 2, *, store_dtype: str = "float32") -> Built:
    """A running sum of floats: `s' = s + x`, `y = s'`; `store_dtype="float16"` stores the state in half precision."""
    graph = graph_from_text(f"""
        total (float[B,{size}] x, float[B,{size}] s) => (float[B,{size}] y, float[B,{size}] s_next) {{
            s_next = Add (s, x)
            y = Identity (s_next)
        }}""")
    return graph, manifest_of(
        name="total",
        inputs=[_t("x", "float32", [size])],
        states=[{**_s("s", "s_next", "float32", [size]), "store_dtype": store_dtype}],
        outputs=[_t("y", "float32", [size])],
    )


def of_nodes(nodes: str, size: int = 2, weights: Mapping[str, Array] | None = None) -> Built:
    """Nodes from `x` and a state `s`, both of `size` floats, to `y` and `s_next`."""
    row = f"float[B,{size}]"
    graph = graph_from_text(f"of_nodes ({row} x, {row} s) => ({row} y, {row} s_next) {{ {nodes} }}", weights)
    return graph, total(size)[1]


def total_half() -> Built:
    """`total` with its state stored as float16."""
    return total(store_dtype="float16")


def batch_axis_1() -> Built:
    """A running sum with a state of graph shape [2, B, 3]: batch axis 1; y is its first layer."""
    graph = graph_from_text("""
        batch_axis_1 (float[B,3] x, float[2,B,3] s) => (float[B,3] y, float[2,B,3] s_next) {
            axis = Constant <value = int64[1] {0}> ()
            layer = Unsqueeze (x, axis)
            twice = Add (layer, layer)
            both = Concat <axis = 0> (layer, twice)
            s_next = Add (s, both)
            first = Constant <value = int64 {0}> ()
            y = Gather <axis = 0> (s_next, first)
        }""")
    return graph, manifest_of(
        name="batch_axis_1",
        inputs=[_t("x", "float32", [3])],
        states=[_s("s", "s_next", "float32", [2, 3], batch_axis=1)],
        outputs=[_t("y", "float32", [3])],
    )


def no_batch_axis() -> Built:
    """A running sum with a state without a batch axis, [3]: it runs one row at a time."""
    graph = graph_from_text("""
        no_batch_axis (float[1,3] x, float[3] s) => (float[1,3] y, float[3] s_next) {
            axis = Constant <value = int64[1] {0}> ()
            row = Squeeze (x, axis)
            s_next = Add (s, row)
            y = Unsqueeze (s_next, axis)
        }""")
    return graph, manifest_of(
        name="no_batch_axis",
        inputs=[_t("x", "float32", [3])],
        states=[_s("s", "s_next", "float32", [3], batch_axis=None)],
        outputs=[_t("y", "float32", [3])],
    )


def lying_batch() -> Built:
    """Declares a symbolic batch axis but fails for two rows: a Reshape has a literal 1."""
    graph = graph_from_text("""
        lying_batch (float[B,3] x, float[B,3] s) => (float[B,3] y, float[B,3] s_next) {
            shape = Constant <value = int64[2] {1, 3}> ()
            row = Reshape (x, shape)
            s_next = Add (s, row)
            y = Identity (s_next)
        }""")
    return graph, manifest_of(
        name="lying_batch",
        inputs=[_t("x", "float32", [3])],
        states=[_s("s", "s_next", "float32", [3])],
        outputs=[_t("y", "float32", [3])],
    )


def mixing_rows() -> Built:
    """Accepts any batch, but each row gets the mean over the batch, so a stream alone gets another result."""
    graph = graph_from_text("""
        mixing_rows (float[B,3] x, float[B,3] s) => (float[B,3] y, float[B,3] s_next) {
            mean = ReduceMean <axes = [0], keepdims = 1> (x)
            s_next = Add (s, mean)
            y = Identity (s_next)
        }""")
    return graph, manifest_of(
        name="mixing_rows",
        inputs=[_t("x", "float32", [3])],
        states=[_s("s", "s_next", "float32", [3])],
        outputs=[_t("y", "float32", [3])],
    )


def time_axis() -> Built:
    """A running sum with a time axis of length 1 in the graph: x is [B, 1, 2] there, [2] in requests."""
    graph = graph_from_text("""
        time_axis (float[B,1,2] x, float[B,2] s) => (float[B,1,2] y, float[B,2] s_next) {
            axis = Constant <value = int64[1] {1}> ()
            row = Squeeze (x, axis)
            s_next = Add (s, row)
            y = Unsqueeze (s_next, axis)
        }""")
    return graph, manifest_of(
        name="time_axis",
        inputs=[{**_t("x", "float32", [2]), "graph_shape": [1, 2]}],
        states=[_s("s", "s_next", "float32", [2])],
        outputs=[{**_t("y", "float32", [2]), "graph_shape": [1, 2]}],
    )


def scaled(gain: int = 3) -> Built:
    """A running sum times a constant graph input `gain`, an int64 scalar that is not part of requests."""
    graph = graph_from_text("""
        scaled (float[B,2] x, float[B,2] s, int64 gain) => (float[B,2] y, float[B,2] s_next) {
            s_next = Add (s, x)
            factor = Cast <to = 1> (gain)
            y = Mul (s_next, factor)
        }""")
    return graph, manifest_of(
        name="scaled",
        inputs=[_t("x", "float32", [2])],
        states=[_s("s", "s_next", "float32", [2])],
        outputs=[_t("y", "float32", [2])],
        constants={"gain": {"dtype": "int64", "value": gain}},
    )


def moving_sum(new: int = 2, context: int = 3) -> Built:
    """The sum of the last `context` elements and the `new` ones: a window, no state in the graph."""
    graph = graph_from_text("""
        moving_sum (float[B,N] x) => (float[B,1] y) {
            axis = Constant <value = int64[1] {1}> ()
            y = ReduceSum <keepdims = 1> (x, axis)
        }""")
    return graph, manifest_of(
        name="moving_sum",
        inputs=[_t("x", "float32", [new])],
        outputs=[_t("y", "float32", [1])],
        windows=[{"input": "x", "context": context, "axis": 0}],
    )


def latest(dtype: str = "float16") -> Built:
    """A state of any float dtype: `y = s' = x`."""
    kind = {"float16": "float16", "float32": "float", "float64": "double"}[dtype]
    graph = graph_from_text(f"""
        latest ({kind}[B,2] x, {kind}[B,2] s) => ({kind}[B,2] y, {kind}[B,2] s_next) {{
            nothing = Sub (s, s)
            s_next = Add (nothing, x)
            y = Identity (s_next)
        }}""")
    return graph, manifest_of(
        name="latest",
        inputs=[_t("x", dtype, [2])],
        states=[_s("s", "s_next", dtype, [2])],
        outputs=[_t("y", dtype, [2])],
    )


def last_seen() -> Built:
    """Two inputs whose values may be missing, each replaced by the last one seen, 0 before: `y`, `z`, `s'`."""
    graph = graph_from_text("""
        last_seen (float[B,2] a, float[B] b, float[B,2] s, float[B] t)
            => (float[B,2] y, float[B] z, float[B,2] s_next, float[B] t_next) {
            no_a = IsNaN (a)
            no_b = IsNaN (b)
            s_next = Where (no_a, s, a)
            t_next = Where (no_b, t, b)
            y = Identity (s_next)
            z = Identity (t_next)
        }""")
    return graph, manifest_of(
        name="last_seen",
        inputs=[{**_t("a", "float32", [2]), "missing": "nan"}, {**_t("b", "float32", []), "missing": "nan"}],
        states=[_s("s", "s_next", "float32", [2]), _s("t", "t_next", "float32", [])],
        outputs=[_t("y", "float32", [2]), _t("z", "float32", [])],
    )


def stateless() -> Built:
    """No state: `y = 2 x`."""
    graph = graph_from_text("""
        stateless (float[B,2] x) => (float[B,2] y) {
            y = Add (x, x)
        }""")
    return graph, manifest_of(name="stateless", inputs=[_t("x", "float32", [2])], outputs=[_t("y", "float32", [2])])


# -------------------------------------------------------------------- feedback


def letters(seed: int = 0) -> Built:
    """Letters 0 to 4, one per timestep: an Elman cell that predicts the next one's probabilities, `{"x": "next"}`."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in
               {"E": (5, 8), "U": (8, 8), "V": (8, 5)}.items()}  # fmt: skip
    graph = graph_from_text(
        """
        letters (int64[B] x, float[B,8] h) => (float[B,5] next, float[B,8] h_next) {
            e = Gather (E, x)
            hU = MatMul (h, U)
            z = Add (e, hU)
            h_next = Tanh (z)
            v = MatMul (h_next, V)
            next = Softmax <axis = 1> (v)
        }""",
        weights,
    )
    return graph, manifest_of(
        name="letters",
        inputs=[_t("x", "int64", [])],
        states=[_s("h", "h_next", "float32", [8])],
        outputs=[_t("next", "float32", [5])],
        feedback={"x": "next"},
    )


def wave(seed: int = 0) -> Built:
    """One number per timestep: an Elman cell that predicts the next number and its spread, `{"x": "y"}`."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in
               {"W": (1, 4), "U": (4, 4), "V": (4, 1), "S": (4, 1)}.items()}  # fmt: skip
    graph = graph_from_text(
        """
        wave (float[B,1] x, float[B,4] h) => (float[B,1] y, float[B,1] spread, float[B,4] h_next) {
            xW = MatMul (x, W)
            hU = MatMul (h, U)
            z = Add (xW, hU)
            h_next = Tanh (z)
            y = MatMul (h_next, V)
            s = MatMul (h_next, S)
            spread = Softplus (s)
        }""",
        weights,
    )
    return graph, manifest_of(
        name="wave",
        inputs=[_t("x", "float32", [1])],
        states=[_s("h", "h_next", "float32", [4])],
        outputs=[_t("y", "float32", [1]), _t("spread", "float32", [1])],
        feedback={"x": "y"},
    )


# -------------------------------------------------------------------- misbehaving graphs


def slow() -> Built:
    """Runs a Loop `x` times (the largest x of the batch) and adds up x: with x = 10^12 it never finishes."""
    graph = graph_from_text("""
        slow (int64[B,1] x, int64[B,1] s) => (int64[B,1] y, int64[B,1] s_next) {
            longest = ReduceMax <keepdims = 0> (x)
            zero = Constant <value = int64 {0}> ()
            turns = Max (longest, zero)
            yes = Constant <value = bool {1}> ()
            last = Loop <body = turn (int64 i, bool go_on, int64 v) => (bool still, int64 v_next) {
                still = Identity (go_on)
                v_next = Mul (i, v)
            }> (turns, yes, zero)
            plus = Add (s, x)
            s_next = Add (plus, last)
            y = Identity (s_next)
        }""")
    return graph, manifest_of(
        name="slow",
        inputs=[_t("x", "int64", [1])],
        states=[_s("s", "s_next", "int64", [1])],
        outputs=[_t("y", "int64", [1])],
    )


def nan_at(step: int, *, in_state: bool = True) -> Built:
    """A running sum that becomes NaN at timestep `step` (from 1): in state and output, or in the output alone.

    With `in_state` the sum stays NaN; without it, the next step is finite again.
    """
    graph = graph_from_text(
        f"""
        nan_at (float[B,1] x, float[B,1] s, int64[B,1] n) => (float[B,1] y, float[B,1] s_next, int64[B,1] n_next) {{
            one = Constant <value = int64[1] {{1}}> ()
            at = Constant <value = int64[1] {{{step}}}> ()
            n_next = Add (n, one)
            now = Equal (n_next, at)
            sum = Add (s, x)
            y = Where (now, nan, sum)
            s_next = Identity ({"y" if in_state else "sum"})
        }}""",
        {"nan": np.array([np.nan], np.float32)},
    )
    return graph, manifest_of(
        name="nan_at",
        inputs=[_t("x", "float32", [1])],
        states=[_s("s", "s_next", "float32", [1]), _s("n", "n_next", "int64", [1])],
        outputs=[_t("y", "float32", [1])],
    )


def noisy() -> Built:
    """A running sum with a second output that is random, and a third that is not returned."""
    graph = graph_from_text("""
        noisy (float[B,2] x, float[B,2] s)
            => (float[B,2] y, float[B,2] draw, float[B,2] scrap, float[B,2] s_next) {
            s_next = Add (s, x)
            y = Identity (s_next)
            noise = RandomNormalLike (x)
            draw = Add (y, noise)
            scrap = Neg (y)
        }""")
    return graph, manifest_of(
        name="noisy",
        inputs=[_t("x", "float32", [2])],
        states=[_s("s", "s_next", "float32", [2])],
        outputs=[
            _t("y", "float32", [2]),
            {**_t("draw", "float32", [2]), "kind": "random"},
            {**_t("scrap", "float32", [2]), "kind": "ignore"},
        ],
    )


# -------------------------------------------------------------------- parts


def _t(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape), "batch_axis": 0}


def _s(
    name: str,
    output: str,
    dtype: str,
    shape: Sequence[int],
    *,
    batch_axis: int | None = 0,
    init: Any = "zeros",
) -> dict[str, Any]:
    return {
        "in": name, "out": output, "dtype": dtype, "shape": list(shape), "batch_axis": batch_axis, "init": init,
    }  # fmt: skip


def _packed(array: Array) -> dict[str, Any]:
    return PackedTensor.pack(array).model_dump()

"""Originals with something rare in them, in each framework, beside a step graph that lacks it.

Each is `y = 0.1 * x` plus something that random data never shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.decisions.record import Observer
from stepwell_export.verify.parity import ParityReport, ReferenceModel, verify_parity
from tests import graphs

CASES = (
    "alarm_that_latches", "gain_by_the_largest_so_far", "counter_that_wraps", "lag_of_3600", "tiny_values",
    "limit_by_value", "wide_integers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rare:
    """An original, and what records its decisions."""

    original: ReferenceModel
    observer: Observer
    compiles: bool = False


def compared(rare: Rare, *, user_data: Mapping[str, Array] | None = None) -> ParityReport:
    """Compare the original with a step graph that gives `0.1 * x` alone."""
    inputs = [InputSpec(name="x", dtype="float32", shape=[2]), InputSpec(name="k", dtype="int64", shape=[2])]
    manifest = Manifest(inputs=inputs, outputs=[OutputSpec(name="y", dtype="float32", shape=[2])])
    graph = graphs.graph_from_text(
        "g (float[B, 2] x, int64[B, 2] k) => (float[B, 2] y) { y = Mul (x, tenth) }",
        {"tenth": np.array(0.1, np.float32)},
    )
    return verify_parity(
        rare.original,
        StepModel(graph, manifest),
        against="itself",
        user_data=user_data,
        observer=rare.observer,
        most_lengths=3 if rare.compiles else 24,
    )


def in_torch(case: str) -> Rare:
    """Return a case as a PyTorch module."""
    pytest.importorskip("torch", reason="PyTorch is not installed (the extra `torch`)")
    import torch

    from stepwell_export.verify.decisions.torch import TorchObserver

    def lagged(x: Any) -> Any:
        return torch.nn.functional.pad(x, (0, 0, 3600, 0))[:, : x.shape[1]]

    def wrapped(x: Any) -> Any:
        t = torch.arange(x.shape[1])
        return ((t - t % 3600) * 1.0)[None, :, None].expand(x.shape)

    rules: dict[str, Callable[[Any, Any], Any]] = {
        "alarm_that_latches": lambda x, k: (x.abs() > 8).float().cummax(1).values,
        "gain_by_the_largest_so_far": lambda x, k: 0.1 * x.abs().cummax(1).values.clamp(min=10) - 1,
        "counter_that_wraps": lambda x, k: wrapped(x),
        "lag_of_3600": lambda x, k: lagged(x),
        "tiny_values": lambda x, k: torch.where(x.abs() > 1e-6, 0.0, x.abs()),
        "limit_by_value": lambda x, k: x.clamp(-50, 50) - x,
        "wide_integers": lambda x, k: (k > 1000).float(),
        "out_of_reach": lambda x, k: (torch.tanh(x) > 1.5).float(),
        "nothing": lambda x, k: torch.relu(x) - torch.relu(x),
        "lag_of_a_day": lambda x, k: torch.nn.functional.pad(x, (0, 0, 86400, 0))[:, : x.shape[1]],
    }

    class Original(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def forward(self, x: Any, k: Any) -> Any:
            return 0.1 * x + rules[case](x, k)

    module = Original().eval()

    def original(data: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            return {"y": module(*(torch.from_numpy(data[name]) for name in ("x", "k"))).numpy()}

    return Rare(original, TorchObserver(module, lambda values: module(*values), ["x", "k"]))


def in_keras(case: str) -> Rare:
    """Return a case as a Keras layer on JAX."""
    import keras
    from keras import ops

    from stepwell_export.verify.decisions.jax import JaxObserver

    def lagged(x: Any) -> Any:
        return ops.pad(x, [(0, 0), (3600, 0), (0, 0)])[:, : x.shape[1]]

    def wrapped(x: Any) -> Any:
        t = ops.arange(x.shape[1])
        return ops.cast(t - t % 3600, "float32")[None, :, None] + ops.zeros_like(x)

    def so_far(x: Any) -> Any:
        return ops.associative_scan(ops.maximum, x, axis=1)

    rules: dict[str, Callable[[Any, Any], Any]] = {
        "alarm_that_latches": lambda x, k: so_far(ops.cast(ops.abs(x) > 8, "float32")),
        "gain_by_the_largest_so_far": lambda x, k: 0.1 * ops.maximum(so_far(ops.abs(x)), 10.0) - 1,
        "counter_that_wraps": lambda x, k: wrapped(x),
        "lag_of_3600": lambda x, k: lagged(x),
        "tiny_values": lambda x, k: ops.where(ops.abs(x) > 1e-6, 0.0, ops.abs(x)),
        "limit_by_value": lambda x, k: ops.clip(x, -50, 50) - x,
        "wide_integers": lambda x, k: ops.cast(k > 1000, "float32"),
        "out_of_reach": lambda x, k: ops.cast(ops.tanh(x) > 1.5, "float32"),
        "nothing": lambda x, k: ops.relu(x) - ops.relu(x),
    }

    class Original(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
        def call(self, x: Any, k: Any) -> Any:
            return 0.1 * x + rules[case](x, k)

    layer = Original()
    recorder = JaxObserver(layer, framework=str(Path(keras.__file__).parent))
    return Rare(
        lambda data: {"y": np.asarray(layer(data["x"], data["k"].astype(np.int32)))},
        lambda data: recorder.observe([data["x"], data["k"].astype(np.int32)]),
        compiles=True,
    )


def in_onnx(case: str) -> Rare:
    """Return a case as an ONNX graph."""
    from stepwell_export.runtime.session import open_session
    from stepwell_export.verify.decisions.onnx import OnnxObserver

    latch = "c = Cast <to = 1> (b) s = CumSum (c, one) m = Min (s, f1)"
    rules = {
        "alarm_that_latches": f"a = Abs (x) b = Greater (a, f8) {latch} r = Identity (m)",
        "gain_by_the_largest_so_far": "a = Abs (x) l = Max (a, f10) d = Sub (l, f10) r = CumSum (d, one)",
        "counter_that_wraps": "n = Shape (x) u = Gather (n, one) t = Range (nil, u, one) w = Mod (t, c3600) "
        "d = Sub (t, w) f = Cast <to = 1> (d) e = Unsqueeze (f, last) z = Mul (x, f0) r = Add (z, e)",
        "lag_of_3600": "p = Pad (x, pads) n = Shape (x) u = Slice (n, at1, at2) r = Slice (p, at0, u, at1)",
        "tiny_values": "a = Abs (x) b = Greater (a, tiny) r = Where (b, f0, a)",
        "limit_by_value": "l = Clip (x, low, high) r = Sub (l, x)",
        "wide_integers": "b = Greater (k, c1000) r = Cast <to = 1> (b)",
        "out_of_reach": "t = Tanh (x) b = Greater (t, huge) r = Cast <to = 1> (b)",
        "nothing": "a = Relu (x) r = Sub (a, a)",
    }
    floats = {"tenth": 0.1, "f0": 0, "f1": 1, "f8": 8, "f10": 10, "tiny": 1e-6, "low": -50, "high": 50, "huge": 1.5}
    whole = {"nil": 0, "one": 1, "c3600": 3600, "c1000": 1000, "last": [1], "at0": [0], "at1": [1], "at2": [2]}
    weights = {name: np.array(value, np.float32) for name, value in floats.items()}
    weights |= {name: np.array(value) for name, value in whole.items()} | {"pads": np.array([0, 3600, 0, 0, 0, 0])}
    content = graphs.graph_from_text(
        "g (float[B, T, 2] x, int64[B, T, 2] k) => (float[B, T, 2] y) "
        f"{{ o = Mul (x, tenth) {rules[case]} y = Add (o, r) }}",
        weights,
    )
    session = open_session(content, where="the graph", threads=1)
    taken = {value.name for value in session.get_inputs()}

    def original(data: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": session.run(None, {name: array for name, array in data.items() if name in taken})[0]}

    import onnx

    return Rare(original, OnnxObserver(onnx.load_from_string(content)).observe)


ORIGINALS: dict[str, Callable[[str], Rare]] = {"torch": in_torch, "keras": in_keras, "onnx": in_onnx}

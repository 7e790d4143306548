"""What the zoo of sequence graphs is made of: ONNX' own text form, and random weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser

from stepwell_export.runtime.manifest import Array


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
    drawn: Array = rng.standard_normal(shape) * 0.8 / np.sqrt(max(shape[-1:], default=1))
    return drawn.astype(np.float32)


def ints(*values: int) -> Array:
    """Return axes, shapes or indices."""
    return np.array(values, np.int64)


X = "float[batch, time, 4] x"
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
    return graph(f"(float[batch, 4, time] x) => (float[batch, channels, time] y) {{ {nodes} {rest} }}", **weights)

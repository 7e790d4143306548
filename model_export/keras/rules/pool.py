"""Rules of pooling: over time as a window or as a statistic of the timesteps so far, anything inside a timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from model_export.keras.registry import Call, rule
from model_export.keras.support.running_reductions import running
from model_export.keras.support.sliding import Geometry, geometry, slide
from model_export.keras.support.window import handles_padding
from model_export.keras.value import Value

_POOLING = (
    "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D",
)  # fmt: skip
_GLOBAL_POOLING = (
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D",
)  # fmt: skip


@rule(*_POOLING)
@handles_padding
def pooling(call: Call) -> Value:
    """The mean or maximum of neighbouring positions."""
    layer, x = call.layer, call.as_float(call.value)
    kind = "MaxPool" if call.kind(_POOLING).startswith("Max") else "AveragePool"
    channels = x.row[-1 if x.time or layer.data_format == "channels_last" else 0]

    def run(name: str, shape: Geometry, pads: Sequence[int]) -> str:
        return call.op(kind, name, kernel_shape=list(shape.sizes), strides=list(shape.strides), pads=list(pads))

    return slide(call, x, geometry(layer, layer.pool_size), channels, run)


@rule(*_GLOBAL_POOLING)
def global_pooling(call: Call) -> Value:
    """The mean or maximum over all positions; over time: of the timesteps so far."""
    layer, x = call.layer, call.as_float(call.value)
    kind = "Max" if call.kind(_GLOBAL_POOLING).startswith("GlobalMax") else "Mean"
    last = layer.data_format == "channels_last"
    if x.time:
        if not last:
            raise call.refuse(
                "data_format='channels_first' pools the features and leaves time; expected 'channels_last'"
            )
        x = running(call, kind, x, call.mask if kind == "Mean" else None)
        row = (1, *x.row) if layer.keepdims else x.row
        x = x.like(call.graph.reshape(x.name, row, at=call.path), row=row) if layer.keepdims else x
        axes = list(range(1 + bool(layer.keepdims), len(row)))
    else:
        axes = list(range(1, len(x.row))) if last else list(range(2, len(x.row) + 1))
    if not axes:
        return x
    row = tuple(1 if i in axes else dim for i, dim in enumerate(x.row, 1) if layer.keepdims or i not in axes)
    return x.like(call.op(f"Reduce{kind}", x.name, call.graph.ints(axes), keepdims=int(layer.keepdims)), row=row)


@rule("AdaptiveAveragePooling1D", "AdaptiveMaxPooling1D")
def adaptive_pooling(call: Call) -> NoReturn:
    """Pooling to a given number of positions."""
    raise call.refuse(
        "it changes the number of timesteps",
        "A stream has one answer for each timestep. For a causal convolution use Conv1D with padding='causal'.",
    )

"""Rules of pooling: over time as a window or as a statistic of the timesteps so far, anything inside a timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.support.running_reductions import running
from model_export.keras.support.sliding import Geometry, channels, geometry, slide, spread
from model_export.keras.support.window import handles_padding
from model_export.keras.value import Value


@op_rule("MaxPool", "AveragePool")
@handles_padding
def pooling(call: Call) -> Value:
    """The mean or maximum of neighbouring positions."""
    x, kind = call.as_float(call.value), call.kind(["MaxPool", "AveragePool"])
    positions = len(x.row) + x.time - 1

    def run(name: str, shape: Geometry, pads: Sequence[int]) -> str:
        return call.op(kind, name, kernel_shape=list(shape.sizes), strides=list(shape.strides), pads=list(pads))

    return slide(call, x, geometry(call.layer, spread(call.layer.pool_size, positions)), channels(call, x), run)


@rule("GlobalAveragePooling1D")
def global_average(call: Call) -> Value:
    """The mean of the unmasked timesteps so far. Its code divides sums, which lose digits in a long stream."""
    layer, x = call.layer, call.as_float(call.value)
    if call.mask is None or not x.time:
        return call.walk.trace(call, layer.call)[0]
    if layer.data_format == "channels_first":
        raise call.refuse("data_format='channels_first' pools the features, and the mask is for timesteps")
    mean = running(call, "Mean", x, call.mask)
    row = (1, *x.row)
    return mean.like(call.graph.reshape(mean.name, row, at=call.path), row=row) if layer.keepdims else mean


@rule("AdaptiveAveragePooling1D", "AdaptiveMaxPooling1D")
def adaptive_pooling(call: Call) -> NoReturn:
    """Pooling to a given number of positions."""
    raise call.refuse(
        "it changes the number of timesteps",
        "A stream has one answer for each timestep. For a causal convolution use Conv1D with padding='causal'.",
    )

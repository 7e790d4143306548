"""Rules of convolutions and poolings."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.support.sliding import Geometry, Slide, channels_first, geometry, slide, spread
from model_export.keras.value import Value
from model_export.manifest import Array


@op_rule("Conv", "DepthwiseConv")
def conv(call: Call) -> Value:
    """A kernel moves over all positions."""
    kernel = call.weights(1)
    if call.kind(["Conv", "DepthwiseConv"]) == "DepthwiseConv":
        kernel = _of_each_channel(kernel)
    return _convolved(call, call.as_float(call.value), kernel)


@op_rule("SeparableConv")
def separable(call: Call) -> Value:
    """Each channel by itself, then a mixture of the channels at each position."""
    y = _convolved(call, call.as_float(call.value), _of_each_channel(call.weights(1)))
    mixing = call.weights(2)
    filters = mixing.shape[-1]
    if channels_first(call, y):
        ones = Geometry(*((1,) * (mixing.ndim - 2),) * 3, padding="valid")
        return slide(call, y, ones, filters, convolution(call, mixing))
    product = call.op("MatMul", y.name, call.constant(mixing.reshape(mixing.shape[-2:])))
    return y.like(product, row=(*y.row[:-1], filters))


def _convolved(call: Call, x: Value, kernel: Array) -> Value:
    *sizes, of_group, filters = kernel.shape
    groups = call.size(x, 1 if channels_first(call, x) else x.rank - 1) // of_group
    return slide(
        call, x, geometry(call.layer, tuple(sizes)), filters, convolution(call, kernel, groups), takes_bias=True
    )


def convolution(call: Call, kernel: Array, groups: int = 1) -> Slide:
    """Return what emits the operator, for a kernel `(*sizes, in, out)`."""
    spatial = kernel.ndim - 2
    weights = call.constant(kernel.transpose(spatial + 1, spatial, *range(spatial)))

    def run(name: str, shape: Geometry, pads: Sequence[int], *bias: str) -> str:
        moves = {"strides": list(shape.strides), "dilations": list(shape.dilations), "pads": list(pads)}
        return call.op("Conv", name, weights, *bias, group=groups, **moves)

    return run


def _of_each_channel(kernel: Array) -> Array:
    """Return a kernel `(*sizes, channels, multiplier)` as that of a convolution with a group for each channel."""
    return kernel.reshape(*kernel.shape[:-2], 1, -1)


@op_rule("MaxPool", "AveragePool")
def pooling(call: Call) -> Value:
    """The mean or maximum of neighbouring positions."""
    x, kind = call.as_float(call.value), call.kind(["MaxPool", "AveragePool"])

    def run(name: str, shape: Geometry, pads: Sequence[int]) -> str:
        return call.op(kind, name, kernel_shape=list(shape.sizes), strides=list(shape.strides), pads=list(pads))

    shape = geometry(call.layer, spread(call.layer.pool_size, len(x.row) - 1))
    return slide(call, x, shape, call.size(x, 1 if channels_first(call, x) else x.rank - 1), run)


@rule("GlobalAveragePooling1D")
def global_average(call: Call) -> Value:
    """The mean of the unmasked timesteps; with a mask the layer's code is not traced."""
    layer, x = call.layer, call.as_float(call.value)
    if call.mask is None or not x.is_sequence:
        return call.walk.trace(call, layer.call)[0]
    if layer.data_format == "channels_first":
        raise call.refuse("data_format='channels_first' pools the features, and the mask is for timesteps")
    call.graph.note_first()  # the mean of nothing is NaN
    steps, keep = call.graph.ints([1]), int(layer.keepdims)
    counted = call.op("Unsqueeze", call.cast(call.mask, "float32"), call.graph.ints([2]))
    total = call.op("ReduceSum", call.op("Mul", x, counted), steps, keepdims=keep)
    mean = call.op("Div", total, call.op("ReduceSum", counted, steps, keepdims=keep))
    return x.like(mean, row=(1, *x.row[1:]) if keep else x.row[1:])

"""Rules of convolutions and poolings: over time a window or what came so far, anything inside one timestep."""

from __future__ import annotations

from collections.abc import Sequence

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.support.running_reductions import running
from model_export.keras.support.sliding import Geometry, Slide, channels, geometry, slide, slide_inside, spread
from model_export.keras.support.window import check_over_time, window
from model_export.keras.value import Value
from model_export.manifest import Array


@op_rule("Conv", "DepthwiseConv", handles="padding")
def conv(call: Call) -> Value:
    """Over time: causal, with the timesteps it looks back on as a state. Inside a timestep: any."""
    kernel = call.weights(1)
    if call.kind(["Conv", "DepthwiseConv"]) == "DepthwiseConv":
        kernel = _of_each_channel(kernel)
    return _convolved(call, call.as_float(call.value), kernel)


@op_rule("SeparableConv", handles="padding")
def separable(call: Call) -> Value:
    """Each channel by itself, then a mixture of the channels at each position."""
    y = _convolved(call, call.as_float(call.value), _of_each_channel(call.weights(1)))
    mixing = call.weights(2)
    filters = mixing.shape[-1]
    if call.layer.data_format == "channels_first" and not y.time:
        ones = Geometry(*((1,) * (mixing.ndim - 2),) * 3, padding="valid")
        return slide_inside(call, y, ones, filters, convolution(call, mixing))
    product = call.op("MatMul", y.name, call.constant(mixing.reshape(mixing.shape[-2:])))
    return y.like(product, row=(*y.row[:-1], filters), padding=y.padding)


def _convolved(call: Call, x: Value, kernel: Array) -> Value:
    *sizes, of_group, filters = kernel.shape
    shape, groups = geometry(call.layer, tuple(sizes)), channels(call, x) // of_group
    if x.time and len(sizes) == 1 and groups == 1:
        return _dense_over_time(call, x, shape, kernel)
    return slide(call, x, shape, filters, convolution(call, kernel, groups), takes_bias=True)


def convolution(call: Call, kernel: Array, groups: int = 1) -> Slide:
    """Return what emits the operator, for a kernel `(*sizes, in, out)`."""
    spatial = kernel.ndim - 2
    weights = call.constant(kernel.transpose(spatial + 1, spatial, *range(spatial)))

    def run(name: str, shape: Geometry, pads: Sequence[int], *bias: str) -> str:
        moves = {"strides": list(shape.strides), "dilations": list(shape.dilations), "pads": list(pads)}
        return call.op("Conv", name, weights, *bias, group=groups, **moves)

    return run


def _dense_over_time(call: Call, x: Value, shape: Geometry, kernel: Array) -> Value:
    """One matrix product over the window: quicker than a convolution with one answer."""
    check_over_time(call, shape.sizes[0], shape.strides[0])
    size, dilation = shape.sizes[0], shape.dilations[0]
    seen = window(call, x, (size - 1) * dilation)
    taps = seen.name
    if dilation > 1 and size > 1:
        taps = call.op("Gather", taps, call.graph.ints(range(0, seen.row[0], dilation)), axis=1)
    flat = call.reshape(taps, [size * x.row[0]]) if size > 1 else x.name
    matrix = call.constant(kernel.reshape(-1, kernel.shape[-1]))
    y = call.graph.biasable(lambda *bias: call.op("Gemm", flat, matrix, *bias), kernel.shape[-1:])
    return x.like(y, row=kernel.shape[-1:], padding=seen.padding)


def _of_each_channel(kernel: Array) -> Array:
    """Return a kernel `(*sizes, channels, multiplier)` as that of a convolution with a group for each channel."""
    return kernel.reshape(*kernel.shape[:-2], 1, -1)


@op_rule("MaxPool", "AveragePool", handles="padding")
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
    return call.reshaped(mean, (1, *x.row)) if layer.keepdims else mean

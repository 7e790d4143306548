"""Rules of convolutions: causal over time as a window of past timesteps, anything inside one timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from model_export.keras.registry import Call, rule, to_array
from model_export.keras.support.activations import activate
from model_export.keras.support.sliding import Geometry, geometry, slide, slide_inside
from model_export.keras.support.window import check_over_time, handles_padding, window
from model_export.keras.value import Value
from model_export.manifest import Array


def activated(call: Call, y: Value) -> Value:
    """Apply the layer's activation; the padding over time has been through it already."""
    return replace(activate(call, call.layer.activation, y), padding=y.padding)


def _attributes(shape: Geometry, pads: Sequence[int]) -> dict[str, Any]:
    return {"strides": list(shape.strides), "dilations": list(shape.dilations), "pads": list(pads)}


@rule("Conv1D", "Conv2D", "Conv3D")
@handles_padding
def conv(call: Call) -> Value:
    """Over time: causal, with the timesteps it looks back on as a state. Inside a timestep: any."""
    layer, x = call.layer, call.as_float(call.value)
    kernel = to_array(layer.kernel)
    shape = geometry(layer, layer.kernel_size)
    if x.time and len(shape.sizes) == 1 and layer.groups == 1:
        return activated(call, _dense_over_time(call, x, shape, kernel))
    bias = [call.constant(layer.bias)] if layer.use_bias else []
    weights = call.constant(_channels_in_front(kernel))

    def run(name: str, shape: Geometry, pads: Sequence[int]) -> str:
        return call.op("Conv", name, weights, *bias, group=layer.groups, **_attributes(shape, pads))

    return activated(call, slide(call, x, shape, layer.filters, run))


def _dense_over_time(call: Call, x: Value, shape: Geometry, kernel: Array) -> Value:
    """One matrix product over the window: quicker than a convolution with one answer."""
    check_over_time(call, shape.sizes[0], shape.strides[0])
    size, dilation = shape.sizes[0], shape.dilations[0]
    seen = window(call, x, (size - 1) * dilation, causal=shape.padding == "causal")
    taps = seen.name
    if dilation > 1 and size > 1:
        taps = call.op("Gather", taps, call.graph.ints(range(0, seen.row[0], dilation)), axis=1)
    flat = call.graph.reshape(taps, [size * x.row[0]], at=call.path) if size > 1 else x.name
    bias = [call.constant(call.layer.bias)] if call.layer.use_bias else []
    y = call.op("Gemm", flat, call.constant(kernel.reshape(-1, kernel.shape[-1])), *bias)
    return x.like(y, row=(kernel.shape[-1],), padding=seen.padding)


@rule("DepthwiseConv1D", "DepthwiseConv2D")
@handles_padding
def depthwise(call: Call) -> Value:
    """Each channel by itself."""
    layer, x = call.layer, call.as_float(call.value)
    y = _depthwise(call, x, to_array(layer.kernel))
    if layer.use_bias:
        y = _add_bias(call, y, to_array(layer.bias))
    return activated(call, y)


@rule("SeparableConv1D", "SeparableConv2D")
@handles_padding
def separable(call: Call) -> Value:
    """Each channel by itself, then a mixture of the channels at each position."""
    layer, x = call.layer, call.as_float(call.value)
    y = _depthwise(call, x, to_array(layer.depthwise_kernel))
    mixing = to_array(layer.pointwise_kernel)
    if layer.data_format == "channels_first" and not x.time:
        ones = Geometry(*((1,) * (mixing.ndim - 2),) * 3, padding="valid")
        weights = call.constant(_channels_in_front(mixing))
        y = slide_inside(call, y, ones, layer.filters, lambda name, *_: call.op("Conv", name, weights))
    else:
        product = call.op("MatMul", y.name, call.constant(mixing.reshape(mixing.shape[-2:])))
        y = y.like(product, row=(*y.row[:-1], layer.filters), padding=y.padding)
    if layer.use_bias:
        y = _add_bias(call, y, to_array(layer.bias))
    return activated(call, y)


def _depthwise(call: Call, x: Value, kernel: Array) -> Value:
    *sizes, channels, multiplier = kernel.shape
    weights = call.constant(_channels_in_front(kernel.reshape(*sizes, 1, channels * multiplier)))

    def run(name: str, shape: Geometry, pads: Sequence[int]) -> str:
        return call.op("Conv", name, weights, group=channels, **_attributes(shape, pads))

    return slide(call, x, geometry(call.layer, tuple(sizes)), channels * multiplier, run)


def _add_bias(call: Call, y: Value, bias: Array) -> Value:
    if call.layer.data_format == "channels_first" and not y.time:
        bias = bias.reshape(-1, *(1 for _ in y.row[1:]))
    return y.like(call.op("Add", y.name, call.constant(bias)), padding=y.padding)


def _channels_in_front(kernel: Array) -> Array:
    """Return `(*sizes, in, out)` as `(out, in, *sizes)`."""
    spatial = kernel.ndim - 2
    return kernel.transpose(spatial + 1, spatial, *range(spatial))

"""Rules of layers that make more positions: transposed convolution and up-sampling."""

from __future__ import annotations

from typing import Any

from model_export.keras.registry import Call, rule, to_array
from model_export.keras.rules.conv import activated
from model_export.keras.support.window import check_over_time, handles_padding, moved, window
from model_export.keras.value import Value


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
@handles_padding
def conv_transpose(call: Call) -> Value:
    """Over time: with padding='valid' each answer comes of the timesteps so far. Inside a timestep: any."""
    layer, x = call.layer, call.as_float(call.value)
    if not x.time:
        return activated(call, _transposed(call, x, over_time=False))
    span = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    check_over_time(call, layer.kernel_size[0], layer.strides[0])
    if layer.output_padding and layer.output_padding[0]:
        raise call.refuse(f"output_padding={layer.output_padding} adds timesteps behind the newest one")
    seen = window(call, x, span, causal=True)
    y = _transposed(call, seen, over_time=True)
    front, back = (x.padding.front, x.padding.back) if x.padding else (0, 0)
    flat = y.like(
        call.graph.reshape(y.name, y.row[1:], at=call.path),
        row=y.row[1:],
        time=True,
        padding=moved(call, x, front, back + span),
    )
    return activated(call, flat)


def _transposed(call: Call, x: Value, *, over_time: bool) -> Value:
    """Run the operator; over time it keeps the one answer that the whole window reaches."""
    layer = call.layer
    count = len(layer.kernel_size)
    first = layer.data_format == "channels_first"
    kernel = to_array(layer.kernel)
    inputs = [call.constant(kernel.transpose(count + 1, count, *range(count)))]
    inputs += [call.constant(layer.bias)] if layer.use_bias else []
    front, behind, extra = [], [], []
    for axis in range(count):
        low, high = _cut_ends(layer, axis)
        if over_time and axis == 0:
            low = high = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        front.append(low)
        behind.append(max(high, 0))
        extra.append(max(-high, 0))
    name = x.name if first else call.op("Transpose", x.name, perm=[0, count + 1, *range(1, count + 1)])
    y = call.op(
        "ConvTranspose", name, *inputs, strides=list(layer.strides), dilations=list(layer.dilation_rate),
        pads=front + behind, output_padding=extra, group=getattr(layer, "groups", 1),
    )  # fmt: skip
    positions = x.row[1:] if first else x.row[:-1]
    sizes = [
        (n - 1) * stride + (size - 1) * dilation + 1 - low - high + more
        for n, stride, size, dilation, low, high, more in zip(
            positions, layer.strides, layer.kernel_size, layer.dilation_rate, front, behind, extra, strict=True
        )
    ]
    if first:
        return x.like(y, row=(layer.filters, *sizes))
    return x.like(call.op("Transpose", y, perm=[0, *range(2, count + 2), 1]), row=(*sizes, layer.filters))


def _cut_ends(layer: Any, axis: int) -> tuple[int, int]:
    """Return how much of the full result is cut off in front and behind; negative: zeros are added.

    Source: keras.src.backend.common.backend_utils, the padding of JAX.
    """
    size = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
    stride = layer.strides[axis]
    asked = layer.output_padding
    if layer.padding == "valid":
        return 0, -(max(stride - size, 0) if asked is None else asked[axis])
    whole = stride + size - 2 if asked is None else size + size % 2 - 2 + asked[axis]
    left = min(whole // 2 + whole % 2, size - 1)
    return size - 1 - left, size - 1 - (whole - left)


@rule("UpSampling1D", "UpSampling2D", "UpSampling3D")
def up_sampling(call: Call) -> Value:
    """Each position several times, or interpolated."""
    layer, x = call.layer, call.value
    factors = [layer.size] if isinstance(layer.size, int) else list(layer.size)
    first = getattr(layer, "data_format", None) == "channels_first"
    if x.time and first:
        raise call.refuse("data_format='channels_first' puts the channels where time belongs")
    if x.time and factors.pop(0) != 1:
        raise call.refuse(
            f"size={layer.size} repeats timesteps", "A stream has one answer for each timestep: use 1 over time."
        )
    scales = [1, *factors] if first else [*factors, 1]
    if all(scale == 1 for scale in scales):
        return x
    how = getattr(layer, "interpolation", "nearest")
    if how not in {"nearest", "bilinear"}:
        raise call.refuse(f"interpolation={how!r} has no rule; expected 'nearest' or 'bilinear'")
    x = call.as_float(x)
    row = tuple(dim * scale for dim, scale in zip(x.row, scales, strict=True))
    return x.like(_resize(call, x, row, how), row=row)


def _resize(call: Call, x: Value, row: tuple[int, ...], how: str) -> str:
    if how == "nearest":
        name = x.name
        for axis, (size, dim) in enumerate(zip(row, x.row, strict=True), 1):
            if size != dim:
                name = call.op("Gather", name, call.graph.ints([i * dim // size for i in range(size)]), axis=axis)
        return name
    sizes = call.op("Concat", call.op("Shape", x.name, end=1), call.graph.ints(row), axis=0)
    return call.op("Resize", x.name, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

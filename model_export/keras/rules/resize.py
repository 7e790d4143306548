"""Rules of layers that make more positions: transposed convolution and up-sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.rules.slicing import pad, picked
from model_export.keras.support.sliding import Geometry, geometry
from model_export.keras.support.window import check_over_time, moved, window
from model_export.keras.value import Value
from model_export.manifest import Array


@op_rule("ConvTranspose", handles="padding")
def conv_transpose(call: Call) -> Value:
    """Over time: with padding='valid' each answer comes of the timesteps so far. Inside a timestep: any."""
    x, kernel = call.as_float(call.value), call.weights(1)
    shape = geometry(call.layer, kernel.shape[:-2])
    if not x.time:
        return _transposed(call, x, shape, kernel)
    span = (shape.sizes[0] - 1) * shape.dilations[0]
    check_over_time(call, shape.sizes[0], shape.strides[0])
    if _asked(call, 0):
        raise call.refuse(f"output_padding={call.layer.output_padding} adds timesteps behind the newest one")
    before = pad(call, x, [(0, 0), (span, 0), *((0, 0) for _ in x.row)], 0)
    y = _transposed(call, window(call, before, span), shape, kernel, reach=span)
    front, back = (x.padding.front, x.padding.back) if x.padding else (0, 0)
    return replace(y, time=True, padding=moved(call, x, front, back + span))


def _transposed(call: Call, x: Value, shape: Geometry, kernel: Array, reach: int | None = None) -> Value:
    """Run the operator; over time it keeps the one answer that the whole window reaches, so far from both ends."""
    count, first = len(shape.sizes), call.layer.data_format == "channels_first"
    weights = call.constant(kernel.transpose(count + 1, count, *range(count)))
    cuts = [_cut_ends(call, shape, axis) for axis in range(count)]
    if reach is not None:
        cuts[0] = (reach, reach)
    moves = {
        "strides": list(shape.strides),
        "dilations": list(shape.dilations),
        "pads": [low for low, _ in cuts] + [max(high, 0) for _, high in cuts],
        "output_padding": [max(-high, 0) for _, high in cuts],
    }
    positions = x.row[1:] if first else x.row[:-1]
    sizes = [
        (n - 1) * stride + (size - 1) * dilation + 1 - low - high
        for n, stride, size, dilation, (low, high) in zip(
            positions, shape.strides, shape.sizes, shape.dilations, cuts, strict=True
        )
    ]
    filters = kernel.shape[-2]
    row = ((filters, *sizes) if first else (*sizes, filters))[reach is not None :]
    name = x.name if first else call.op("Transpose", x.name, perm=[0, count + 1, *range(1, count + 1)])

    def emit(*bias: str) -> str:
        y = call.op("ConvTranspose", name, weights, *bias, **moves)
        y = y if first else call.op("Transpose", y, perm=[0, *range(2, count + 2), 1])
        return y if reach is None else call.reshape(y, row)

    bias = (filters, *(1 for _ in sizes)) if first else (filters,)
    return x.like(call.graph.biasable(emit, bias), row=row)


def _asked(call: Call, axis: int) -> int | None:
    asked: Any = call.layer.output_padding
    padding: int | None = asked[axis] if isinstance(asked, list | tuple) else asked
    return padding


def _cut_ends(call: Call, shape: Geometry, axis: int) -> tuple[int, int]:
    """Return how much of the full result is cut off in front and behind; negative: zeros are added.

    Source: keras.src.backend.common.backend_utils, the padding of JAX.
    """
    size, stride, asked = (shape.sizes[axis] - 1) * shape.dilations[axis] + 1, shape.strides[axis], _asked(call, axis)
    if shape.padding == "valid":
        return 0, -(max(stride - size, 0) if asked is None else asked)
    whole = stride + size - 2 if asked is None else size + size % 2 - 2 + asked
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
    if how == "nearest":
        for axis, (size, dim) in enumerate(zip(row, x.row, strict=True), 1):
            x = x if size == dim else picked(call, x, axis, [i * dim // size for i in range(size)])
        return x
    sizes = call.op("Concat", call.op("Shape", x.name, end=1), call.graph.ints(row), axis=0)
    y = call.op("Resize", x.name, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return x.like(y, row=row)

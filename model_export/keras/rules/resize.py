"""Rules of layers that make more positions: transposed convolution and up-sampling."""

from __future__ import annotations

from typing import Any

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.rules.slicing import picked
from model_export.keras.support.sliding import Geometry, channels_first, check_over_time, geometry
from model_export.keras.value import Value


@op_rule("ConvTranspose")
def conv_transpose(call: Call) -> Value:
    """Each position adds a kernel to the result; with padding='valid' that is causal over time, if the end is cut."""
    x, kernel = call.as_float(call.value), call.weights(1)
    shape = geometry(call.layer, kernel.shape[:-2])
    count, first = len(shape.sizes), channels_first(call, x)
    positions = x.row[1:] if first else x.row[:-1]
    check_over_time(call, positions, shape)
    if positions[0] is None and _asked(call, 0):
        raise call.refuse(f"output_padding={call.layer.output_padding} adds timesteps behind the newest one")
    weights = call.constant(kernel.transpose(count + 1, count, *range(count)))
    cuts = [_cut_ends(call, shape, axis) for axis in range(count)]
    moves = {
        "strides": list(shape.strides),
        "dilations": list(shape.dilations),
        "pads": [low for low, _ in cuts] + [max(high, 0) for _, high in cuts],
        "output_padding": [max(-high, 0) for _, high in cuts],
    }
    facts = zip(positions, shape.strides, shape.sizes, shape.dilations, cuts, strict=True)
    sizes = [
        None if n is None else (n - 1) * stride + (size - 1) * dilation + 1 - low - high
        for n, stride, size, dilation, (low, high) in facts
    ]
    filters = kernel.shape[-2]
    name = x.name if first else call.op("Transpose", x.name, perm=[0, count + 1, *range(1, count + 1)])

    def emit(*bias: str) -> str:
        y = call.op("ConvTranspose", name, weights, *bias, **moves)
        return y if first else call.op("Transpose", y, perm=[0, *range(2, count + 2), 1])

    y = call.graph.biasable(emit, (filters, *(1 for _ in sizes)) if first else (filters,))
    return x.like(y, row=(filters, *sizes) if first else (*sizes, filters))


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
    if x.is_sequence and first:
        raise call.refuse("data_format='channels_first' puts the channels where time belongs")
    if x.is_sequence and factors[0] != 1:
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
    row = tuple(None if dim is None else dim * scale for dim, scale in zip(x.row, scales, strict=True))
    if how == "nearest":
        for axis, (size, dim) in enumerate(zip(row, x.row, strict=True), 1):
            if size is not None and dim is not None and size != dim:
                x = picked(call, x, axis, [i * dim // size for i in range(size)])
        return x
    shape = [
        call.op("Shape", x, start=i, end=i + 1) if n is None else call.graph.ints([n])
        for i, n in enumerate((None, *row))
    ]
    sizes = call.op("Concat", *shape, axis=0)
    y = call.op("Resize", x.name, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return x.like(y, row=row)

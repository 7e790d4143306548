"""Rules of convolutions and poolings: a kernel moves over positions, one axis of which may be time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepwell_export.keras.rule_registry import Call, op_rule, rule
from stepwell_export.keras.value import Value

_CAUSAL = (
    "Use padding='causal' (Conv1D), or put ZeroPadding1D((k - 1) * dilation, 0) in front and padding='valid'; over "
    "(time, frequency) ZeroPadding2D(((k - 1) * dilation, 0), ...)."
)

_Sizes = Sequence[int]
"""One number for each axis of the positions."""


@op_rule("Conv", "DepthwiseConv")
def conv(call: Call) -> Value:
    """Weighted sums of neighbouring positions."""
    x, kernel = call.as_float(call.value), call.weights(1)
    if call.kind(["Conv", "DepthwiseConv"]) == "DepthwiseConv":  # with a group for each channel
        kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)
    *sizes, of_group, filters = kernel.shape
    weights = call.constant(kernel.transpose(-1, -2, *range(len(sizes))))
    more = {"group": _channels(call, x) // of_group, "dilations": _each(call.layer.dilation_rate, len(sizes))}

    def emit(tensor: str, moves: dict[str, _Sizes], *bias: str) -> str:
        return call.op("Conv", tensor, weights, *bias, **moves, **more)

    return _slid(call, x, sizes, filters, emit, dilations=more["dilations"], takes_bias=True)


@op_rule("MaxPool", "AveragePool")
def pooling(call: Call) -> Value:
    """The mean or maximum of neighbouring positions."""
    x, kind = call.as_float(call.value), call.kind(["MaxPool", "AveragePool"])
    sizes = _each(call.layer.pool_size, len(x.row) - 1)

    def emit(tensor: str, moves: dict[str, _Sizes]) -> str:
        return call.op(kind, tensor, kernel_shape=sizes, **moves)

    return _slid(call, x, sizes, _channels(call, x), emit, dilations=[1] * len(sizes), takes_bias=False)


def _slid(
    call: Call,
    x: Value,
    sizes: _Sizes,
    channels: int,
    emit: Callable[..., str],
    *,
    dilations: _Sizes,
    takes_bias: bool,
) -> Value:
    """Move a kernel over a value's positions.

    Args:
        call: The operation.
        x: The value; its row has the positions and the channels.
        sizes: Positions that the kernel covers.
        channels: Channels of the result.
        emit: Emits the operator on a tensor with the channels in front, with strides and pads as attributes.
        dilations: Positions between two that the kernel sees.
        takes_bias: Whether the operator can add a bias, which `emit` takes then.
    """
    strides = sizes if call.layer.strides is None else _each(call.layer.strides, len(sizes))
    positions, pads, answers = _positions(call, x, sizes, strides), [], []
    for n, size, stride, dilation in zip(positions, sizes, strides, dilations, strict=True):
        reach = (size - 1) * dilation + 1
        padded = call.layer.padding == "same" and n is not None
        pads.append(max((-(-(n or 0) // stride) - 1) * stride + reach - (n or 0), 0) if padded else 0)
        answers.append(None if n is None else (n + pads[-1] - reach) // stride + 1)
    moves = {"strides": list(strides), "pads": [pad // 2 for pad in pads] + [pad - pad // 2 for pad in pads]}

    def moved(tensor: str, *bias: str) -> str:
        return emit(tensor, moves, *bias)

    return _channels_in_front(call, x, moved, channels, answers, takes_bias=takes_bias)


@op_rule("ConvTranspose")
def conv_transpose(call: Call) -> Value:
    """Each position adds a kernel to the result; with padding='valid' that is causal over time, if the end is cut."""
    x, kernel = call.as_float(call.value), call.weights(1)
    *sizes, filters, _ = kernel.shape
    count = len(sizes)
    strides, dilations = _each(call.layer.strides, count), _each(call.layer.dilation_rate, count)
    extra = _each(call.layer.output_padding, count)
    positions = _positions(call, x, sizes, strides)
    if positions[0] is None and extra[0]:
        raise call.refuse(f"output_padding={call.layer.output_padding} adds timesteps behind the newest one")
    weights = call.constant(kernel.transpose(-1, -2, *range(count)))
    reaches = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    cuts = [_cut_ends(call.layer.padding, *facts) for facts in zip(reaches, strides, extra, strict=True)]
    moves = {
        "strides": strides,
        "dilations": dilations,
        "pads": [low for low, _ in cuts] + [max(high, 0) for _, high in cuts],
        "output_padding": [max(-high, 0) for _, high in cuts],
    }
    answers = [
        None if n is None else (n - 1) * stride + reach - low - high
        for n, stride, reach, (low, high) in zip(positions, strides, reaches, cuts, strict=True)
    ]

    def emit(tensor: str, *bias: str) -> str:
        return call.op("ConvTranspose", tensor, weights, *bias, **moves)

    return _channels_in_front(call, x, emit, filters, answers, takes_bias=True)


def _cut_ends(padding: str, reach: int, stride: int, extra: int | None) -> tuple[int, int]:
    """Return how much of the full result is cut off in front and behind; negative: zeros are added.

    Args:
        padding: `same` or `valid`.
        reach: Positions between the first and the last of the kernel, both included.
        stride: Positions of the result for each of the input.
        extra: The output_padding; None: Keras chooses it.

    Source: keras.src.backend.common.backend_utils, the padding of JAX.
    """
    if padding == "valid":
        return 0, -(max(stride - reach, 0) if extra is None else extra)
    whole = stride + reach - 2 if extra is None else reach + reach % 2 - 2 + extra
    left = min(whole // 2 + whole % 2, reach - 1)
    return reach - 1 - left, reach - 1 - (whole - left)


# ---------------------------------------------------------------- axes


def _each(amount: Any, count: int) -> list[Any]:
    """Return one number for each axis, as Keras takes them: one for all, or one for each."""
    return list(amount) if isinstance(amount, list | tuple) else [amount] * count


def _channels_first(call: Call, x: Value) -> bool:
    """Whether the channels are in front of the positions.

    Raises:
        RefusedModelError: Time would be the channels.
    """
    first: bool = call.layer.data_format == "channels_first"
    if first and x.is_sequence:
        raise call.refuse("data_format='channels_first' puts the channels where time belongs; expected 'channels_last'")
    return first


def _channels(call: Call, x: Value) -> int:
    return call.size(x, 1 if _channels_first(call, x) else x.rank - 1)


def _positions(call: Call, x: Value, sizes: _Sizes, strides: _Sizes) -> Sequence[int | None]:
    """Return the sizes of the axes that a kernel moves over.

    Raises:
        RefusedModelError: It has no causal form, whatever the padding: it skips timesteps, or looks ahead.
    """
    positions = x.row[1:] if _channels_first(call, x) else x.row[:-1]
    for n, size, stride in zip(positions, sizes, strides, strict=True):
        if n is None and stride != 1:
            raise call.refuse(
                f"strides={stride} skips timesteps",
                "A stream has one answer for each timestep: use strides=1 over time.",
            )
        if n is None and size > 1 and call.layer.padding == "same":
            raise call.refuse(
                f"padding='same' over the time axis looks at timesteps that have not come yet (it sees {size} at once)",
                _CAUSAL,
            )
    return positions


def _channels_in_front(
    call: Call, x: Value, emit: Callable[..., str], channels: int, answers: Sequence[int | None], *, takes_bias: bool
) -> Value:
    """Emit an operator that has the channels in front of the positions, as those of ONNX have."""
    count, first = len(answers), _channels_first(call, x)
    source = x.name if first else call.op("Transpose", x, perm=[0, count + 1, *range(1, count + 1)])

    def turned(*bias: str) -> str:
        y = emit(source, *bias)
        return y if first else call.op("Transpose", y, perm=[0, *range(2, count + 2), 1])

    beside = (1,) * count if first else ()
    name = call.graph.biasable(turned, (channels, *beside)) if takes_bias else turned()
    return x.like(name, row=(channels, *answers) if first else (*answers, channels))


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

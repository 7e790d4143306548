"""Moves a kernel over positions, one axis of which may be time: what convolutions and poolings have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model_export.keras.registry import Call
from model_export.keras.value import Value

_CAUSAL = (
    "Use padding='causal' (Conv1D), or put ZeroPadding1D((k - 1) * dilation, 0) in front and padding='valid'; over "
    "(time, frequency) ZeroPadding2D(((k - 1) * dilation, 0), ...)."
)

Positions = Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel moves over its positions, one number for each axis of them.

    Attributes:
        sizes: Positions that the kernel covers.
        strides: Positions from one answer to the next.
        dilations: Positions between two that the kernel sees.
        padding: `same` if the positions are padded so that there is an answer at each, or `valid`.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str

    def pads(self, positions: Positions) -> list[int]:
        """Return ONNX' pads: all in front, then all behind. Over time there are none."""
        front, behind = [], []
        for n, size, stride, dilation in zip(positions, self.sizes, self.strides, self.dilations, strict=True):
            reach = (size - 1) * dilation + 1
            is_padded = self.padding == "same" and n is not None
            whole = max((-(-(n or 0) // stride) - 1) * stride + reach - (n or 0), 0) if is_padded else 0
            front.append(whole // 2)
            behind.append(whole - whole // 2)
        return front + behind

    def reach(self, positions: Positions) -> tuple[int | None, ...]:
        """Return how many answers there are along each axis."""
        pads = self.pads(positions)
        both = [a + b for a, b in zip(pads, pads[len(self.sizes) :], strict=False)]
        facts = zip(positions, both, self.sizes, self.strides, self.dilations, strict=True)
        return tuple(
            None if n is None else (n + more - (size - 1) * dilation - 1) // stride + 1
            for n, more, size, stride, dilation in facts
        )


def geometry(operation: Any, sizes: tuple[int, ...]) -> Geometry:
    """Return the geometry of a convolution or pooling, which has no dilation and moves by its size if nothing else."""
    strides = sizes if operation.strides is None else spread(operation.strides, len(sizes))
    return Geometry(sizes, strides, spread(getattr(operation, "dilation_rate", 1), len(sizes)), operation.padding)


def spread(amount: Any, count: int) -> tuple[int, ...]:
    """Return one number for each axis, as Keras takes them: one for all, or one for each."""
    return tuple(amount) if isinstance(amount, list | tuple) else (amount,) * count


def channels_first(call: Call, x: Value) -> bool:
    """Whether the channels are in front of the positions.

    Raises:
        RefusedModelError: Time would be the channels.
    """
    first: bool = call.layer.data_format == "channels_first"
    if first and x.is_sequence:
        raise call.refuse("data_format='channels_first' puts the channels where time belongs; expected 'channels_last'")
    return first


def check_over_time(call: Call, positions: Positions, shape: Geometry) -> None:
    """Refuse what has no causal form, whatever the padding.

    Raises:
        RefusedModelError: It skips timesteps, or looks ahead.
    """
    for n, size, stride in zip(positions, shape.sizes, shape.strides, strict=True):
        if n is None and stride != 1:
            raise call.refuse(
                f"strides={stride} skips timesteps",
                "A stream has one answer for each timestep: use strides=1 over time.",
            )
        if n is None and size > 1 and shape.padding == "same":
            raise call.refuse(
                f"padding='same' over the time axis looks at timesteps that have not come yet (it sees {size} at once)",
                _CAUSAL,
            )


Slide = Callable[..., str]
"""`(tensor, geometry, pads)` to the tensor of answers; channels first, as ONNX has them. A bias may follow."""


def slide(call: Call, x: Value, shape: Geometry, channels: int, run: Slide, *, takes_bias: bool = False) -> Value:
    """Move a kernel over a value's positions; time may be one axis of them.

    Args:
        call: The layer.
        x: The value; its row has the positions and the channels.
        shape: How the kernel moves.
        channels: Channels of the result.
        run: Emits the operator.
        takes_bias: Whether the operator can add a bias.
    """
    count, first = len(shape.sizes), channels_first(call, x)
    positions = x.row[1:] if first else x.row[:-1]
    check_over_time(call, positions, shape)
    source = x.name if first else call.op("Transpose", x, perm=[0, count + 1, *range(1, count + 1)])
    pads, reach = shape.pads(positions), shape.reach(positions)

    def emit(*bias: str) -> str:
        y = run(source, shape, pads, *bias)
        return y if first else call.op("Transpose", y, perm=[0, *range(2, count + 2), 1])

    beside = (1,) * count if first else ()
    name = call.graph.biasable(emit, (channels, *beside)) if takes_bias else emit()
    return x.like(name, row=(channels, *reach) if first else (*reach, channels))

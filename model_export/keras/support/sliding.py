"""Moves a kernel over positions, one of which may be time: what convolutions and poolings have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from model_export.keras.registry import Call
from model_export.keras.support.window import check_over_time, window
from model_export.keras.value import Value


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

    def pads(self, positions: Sequence[int]) -> list[int]:
        """Return ONNX' pads: all in front, then all behind."""
        front, behind = [], []
        for n, size, stride, dilation in zip(positions, self.sizes, self.strides, self.dilations, strict=True):
            reach = (size - 1) * dilation + 1
            whole = max((-(-n // stride) - 1) * stride + reach - n, 0) if self.padding == "same" else 0
            front.append(whole // 2)
            behind.append(whole - whole // 2)
        return front + behind

    def reach(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return how many answers there are along each axis."""
        pads = self.pads(positions)
        ends = [n + a + b for n, a, b in zip(positions, pads, pads[len(self.sizes) :], strict=False)]
        facts = zip(ends, self.sizes, self.strides, self.dilations, strict=True)
        return tuple((n - (size - 1) * dilation - 1) // stride + 1 for n, size, stride, dilation in facts)


def geometry(operation: Any, sizes: tuple[int, ...]) -> Geometry:
    """Return the geometry of a convolution or pooling, which has no dilation and moves by its size if nothing else."""
    strides = sizes if operation.strides is None else spread(operation.strides, len(sizes))
    return Geometry(sizes, strides, spread(getattr(operation, "dilation_rate", 1), len(sizes)), operation.padding)


def spread(amount: Any, count: int) -> tuple[int, ...]:
    """Return one number for each axis, as Keras takes them: one for all, or one for each."""
    return tuple(amount) if isinstance(amount, list | tuple) else (amount,) * count


def channels(call: Call, x: Value) -> int:
    """Return how many channels a value has; beside time they are its last axis."""
    return x.row[0 if call.layer.data_format == "channels_first" and not x.time else -1]


Slide = Callable[..., str]
"""`(tensor, geometry, pads)` to the tensor of answers; channels first, as ONNX has them. A bias may follow."""


def slide(call: Call, x: Value, shape: Geometry, channels: int, run: Slide, *, takes_bias: bool = False) -> Value:
    """Move a kernel over a value's positions; time is one of them where the value carries it.

    Args:
        call: The layer.
        x: The value; its row has the positions and the channels.
        shape: How the kernel moves.
        channels: Channels of the result.
        run: Emits the operator.
        takes_bias: Whether the operator can add a bias.

    Returns:
        The result, with the padding that it has over time.
    """
    seen = x
    if x.time:
        check_over_time(call, shape.sizes[0], shape.strides[0])
        seen = window(call, x, (shape.sizes[0] - 1) * shape.dilations[0])
    inside = slide_inside(call, seen, shape, channels, run)
    row = inside.row[x.time :]

    def emit(*bias: str) -> str:
        y = inside if not bias else slide_inside(call, seen, shape, channels, lambda *of: run(*of, *bias))
        return call.reshape(y, row) if x.time else y.name

    beside = row[1:] if call.layer.data_format == "channels_first" else ()
    name = call.graph.biasable(emit, (channels, *(1 for _ in beside))) if takes_bias else emit()
    return x.like(name, row=row, padding=seen.padding)


def slide_inside(call: Call, x: Value, shape: Geometry, channels: int, run: Slide) -> Value:
    """Move a kernel over the positions that a value has inside each timestep."""
    count = len(shape.sizes)
    if call.layer.data_format == "channels_first":
        positions = x.row[1:]
        return x.like(run(x.name, shape, shape.pads(positions)), row=(channels, *shape.reach(positions)))
    positions = x.row[:-1]
    y = run(call.op("Transpose", x.name, perm=[0, count + 1, *range(1, count + 1)]), shape, shape.pads(positions))
    y = call.op("Transpose", y, perm=[0, *range(2, count + 2), 1])
    return x.like(y, row=(*shape.reach(positions), channels))

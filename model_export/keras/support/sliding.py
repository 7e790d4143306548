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
        same: Whether the positions are padded so that there is an answer at each.
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
        if self.padding == "causal":
            front[0] = (self.sizes[0] - 1) * self.dilations[0]
        return front + behind

    def reach(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return how many answers there are along each axis."""
        pads = self.pads(positions)
        ends = [n + a + b for n, a, b in zip(positions, pads, pads[len(self.sizes) :], strict=False)]
        facts = zip(ends, self.sizes, self.strides, self.dilations, strict=True)
        return tuple((n - (size - 1) * dilation - 1) // stride + 1 for n, size, stride, dilation in facts)


def geometry(layer: Any, sizes: tuple[int, ...]) -> Geometry:
    """Return a layer's geometry; a pooling has no dilation."""
    dilations = getattr(layer, "dilation_rate", 1)
    strides, dilations = (
        tuple(n) if isinstance(n, list | tuple) else (n,) * len(sizes) for n in (layer.strides, dilations)
    )
    return Geometry(tuple(sizes), strides, dilations, layer.padding)


Slide = Callable[[str, Geometry, Sequence[int]], str]
"""`(tensor, geometry, pads)` to the tensor of answers; channels first, as ONNX has them."""


def slide(call: Call, x: Value, shape: Geometry, channels: int, run: Slide) -> Value:
    """Move a kernel over a value's positions; time is one of them where the value carries it.

    Args:
        call: The layer.
        x: The value; its row has the positions and the channels.
        shape: How the kernel moves.
        channels: Channels of the result.
        run: Emits the operator.

    Returns:
        The result, with the margin that it has over time.
    """
    if not x.time:
        return slide_inside(call, x, shape, channels, run)
    check_over_time(call, shape.sizes[0], shape.strides[0])
    seen = window(call, x, (shape.sizes[0] - 1) * shape.dilations[0], causal=shape.padding == "causal")
    if shape.padding == "causal":  # the window has the padding already
        shape = Geometry(shape.sizes, shape.strides, shape.dilations, "valid")
    y = slide_inside(call, seen, shape, channels, run)
    row = y.row[1:]
    return y.like(call.graph.reshape(y.name, row, at=call.path), row=row, time=True, padding=seen.padding)


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

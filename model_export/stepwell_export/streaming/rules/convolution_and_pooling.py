r"""Convolutions and pooling over time: a buffer of past timesteps, and the same operator on it.

Before and after:

    x (B, 4, T)                            conv.past (B, 2, 4)   x (B, 4, 1)
       | Conv of 3 timesteps                           \         /
       |                              ->                Concat (B, 3, 4) -> its last two: the next conv.past
    y (B, 5, T - 2)                                       | Reshape, Gemm: or the operator itself
                                                        y (B, 5, 1)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.streaming.rules.elementwise import joint_offset, pointwise
from stepwell_export.streaming.walk import PaddedSamples, StreamingWalk

_HOP = (
    "If {n} samples are one timestep, give the model timesteps of {n} numbers, (batch, T, {n}), and reshape them in "
    "front of it to (batch, 1, T * {n})."
)
_HOP_BACK = "If {n} samples are one timestep, reshape them behind the model to (batch, T, {n})."
WINDOW_POOLS = ("AveragePool", "LpPool", "MaxPool")
"""Pooling over windows, which `convolution` is the rule of."""


def convolution(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Conv and the pools.

    Raises:
        RefusedModelError: They stride over time, or average over less at the beginning.
    """
    name, out = node.input[0], node.output[0]
    given = walk.tensors[name]
    name, padded_samples = (given.padded, given.count) if isinstance(given, PaddedSamples) else (name, 0)
    axis = walk.facts.time_axis(name)
    if axis is None or axis < 2 or not walk.timed(node, [name]):
        pointwise(walk, node)
        return
    if walk.timed(node, node.input[1:]):
        raise walk.refuse(node, "takes a sequence for its weights")
    joint_offset(walk, node)
    shape = _Sliding(walk, node)
    size, dilation, stride, left, _ = shape.along(axis - 2)
    each, reach = walk.facts.samples(name), (size - 1) * dilation + 1
    left += padded_samples
    if each % stride:
        raise walk.refuse(
            node, f"has stride {stride} over time: it does not answer every timestep", _HOP.format(n=stride)
        )
    if left % each and node.op_type == "Conv":
        _over_samples(walk, node, shape, name, left)
        return
    if left % each:
        raise walk.refuse(node, f"pads {left} sample(s) in front; a timestep has {each}", "Pad whole timesteps.")
    past, left = -(-(reach - stride) // each), left // each
    if node.op_type == "AveragePool" and left and not attributes(node).get("count_include_pad", 0):
        raise walk.refuse(
            node,
            "averages over fewer timesteps at the beginning",
            "Set count_include_pad, or pad with zeros before it.",
        )
    offset = walk.timed_offset(name)
    # a state holds finite numbers only, so the padding of a maximum is the lowest of them
    fill = float(np.finfo(walk.dtype(name)).min) if node.op_type == "MaxPool" else 0.0
    source = _source(walk, name, past=past, left=left, offset=offset, fill=fill)
    if each == 1 and (step := _product(walk, node, shape, source, past)):
        walk.set_per_step(node, out, step, offset + left - past)
        return
    window = _joined(walk, node, source, name, past=past, fill=fill)
    if each > 1:  # the last samples of the window are for the next timestep
        cut = [walk.graph.ints(values) for values in ([0], [each - stride + reach], [axis])]
        window = walk.graph.op("Slice", window, *cut)
    made = walk.emit_like(node, offset, i0=window)
    shape.without_time(made, axis - 2)
    walk.set_per_step(node, out, made.output[0], offset + left - past)


def _product(walk: StreamingWalk, node: onnx.NodeProto, shape: _Sliding, source: str, past: int) -> str | None:
    """Return the one answer of a convolution of one axis as a matrix product; None where it has another form.

    It is quicker for several rows, and in chunks: the operator is made for many answers.
    """
    is_plain = node.op_type == "Conv" and shape.count == 1
    if not is_plain or attributes(node).get("group", 1) != 1 or node.input[1] not in walk.weights:
        return None
    kernel = walk.facts.value(node.input[1])
    if kernel.dtype != np.float32 or not kernel.size:
        return None
    filters, graph, (size, dilation, *_) = len(kernel), walk.graph, shape.along(0)
    window, order = source, [0, 1, 2]
    if past:
        given = walk.tensors[node.input[0]]
        name = given.padded if isinstance(given, PaddedSamples) else node.input[0]
        window, order = walk.ordered_window(source, name, past, 0.0, node.name)
    if order[0] != 0:
        return None
    if size > 1 and dilation > 1:
        taps = graph.ints(range(0, size * dilation, dilation))
        window = graph.op("Gather", window, taps, axis=order.index(2))
    flat = graph.op("Reshape", window, graph.ints([-1, kernel[0].size]))
    matrix = kernel.transpose([0, *order[1:]]).reshape(filters, -1).T
    matrix = graph.constant(np.ascontiguousarray(matrix), what="kernel", at=node.name)
    bias = [walk.operand(name) for name in node.input[2:] if name]
    return graph.op("Reshape", graph.op("Gemm", flat, matrix, *bias), graph.ints([-1, filters, 1]))


def _over_samples(walk: StreamingWalk, node: onnx.NodeProto, shape: _Sliding, name: str, left: int) -> None:
    """Conv whose padding is no whole number of timesteps: its window begins within a timestep.

    Args:
        walk: The walk.
        node: The node.
        shape: Its attributes.
        name: What it slides over, without padding.
        left: Samples that are padded in front.
    """
    axis, offset = walk.facts.time_axis(name), walk.timed_offset(name)
    assert axis is not None
    size, dilation, stride, _, _ = shape.along(axis - 2)
    each, span = walk.facts.samples(name), (size - 1) * dilation + 1 - stride
    ahead = max(0, -(-(span - left) // each))  # timesteps that the answer is late
    before = ahead * each + left  # samples in front of the newest timestep at which the window begins
    past = -(-before // each)
    window = _window(walk, node, name, past=past, left=past, offset=offset, fill=0.0)
    first = past * each - before
    cut = [walk.graph.ints(values) for values in ([first], [first + span + each], [axis])]
    made = walk.emit_like(node, offset, i0=walk.graph.op("Slice", window, *cut))
    shape.without_time(made, axis - 2)
    walk.set_per_step(node, node.output[0], made.output[0], offset - ahead)


def transposed(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """ConvTranspose: it looks back as a convolution does; with a stride it gives several samples for a timestep."""
    name, out = node.input[0], node.output[0]
    axis = walk.facts.time_axis(name)
    if axis is None or axis < 2 or not walk.timed(node, [name]):
        pointwise(walk, node)
        return
    if walk.timed(node, node.input[1:]):
        raise walk.refuse(node, "takes a sequence for its weights")
    shape = _Sliding(walk, node)
    size, dilation, stride, left, _ = shape.along(axis - 2)
    each = walk.facts.samples(name)
    if stride > 1:  # unless its samples are put into one timestep again
        walk.resampled = walk.refuse(
            node, f"gives {stride} timesteps for one: it resamples time", _HOP_BACK.format(n=each * stride)
        )
    past = -(-(-(-((size - 1) * dilation + 1) // stride) - 1) // each)
    if left % (each * stride):
        raise walk.refuse(node, f"cuts {left} sample(s) in front; a timestep has {each * stride}", "Cut at the end.")
    offset = walk.timed_offset(name)
    window = _window(walk, node, name, past=past, left=past, offset=offset, fill=0.0)
    made = walk.emit_like(node, offset, i0=window)
    shape.without_time(made, axis - 2)
    first = past * each * stride
    step = walk.graph.op("Gather", made.output[0], walk.graph.ints(range(first, first + each * stride)), axis=axis)
    walk.set_per_step(node, out, step, offset - left // (each * stride))


def _window(
    walk: StreamingWalk, node: onnx.NodeProto, name: str, *, past: int, left: int, offset: int, fill: float
) -> str:
    """Return the past timesteps of a tensor and this one; before its beginning a padded one has `fill`."""
    source = _source(walk, name, past=past, left=left, offset=offset, fill=fill)
    return _joined(walk, node, source, name, past=past, fill=fill)


def _joined(walk: StreamingWalk, node: onnx.NodeProto, source: str, name: str, *, past: int, fill: float) -> str:
    if not past:
        return source
    window, order = walk.ordered_window(source, name, past, fill, node.name)
    back = [int(at) for at in np.argsort(order)]
    return window if back == sorted(back) else walk.graph.op("Transpose", window, perm=back)


def _source(walk: StreamingWalk, name: str, *, past: int, left: int, offset: int, fill: float) -> str:
    """Return what this timestep adds to a window."""
    if offset >= 0 or not left or not past:
        return walk.tensors[name].step
    return walk.started(walk.operand(name, offset), name, offset, fill)


class _Sliding:
    """The attributes of an operator that slides over the axes behind the channels."""

    def __init__(self, walk: StreamingWalk, node: onnx.NodeProto) -> None:
        attrs = attributes(node)
        count = len(walk.facts.dims(node.input[0])) - 2
        self.kernel = list(attrs.get("kernel_shape") or walk.facts.value(node.input[1]).shape[2:])
        self.dilations = list(attrs.get("dilations") or [1] * count)
        self.strides = list(attrs.get("strides") or [1] * count)
        self.pads = list(attrs.get("pads") or [0] * (2 * count))
        self.count = count
        auto = attrs.get("auto_pad", "NOTSET")
        if auto in {"SAME_UPPER", "SAME_LOWER"}:
            sizes = walk.facts.value(node.input[0]).shape[2:]
            for axis in range(count):
                self._pad_same(axis, sizes[axis], upper=auto == "SAME_UPPER")

    def _pad_same(self, axis: int, size: int, *, upper: bool) -> None:
        stride = self.strides[axis]
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        self.pads[axis], self.pads[axis + self.count] = (less, more) if upper else (more, less)

    def along(self, axis: int) -> tuple[int, int, int, int, int]:
        """Return size, dilation, stride, padding in front and behind, along an axis."""
        return (
            self.kernel[axis],
            self.dilations[axis],
            self.strides[axis],
            self.pads[axis],
            self.pads[axis + self.count],
        )

    def without_time(self, node: Any, axis: int) -> None:
        """Let a node of the step graph not pad an axis."""
        pads = list(self.pads)
        pads[axis] = pads[axis + self.count] = 0
        kept = [a for a in node.attribute if a.name not in {"pads", "auto_pad", "output_shape", "ceil_mode"}]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])

"""How many elements at the beginning of a tensor's time axis stand before the inputs, by its operators: padding.

They are the same for all inputs, lengths and rows. That they were equal in some runs is no reason: what rarely counts,
as a value above a limit, is equal in most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, subgraphs, uses
from stepwell_export.graph.operators import RESHAPING, RUNNING, STATEFUL
from stepwell_export.streaming.axes.dependence import BATCH, Dependence, mixed_axes

if TYPE_CHECKING:
    from stepwell_export.streaming.axes.measured_shapes import MeasuredShapes

_ALL = 2**62
"""Elements of a tensor that no input reaches."""


class Beginnings:
    """The beginnings of a graph's tensors."""

    def __init__(
        self, graph: onnx.GraphProto, opset: int, facts: MeasuredShapes, depends: Mapping[str, Dependence]
    ) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._opset, self._facts, self._depends = opset, facts, depends
        self._found: dict[str, int] = {}

    def of(self, name: str) -> int:
        """Return how many elements, from the first on the time axis, are the same for all inputs, lengths and rows."""
        if name not in self._found:
            for waiting in self._upstream(name):
                self._found[waiting] = self._count(waiting)
        return self._found[name]

    def _upstream(self, name: str) -> list[str]:
        """Return a tensor and those that it is made of and that are not counted, each behind what it is made of."""
        order, seen, stack = list[str](), set[str](), [(name, False)]
        while stack:
            at, is_done = stack.pop()
            if is_done:
                order.append(at)
            elif at not in self._found and at not in seen:
                seen.add(at)
                stack.append((at, True))
                node = self._makers.get(at)
                stack += [(used, False) for used in uses(node)] if node is not None else []
        return order

    def _count(self, name: str) -> int:
        depends = self._depends.get(name)
        if depends is not None and depends.is_fixed and BATCH not in depends.varies:
            return _ALL
        node, axis = self._makers.get(name), self._facts.time_axis(name)
        if node is None or axis is None:
            return 0
        count = _COUNTS.get(node.op_type)
        if count is not None and (counted := count(self, node, axis)) is not None:
            return max(counted, 0)
        if node.op_type in RESHAPING:
            return self._reshaped(node, axis)
        return self._side_by_side(node, axis)

    def _side_by_side(self, node: onnx.NodeProto, axis: int) -> int:
        """Return that of an operator which makes each element of those at the same place in time."""
        ranks = {name: len(self._facts.dims(name)) for name in node.input if name}
        rank = len(self._facts.dims(node.output[0]))
        counts = []
        for place, name in enumerate(node.input):
            if not name or self.of(name) == _ALL:
                continue
            own = self._facts.time_axis(name)
            mixed = mixed_axes(node, place, ranks, self._opset, self._facts.value)
            if own is None or mixed is None or own in mixed or self._facts.dims(name)[own].both:
                return 0
            there = own + rank - ranks[name]
            if node.op_type.startswith(("Arg", "Reduce")) and not attributes(node).get("keepdims", 1):
                there = own - sum(other < own for other in mixed)
            if node.op_type != "Einsum" and there != axis:
                return 0
            counts.append(self.of(name))
        return min(counts, default=0)

    def _reshaped(self, node: onnx.NodeProto, axis: int) -> int:
        """Return that of the same elements in another shape or order; 0 where their order in time may change."""
        name, out = node.input[0], node.output[0]
        own = self._facts.time_axis(name)
        if own is None or self._facts.dims(name)[own].both or self._facts.dims(out)[axis].both:
            return 0
        before, after = np.shape(self._facts.value(name)), np.shape(self._facts.value(out))
        if node.op_type == "Transpose":
            order = attributes(node).get("perm") or list(range(len(before)))[::-1]
            return self.of(name) if order[axis] == own else 0
        if math.prod(before[:own]) != math.prod(after[:axis]):
            return 0
        each, each_after = self._facts.samples(name), self._facts.samples(out)
        return self.of(name) * each_after // each

    def _padded(self, node: onnx.NodeProto, axis: int) -> int | None:
        attrs, given = attributes(node), list(node.input[1:])
        if attrs.get("mode", "constant") != "constant" or any(name and self.of(name) != _ALL for name in given):
            return 0
        rank = len(self._facts.dims(node.output[0]))
        pads = attrs.get("pads") or [int(pad) for pad in self._facts.value(node.input[1])]
        axes = list(range(rank))
        if len(node.input) > 3 and node.input[3]:
            axes = [int(at) % rank for at in self._facts.value(node.input[3])]
        return self.of(node.input[0]) + (int(pads[axes.index(axis)]) if axis in axes else 0)

    def _joined(self, node: onnx.NodeProto, axis: int) -> int | None:
        if int(attributes(node)["axis"]) % len(self._facts.dims(node.output[0])) != axis:
            return None
        total = 0
        for name in node.input:
            size = int(np.shape(self._facts.value(name))[axis])
            if self.of(name) != _ALL or self._facts.dims(name)[axis].has_time:
                return total + min(self.of(name), size)
            total += size
        return total

    def _cut(self, node: onnx.NodeProto, axis: int) -> int | None:
        attrs, rank = attributes(node), len(self._facts.dims(node.output[0]))
        if any(name and self._depends[name].value for name in node.input[1:2]):
            return 0
        value = self._facts.value
        starts = attrs["starts"] if "starts" in attrs else [int(at) for at in value(node.input[1])]
        axes = attrs.get("axes") or list(range(len(starts)))
        if len(node.input) > 3 and node.input[3]:
            axes = [int(at) for at in value(node.input[3])]
        steps = [int(step) for step in value(node.input[4])] if len(node.input) > 4 and node.input[4] else None
        places = {at % rank: place for place, at in enumerate(axes)}
        if axis not in places:
            return self.of(node.input[0])
        start = int(starts[places[axis]])
        is_plain = start >= 0 and (steps is None or steps[places[axis]] == 1)
        return self.of(node.input[0]) - start if is_plain else 0

    def _slid(self, node: onnx.NodeProto, axis: int) -> int | None:
        """Return that of a convolution or a pool: an element takes those under its kernel, or is given under it."""
        attrs, rank = attributes(node), len(self._facts.dims(node.input[0]))
        if any(self.of(name) != _ALL for name in node.input[1:] if name) or axis == 1:
            return 0
        if axis == 0:
            return self.of(node.input[0]) if self._facts.time_axis(node.input[0]) == 0 else 0
        same = attrs.get("auto_pad", "NOTSET")
        if same not in {"NOTSET", "VALID"} and (node.op_type == "ConvTranspose" or _strides(attrs, axis) != 1):
            return 0
        if node.op_type == "ConvTranspose":
            place = axis - 2
            stride, front = (
                (attrs.get(name) or [default] * rank)[place] for name, default in (("strides", 1), ("pads", 0))
            )
            return int(self.of(node.input[0]) * stride - front)
        kernel = attrs.get("kernel_shape") or list(np.shape(self._facts.value(node.input[1])))[2:]
        at, ones = axis - 2, [1] * (rank - 2)
        reach = (kernel[at] - 1) * (attrs.get("dilations") or ones)[at]
        front = (attrs.get("pads") or [0] * 2 * (rank - 2))[at]
        front = {"SAME_UPPER": reach // 2, "SAME_LOWER": (reach + 1) // 2}.get(same, front)
        stride = int((attrs.get("strides") or ones)[at])
        return -int((reach - front - self.of(node.input[0])) // stride)

    def _summed_up(self, node: onnx.NodeProto, axis: int) -> int | None:
        attrs, places = attributes(node), self._facts.value(node.input[1])
        along = int(np.reshape(places, -1)[0]) % len(self._facts.dims(node.input[0]))
        if along != axis:
            return self.of(node.input[0])
        return 0 if attrs.get("reverse") else self.of(node.input[0]) + bool(attrs.get("exclusive"))

    def _carried_on(self, node: onnx.NodeProto, axis: int) -> int | None:
        """Return that of what a recurrence gives at each timestep: it takes those before and the present one."""
        attrs, operator = attributes(node), STATEFUL.get(node.op_type)
        backwards = attrs.get("scan_input_directions") or attrs.get("directions") or [0]
        if any(backwards) or attrs.get("direction", "forward") != "forward":
            return 0
        if operator is not None and (operator.time_axis is None or operator.time_axis != axis):
            return 0
        timed = [name for name in uses(node) if self.of(name) != _ALL]
        if any(self._facts.time_axis(name) is None for name in timed) or (
            any(subgraphs(node)) and any(name not in node.input for name in timed)
        ):
            return 0
        return min((self.of(name) for name in timed), default=0)


def _strides(attrs: Mapping[str, Any], axis: int) -> int:
    return int((attrs.get("strides") or [1] * axis)[axis - 2])


_COUNTS = {
    "AveragePool": Beginnings._slid, "Concat": Beginnings._joined, "Conv": Beginnings._slid,
    "ConvTranspose": Beginnings._slid, "LpPool": Beginnings._slid,
    "MaxPool": Beginnings._slid, "Pad": Beginnings._padded, "Scan": Beginnings._carried_on, "Slice": Beginnings._cut,
    **dict.fromkeys(RUNNING, Beginnings._summed_up), **dict.fromkeys(STATEFUL, Beginnings._carried_on),
}  # fmt: skip

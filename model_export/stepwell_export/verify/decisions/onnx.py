"""`OnnxObserver`: the decisions of an ONNX graph, which a copy of it gives as one more output.

Each decision becomes a tensor `s` of whole numbers, such as the sign of what a `Relu` takes, and the copy gives
`max(s)` and `max(-s)` of all of them as one vector. A graph inside a node does the same: a `Loop` or `Scan` gives a
vector for each iteration, and an `If` gives the vectors of both branches, with `NEVER` for the one that did not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.outside_weights import with_weights_outside
from stepwell_export.runtime.session import open_session
from stepwell_export.verify.decisions import record
from stepwell_export.verify.decisions.record import Observed, is_guard

FLAGS = "stepwell.decisions"
NEVER = -9
"""Stands for a decision in a part of the graph that did not run."""

Read = Callable[[int, int], dict[str, bool]]
"""`max(s)` and `max(-s)` to the outcomes that were taken."""

_COMPARED = {"Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"}
_RELUS = {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "PRelu"}
_LOGIC = {"Not", "And", "Or", "Xor"}


@dataclass(frozen=True, slots=True)
class _Point:
    """One decision; what it reads is in the graph that it stands in."""

    key: str
    name: str
    read: Read | None
    place: int = 0  # where `read` is None: a size that the decision is about, and its place


class OnnxObserver:
    """Runs a copy of a graph that gives its decisions, too."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Make the copy of a graph, which is left alone."""
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        self._seen = Observed()
        copied, self._weights = with_weights_outside(model)
        opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
        inputs = [value.name for value in model.graph.input]
        _, self._points = _Recorder(opset, self._seen).record(copied.graph, self._weights, inputs, (), "")
        self._session: Any = None
        if self._points:
            del copied.graph.output[:]
            copied.graph.output.append(helper.make_tensor_value_info(FLAGS, TensorProto.INT32, [len(self._points) * 2]))
            self._session = open_session(
                copied.SerializeToString(), where="the graph", threads=1, weights=self._weights
            )

    def observe(self, feeds: Mapping[str, Array]) -> Observed:
        """Return the decisions of one run.

        Args:
            feeds: The inputs as the graph takes them.
        """
        seen = Observed()
        seen.add(self._seen)
        if self._session is None:
            return seen
        taken = {value.name for value in self._session.get_inputs()}
        (flags,) = self._session.run([FLAGS], {name: value for name, value in feeds.items() if name in taken})
        for point, (high, low) in zip(self._points, np.asarray(flags).reshape(-1, 2), strict=True):
            if point.read is None:
                seen.note(point.key, point.name, {}, () if high == NEVER else [(point.place, int(high))])
                continue
            outcomes = point.read(int(high), int(low)) if high != NEVER else dict.fromkeys(point.read(0, 0), False)
            seen.note(point.key, point.name, outcomes)
        return seen


def _signs(outcomes: tuple[str, str]) -> Read:
    return lambda high, low: dict(zip(outcomes, (high >= 1, low >= 0), strict=True))


def _sides(high: int, low: int) -> dict[str, bool]:
    return dict(zip(record.SIDES, (high >= 0, low >= 0), strict=True))


def _differs(high: int, low: int) -> dict[str, bool]:
    return dict(zip(record.PLACES, (True, high != -low), strict=True))


class _Recorder:
    """Adds to a graph what records its decisions."""

    def __init__(self, opset: int, seen: Observed) -> None:
        self._opset = opset
        self._seen = seen
        self._count = 0

    def record(
        self,
        graph: onnx.GraphProto,
        outer: Mapping[str, Array],
        follows: Iterable[str],
        sizes: Iterable[str],
        path: str,
    ) -> tuple[str, list[_Point]]:
        """Add a vector with two numbers for each decision to a graph.

        Args:
            graph: The graph, or the body of a node.
            outer: Constants of the graphs around it.
            follows: Tensors that follow from the inputs.
            sizes: Those of them that follow from shapes alone.
            path: The nodes that it is in; empty for the graph itself.

        Returns:
            The vector and what it has; where there are no decisions, the graph is left as it is.
        """
        scope = _Scope(dict(outer), set(follows), set(sizes), set())
        inside = (tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL)
        scope.constants |= {tensor.name: numpy_helper.to_array(tensor) for tensor in inside}
        points: list[_Point] = []
        parts: list[str] = []
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            self._note_lengths(node, scope)
            scope.enter(node)
            label = node.name or node.output[0]
            inner, total = self._bodies(node, scope, f"{path}/{label}")
            kept.append(node)
            decided = self._decided(node, scope, kept) if node.output[0] in scope.follows else ()
            for what, name, read in decided:
                key, called = f"{path}/{label} {len(points)}", f"{name} of node {label!r}"
                parts.append(self._pair(what, kept))
                points.append(_Point(key, called, read))
                if node.output[0] in scope.sizes:
                    for place, given in enumerate(node.input):
                        parts.append(self._pair(self._whole(given, kept), kept))
                        points.append(_Point(key, called, None, place))
            if inner:
                parts.append(self._of_bodies(node, total, kept))
                points += inner
        if not points:
            return "", []
        vector = self._new("decisions") if path else FLAGS
        kept.append(helper.make_node("Concat", parts, [vector], axis=0))
        del graph.node[:]
        graph.node.extend(kept)
        return vector, points

    def _decided(
        self, node: onnx.NodeProto, scope: _Scope, kept: list[onnx.NodeProto]
    ) -> Iterator[tuple[str, str, Read]]:
        """Yield for each decision of a node a tensor of whole numbers, its name, and how to read it."""
        kind, given = node.op_type, [scope.constants.get(name) for name in node.input]
        if kind in _COMPARED:
            if not (node.output[0] in scope.sizes and any(map(_is_no_size, given))):
                self._note_values(given)
                yield self._whole(node.output[0], kept), kind, _signs(record.TRUE_FALSE)
        elif kind in _RELUS:
            yield self._whole(self._add("Sign", [node.input[0]], kept), kept), kind, _signs(record.ABOVE_BELOW)
        elif kind in {"Where", "If"}:
            condition = node.input[0]
            if condition in scope.follows and condition not in scope.guards | scope.sizes:  # sizes: where compared
                yield self._whole(condition, kept), kind, _signs(record.TRUE_FALSE)
        elif kind == "Mod":
            self._note_values(given)
            same = self._add("Equal", [node.output[0], node.input[0]], kept)
            yield self._whole(same, kept), kind, _signs(record.WRAPPED)
        elif kind in {"ArgMax", "ArgMin"}:
            yield self._whole(node.output[0], kept), kind, _differs
        elif kind in {"Max", "Min"} and len(node.input) == 2:
            yield from self._larger(node, given, kept)
        elif kind == "Clip":
            low, high = [*node.input[1:], "", ""][:2]
            yield from self._limit(node.input[0], low, scope, "Clip", "Max", kept)
            yield from self._limit(node.input[0], high, scope, "Clip", "Min", kept)

    def _larger(
        self, node: onnx.NodeProto, given: Sequence[Array | None], kept: list[onnx.NodeProto]
    ) -> Iterator[tuple[str, str, Read]]:
        first, second = node.input
        if given[0] is None and given[1] is None:
            yield self._order(first, second, kept), node.op_type, _sides
            return
        value, limit, constant = (first, second, given[1]) if given[0] is None else (second, first, given[0])
        known = {} if constant is None else {limit: constant}
        yield from self._limit(value, limit, _Scope(known, set(), set(), set()), node.op_type, node.op_type, kept)

    def _limit(  # noqa: PLR0917  # two tensors, and what is made of them
        self, value: str, limit: str, scope: _Scope, name: str, kind: str, kept: list[onnx.NodeProto]
    ) -> Iterator[tuple[str, str, Read]]:
        """Yield the decision of a lower limit (`Max`) or of an upper one (`Min`)."""
        constant = scope.constants.get(limit)
        is_number = constant is not None and constant.size == 1
        number = float(constant.item()) if constant is not None and is_number else 0.0
        if not limit or (is_number and (abs(number) > record.NO_LIMIT or (kind == "Max" and is_guard(number)))):
            return
        self._note_values([constant])
        if kind == "Max":
            yield self._order(value, limit, kept), name, _signs(record.LOWER)
        else:
            yield self._order(limit, value, kept), name, _signs(record.UPPER)

    def _bodies(self, node: onnx.NodeProto, scope: _Scope, path: str) -> tuple[list[_Point], int]:
        """Record what the bodies of a node decide, and let it return that; return also how many numbers this is."""
        bodies = _bodies(node)
        recorded = []
        for i, body in enumerate(bodies):
            taken = [value.name for at, value in enumerate(body.input) if node.op_type != "Loop" or at != 1]
            recorded.append(self.record(body, scope.constants, {*scope.follows, *taken}, scope.sizes, f"{path}.{i}"))
        if node.op_type not in {"If", "Loop", "Scan"} or not any(points for _, points in recorded):
            return [], 0
        total, at = sum(2 * len(points) for _, points in recorded), 0
        skipped = len(bodies[0].output) - (node.op_type == "Loop") - len(node.output)
        for body, (vector, points) in zip(bodies, recorded, strict=True):
            blank, until = np.full(total, NEVER, np.int32), at + 2 * len(points)
            parts = [
                self._constant(blank[:at], body.node),
                *[vector][: len(points)],
                self._constant(blank[until:], body.node),
            ]
            out = self._add("Concat", parts, body.node, axis=0)
            body.output.append(helper.make_tensor_value_info(out, TensorProto.INT32, [total]))
            at = until
        node.output.extend(self._new("unused") for _ in range(skipped))
        node.output.append(self._new("inner"))
        for attribute in node.attribute:
            if attribute.name in {"scan_output_axes", "scan_output_directions"}:
                attribute.ints.append(0)
        return [point for _, points in recorded for point in points], total

    def _of_bodies(self, node: onnx.NodeProto, total: int, kept: Any) -> str:
        """Return the vector of a node's bodies: of the one that ran, or the largest over all iterations."""
        if node.op_type == "If":
            return str(node.output[-1])
        blank = self._constant(np.full((1, total), NEVER, np.int32), kept)
        return self._largest(self._add("Concat", [blank, node.output[-1]], kept, axis=0), 0, kept)

    def _pair(self, what: str, kept: Any) -> str:
        """Return `[max(s), max(-s)]` of a tensor of whole numbers, `[NEVER, NEVER]` where it is empty."""
        row = self._add("Reshape", [what, self._constant(np.array([1, -1], np.int64), kept)], kept)
        blank = self._constant(np.full((2, 1), NEVER, np.int32), kept)
        rows = self._add("Concat", [row, self._add("Neg", [row], kept)], kept, axis=0)
        return self._largest(self._add("Concat", [rows, blank], kept, axis=1), 1, kept)

    def _largest(self, what: str, axis: int, kept: Any) -> str:
        if self._opset < 18:
            return self._add("ReduceMax", [what], kept, axes=[axis], keepdims=0)
        return self._add("ReduceMax", [what, self._constant(np.array([axis], np.int64), kept)], kept, keepdims=0)

    def _whole(self, what: str, kept: Any) -> str:
        return self._add("Cast", [what], kept, to=TensorProto.INT32)

    def _order(self, first: str, second: str, kept: Any) -> str:
        """Return 1 where the first is larger, -1 where the second is."""
        larger, smaller = (self._whole(self._add(kind, [first, second], kept), kept) for kind in ("Greater", "Less"))
        return self._add("Sub", [larger, smaller], kept)

    def _constant(self, value: Array, kept: Any) -> str:
        return self._add("Constant", [], kept, value=numpy_helper.from_array(value))

    def _add(self, kind: str, inputs: Sequence[str], kept: Any, **attributes: Any) -> str:
        name = self._new(kind)
        kept.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _new(self, part: str) -> str:
        self._count += 1
        return f"{FLAGS}/{part}{self._count}"

    def _note_values(self, given: Iterable[Array | None]) -> None:
        for value in given:
            if value is not None and value.size == 1 and value.dtype.kind in "iuf":
                self._seen.note_value(float(value.item()))

    def _note_lengths(self, node: onnx.NodeProto, scope: _Scope) -> None:
        """Note whole numbers that may meet the time axis: the ends of slices, widths of windows, kernels, padding."""
        if not any(name in scope.follows for name in node.input):
            return
        if node.op_type in {"Slice", "Pad", "Split", "Gather"}:
            for name in node.input[1:]:
                value = scope.constants.get(name)
                if value is not None and value.dtype.kind == "i":
                    self._seen.candidates.update(abs(int(number)) for number in value.flat)
        for attribute in node.attribute:
            if attribute.name in {"kernel_shape", "pads", "starts", "ends", "split"}:
                self._seen.candidates.update(abs(number) for number in attribute.ints)
            if attribute.name == "kernel_shape":
                dilations = next((other.ints for other in node.attribute if other.name == "dilations"), [1] * 9)
                reached = zip(attribute.ints, dilations, strict=False)
                self._seen.candidates.update((size - 1) * dilation for size, dilation in reached)


@dataclass(slots=True)
class _Scope:
    """What is known of the tensors of a graph so far.

    Attributes:
        constants: The values of constants.
        follows: Tensors that follow from the inputs, or from the number of timesteps.
        sizes: Those of them that follow from shapes alone.
        guards: Those of them that are true only where a number does not exist.
    """

    constants: dict[str, Array]
    follows: set[str]
    sizes: set[str]
    guards: set[str]

    def enter(self, node: onnx.NodeProto) -> None:
        """Take a node into account."""
        if node.op_type == "Constant":
            value = _constant(node)
            if value is not None:
                self.constants[node.output[0]] = value
            return
        read = {name for name in (*node.input, *_captured(node)) if name}
        used = read & self.follows
        if not used and node.op_type != "Loop":
            return
        self.follows.update(node.output)
        if node.op_type in {"Shape", "Size"} or used <= self.sizes:
            self.sizes.update(node.output)
        if node.op_type in {"IsNaN", "IsInf"} or (node.op_type in _LOGIC and used <= self.guards):
            self.guards.update(node.output)


def _is_no_size(value: Array | None) -> bool:
    """Whether a constant is a number that no size is, as -1 in a shape that leaves one open."""
    return value is not None and bool(value.size) and bool((value < 0).all())


def _constant(node: onnx.NodeProto) -> Array | None:
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
        if attribute.name in {"value_int", "value_float", "value_ints", "value_floats"}:
            return np.asarray(helper.get_attribute_value(attribute))
    return None


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that the bodies of a node read."""
    for body in _bodies(node):
        for inner in body.node:
            yield from inner.input
            yield from _captured(inner)
        yield from (value.name for value in body.output)

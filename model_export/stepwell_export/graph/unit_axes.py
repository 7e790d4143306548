r"""Writes a step graph smaller: without the axes of length 1 that one timestep leaves behind, and each value once.

Before and after:

    x (B, 4)                               x (B, 4)
       | Unsqueeze: (B, 1, 4)                 | MatMul
       | MatMul                       ->      | Add with h (B, 5)
       | Add with h (B, 1, 5)                 |
       | Squeeze                              |
    y (B, 5)                               y (B, 5)

    a.past   x     b.past                  a.past   x
        \   / \    /                           \   /
        Concat  Concat                ->       Concat
          |        |                            |   |
         Conv     Conv                        Conv  Conv

Tensors that differ in axes of length 1 alone hold one value. A node runs on tensors without them where it can, and one
with them is made where a node takes no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import (
    attributes,
    in_order,
    needed_nodes,
    read_opset,
    renamed,
    replace_items,
    subgraphs,
    tensor_names,
    uses,
)
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.graph.operators import ELEMENTWISE
from stepwell_export.runtime.manifest import StateSpec
from stepwell_export.runtime.outside_weights import to_array

Shape = tuple[int, ...]

OLDEST_OPSET = 18
"""The first one in which all axes are inputs."""

_ROWS = 1009
"""The number of rows for which shapes are inferred: a prime, so that other sizes are no multiples of it."""

_POINTWISE = ELEMENTWISE - {"Dropout", "Identity"}
_LAYOUT = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
_ALONG = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Gather": 0, "Split": 0, "LayerNormalization": -1}
"""Operators along an axis that is an attribute, and which it is where there is none."""

_OF_ONE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
"""Reductions that leave a single element as it is."""

_AXES_INPUT = {"Slice": 3, **dict.fromkeys((*_OF_ONE, "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"), 1)}
"""Operators whose axes are an input, and which one."""


def without_unit_axes(
    model: onnx.ModelProto, rows: Mapping[str, int | None], states: Sequence[StateSpec] = ()
) -> tuple[onnx.ModelProto, list[StateSpec], dict[str, str]]:
    """Return a step graph whose tensors have no axes of length 1 where no operator needs them.

    Args:
        model: The step graph, which is changed in place.
        rows: The batch axis of each input that is no state; None: it has none.
        states: What it carries.

    Returns:
        The graph, and the states as it has them; and for tensors that it does not have any more, the tensor with the
        same numbers.
    """
    rows = {**rows, **{state.input: state.batch_axis for state in states}}
    if read_opset(model) < OLDEST_OPSET or None in rows.values():
        return model, list(states), {}
    narrowing = _Narrowing(model.graph, _shapes(model, rows))
    states = [narrowing.narrowed(state) for state in states]
    return model, states, narrowing.rewrite()


def _shapes(model: onnx.ModelProto, rows: Mapping[str, int | None]) -> dict[str, Shape]:
    """Return the shapes that onnx infers."""
    lean = without_weights(model)
    for value in lean.graph.input:
        if (axis := rows.get(value.name)) is not None:
            value.type.tensor_type.shape.dim[axis].dim_value = _ROWS
    del lean.graph.output[:]
    return {
        name: tuple(dim.dim_value for dim in inferred.shape.dim)
        for name, inferred in infer_types(lean).items()
        if inferred.HasField("shape") and all(dim.HasField("dim_value") for dim in inferred.shape.dim)
    }


@dataclass(slots=True)
class _Value:
    """Numbers in an order.

    Attributes:
        forms: Tensors of the new graph that hold them, by shape; these differ in axes of length 1.
        source: A tensor with the same numbers in another shape, which the first form is made of.
    """

    forms: dict[Shape, str]
    source: str = ""


class _Narrowing:
    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._build = NodeBuilder("", tensor_names(graph))
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in uses(node):
                self._takers[name].append(node)
        self._carried: dict[str, Shape] = {}
        given = (*self._constants, *(value.name for value in graph.input))
        self._values = {name: _Value({shapes.get(name, ()): name}) for name in given}

    def rewrite(self) -> dict[str, str]:
        """Replace the graph's nodes; return the tensors that it does not have any more, each with one that it has."""
        graph = self._graph
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            if (shape := self._carried.get(node.output[0])) is not None:
                self._build.add("Identity", [self._form(node.input[0], shape)], node.output)
                self._values[node.output[0]] = _Value({shape: node.output[0]})
            elif not (outputs.isdisjoint(node.output) and self._is_rewritten(node)):
                names = {name: self._whole(name) for name in uses(node)}
                self._build.nodes.append(renamed(node, names, name=node.name))
                self._values.update({name: _Value({self._shapes.get(name, ()): name}) for name in node.output})
        replace_items(graph.node, needed_nodes(self._build.nodes, outputs))
        graph.initializer.extend(self._build.constants)
        _drop_unused_weights(graph)
        held = {name: next(iter(value.forms.values()), value.source) for name, value in self._values.items()}
        return {name: other for name, other in held.items() if name not in self._values[name].forms.values()}

    def narrowed(self, state: StateSpec) -> StateSpec:
        """Return a state without the axes of length 1 that no node needs; both ends are declared so."""
        graph, shape = self._graph, self._shapes.get(state.input)
        last = next(node for node in graph.node if state.output in node.output)
        if shape is None or last.op_type != "Identity" or self._shapes.get(last.input[0]) != shape:
            return state
        needed = {axis for node in self._takers[state.input] for axis in self._needed(node, state.input)}
        axes = [axis for axis in range(len(shape)) if axis in needed or axis in _kept(shape)]
        for value in (*graph.input, *graph.output):
            if value.name in {state.input, state.output}:
                dims = value.type.tensor_type.shape.dim
                replace_items(dims, [dims[axis] for axis in axes])
        self._carried[state.output] = tuple(shape[axis] for axis in axes)
        self._values[state.input] = _Value({self._carried[state.output]: state.input})
        return state.placed([shape[axis] for axis in axes if axis != state.batch_axis], state.batch_axis)

    def _needed(self, node: onnx.NodeProto, name: str) -> Iterable[int]:
        """Return the axes of an operand that a node needs even where they have length 1."""
        rank, out = len(self._shapes[name]), self._shapes.get(node.output[0])
        if node.op_type in _LAYOUT:
            return ()
        if node.op_type in _POINTWISE and out is not None:
            return [axis + rank - len(out) for axis, size in enumerate(out) if size != 1]
        axes = self._axes_along(node, rank)
        return range(rank) if axes is None else axes

    # ---------------------------------------------------------------- values

    def _form(self, name: str, shape: Shape) -> str:
        """Return a tensor that holds a value in a shape."""
        value = self._values[name]
        if shape not in value.forms:
            have = min(value.forms, key=lambda form: abs(len(form) - len(shape)), default=())
            if name in self._constants:
                array = to_array(self._constants[name]).reshape(shape)
                value.forms[shape] = self._build.constant(array, at=name)
            elif value.forms and (gone := _added(shape, have)) is not None:
                value.forms[shape] = self._build.op("Squeeze", value.forms[have], self._build.ints(gone), at=name)
            elif value.forms and (new := _added(have, shape)) is not None:
                value.forms[shape] = self._build.op("Unsqueeze", value.forms[have], self._build.ints(new), at=name)
            else:
                sizes = self._build.ints([-1 if size % _ROWS == 0 else size for size in shape])
                source = value.forms.get(have, value.source)
                value.forms[shape] = self._build.op("Reshape", source, sizes, at=name)
        return value.forms[shape]

    def _whole(self, name: str) -> str:
        """Return a tensor with all of its axes, as operators take it that are not known here."""
        return self._form(name, self._shapes[name]) if name in self._values and name in self._shapes else name

    def _is_whole(self, name: str) -> bool:
        return name in self._constants or self._shapes[name] in self._values[name].forms

    # ---------------------------------------------------------------- nodes

    def _is_rewritten(self, node: onnx.NodeProto) -> bool:
        """Emit a node on tensors without axes of length 1; return False where it stays as it is."""
        given, names = list(node.input), [name for name in (*node.input, *node.output) if name]
        if node.domain not in {"", "ai.onnx"} or not self._shapes.keys() >= set(names):
            return False
        if all(name in self._constants for name in filter(None, given)):
            return False
        if node.op_type in _LAYOUT:
            return self._is_view(node)
        if node.op_type == "Where" and (chosen := self._chosen(node)):
            self._values[node.output[0]] = self._values[chosen]
            return True
        space = self._shapes[given[0]]
        if node.op_type in _POINTWISE or (node.op_type == "MatMul" and len(self._shapes[given[1]]) > 2):
            data, space = given, self._shapes[node.output[0]]
        else:
            data = given if node.op_type == "Concat" else given[:1]
        axes = self._axes_along(node, len(space))
        if axes is None or (node.op_type != "Split" and any(node.output[1:])):
            return False
        if node.op_type in _OF_ONE and all(space[axis] == 1 for axis in axes):
            self._values[node.output[0]] = self._values[given[0]]
            return True
        if all(self._is_whole(name) for name in filter(None, data)):
            return False
        kept = _kept(space, axes)
        for place, name in enumerate(data):
            shape = self._shapes.get(name, ())
            shift = len(space) - len(shape)
            if any(size != 1 and axis + shift not in kept for axis, size in enumerate(shape)):
                return False  # as the slope of a PRelu, which the inferred output does not broadcast to
            given[place] = name and self._form(name, tuple(shape[axis - shift] for axis in kept if axis >= shift))
        given[len(data) :] = [self._whole(name) for name in given[len(data) :]]
        made = renamed(node, {}, name=node.name)
        if node.op_type in _ALONG:
            replace_items(made.attribute, [attribute for attribute in node.attribute if attribute.name != "axis"])
            made.attribute.append(onnx.helper.make_attribute("axis", kept.index(axes[0])))
        elif (place := _AXES_INPUT.get(node.op_type, 0)) > 0:
            dtype = to_array(self._constants[node.input[place]]).dtype.name
            given[place] = self._build.constant([kept.index(axis) for axis in axes], dtype, what="axes")
            if node.op_type != "Slice" and not attributes(node).get("keepdims", 1):
                left = [axis for axis in range(len(space)) if axis not in axes]
                kept = [left.index(axis) for axis in kept if axis in left]
        made.input[:] = given
        self._build.nodes.append(made)
        for name in filter(None, node.output):
            self._values[name] = _Value({tuple(self._shapes[name][axis] for axis in kept): name})
        return True

    def _is_view(self, node: onnx.NodeProto) -> bool:
        """Leave a node out that only moves axes of length 1: its output holds the value of its input."""
        name, output = node.input[0], node.output[0]
        value, shape, out = self._values[name], self._shapes[name], self._shapes[output]
        perm = list(range(len(shape)))
        if node.op_type == "Transpose":
            perm = attributes(node).get("perm") or perm[::-1]
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved != sorted(moved):
            if self._is_whole(name):
                return False
            kept = _kept(shape)
            form = self._form(name, tuple(shape[axis] for axis in kept))
            self._build.add("Transpose", [form], [output], perm=[kept.index(axis) for axis in perm if axis in kept])
            self._values[output] = _Value({tuple(shape[axis] for axis in perm if axis in kept): output})
        elif [size for size in shape if size != 1] == [size for size in out if size != 1]:
            self._values[output] = value
        elif 0 not in out and sum(size % _ROWS == 0 for size in out) == 1:
            self._values[output] = _Value({}, next(iter(value.forms.values()), value.source))
        else:
            return False
        return True

    def _chosen(self, node: onnx.NodeProto) -> str:
        """Return the operand that a choice always is, as of a mask that hides nothing in one timestep; empty: none."""
        condition, *operands = node.input
        truths = set(to_array(self._constants[condition]).flat) if condition in self._constants else {}
        chosen = operands[truths == {False}] if len(truths) == 1 else ""
        return chosen if self._shapes.get(chosen) == self._shapes[node.output[0]] else ""

    def _axes_along(self, node: onnx.NodeProto, rank: int) -> list[int] | None:
        """Return the axes that an operator works along; None: they are not known, or the operator is not."""
        kind = node.op_type
        if kind in _POINTWISE:
            return []
        if kind == "MatMul":
            ranks = [len(self._shapes.get(name, ())) for name in node.input]
            return None if min(ranks) < 2 else [rank - 2, rank - 1] if ranks[1] > 2 else [rank - 1]
        if kind == "Gather" and (node.input[1] not in self._constants or len(self._shapes[node.input[1]]) != 1):
            return None
        if kind in _ALONG and rank:
            axis = int(attributes(node).get("axis", _ALONG[kind])) % rank
            return list(range(axis, rank)) if kind == "LayerNormalization" else [axis]
        place = _AXES_INPUT.get(kind, 0)
        if not 0 < place < len(node.input) or node.input[place] not in self._constants:
            return None
        return [int(axis) % rank for axis in to_array(self._constants[node.input[place]])] or None


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in uses(node)}.union(value.name for value in graph.output)
    for at in range(len(graph.initializer))[::-1]:  # in place: weights may be large
        if graph.initializer[at].name not in used:
            del graph.initializer[at]


def _kept(shape: Shape, axes: Iterable[int] = ()) -> list[int]:
    """Return the axes that a tensor keeps: those longer than 1 and these, and of features and rows at least two."""
    kept = {axis for axis, size in enumerate(shape) if size != 1}.union(axes)
    return sorted(kept if len(kept) > 1 else kept.union(range(len(shape))[-1:]))


def _added(short: Shape, long: Shape) -> list[int] | None:
    """Return the axes of length 1 that one shape has more than another; None: they differ elsewhere."""
    added, rest = list[int](), list(short)
    for axis in reversed(range(len(long))):
        if rest and rest[-1] == long[axis]:
            rest.pop()
        elif long[axis] == 1:
            added.insert(0, axis)
        else:
            return None
    return None if rest else added


# ---------------------------------------------------------------- tensors that always hold the same

_SMALL = 512
"""Bytes of a constant that may be axes or a shape; a larger one is a weight."""


def without_equal_tensors(
    model: onnx.ModelProto, states: Sequence[StateSpec]
) -> tuple[onnx.ModelProto, list[StateSpec], dict[str, str]]:
    """Return a step graph that computes and carries equal tensors once.

    Args:
        model: The step graph; its nodes are changed in place.
        states: What it carries.

    Returns:
        The graph, the states that are left, and for tensors that it does not have any more, the one that they equal.
    """
    graph, nodes = model.graph, in_order(model.graph.node)
    same = _equal_tensors(nodes, states, graph.initializer)
    if all(name == first for name, first in same.items()):
        return model, list(states), {}
    kept = [state for state in states if same[state.input] == state.input]
    gone = {name for state in states if state not in kept for name in (state.input, state.output)}
    replace_items(graph.input, [value for value in graph.input if value.name not in gone])
    replace_items(graph.output, [value for value in graph.output if value.name not in gone])
    outputs = {value.name for value in graph.output}
    names = {name: first for name, first in same.items() if name != first and name not in outputs}
    once = [renamed(node, names, name=node.name) for node in nodes if names.keys().isdisjoint(node.output)]
    replace_items(graph.node, needed_nodes(once, outputs))
    _drop_unused_weights(graph)
    return model, kept, names


def _equal_tensors(
    nodes: Sequence[onnx.NodeProto], states: Sequence[StateSpec], weights: Iterable[onnx.TensorProto]
) -> dict[str, str]:
    """Return for each state and each tensor that nodes make the first one that equals it at every timestep.

    States that begin alike are taken for equal; those that are then computed in different ways are told apart, until
    all that are left together are computed alike.

    Args:
        nodes: Each behind those that it needs.
        states: What is carried.
        weights: Constants, of which small ones are compared.
    """
    small: dict[Hashable, str] = {}
    constant = {
        tensor.name: small.setdefault((tensor.data_type, *tensor.dims, tensor.raw_data), tensor.name)
        for tensor in weights if 0 < len(tensor.raw_data) <= _SMALL
    }  # fmt: skip
    same = dict[str, str]()
    keys: list[Hashable] = [repr((state.dtype, state.shape, state.batch_axis, state.init)) for state in states]
    before = -1
    while before < (before := len(set(keys))):
        leaders, firsts = dict[Hashable, str](), dict[Hashable, onnx.NodeProto]()
        same = constant | {
            state.input: leaders.setdefault(key, state.input) for key, state in zip(keys, states, strict=True)
        }
        for node in nodes:
            key = (_kind(node), *(same.get(name, name) for name in node.input), *map(bool, node.output))
            same.update(zip(node.output, firsts.setdefault(key, node).output, strict=True))
        keys = [(same[state.input], same[state.output]) for state in states]
    return same


def _kind(node: onnx.NodeProto) -> Hashable:
    """Return what two nodes have in common that give the same for the same inputs."""
    if any(subgraphs(node)):
        return tuple(node.output)
    return (node.op_type, node.domain, *sorted(attribute.SerializeToString() for attribute in node.attribute))

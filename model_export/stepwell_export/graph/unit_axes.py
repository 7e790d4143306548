r"""Writes a step graph smaller: without the axes of length 1 that one timestep leaves behind, and without twin states.

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
"""

from __future__ import annotations

from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

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
from stepwell_export.graph.operators import ELEMENTWISE, RNN
from stepwell_export.runtime.manifest import StateSpec

Axes = tuple[int, ...]
Sizes = tuple[tuple[int, int], ...]
"""The length of each axis for two numbers of rows: what differs is the axis of the batch."""

_POINTWISE = ELEMENTWISE - {"Dropout", "Identity"}
LAYOUT = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
ALONG = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Gather": 0, "Split": 0, "LayerNormalization": -1}
"""Operators along an axis that is an attribute, and which it is where there is none."""

LIKE_FIRST = {"LayerNormalization", "LogSoftmax", "Softmax"}
"""Those of them whose output has the axes of the first input."""

OF_ONE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
"""Reductions that leave a single element as it is."""

AXES_INPUT = {"Slice": 3, **dict.fromkeys((*OF_ONE, "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"), 1)}
"""Operators whose axes are an input, and which one."""


@dataclass(slots=True)
class FormedTensor:
    """A tensor of the step graph, and its forms.

    Attributes:
        sizes: Of its axes; None: they are not known.
        forms: Names by the axes that a form has; the others have length 1.
        source: The name and the sizes of a tensor that each form is made of by one node; None: there is a form.
    """

    sizes: Sizes | None
    forms: dict[Axes, str]
    source: tuple[str, Sizes] | None = None

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.sizes or ())

    @property
    def wide(self) -> Axes:
        """The axes that are longer than 1."""
        return wide_axes(self.sizes or ())

    def sizes_of(self, axes: Axes) -> Sizes:
        """Return the sizes of some axes."""
        return tuple((self.sizes or ())[axis] for axis in axes)


class TensorForms:
    """All tensors of a step graph, with the nodes that make their forms.

    Attributes:
        build: Collects the nodes.
        constants: The graph's initializers, whose forms are constants, too.
        tensors: By name in the graph as it was.
    """

    def __init__(
        self, build: NodeBuilder, constants: Mapping[str, onnx.TensorProto], known: Mapping[str, Sizes]
    ) -> None:
        self.build = build
        self.constants = constants
        self.tensors: dict[str, FormedTensor] = {}
        self._known = known

    def add(self, name: str, axes: Axes | None = None) -> None:
        """Add a tensor that is there with some of its axes; None: with all."""
        sizes = self._known.get(name)
        self.tensors[name] = FormedTensor(sizes, {tuple(range(len(sizes or ()))) if axes is None else axes: name})

    def form(self, name: str, axes: Axes) -> str:
        """Return a tensor with some of its axes; those that it lacks have length 1."""
        tensor = self.tensors[name]
        if axes not in tensor.forms:
            sizes = tensor.sizes_of(axes)
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name]).reshape([size for size, _ in sizes])
                tensor.forms[axes] = self.build.constant(value, at=name)
            elif tensor.source is not None:
                tensor.forms[axes] = self._made_of(*tensor.source, sizes, name)
            elif same := [made for form, made in tensor.forms.items() if tensor.sizes_of(form) == sizes]:
                tensor.forms[axes] = same[0]  # other axes of length 1 at the same places
            else:
                nearest = min(tensor.forms, key=lambda form: len(set(form) ^ set(axes)))
                both = tensor.sizes_of(tuple(axis for axis in nearest if axis in axes))
                formed = self._made_of(tensor.forms[nearest], tensor.sizes_of(nearest), both, name)
                tensor.forms[axes] = self._made_of(formed, both, sizes, name)
        return tensor.forms[axes]

    def whole(self, name: str) -> str:
        """Return a tensor with all of its axes, as operators take it that are not known here."""
        tensor = self.tensors.get(name)
        if not name or tensor is None or tensor.sizes is None:
            return name
        return self.form(name, tuple(range(tensor.rank)))

    def cheapest(self, names: Iterable[str], rank: int, needed: Iterable[int], wanted: Collection[int]) -> Axes:
        """Return the axes on which a node runs: those needed, with others of length 1 where that saves nodes.

        Args:
            names: What it takes, aligned at the last axis as operators broadcast.
            rank: How many axes its output has.
            needed: Axes that it cannot do without.
            wanted: Axes that nodes behind it cannot do without.
        """
        tensors = [self.tensors[name] for name in names if name and name not in self.constants]
        forms = [
            (rank - tensor.rank, {tuple(axis + rank - tensor.rank for axis in form) for form in tensor.forms})
            for tensor in tensors if tensor.forms
        ]  # fmt: skip
        least = set(needed)
        options = {
            tuple(sorted(least.union(form))) for form in [(), wanted, *(f for _, existing in forms for f in existing)]
        }

        def cost(axes: Axes) -> tuple[int, int, Axes]:
            new = sum(tuple(axis for axis in axes if axis >= shift) not in existing for shift, existing in forms)
            return new + (not set(axes).issuperset(wanted)), len(axes), axes

        return min(options, key=cost)

    def _made_of(self, source: str, before: Sizes, sizes: Sizes, name: str) -> str:
        """Return a tensor of these sizes made of another one with the same numbers."""
        if before == sizes:
            return source
        if (places := matched_axes(sizes, before)) is not None:
            gone = [axis for axis in range(len(before)) if axis not in places]
            return self.build.op("Squeeze", source, self.build.ints(gone), at=name)
        if (places := matched_axes(before, sizes)) is not None:
            added = [axis for axis in range(len(sizes)) if axis not in places]
            return self.build.op("Unsqueeze", source, self.build.ints(added), at=name)
        shape = self.build.ints([-1 if size != other else size for size, other in sizes])
        return self.build.op("Reshape", source, shape, at=name)


def wide_axes(sizes: Sizes) -> Axes:
    """Return the axes that are longer than 1."""
    return tuple(axis for axis, size in enumerate(sizes) if size != (1, 1))


def matched_axes(form: Sizes, out: Sizes) -> Axes | None:
    """Return the axes of `out` that have the sizes of a form, in order, so that all others have length 1."""
    matched: list[int] = []
    axis = len(out)
    for size in reversed(form):
        axis -= 1
        while axis >= 0 and size != out[axis] == (1, 1):
            axis -= 1
        if axis < 0 or out[axis] != size:
            return None
        matched.append(axis)
    return None if wide_axes(out[:axis]) else tuple(matched[::-1])


def needed_axes(
    nodes: Sequence[onnx.NodeProto], constants: Container[str], known: Mapping[str, Sizes]
) -> dict[str, set[int]]:
    """Return the axes of each tensor that the nodes which take it need, or nodes behind these.

    Args:
        nodes: In order.
        constants: Names of tensors that have each form without a node.
        known: The sizes of tensors.
    """
    needed: dict[str, set[int]] = {}
    for node in reversed(nodes):
        for name in filter(None, node.input):
            if name not in constants and known.get(name) is not None:
                needed.setdefault(name, set()).update(_needed(node, name, needed, known))
    return needed


def is_joint(node: onnx.NodeProto, known: Mapping[str, Sizes]) -> bool:
    """Whether several products of one row each, as of heads that share their keys, are one product of several rows."""
    left, right = (known.get(name) or () for name in node.input)
    if not len(left) == len(right) > 3 or left[-2] != (1, 1) or right[-3] != (1, 1):
        return False
    heads, same = left[-3]
    return heads == same > 1  # and not the rows, each of which has to come out as it does alone


def _needed(node: onnx.NodeProto, name: str, needed: Mapping[str, set[int]], known: Mapping[str, Sizes]) -> set[int]:
    """Return the axes of an operand that a node and those behind it need."""
    out, rank = known.get(node.output[0]), len(known[name])
    if out is None or node.domain not in {"", "ai.onnx"}:
        return set(range(rank))
    behind = needed.get(node.output[0], set()).union(wide_axes(out))
    if node.op_type in _POINTWISE or (node.op_type in LIKE_FIRST and name == node.input[0]):
        own = [attributes(node).get("axis", -1)] if node.op_type in LIKE_FIRST else []
        return {axis + rank - len(out) for axis in behind if axis + rank >= len(out)} | {axis % rank for axis in own}
    if node.op_type == "Transpose":
        perm = attributes(node).get("perm") or range(rank)[::-1]
        places = [perm[axis] for axis in sorted(behind)]
        return set(places if places == sorted(places) else (perm[axis] for axis in wide_axes(out)))
    if node.op_type == "Concat":
        return behind | {attributes(node)["axis"] % rank}
    if node.op_type == "MatMul":
        if name == node.input[0] and is_joint(node, known):
            return {rank - 3, rank - 1}
        return {rank - 2, rank - 1} if len(known.get(node.input[1]) or ()) > 2 else {rank - 1}
    if node.op_type in RNN:
        return {rank - 2, rank - 1}  # of rows and features: they are written out without the others
    is_free = node.op_type in {*LAYOUT, *ALONG, *AXES_INPUT}
    return set() if is_free else set(range(rank))


# ---------------------------------------------------------------- the graph without them

OLDEST_OPSET = 18
"""The first one in which all axes are inputs."""

_TRIALS = (5, 7)
"""Numbers of rows for which shapes are inferred: what differs is the axis of the batch."""

Shape = tuple[int, ...]


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
    if read_opset(model) < OLDEST_OPSET or not all(axis is not None for axis in rows.values()):
        return model, list(states), {}
    shapes = [_shapes(model, rows, trial) for trial in _TRIALS]
    known = {
        name: tuple(zip(shapes[0][name], shapes[1][name], strict=True))
        for name in shapes[0].keys() & shapes[1].keys()
        if len(shapes[0][name]) == len(shapes[1][name])
    }
    rewriting = _Rewriting(model, known, states)
    return rewriting.model(), rewriting.states, rewriting.left_out()


def _shapes(model: onnx.ModelProto, rows: Mapping[str, int | None], count: int) -> dict[str, Shape]:
    """Return the shapes that onnx infers for a number of rows."""
    lean = without_weights(model)
    for value in lean.graph.input:
        if (axis := rows.get(value.name)) is not None:
            value.type.tensor_type.shape.dim[axis].dim_value = count
    del lean.graph.output[:]
    return {
        name: tuple(dim.dim_value for dim in inferred.shape.dim)
        for name, inferred in infer_types(lean).items()
        if inferred.HasField("shape") and all(dim.HasField("dim_value") for dim in inferred.shape.dim)
    }


class _Rewriting:
    def __init__(self, model: onnx.ModelProto, known: Mapping[str, Sizes], states: Sequence[StateSpec]) -> None:
        self._model = model
        self._known = known
        self._build = NodeBuilder("", tensor_names(model.graph))
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._forms = TensorForms(self._build, self._constants, known)
        self._tensors = self._forms.tensors
        self._wanted = needed_axes(model.graph.node, self._constants, known)
        self._carried: dict[str, Axes] = {}
        for name in (*self._constants, *(value.name for value in model.graph.input)):
            self._forms.add(name)
        self._unite(states)
        self.states = [self._narrowed(state) for state in states]

    def model(self) -> onnx.ModelProto:
        """Return the model with its nodes on the forms that they need."""
        outputs = {value.name for value in self._model.graph.output}
        for node in self._model.graph.node:
            if (axes := self._carried.get(node.output[0])) is not None:
                self._emit(node, [self._forms.form(node.input[0], axes)], axes)
            elif not (outputs.isdisjoint(node.output) and self._rewritten(node)):
                self._keep(node)
        nodes = needed_nodes(in_order(self._build.nodes), outputs)
        used = {name for node in nodes for name in uses(node)} | outputs
        graph = self._model.graph  # changed in place: its weights may be large
        replace_items(graph.node, nodes)
        for at in range(len(graph.initializer))[::-1]:
            if graph.initializer[at].name not in used:
                del graph.initializer[at]
        graph.initializer.extend(tensor for tensor in self._build.constants if tensor.name in used)
        return self._model

    def left_out(self) -> dict[str, str]:
        """Return tensors that have other forms alone, with one of these."""
        names = {
            name: next(iter(tensor.forms.values()), (tensor.source or ("",))[0])
            for name, tensor in self._tensors.items()
        }
        return {name: form for name, form in names.items() if name != form}

    def _unite(self, states: Sequence[StateSpec]) -> None:
        """Let all states of one number have an axis of length 1 if one needs it, so that equal ones look alike."""
        single = {state.input: len(state.shape) for state in states if state.shape and set(state.shape) == {1}}
        if any(len(self._wanted.get(name, ())) > 1 for name in single):
            for name, last in single.items():
                if len(wanted := self._wanted.setdefault(name, set())) < 2:
                    wanted.add(last)

    def _narrowed(self, state: StateSpec) -> StateSpec:
        """Return a state without the axes of length 1 that no node needs; input and output are declared so."""
        graph, sizes = self._model.graph, self._known.get(state.input)
        last = self._makers[state.output]
        if sizes is None or last.op_type != "Identity" or self._known.get(last.input[0]) != sizes:
            return state
        wanted = self._wanted.get(state.input, set())
        axes = tuple(axis for axis in range(len(sizes)) if sizes[axis] != (1, 1) or axis in wanted)
        for value in (*graph.input, *graph.output):
            if value.name in {state.input, state.output}:
                shape = value.type.tensor_type.shape
                replace_items(shape.dim, [shape.dim[axis] for axis in axes])
        self._forms.add(state.input, axes)
        self._carried[state.output] = axes
        return state.placed([sizes[axis][0] for axis in axes if axis != state.batch_axis], state.batch_axis)

    def _keep(self, node: onnx.NodeProto) -> None:
        """Emit a node as it is."""
        names = {name: self._forms.whole(name) for name in uses(node)}
        self._build.nodes.append(renamed(node, names, name=node.name))
        for name in filter(None, node.output):
            self._forms.add(name)

    def _rewritten(self, node: onnx.NodeProto) -> bool:
        """Emit a node on tensors without axes of length 1; False: there is no such form of it."""
        names = [name for name in (*node.input, *node.output) if name]
        if node.domain not in {"", "ai.onnx"} or any(self._known.get(name) is None for name in names):
            return False
        if all(name in self._constants for name in node.input if name):
            return False
        if node.op_type in LAYOUT:
            return self._layout(node)
        if idle := self._idle(node):
            self._tensors[node.output[0]] = self._tensors[idle]
            return True
        if node.op_type in _POINTWISE:
            return self._elementwise(node)
        if node.op_type == "MatMul":
            return self._matmul(node)
        if node.op_type == "Gather" and node.input[0] in self._constants:
            return self._lookup(node)
        return self._along(node)

    def _emit(self, node: onnx.NodeProto, inputs: Iterable[str], axes: Axes, **changed: int) -> bool:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = list(inputs)
        for attribute in made.attribute:
            if attribute.name in changed:
                attribute.i = changed.pop(attribute.name)
        made.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in changed.items())
        self._build.nodes.append(made)
        for name in filter(None, node.output):
            self._forms.add(name, axes)
        return True

    def _layout(self, node: onnx.NodeProto) -> bool:
        """Leave a node out that only moves axes of length 1: what it takes has the forms of what it gives."""
        name, output = node.input[0], node.output[0]
        source, out = self._tensors[name], self._known[output]
        perm = list(range(source.rank))
        if node.op_type == "Transpose":
            perm = list(attributes(node).get("perm") or perm[::-1])

        def moved(form: Axes) -> Axes | None:
            if node.op_type != "Transpose":
                return matched_axes(source.sizes_of(form), out)
            places = tuple(perm.index(axis) for axis in form)
            return places if places == tuple(sorted(places)) else None

        forms = {axes: form for own, form in source.forms.items() if (axes := moved(own)) is not None}
        if not forms and node.op_type == "Transpose" and moved(source.wide) is None:
            form = min(source.forms or [source.wide], key=len)
            order = [form.index(axis) for axis in perm if axis in form]
            self._build.add("Transpose", [self._forms.form(name, form)], [output], perm=order)
            self._forms.add(output, tuple(sorted(perm.index(axis) for axis in form)))
            return True
        if not forms and sum(size != other for size, other in out) != 1:
            return False
        if not forms and source.source is None:
            form, made = next(iter(source.forms.items()))
            self._tensors[output] = FormedTensor(out, {}, (made, source.sizes_of(form)))
        else:
            self._tensors[output] = FormedTensor(out, forms, None if forms else source.source)
        return True

    def _idle(self, node: onnx.NodeProto) -> str:
        """Return the operand that a choice or a sum always is, as of a mask that lets all of one timestep through."""
        output, pairs = node.output[0], (node.input, node.input[::-1])
        idle = self._chosen(output)
        if node.op_type == "Add":
            idle = next((given for given, other in pairs if self._is_all(self._chosen(other), 0)), output)
        return idle if idle != output and self._known[idle] == self._known[output] else ""

    def _chosen(self, name: str) -> str:
        """Return the operand that a tensor is if it is a choice which is the same everywhere; the tensor otherwise."""
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Where":
            condition, first, second = map(str, maker.input)
            if self._is_all(condition, 1):
                return first
            if self._is_all(condition, 0):
                return second
        return name

    def _is_all(self, name: str, value: int) -> bool:
        return name in self._constants and bool((numpy_helper.to_array(self._constants[name]) == value).all())

    def _elementwise(self, node: onnx.NodeProto, needed: Axes = ()) -> bool:
        """Emit a node whose operands broadcast, with the axes that are longer than 1 or needed."""
        out, wanted = self._known[node.output[0]], self._wanted.get(node.output[0], ())
        kept = self._forms.cheapest(node.input, len(out), (*wide_axes(out), *needed), wanted)
        shifts = {name: len(out) - self._tensors[name].rank for name in node.input if name}
        if any(axis + shifts[name] not in kept for name in shifts for axis in self._tensors[name].wide):
            return False  # as the slope of a PRelu, which the inferred output does not broadcast to
        inputs = [
            self._forms.form(name, tuple(axis - shifts[name] for axis in kept if axis >= shifts[name])) if name else ""
            for name in node.input
        ]
        return self._emit(node, inputs, kept)

    def _matmul(self, node: onnx.NodeProto) -> bool:
        left, right = (self._tensors[name] for name in node.input)
        rank = len(self._known[node.output[0]])
        if min(left.rank, right.rank) < 2:
            return False
        if is_joint(node, self._known):
            kept, keys = (tuple(axis for axis in range(rank) if axis != gone) for gone in (rank - 2, rank - 3))
            x, y = (self._forms.form(name, axes) for name, axes in zip(node.input, (kept, keys), strict=True))
            return self._emit(node, [x, y], kept)
        if right.rank > 2:
            return self._elementwise(node, (rank - 2, rank - 1))
        kept = tuple(axis for axis in left.wide if axis < rank - 1)
        x = self._forms.form(node.input[0], (*kept, rank - 1))
        return bool(kept) and self._emit(node, [x, self._forms.whole(node.input[1])], (*kept, rank - 1))

    def _along(self, node: onnx.NodeProto) -> bool:
        """Emit a node along some axes without the others that have length 1."""
        data = list(node.input if node.op_type == "Concat" else node.input[:1])
        first, others = self._tensors[data[0]], [self._forms.whole(name) for name in node.input[len(data) :]]
        axes, is_reduction = self._axes_along(node, first.rank), node.op_type.startswith("Reduce")
        if not axes or (node.op_type != "Split" and any(node.output[1:])):
            return False
        if is_reduction and not set(axes).intersection(first.wide):
            return node.op_type in OF_ONE and self._layout(node)
        least = {axis for name in data for axis in self._tensors[name].wide}.union(axes)
        if node.op_type == "LayerNormalization":
            least.update(range(axes[0], first.rank))
        kept = self._forms.cheapest(data, first.rank, least, self._wanted.get(node.output[0], ()))
        inputs = [*(self._forms.form(name, kept) for name in data), *others]
        if node.op_type in ALONG:
            return self._emit(node, inputs, kept, axis=kept.index(axes[0]))
        place = AXES_INPUT[node.op_type]
        dtype = numpy_helper.to_array(self._constants[node.input[place]]).dtype.name
        inputs[place] = self._build.constant([kept.index(axis) for axis in axes], dtype, what="axes")
        if is_reduction and not attributes(node).get("keepdims", 1):
            kept = tuple(axis - sum(dropped < axis for dropped in axes) for axis in kept if axis not in axes)
        return self._emit(node, inputs, kept)

    def _axes_along(self, node: onnx.NodeProto, rank: int) -> list[int]:
        """Return the axes that an operator works along; none where they are not known, or there is no such form."""
        if node.op_type == "Gather" and (
            node.input[1] not in self._constants or self._tensors[node.input[1]].rank != 1
        ):
            return []
        if node.op_type in ALONG:
            return [int(attributes(node).get("axis", ALONG[node.op_type])) % rank] if rank else []
        place = AXES_INPUT.get(node.op_type, 0)
        if not 0 < place < len(node.input) or node.input[place] not in self._constants:
            return []
        return [int(axis) % rank for axis in numpy_helper.to_array(self._constants[node.input[place]])]

    def _lookup(self, node: onnx.NodeProto) -> bool:
        """Look entries of a constant table up along its first axis."""
        table, places = node.input
        if attributes(node).get("axis", 0) or not self._tensors[places].rank:
            return False
        wide, rank = self._tensors[places].wide, self._tensors[places].rank
        rest = tuple(range(rank, rank + self._tensors[table].rank - 1))
        return self._emit(node, [table, self._forms.form(places, wide)], (*wide, *rest))


# ---------------------------------------------------------------- states that always hold the same


def without_equal_states(
    model: onnx.ModelProto, states: Sequence[StateSpec]
) -> tuple[onnx.ModelProto, list[StateSpec]]:
    """Return a step graph with the states that it needs, and these.

    Args:
        model: The step graph; its nodes are changed in place.
        states: What it carries.
    """
    nodes = in_order(model.graph.node)
    firsts: dict[int, StateSpec] = {}
    same: dict[str, str] = {}
    for state, number in zip(states, _numbers(nodes, states), strict=True):
        if (first := firsts.setdefault(number, state)) is not state:
            same[state.input] = first.input
    kept = [state for state in states if state.input not in same]
    graph, gone = model.graph, {state.output for state in states} - {state.output for state in kept}
    replace_items(graph.input, [value for value in graph.input if value.name not in same])
    replace_items(graph.output, [value for value in graph.output if value.name not in gone])
    outputs = [value.name for value in graph.output]
    replace_items(graph.node, _once(needed_nodes(nodes, outputs), same, outputs))
    return model, kept


def _once(
    nodes: Sequence[onnx.NodeProto], same: Mapping[str, str], outputs: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """Yield nodes with equal tensors under one name, without those that compute what another one does."""
    names, firsts = dict(same), dict[Hashable, onnx.NodeProto]()
    for node in nodes:
        made = node if names.keys().isdisjoint(uses(node)) else renamed(node, names, name=node.name)
        first = firsts.setdefault((_kind(made), *made.input, *map(bool, made.output)), made)
        if first is made or not set(outputs).isdisjoint(made.output):
            yield made
        else:
            names |= zip(made.output, first.output, strict=True)


def _numbers(nodes: Sequence[onnx.NodeProto], states: Sequence[StateSpec]) -> list[int]:
    """Return a number for each state, the same for those that are equal at every timestep.

    All that begin alike get one number; those that are then computed in different ways are told apart, until all that
    have one number are computed alike.
    """
    kinds = [_kind(node) for node in nodes]
    numbers = _numbered([repr((state.dtype, state.shape, state.batch_axis, state.init)) for state in states])
    before = 0
    while (count := len(set(numbers))) > before:
        before = count
        values: dict[str, Hashable] = {state.input: number for state, number in zip(states, numbers, strict=True)}
        seen: dict[Hashable, int] = {}
        for node, kind in zip(nodes, kinds, strict=True):
            number = seen.setdefault((kind, *(values.get(name, name) for name in node.input)), len(seen))
            values.update({name: (number, place) for place, name in enumerate(node.output) if name})
        numbers = _numbered(
            [(number, values.get(carried.output)) for number, carried in zip(numbers, states, strict=True)]
        )
    return numbers


def _kind(node: onnx.NodeProto) -> Hashable:
    """Return what two nodes have in common that give the same for the same inputs."""
    if any(subgraphs(node)):
        return tuple(node.output)
    return (node.op_type, node.domain, *sorted(a.SerializeToString() for a in node.attribute))


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    """Return the place of each key's first occurrence."""
    firsts: dict[Hashable, int] = {}
    return [firsts.setdefault(key, place) for place, key in enumerate(keys)]

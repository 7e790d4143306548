"""Writes a step graph without the axes of length 1 that one timestep leaves behind, so that it has fewer nodes.

Before and after:

    x (B, 4)                               x (B, 4)
       | Unsqueeze: (B, 1, 4)                 | MatMul
       | MatMul                       ->      | Add with h (B, 5)
       | Add with h (B, 1, 5)                 |
       | Squeeze                              |
    y (B, 5)                               y (B, 5)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import numpy_helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.dataflow import in_order
from stepwell_export.graph.forms import (
    ALONG,
    AXES_INPUT,
    ELEMENTWISE,
    LAYOUT,
    OF_ONE,
    Axes,
    FormedTensor,
    Sizes,
    TensorForms,
    is_joint,
    matched_axes,
    needed_axes,
    wide_axes,
)
from stepwell_export.graph.nodes import attributes, needed_nodes, read_opset, renamed, replace_items, tensor_names, uses
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.runtime.manifest import StateSpec

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
        if node.op_type in ELEMENTWISE:
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

"""Lets many rows run together in a graph that was exported for one.

Exporters write the one row into declared shapes and into the shapes that Reshape is given. Both are rewritten here;
whether the graph then does the same to every row is for the caller to prove.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from stepwell_export.graph.nodes import constants, needed_nodes, replace_items
from stepwell_export.graph_session import GraphSession
from stepwell_export.row_axis import with_row_axis
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.runtime.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec, StateSpec
from stepwell_export.runtime.specs import shape_of_rows
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.structure.rows import rows_of_step

if TYPE_CHECKING:
    import onnx

Spec = TypeVar("Spec", InputSpec, OutputSpec, StateSpec)

_RECURRENT = {"LSTM", "GRU", "RNN"}
_TRIES = 32  # dead ends; a graph that can be read in more ways than that is not one for guessing


def batchify(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    """Return a model that runs rows together, and its manifest.

    Where an axis of length 1 may be the batch or not, each is tried, and the first with which a probe succeeds is used.
    If there is none and the graph has recurrent nodes, which may have fixed initial states or rows folded into another
    axis, every tensor gets an axis of its own for rows.

    Args:
        model: The graph, local functions inlined, weights inside.
        manifest: Its description as a graph of single rows.

    Raises:
        RefusedModelError: An input or state has no axis for it, or no rewriting lets two rows run as each alone.
    """
    given = _given(manifest)
    problems: list[str] = []
    for axes in _axis_choices(given):
        opened = _Opened(_declared_open(model, axes), given, axes, manifest, problems)
        for rewritten in opened.rewritten():
            try:
                described = rewritten.described()
                verdict = rows_of_step(rewritten.model, described).verdict
                if verdict.outcome != "independent":
                    problems.append(f"{verdict.why}.")
                elif StepModel(rewritten.model.SerializeToString(), described).batched:
                    return rewritten.model, described
                else:
                    problems.append("two rows run together do not equal each alone.")
            except ModelLoadError as exc:
                problems.append(exc.problem)
        if len(problems) >= _TRIES:
            break
    if any(node.op_type in _RECURRENT for node in model.graph.node):
        try:
            with_axis, described = with_row_axis(model, manifest)
            if StepModel(with_axis.SerializeToString(), described).batched:
                return with_axis, described
        except (ModelLoadError, RefusedModelError) as exc:
            problems.insert(0, exc.problem)
    raise RefusedModelError(
        f"{manifest.name} cannot run rows together: {problems[0]}",
        fix="Leave out `--batchify`: it runs one row at a time. Or export the model anew with a dynamic batch axis.",
    )


class _Given(NamedTuple):
    """What a graph input is given for one row: all its axes, a window's past part included."""

    dtype: str
    shape: tuple[int, ...]
    axis: int
    is_windowed: bool
    is_state: bool

    @property
    def ones(self) -> list[int]:
        """The axes of length 1."""
        return [axis for axis, length in enumerate(self.shape) if length == 1]


def _given(manifest: Manifest) -> dict[str, _Given]:
    context = {window.input: window for window in manifest.windows}
    given = {}
    for name, dtype, row, axis, is_state in [
        *((i.name, i.dtype, i.graph_row_shape, i.batch_axis, False) for i in manifest.inputs),
        *((s.input, s.dtype, s.row_shape, s.batch_axis, True) for s in manifest.states),
    ]:
        if axis is None:
            raise RefusedModelError(
                f"{name!r} of {manifest.name} has the shape {list(row)} and no batch axis.",
                fix="Leave out `--batchify`: it runs one row at a time.",
            )
        lengths = list(row)
        if name in context:
            lengths[context[name].axis] += context[name].context
        given[name] = _Given(dtype, shape_of_rows(lengths, axis, 1), axis, name in context, is_state)
    return given


def _axis_choices(given: Mapping[str, _Given]) -> list[dict[str, int]]:
    """Return batch axes for all inputs and states: those of the manifest first, then other axes of length 1.

    States are taken to agree with one another, and inputs as well: each takes its first such axis, or its second, ...
    """
    options = {
        name: [tensor.axis] if tensor.is_windowed else sorted(tensor.ones, key=lambda axis: axis != tensor.axis)
        for name, tensor in given.items()
    }
    most = range(max(len(axes) for axes in options.values()))
    choices: list[dict[str, int]] = []
    for of_inputs, of_states in product(most, most):
        choice = {
            name: axes[min(of_states if given[name].is_state else of_inputs, len(axes) - 1)]
            for name, axes in options.items()
        }
        if choice not in choices:
            choices.append(choice)
    return choices


def _declared_open(model: onnx.ModelProto, axes: Mapping[str, int]) -> onnx.ModelProto:
    """Return a copy that declares a symbolic batch axis, and nothing about tensors that follow from it."""
    opened = copy.deepcopy(model)
    del opened.graph.value_info[:]
    for value in opened.graph.input:
        if value.name in axes:
            value.type.tensor_type.shape.dim[axes[value.name]].dim_param = "batch"
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    return opened


@dataclass(frozen=True, slots=True)
class _Opened:
    """A graph whose inputs declare a batch axis, being rewritten.

    Attributes:
        model: The graph.
        given: What its inputs are given for one row.
        axes: Where their batch axes are.
        manifest: Its description as a graph of single rows.
        problems: Why ways that were tried failed; more are added.
    """

    model: onnx.ModelProto
    given: Mapping[str, _Given]
    axes: Mapping[str, int]
    manifest: Manifest
    problems: list[str]

    def rewritten(self, done: int = 0) -> Iterator[_Opened]:
        """Yield the ways of rewriting each Reshape from the node `done` on."""
        from onnx import numpy_helper

        shapes = _constant_shapes(self.model.graph)
        for at, node in enumerate(self.model.graph.node):
            if len(self.problems) >= _TRIES:
                return
            if at < done or node.op_type != "Reshape" or node.input[1] not in shapes:
                continue
            part = _upto(self.model, node.input[0])
            try:
                one, two = (self.run(part, rows)[node.input[0]].shape for rows in (1, 2))
            except ModelLoadError as exc:
                self.problems.append(exc.problem)
                return
            targets = _targets(shapes[node.input[1]], one, two)
            if not targets:
                self.problems.append(f"Reshape {node.name or node.output[0]!r} mixes the rows with another axis.")
            for target in targets:
                choice = copy.deepcopy(self.model)
                name = f"{node.output[0]}.batched_shape"
                choice.graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
                choice.graph.node[at].input[1] = name
                yield from replace(self, model=choice).rewritten(at + 1)
            return
        yield self

    def described(self) -> Manifest:
        """Return the manifest of the graph as it is now."""
        one, two = ({name: value.shape for name, value in self.run(self.model, rows).items()} for rows in (1, 2))

        def placed(spec: Spec, name: str) -> Spec:
            grown = _grown(one[name], two[name])
            axis = grown[0] if len(grown) == 1 else None
            return spec.placed([length for at, length in enumerate(one[name]) if at != axis], axis)

        inputs = [
            spec if self.given[spec.name].is_windowed else placed(spec, spec.name) for spec in self.manifest.inputs
        ]
        states = [placed(state, state.input) for state in self.manifest.states]
        outputs = [placed(spec, spec.name) for spec in self.manifest.outputs]
        batch = BatchSpec(max=self.manifest.batch.max)
        return self.manifest.model_copy(
            update={"inputs": inputs, "states": states, "outputs": outputs, "batch": batch, "verified": None}
        )

    def run(self, model: onnx.ModelProto, rows: int) -> dict[str, Array]:
        """Run a model with the same inputs on zeros; return what it takes and gives.

        Raises:
            ModelLoadError: It fails.
        """
        feeds = {name: spec.array() for name, spec in self.manifest.constants.items()}
        for name, tensor in self.given.items():
            shape = [rows if axis == self.axes[name] else length for axis, length in enumerate(tensor.shape)]
            feeds[name] = np.zeros(shape, tensor.dtype)
        return GraphSession(model).run(feeds)


# ---------------------------------------------------------------- shapes inside the graph


def _targets(target: Sequence[int], one: Sequence[int], two: Sequence[int]) -> list[list[int]]:
    """Return the shapes that a Reshape may be given in place of `target`, the likeliest first.

    Args:
        target: The shape it is given for one row.
        one: The shape of its data for one row.
        two: The same for two rows.
    """
    grown = _grown(one, two)
    if len(grown) != 1:
        return [list(target)]
    found = np.empty(one).reshape([one[axis] if length == 0 else length for axis, length in enumerate(target)]).shape
    before = math.prod(one[: grown[0]])
    places = [k for k in range(len(found)) if math.prod(found[:k]) == before]
    places.sort(key=lambda k: (found[k] != 1, target[k] > 0, k != grown[0]))
    return [[-1 if axis == k else length for axis, length in enumerate(found)] for k in places]


def _grown(one: Sequence[int], two: Sequence[int]) -> list[int]:
    """Return the axes whose length follows the number of rows."""
    return [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]


def _constant_shapes(graph: Any) -> dict[str, list[int]]:
    """Return the constants that Reshapes of a graph are given, by name."""
    from onnx import numpy_helper

    tensors = constants(graph)
    used = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    return {name: numpy_helper.to_array(tensors[name]).tolist() for name in used & tensors.keys()}


def _upto(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that leads to one tensor."""
    part = copy.deepcopy(model)
    replace_items(part.graph.node, needed_nodes(list(model.graph.node), [name]))
    del part.graph.output[:]
    part.graph.output.add(name=name)
    return part

"""`step_of`: a sequence graph as one step graph and its manifest, not yet verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from model_export.dataflow import Flow, flow_of, laid_out_from
from model_export.errors import RefusedModelError, UnclearModelError
from model_export.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec
from model_export.onnx_file import with_outputs
from model_export.operators import RNN, STATEFUL
from model_export.runtime.random_ops import random_outputs
from model_export.streaming.axis_search import find_inputs
from model_export.streaming.batch_independence import is_for_one_row, rows_are_independent
from model_export.streaming.inputs import SequenceInput, SequenceInputs
from model_export.streaming.measured_shapes import ROWS, Dim, MeasuredShapes, measure_shapes, run, session
from model_export.streaming.normalize import captures, load_graph
from model_export.streaming.rules_attention import attention, attention_scores, matmul
from model_export.streaming.rules_elementwise import count_up, pointwise, reshape
from model_export.streaming.rules_pooling import WEIGHTED, softmax, with_weights
from model_export.streaming.rules_recurrent import cumsum, loop, rnn, scan, stateful_op, turns_with_time
from model_export.streaming.rules_reductions import REDUCTIONS, reduction
from model_export.streaming.rules_slice import concat, gather, pad, slice_, split
from model_export.streaming.rules_window import convolution, transposed
from model_export.streaming.static_branches import with_squeeze_axes, without_known_branches
from model_export.streaming.tensor import Tensor
from model_export.streaming.unrolled_loops import with_loops_rolled
from model_export.streaming.walk import Rule, Walk

RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, reduction),
    **{name: rnn if name in RNN else stateful_op for name, op in STATEFUL.items() if op.time_axis is not None},
    "Attention": attention,
    "AveragePool": convolution,
    "Concat": concat,
    "Conv": convolution,
    "ConvTranspose": transposed,
    "CumSum": cumsum,
    "Expand": reshape,
    "GroupQueryAttention": attention,
    "Gather": gather,
    "Loop": loop,
    "LpPool": convolution,
    "MatMul": matmul,
    "MaxPool": convolution,
    "MultiHeadAttention": attention,
    "Pad": pad,
    "Range": count_up,
    "Reshape": reshape,
    "Scan": scan,
    "Slice": slice_,
    "Softmax": softmax,
    "Split": split,
}
RULES |= {name: with_weights(name, RULES.get(name, pointwise)) for name in WEIGHTED}
"""Operators that need more than to be emitted as they are."""

HALF = 5e-3
"""How far float16 is from exact, as of Keras' layers in mixed_float16."""


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where an output of the sequence graph has its axes.

    Attributes:
        time: Axis of the timesteps; None: one answer for the whole sequence.
        batch: Axis of the rows; None: it has none.
        extra: How many timesteps longer than the sequence it is.
        order: How a folded axis holds both: `BT` or `TB`; empty: they have an axis each.
    """

    time: int | None
    batch: int | None
    extra: int = 0
    order: str = ""


@dataclass(frozen=True, slots=True)
class Watched:
    """A node whose output stands in the step graph as it does in the sequence graph, timestep by timestep.

    Attributes:
        layer: The node, for people.
        output: Its output.
        tensor: The same in the step graph.
        facts: Where the output has its axes.
    """

    layer: str
    output: str
    tensor: str
    facts: OutputLayout


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """A step graph with what it came from.

    Attributes:
        proto: The step graph, without manifest.
        manifest: What it takes, carries and gives.
        graph: The sequence graph, in its plain form.
        doors: What the sequence graph takes.
        outputs: Where its answers have their axes.
        watched: Nodes to compare where the answers differ, in order.
        rounding: How far the graph is from exact, where it computes in float16.
    """

    proto: onnx.ModelProto
    manifest: Manifest
    graph: onnx.ModelProto
    doors: SequenceInputs
    outputs: dict[str, OutputLayout]
    watched: list[Watched]
    rounding: float = 0.0


def step_of(
    source: Any,
    *,
    name: str,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    constants: Mapping[str, Array] | None = None,
    length: int | None = None,
) -> SequenceStep:
    """Make the step graph of a sequence graph.

    Raises:
        UnclearModelError: No time axis can be found.
        RefusedModelError: A node cannot be stepped; names it and says why.
    """
    graph = with_loops_rolled(load_graph(source, constants or {}))
    _check_chance(graph)
    try:
        return _step_of(source, graph, name, time_axes or {}, batch_axes or {}, length=length)
    except (RefusedModelError, UnclearModelError) as exc:
        if len(graph.graph.input) > 1:  # perhaps a state among them
            exc.fix += " If the graph takes one timestep and its states, it is stepwise already: `stepwell adopt`."
        raise


def _step_of(
    source: Any,
    graph: onnx.ModelProto,
    name: str,
    time_axes: Mapping[str, int | None],
    batch_axes: Mapping[str, int | None],
    *,
    length: int | None,
) -> SequenceStep:
    declared = declared_of(source, graph)
    try:
        doors = find_inputs(graph, declared, time_axes=time_axes, batch_axes=batch_axes, length=length)
    except UnclearModelError as exc:
        raise _written_rows(graph) or exc from exc
    if is_for_one_row(doors, declared) and not rows_are_independent(graph, doors):
        doors = replace(doors, only_rows=1)
    graph = with_squeeze_axes(without_known_branches(graph, doors), doors)
    if doors.only_rows not in {None, 1}:
        raise _written_rows(graph) or RefusedModelError(
            f"The graph takes {doors.only_rows} rows at once and no other number; a stream is one row.",
            fix="Export it with a dynamic batch axis, or for one row.",
        )
    facts = measured_shapes_of(graph, doors)
    if (cached := _with_caches(graph, doors, facts)) != doors:
        doors, facts = cached, measured_shapes_of(graph, cached)
    walk = Walk(doors.with_length(graph, doors.lengths[0]), facts, length)
    walk.takes_weights = WEIGHTED
    inputs = [_take(walk, door) for door in doors.inputs]
    walk.run(RULES, pointwise, attention_scores)
    answers, outputs = _give(walk, doors)
    walk.graph.drop_unused_states()
    loops = any(node.op_type == "Loop" and turns_with_time(walk, node) for node in graph.graph.node)
    if not walk.graph.states and not doors.is_certain and not loops:
        raise UnclearModelError(
            f"Nothing is carried from timestep to timestep when {_time_of(doors)} is read as time.",
            fix="Say where time is: `--time-axis INPUT=AXIS`.",
        )
    manifest = Manifest(
        name=name,
        inputs=[spec for spec in inputs if spec is not None],
        states=walk.graph.states,
        outputs=answers,
        batch=BatchSpec(mode="single" if _one_row(walk, doors) else "stack"),
    )
    proto = walk.graph.proto(name, graph)
    return SequenceStep(proto, manifest, graph, doors, outputs, _watched(walk), _rounding(facts))


def _written_rows(graph: onnx.ModelProto) -> RefusedModelError | None:
    """Return the error for a recurrence that starts from several rows which are weights; None: there is none."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        for name in node.input[5:7] if node.op_type in RNN else ():
            if len(shape := shapes.get(name, ())) == 3 and shape[1] > 1:
                return RefusedModelError(
                    f"Node {node.name!r} ({node.op_type}) starts from {name!r}, which holds {shape[1]} rows; a stream "
                    "is one row.",
                    fix="Export the model for one row, or with an initial state that is expanded to the batch.",
                )
    return None


def _check_chance(graph: onnx.ModelProto) -> None:
    """Refuse a graph that draws random numbers for an answer.

    Raises:
        RefusedModelError: It names the operator and the output.
    """
    for name, operator in random_outputs(graph.SerializeToString()).items():
        raise RefusedModelError(
            f"Random operator {operator} reaches output {name!r}; expected answers that follow from the inputs alone, "
            "which alone can be compared with the original.",
            fix="Export the model for inference, without dropout; send random numbers that it needs as an input.",
        )


def _rounding(facts: MeasuredShapes) -> float:
    """Return what a graph with float16 in it may be off by: adding up in another order shows in its last digits."""
    return HALF if any(getattr(value, "dtype", None) == np.float16 for value in facts.first.values()) else 0.0


def _watched(walk: Walk) -> list[Watched]:
    """Return the nodes that can be compared: neither ahead nor behind, rows and timesteps on an axis each."""
    found = []
    for node in walk.model.graph.node:
        for name in filter(None, node.output):
            tensor = walk.tensors.get(name)
            if tensor is None or tensor.kind != "per_step" or tensor.offset != 0 or not walk.facts.dims(name):
                continue
            time, batch = walk.facts.time_axis(name), walk.facts.batch_axis(name)
            if (
                time == batch
                or walk.facts.length_delta(name)
                or walk.facts.dims(name)[time or 0].elements_per_step != 1
            ):
                continue
            facts = OutputLayout(time, batch)
            found.append(Watched(f"{node.name!r} ({node.op_type})", name, tensor.step, facts))
    return found


def _time_of(doors: SequenceInputs) -> str:
    return " and ".join(f"axis {door.time} of {door.name!r}" for door in doors.external if door.time is not None)


def _one_row(walk: Walk, doors: SequenceInputs) -> bool:
    """Whether rows cannot be run together."""
    return (
        doors.only_rows is not None
        or any(door.batch is None for door in doors.external)
        or any(state.batch_axis is None for state in walk.graph.states)
    )


def _with_caches(graph: onnx.ModelProto, doors: SequenceInputs, facts: MeasuredShapes) -> SequenceInputs:
    """Read inputs that do nothing but stand in front of a sequence as what a step carries over."""

    def is_front(node: onnx.NodeProto, name: str) -> bool:
        axis = facts.time_axis(node.output[0]) if node.op_type == "Concat" else None
        place = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return axis is not None and place % len(facts.dims(node.output[0])) == axis and node.input[0] == name

    def is_cache(door: SequenceInput) -> bool:
        users = [node for node in graph.graph.node if door.name in (*node.input, *captures(node))]
        return door.role == "external" and door.time is None and all(is_front(node, door.name) for node in users)

    read = tuple(replace(door, role="state") if is_cache(door) else door for door in doors.inputs)
    return replace(doors, inputs=read) if any(door.role == "external" for door in read) else doors


def measured_shapes_of(graph: onnx.ModelProto, doors: SequenceInputs) -> MeasuredShapes:
    """Run a graph as its facts need it."""

    @cache
    def loaded(steps: int) -> Any:
        return session(doors.with_length(graph, steps), every_tensor=True)

    same = doors.only_steps is None
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in doors.with_length(graph, doors.lengths[0]).graph.initializer
    }

    def at_length(tensor: str) -> Array:
        assert doors.length is not None
        only = with_outputs(graph, [tensor])
        del only.graph.output[: len(graph.graph.output)]
        feeds = doors.feeds(doors.only_rows or ROWS[0], doors.length, 0)
        return np.asarray(run(session(only), feeds)[tensor])

    return measure_shapes(
        lambda n: loaded(doors.lengths[0] if same else n),
        doors.feeds,
        weights,
        only_rows=doors.only_rows,
        lengths=doors.lengths,
        at_length=at_length if doors.length else None,
    )


def declared_of(source: Any, graph: onnx.ModelProto) -> dict[str, list[int | str | None]]:
    """Return what a model declares of the axes of its inputs."""
    model = source if isinstance(source, onnx.ModelProto) else onnx.load(str(source), load_external_data=False)
    wanted = {value.name for value in graph.graph.input}
    return {
        value.name: [_size(dim) for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name in wanted
    }


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _take(walk: Walk, door: SequenceInput) -> InputSpec | None:
    """Let the walk begin with an input; return its spec where it is asked of the caller."""
    if door.role != "external":
        walk.tensors[door.name] = Tensor("constant")
        return None
    axes = [axis for axis in range(len(door.sizes)) if axis not in {door.batch, door.time}]
    row = [door.sizes[axis] for axis in axes]
    spec: InputSpec = _spec(InputSpec, door.name, door.dtype, row, batch=door.batch, time=door.time)
    spec, perm = _rows_in_front(spec)
    walk.graph.input(spec)
    step = walk.graph.op("Transpose", door.name, perm=list(np.argsort(perm))) if perm else door.name
    walk.tensors[door.name] = Tensor("static", step) if door.time is None else Tensor("per_step", step, 0)
    return spec


def _rows_in_front(spec: Any) -> tuple[Any, list[int]]:
    """Return a spec with its batch axis in front, as chunks need it, and the order that brings a tensor there.

    The order is empty where nothing moves.
    """
    if not spec.batch_axis:
        return spec, []
    rank = len(spec.graph_row_shape) + 1
    others = [axis for axis in range(rank) if axis != spec.batch_axis]
    return spec.model_copy(update={"batch_axis": 0}), [spec.batch_axis, *others]


def _spec(kind: Any, name: str, dtype: str, row: list[int], *, batch: int | None, time: int | None) -> Any:
    """Return the spec of a tensor that has a time axis of length 1 in the graph."""
    graph_row = list(row)
    if time is not None:
        graph_row.insert(time - (batch is not None and batch < time), 1)
    return kind(
        name=name, dtype=dtype, shape=row, batch_axis=batch, graph_shape=graph_row if graph_row != row else None
    )


def _give(walk: Walk, doors: SequenceInputs) -> tuple[list[OutputSpec], dict[str, OutputLayout]]:
    """Declare the answers; leave out what a recurrence carries where its initial value was an input too."""
    walk.need(*(value.name for value in walk.model.graph.output))
    answers, outputs = [], {}
    dropped: list[str] = []
    bound = [door for door in doors.inputs if door.role == "state"]
    flow = flow_of(walk.model.graph)
    for value in walk.model.graph.output:
        tensor = walk.tensor(value.name)
        if tensor.kind not in {"per_step", "final", "static"} or not walk.facts.value(value.name).size:
            continue
        if tensor.kind == "final" and any(_carries_on(walk, flow, value.name, door) for door in bound):
            dropped.append(value.name)
            continue
        spec, facts = _answer(walk, value.name, doors)
        answers.append(spec)
        outputs[value.name] = facts
    for name in dropped if not answers else []:
        spec, facts = _answer(walk, name, doors)
        answers.append(spec)
        outputs[name] = facts
    if not answers:
        raise RefusedModelError(
            f"No output of the graph depends on the timesteps; its outputs are "
            f"{[value.name for value in walk.model.graph.output]}.",
            fix="Export the part of the model that answers the sequence.",
        )
    return answers, outputs


def _carries_on(walk: Walk, flow: Flow, name: str, door: SequenceInput) -> bool:
    """Whether an output is, but for its layout, the next value of what an input starts from.

    It is what a recurrence carries, or the end of a sequence that the input was joined to. The shape alone is no proof:
    an answer may have the same.
    """
    dims = walk.facts.dims(name)
    shape = [3 if dim.has_batch else int(dim.fixed) for dim in dims]
    if shape != list(door.shape(3, 1)) or walk.dtype(name) != door.dtype:
        return False
    return name in flow.carried.get(door.name, ()) or door.name in laid_out_from(walk.model.graph, name)


def _answer(walk: Walk, name: str, doors: SequenceInputs) -> tuple[OutputSpec, OutputLayout]:
    tensor, dims = walk.tensor(name), walk.facts.dims(name)
    time, batch = walk.facts.time_axis(name), walk.facts.batch_axis(name)
    if any(dim.has_batch for axis, dim in enumerate(dims) if axis != batch):
        raise RefusedModelError(f"Output {name!r} has the rows of the batch on two axes.", fix="Give one row a stream.")
    if batch is None and doors.only_rows == 1:
        batch = _axis_of_one(dims, doors)
    if walk.resampled is not None and time is not None and time != batch and walk.facts.samples(name) > 1:
        raise walk.resampled
    step = walk.aligned(name)[0] if tensor.kind == "per_step" else tensor.step
    folded = time is not None and batch == time
    sizes = [dim.at_one_step()[0] for dim in dims]
    if batch is not None and dims[batch].at_one_step()[1] > 1:
        step = walk.graph.op("Reshape", step, walk.graph.ints([-1, *_unfolded(dims, batch, time)]))
        row = _unfolded(dims, batch, time)
        spec = OutputSpec(name=name, dtype=walk.dtype(name), shape=row)
    else:
        row = [size for axis, size in enumerate(sizes) if axis not in {time, batch}]
        spec = _spec(OutputSpec, name, walk.dtype(name), row, batch=batch, time=None if folded else time)
        spec, perm = _rows_in_front(spec)
        step = walk.graph.op("Transpose", step, perm=perm) if perm else step
    walk.graph.output(spec, step)
    extra = walk.facts.length_delta(name) if time is not None else 0
    return spec, OutputLayout(time, batch, extra, walk.facts.order(name) if folded else "")


def _axis_of_one(dims: Sequence[Dim], doors: SequenceInputs) -> int | None:
    """Return the batch axis of an answer for one row: where the inputs have it, or the first of length 1."""
    ones = [axis for axis, dim in enumerate(dims) if not dim.has_time and dim.fixed == 1]
    usual = next((door.batch for door in doors.external if door.time is not None), None)
    return usual if usual in ones else next(iter(ones), None)


def _unfolded(dims: Sequence[Dim], batch: int, time: int | None) -> list[int]:
    if batch:
        raise RefusedModelError("An output holds several values per row folded into an axis that is not its first.")
    rest = [dim.at_one_step()[0] for axis, dim in enumerate(dims) if axis not in {batch, time}]
    return [dims[batch].at_one_step()[1], *rest]

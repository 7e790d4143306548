"""`make_step`: a sequence graph as a step graph and its manifest, not yet verified, and which outputs it answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import onnx

from stepwell_export.converted import Activation
from stepwell_export.graph.nodes import Flow, all_nodes, described, laid_out_from, read_flow, uses
from stepwell_export.graph.onnx_file import Declared, declared_sizes, forget_shapes
from stepwell_export.graph.operators import RNN
from stepwell_export.graph.unit_axes import without_equal_tensors, without_unit_axes
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import ModelLoadError, NothingCarriedError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec, TensorSpec
from stepwell_export.runtime.outside_weights import weights_of, with_weights_outside
from stepwell_export.runtime.random_ops import random_outputs
from stepwell_export.streaming.axes.inputs import FEW, SHORTEST_DECLARED, Axes, SequenceInputs, layout_of, read_inputs
from stepwell_export.streaming.axes.measured_shapes import (
    Dim,
    MeasuredShapes,
    TensorRuns,
    measure_shapes,
    with_squeeze_axes,
)
from stepwell_export.streaming.normal_form.plain_form import load_graph
from stepwell_export.streaming.normal_form.unrolled_loops import lengths_written_out, with_loops_rolled
from stepwell_export.streaming.rules.attention import attention_scores
from stepwell_export.streaming.rules.attention_pooling import WEIGHTED
from stepwell_export.streaming.rules.elementwise import by_timestep
from stepwell_export.streaming.rules.loops import turns_with_time
from stepwell_export.streaming.rules.table import RULES
from stepwell_export.streaming.walk import AtEnd, Known, PerStep, Static, StreamingWalk
from stepwell_export.structure.facts import RowsVerdict
from stepwell_export.structure.rows import mixed_rows, read_rows
from stepwell_export.verify.onnx_original import InputLayout, OutputLayout

_MANY = 2_000_000
"""Numbers that recurrent operators read at each timestep, from which on a graph is large."""

HALF = 5e-3
"""How far float16 is from exact, as of Keras' layers in mixed_float16."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A node whose output in the step graph equals that in the sequence graph, timestep by timestep.

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
        held: The large weights that both graphs name.
        inputs: What the sequence graph takes.
        outputs: Where its answers have their axes.
        watched: Nodes to compare where the answers differ, in order.
        rounding: How far the graph is from exact, where it computes in float16.
        windows: How many of the last timesteps are taken, without padding in front of the first one.
        only_length: The one number of timesteps that the sequence graph, as it was given, answers; None: any.
        written_out: The numbers of timesteps that loops were written out for, with a copy of their body for each.
        declared: The declared size of every axis of every input of the sequence graph.
    """

    proto: onnx.ModelProto
    manifest: Manifest
    graph: onnx.ModelProto
    inputs: SequenceInputs
    outputs: dict[str, OutputLayout]
    watched: list[Watched]
    rounding: float = 0.0
    windows: Collection[int] = ()
    only_length: int | None = None
    written_out: Collection[int] = ()
    declared: Declared = field(default_factory=dict)
    held: Collection[Array] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", weights_of(self.proto) + weights_of(self.graph))

    def activations(self, inputs: Mapping[str, Array]) -> list[Activation]:
        """Return what the watched nodes of the sequence graph give for one sequence, in order.

        Args:
            inputs: One array per input, shape `(1, T, *shape)`.
        """
        if not self.watched:
            return []
        steps = next(iter(inputs.values())).shape[1]
        feeds = {}
        for layout in self.inputs.inputs:
            fixed = layout.fixed(1, steps)
            feeds[layout.name] = layout.fed(inputs[layout.name], [0], steps) if fixed is None else fixed
        session = GraphSession(self.graph, [node.output for node in self.watched])
        values = session.run(feeds)
        return [
            Activation(node.layer, node.tensor, node.facts.rows_first(values[node.output], 1)) for node in self.watched
        ]


def make_step(
    source: Any,
    *,
    name: str,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    constants: Mapping[str, Array] | None = None,
    length: int | None = None,
    starts_are_sent: bool = False,
) -> SequenceStep:
    """Make the step graph of a sequence graph.

    Args:
        source: An ONNX file, or an `onnx.ModelProto`.
        name: The model's name in its manifest.
        time_axes: Time axis by input, where its declared axes do not have it; None: the input has none.
        batch_axes: Batch axis by input, in the same way.
        constants: Inputs that are given once and for all.
        length: The number of timesteps that the model was built for.
        starts_are_sent: Whether the caller sends what a recurrence starts from; else it is a state.

    Raises:
        UnclearModelError: The graph does not run with what is read as time and batch.
        RefusedModelError: A node cannot be stepped; the message names it and has the reason.
    """
    given, _held = with_weights_outside(source) if isinstance(source, onnx.ModelProto) else (source, {})
    whole, declared, only_length = load_graph(given, constants or {})
    plain, _held = with_weights_outside(whole)
    del whole
    graph = with_loops_rolled(plain)
    _check_chance(graph)
    runs = TensorRuns(graph)
    loaded = runs.loaded.model.graph  # onnxruntime refuses what is no graph
    axes = time_axes or {}
    inputs = read_inputs(
        loaded, declared, time_axes=axes, batch_axes=batch_axes, length=length, starts_are_sent=starts_are_sent
    )
    step = _made(runs, inputs, declared, name, axes)
    written_out = lengths_written_out(plain) if graph is not plain else set()
    return replace(step, only_length=length or only_length, written_out=written_out)


@dataclass(frozen=True, slots=True)
class TracedGraph:
    """A sequence graph that a front end has made of a trace, in its plain form.

    Attributes:
        graph: The graph, without shapes.
        inputs: What it takes. All of it is sent by the caller, also what a recurrence starts from.
        declared: The sizes of its inputs, with which it was traced.
        held: Its large weights.
    """

    graph: onnx.ModelProto
    inputs: SequenceInputs
    declared: Declared
    held: Collection[Array] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", weights_of(self.graph))


def traced(whole: onnx.ModelProto, axes: Mapping[str, tuple[int, int | None]]) -> TracedGraph:
    """Return a graph of a trace in its plain form.

    Args:
        whole: The graph, with shapes; nothing in it is random.
        axes: The axis of the rows and that of the timesteps by input; None: it has no timesteps.

    Raises:
        RefusedModelError: An input is no tensor that can be sent.
    """
    graph, _held = with_weights_outside(whole)
    declared = declared_sizes(graph.graph)
    layouts = [layout_of(value, declared[value.name], *axes[value.name]) for value in graph.graph.input]
    forget_shapes(graph.graph)
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # those of no layer
    return TracedGraph(graph, SequenceInputs(tuple(layouts), starts_are_sent=True), declared)


def make_traced_step(given: TracedGraph, *, name: str, length: int | None = None) -> SequenceStep:
    """Make the step graph of a graph of a trace.

    Args:
        given: The graph.
        name: The model's name in its manifest.
        length: The number of timesteps that the model was built for.

    Raises:
        UnclearModelError: The graph does not run with other numbers of rows or timesteps.
        RefusedModelError: A node cannot be stepped; the message names it and has the reason.
    """
    return _made(TensorRuns(given.graph), replace(given.inputs, length=length), given.declared, name, None)


def _made(
    runs: TensorRuns, inputs: SequenceInputs, declared: Declared, name: str, time_axes: Axes | None
) -> SequenceStep:
    """Make the step graph of a graph in its plain form.

    Args:
        runs: The graph.
        inputs: Where its inputs have their axes.
        declared: What sizes it declares.
        name: The model's name in its manifest.
        time_axes: The time axes that the caller gave for a file; None: a front end made the graph.
    """
    step = None
    if inputs.length is None and _recurrent_weights(runs.graph) > _MANY:
        with suppress(RefusedModelError, UnclearModelError):  # it may look back further than so few timesteps show
            step = _step_of(runs, replace(inputs, tried=FEW), declared, name, time_axes)
    step = step or _step_of(runs, inputs, declared, name, time_axes)
    proto, _held = with_weights_outside(step.proto)
    return replace(step, proto=proto)


def _recurrent_weights(graph: onnx.ModelProto) -> int:
    """Return how many numbers a graph's recurrent operators read at each timestep."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.graph.initializer}
    return sum(sizes.get(name, 0) for node in all_nodes(graph.graph) if node.op_type in RNN for name in node.input)


def _step_of(
    runs: TensorRuns, inputs: SequenceInputs, declared: Declared, name: str, time_axes: Axes | None
) -> SequenceStep:
    inputs = _that_run(runs, inputs, declared)
    is_file = time_axes is not None
    opened = with_squeeze_axes(runs, inputs) if is_file else runs
    if inputs.only_rows is None:
        verdict = rows_of_sequence(opened, inputs)
        if verdict.outcome != "independent" and is_for_one_row(inputs, declared):
            inputs = replace(inputs, only_rows=1)
            opened = with_squeeze_axes(runs, inputs) if is_file else runs
        elif verdict.outcome == "mixed":
            raise _mixed_rows(verdict, inputs, may_be_time=time_axes == {})
    runs, graph = opened, opened.graph
    if inputs.only_rows not in {None, 1}:
        raise _written_rows(graph) or RefusedModelError(
            f"The graph takes {inputs.only_rows} rows at once and no other number; a stream is one row.",
            fix="Export it with a dynamic batch axis, or for one row.",
        )
    facts = measure_shapes(runs, inputs)
    if not inputs.starts_are_sent and (cached := _with_caches(graph, inputs, facts)) != inputs:
        inputs, facts = cached, measure_shapes(runs, cached)
    walk = StreamingWalk(graph, facts, inputs.length)
    specs = [_take(walk, layout) for layout in inputs.inputs]
    walk.run(RULES, by_timestep, attention_scores, WEIGHTED)
    answers, outputs = declare_outputs(walk, inputs)
    walk.graph.drop_unused_states()
    loops = any(node.op_type == "Loop" and turns_with_time(walk, node) for node in graph.graph.node)
    if not walk.graph.states and time_axes == {} and not loops:
        raise NothingCarriedError(
            f"Nothing is carried from timestep to timestep when {_times(inputs)} is read as time.",
            fix="Say where time is: `--time-axis INPUT=AXIS`.",
        )
    manifest = Manifest(
        name=name,
        inputs=[spec for spec in specs if spec is not None],
        states=walk.graph.states,
        outputs=answers,
        batch=BatchSpec(mode="single" if _one_row(walk, inputs) else "stack"),
    )
    rows = {spec.name: spec.batch_axis for spec in walk.graph.inputs}
    made = walk.graph.step_proto(name, graph)
    proto, states, left_out = without_unit_axes(made, rows, walk.graph.states)
    proto, manifest.states, equal = without_equal_tensors(proto, states)
    left_out = equal | {name: equal.get(other, other) for name, other in left_out.items()}
    # adding up in another order shows in the last digits of float16
    is_half = any(getattr(value, "dtype", None) == np.float16 for value in facts.first.values())
    rounding = HALF if is_half else 0.0
    watched, windows = _watched(walk, left_out), _short_windows(walk)
    only = inputs.length
    return SequenceStep(proto, manifest, graph, inputs, outputs, watched, rounding, windows, only, declared=declared)


def _that_run(runs: TensorRuns, inputs: SequenceInputs, declared: Declared) -> SequenceInputs:
    """Return the inputs with as many rows as the graph declares, if it takes no others.

    Raises:
        UnclearModelError: It does not run.
        RefusedModelError: The declared length is too small.
    """
    if inputs.length is not None and inputs.length < SHORTEST_DECLARED:
        raise RefusedModelError(
            f"The declared length is {inputs.length} timesteps; expected at least {SHORTEST_DECLARED}.",
            fix="Use the number of timesteps that the model was trained with.",
        )
    written = [declared[layout.name][layout.batch] for layout in inputs.timed if layout.batch is not None]
    only = replace(inputs, only_rows=min((rows for rows in written if isinstance(rows, int)), default=1))
    problem = ""
    for read in (inputs, only) if all(isinstance(rows, int) for rows in written) else (inputs,):
        try:
            runs.at(read, 0, 0), runs.at(read, 1, 1)
        except ModelLoadError as exc:
            problem = problem or exc.problem[:200]
        else:
            return read
    raise _written_rows(runs.graph) or UnclearModelError(
        f"The graph does not run with {_times(inputs)} read as time: declared are "
        f"{ {name: list(dims) for name, dims in declared.items()} }. {problem}",
        fix="Export it with a dynamic time axis and a dynamic batch axis, or say where they are: `--time-axis "
        "INPUT=AXIS`, `--batch-axis INPUT=AXIS`. If the model takes one number of timesteps alone, let it take the "
        "last of any number: x[:, -n:].",
    )


def _times(inputs: SequenceInputs) -> str:
    return " and ".join(f"axis {layout.time} of {layout.name!r}" for layout in inputs.timed)


def _mixed_rows(verdict: RowsVerdict, inputs: SequenceInputs, *, may_be_time: bool) -> RefusedModelError:
    """Return the error for rows that depend on each other: what was read as the batch may be time."""
    exc = mixed_rows(verdict)
    flags = [f"--time-axis {layout.name}={layout.batch}" for layout in inputs.timed if layout.batch is not None]
    if flags and may_be_time:
        exc.fix += f" If that axis is time: `{' '.join(flags)}`."
    return exc


def _written_rows(graph: onnx.ModelProto) -> RefusedModelError | None:
    """Return the error for a recurrence that starts from several rows which are weights; None: there is none."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        for name in node.input[5:7] if node.op_type in RNN else ():
            if len(shape := shapes.get(name, ())) == 3 and shape[1] > 1:
                return RefusedModelError(
                    f"{described(node)} starts from {name!r}, which holds {shape[1]} rows; a stream is one row.",
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


def _watched(walk: StreamingWalk, left_out: Mapping[str, str]) -> list[Watched]:
    """Return the nodes that can be compared: neither ahead nor behind, rows and timesteps on an axis each.

    Args:
        walk: The walk.
        left_out: Tensors that the step graph has under another name.
    """
    watched = []
    for node in walk.model.graph.node:
        for name in filter(None, node.output):
            tensor = walk.tensors.get(name)
            if not isinstance(tensor, PerStep) or tensor.offset != 0 or not walk.facts.dims(name):
                continue
            time, batch = walk.facts.time_axis(name), walk.facts.batch_axis(name)
            if (
                time == batch
                or walk.facts.length_delta(name)
                or walk.facts.dims(name)[time or 0].elements_per_step != 1
            ):
                continue
            facts = OutputLayout(time, batch)
            watched.append(
                Watched(described(node).partition(" ")[2], name, left_out.get(tensor.step, tensor.step), facts)
            )
    return watched


def _short_windows(walk: StreamingWalk) -> set[int]:
    """Return the lengths of windows that begin before the first timestep of a stream."""
    ends = (tensor for tensor in walk.tensors.values() if isinstance(tensor, AtEnd))
    return {end.window for end in ends if end.offset < end.window - 1}


def _one_row(walk: StreamingWalk, inputs: SequenceInputs) -> bool:
    """Whether rows cannot be run together."""
    return (
        inputs.only_rows is not None
        or any(layout.batch is None for layout in inputs.external)
        or any(state.batch_axis is None for state in walk.graph.states)
    )


def _with_caches(graph: onnx.ModelProto, inputs: SequenceInputs, facts: MeasuredShapes) -> SequenceInputs:
    """Read inputs that are only joined in front of a sequence as initial states."""

    def is_front(node: onnx.NodeProto, name: str) -> bool:
        axis = facts.time_axis(node.output[0]) if node.op_type == "Concat" else None
        place = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return axis is not None and place % len(facts.dims(node.output[0])) == axis and node.input[0] == name

    def is_cache(layout: InputLayout) -> bool:
        users = [node for node in graph.graph.node if layout.name in uses(node)]
        return layout.role == "external" and layout.time is None and all(is_front(node, layout.name) for node in users)

    read = tuple(replace(layout, role="state") if is_cache(layout) else layout for layout in inputs.inputs)
    return replace(inputs, inputs=read) if any(layout.role == "external" for layout in read) else inputs


def _take(walk: StreamingWalk, layout: InputLayout) -> InputSpec | None:
    """Let the walk begin with an input; return its spec where the caller sends it."""
    if layout.role != "external":
        walk.tensors[layout.name] = Known()
        return None
    spec: InputSpec = row_spec(
        InputSpec, layout.name, layout.dtype, layout.shape(1, 1), batch=layout.batch, time=layout.time
    )
    walk.graph.add_input(spec)
    step = in_layout(walk, layout.name, rank=len(layout.sizes), batch=layout.batch, time=layout.time)
    walk.tensors[layout.name] = Static(step) if layout.time is None else PerStep(step, offset=0)
    return spec


def is_for_one_row(inputs: SequenceInputs, declared: Declared) -> bool:
    """Whether a graph declares one row, and runs several only because none of its nodes fails."""
    rows = {declared[layout.name][layout.batch] for layout in inputs.external if layout.batch is not None}
    return inputs.only_rows is None and rows == {1}


def rows_of_sequence(runs: TensorRuns, inputs: SequenceInputs) -> RowsVerdict:
    """Return whether its rows depend on each other, over a sequence of a length that it is run with."""
    steps, graph = inputs.lengths[0], runs.graph
    given = {layout.name: (_row(layout.shape(1, steps), layout.batch), layout.batch) for layout in inputs.inputs}
    return read_rows(graph, given, dict.fromkeys((output.name for output in graph.graph.output), None)).verdict


def _row(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis != batch)


# ---------------------------------------------------------------- the answers

Spec = TypeVar("Spec", bound=TensorSpec)


def declare_outputs(walk: StreamingWalk, inputs: SequenceInputs) -> tuple[list[OutputSpec], dict[str, OutputLayout]]:
    """Declare the answers; leave out what a recurrence carries where its initial value was an input too.

    Args:
        walk: The walk over all nodes.
        inputs: Where the inputs have their axes.

    Returns:
        The specs, and where the sequence graph has rows and timesteps of each.

    Raises:
        RefusedModelError: An output cannot be stepped, is no tensor, or does not depend on the timesteps.
    """
    names = [value.name for value in walk.model.graph.output]
    walk.need(*names)
    for name in names:
        if not isinstance(walk.facts.value(name), np.ndarray):
            raise RefusedModelError(
                f"Output {name!r} is a list of tensors; expected a tensor.",
                fix="Export the model with each tensor as an output of its own, or without this output.",
            )
    bound = [state_layout for state_layout in inputs.inputs if state_layout.role == "state"]
    flow = read_flow(walk.model.graph) if bound else Flow()
    given, carried, of_sizes = list[str](), list[str](), list[str]()
    for name in names:
        tensor = walk.tensors[name]
        if not walk.facts.value(name).size and walk.facts.depends(name).has_even_sizes:
            continue  # there is nothing in it
        if not isinstance(tensor, PerStep | AtEnd | Static):
            of_sizes.append(name)
            continue
        is_carried = isinstance(tensor, AtEnd) and any(
            _carries_on(walk, flow, name, state_layout) for state_layout in bound
        )
        (carried if is_carried else given).append(name)
    if (given or carried) and of_sizes:
        raise RefusedModelError(
            f"Output {of_sizes[0]!r} follows from the sizes of the inputs alone, and not from what they hold.",
            fix="Export the model without this output.",
        )
    if not given and not carried:
        raise RefusedModelError(
            f"No output of the graph depends on the timesteps; its outputs are {names}.",
            fix="Export the part of the model that answers the sequence.",
        )
    declared = {name: _answer(walk, name, inputs) for name in given or carried}
    return [spec for spec, _ in declared.values()], {name: layout for name, (_, layout) in declared.items()}


def _carries_on(walk: StreamingWalk, flow: Flow, name: str, layout: InputLayout) -> bool:
    """Whether an output is, but for its layout, the next value of what an input starts from.

    It is what a recurrence carries, or the end of a sequence that the input was joined to. The shape alone is no proof:
    an answer may have the same.
    """
    dims = walk.facts.dims(name)
    shape = [3 if dim.has_batch else int(dim.fixed) for dim in dims]
    if shape != list(layout.shape(3, 1)) or walk.dtype(name) != layout.dtype:
        return False
    return name in flow.carried.get(layout.name, ()) or layout.name in laid_out_from(walk.model.graph, name)


def _answer(walk: StreamingWalk, name: str, inputs: SequenceInputs) -> tuple[OutputSpec, OutputLayout]:
    tensor, dims = walk.tensors[name], walk.facts.dims(name)
    time, batch = walk.facts.time_axis(name), walk.facts.batch_axis(name)
    if any(dim.has_batch for axis, dim in enumerate(dims) if axis != batch):
        raise RefusedModelError(f"Output {name!r} has the rows of the batch on two axes.", fix="Give one row a stream.")
    if batch is None and inputs.only_rows == 1:
        batch = _axis_of_one(dims, inputs)
    if walk.resampled is not None and time is not None and time != batch and walk.facts.samples(name) > 1:
        raise walk.resampled
    step = walk.aligned(name)[0] if isinstance(tensor, PerStep) else tensor.step
    folded = time is not None and batch == time
    if batch is not None and dims[batch].at_one_step()[1] > 1:
        spec = OutputSpec(name=name, dtype=walk.dtype(name), shape=_unfolded(dims, batch, time))
        step = walk.graph.reshape(step, spec.shape)
    else:
        sizes = [dim.at_one_step()[0] for dim in dims]
        spec = row_spec(OutputSpec, name, walk.dtype(name), sizes, batch=batch, time=time)
        step = out_of_layout(walk, step, rank=len(sizes), batch=batch, time=None if folded else time)
    walk.graph.add_output(spec, step)
    extra = walk.facts.length_delta(name) if time is not None else 0
    resized = _resized(walk, name) if extra else ""
    return spec, OutputLayout(time, batch, extra, walk.facts.order(name) if folded else "", resized)


def _resized(walk: StreamingWalk, name: str) -> str:
    """Return what messages call the last node before a tensor that gives more or fewer timesteps than it takes."""
    makers = {made: node for node in walk.model.graph.node for made in node.output}
    extra = walk.facts.length_delta(name)
    while (node := makers.get(name)) is not None:
        timed = [given for given in uses(node) if walk.facts.dims(given) and walk.facts.time_axis(given) is not None]
        same = next((given for given in timed if walk.facts.length_delta(given) == extra), None)
        if same is None:
            return described(node)
        name = same
    return ""


def _axis_of_one(dims: Sequence[Dim], inputs: SequenceInputs) -> int | None:
    """Return the batch axis of an answer for one row: where the inputs have it, or the first of length 1."""
    ones = [axis for axis, dim in enumerate(dims) if not dim.has_time and dim.fixed == 1]
    usual = next((layout.batch for layout in inputs.external if layout.time is not None), None)
    return usual if usual in ones else next(iter(ones), None)


def _unfolded(dims: Sequence[Dim], batch: int, time: int | None) -> list[int]:
    if batch:
        raise RefusedModelError("An output holds several values per row folded into an axis that is not its first.")
    rest = [dim.at_one_step()[0] for axis, dim in enumerate(dims) if axis not in {batch, time}]
    return [dims[batch].at_one_step()[1], *rest]


def row_spec(
    kind: type[Spec], name: str, dtype: str, sizes: Sequence[int], *, batch: int | None, time: int | None
) -> Spec:
    """Return the spec of an input or output: rows in front, without the axis of time; without rows, as it is.

    Args:
        kind: Its class.
        name: The tensor.
        dtype: NumPy name.
        sizes: Of its axes at one timestep, in the layout of the sequence graph.
        batch: The axis of the rows; None: it has none.
        time: The axis of the timesteps; None: it has none.
    """
    row = [size for axis, size in enumerate(sizes) if axis not in {batch, time}]
    is_whole = batch is None and time is not None
    front = None if batch is None else 0
    return kind(name=name, dtype=dtype, shape=row, batch_axis=front, graph_shape=list(sizes) if is_whole else None)


def in_layout(walk: StreamingWalk, tensor: str, *, rank: int, batch: int | None, time: int | None) -> str:
    """Return a tensor of such a spec in the layout of the sequence graph, with a time axis of length 1."""
    if batch is None:
        return tensor
    if time is not None:
        tensor = walk.graph.op("Unsqueeze", tensor, walk.graph.ints([1]))
    order = _order(rank, batch, time)
    return tensor if order == sorted(order) else walk.graph.op("Transpose", tensor, perm=list(np.argsort(order)))


def out_of_layout(walk: StreamingWalk, tensor: str, *, rank: int, batch: int | None, time: int | None) -> str:
    """Undo `in_layout`."""
    if batch is None:
        return tensor
    order = _order(rank, batch, time)
    if order != sorted(order):
        tensor = walk.graph.op("Transpose", tensor, perm=order)
    return tensor if time is None else walk.graph.op("Squeeze", tensor, walk.graph.ints([1]))


def _order(rank: int, batch: int, time: int | None) -> list[int]:
    """Return the axes of the sequence graph's layout as batch, time, and the others."""
    front = [batch] if time is None else [batch, time]
    return [*front, *(axis for axis in range(rank) if axis not in front)]

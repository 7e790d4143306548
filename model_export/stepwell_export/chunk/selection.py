r"""A graph with a time axis of any length, made of a step graph: one timestep and a chunk are two branches of it.

The weights stand in front of the branches, so they are there once. Where onnxruntime is told that the axis has
length 1, it takes the branch away and runs the step graph itself.

Before and after:

    x (B, 4)   h                           x (B, T, 4)   h
       |      /                              |          /
    the step graph                    ->   If T = 1 { the step graph } else { the branch for T timesteps }
       |      \                              |          \
    y (B, 5)   h                           y (B, T, 5)   h of the last timestep

Before and after, in the branch for T timesteps: all that does not hang on the state runs for all of them at once.

    x (B, 4)  a (B, 5)  b (B, 5)           x (B T, 4)
       | f                                    | f, for all timesteps at once
       | loop of a                    ->      | loop of a over T: see `stepwell_export.chunk.loops`
       | g                                    | g, for all timesteps at once
       | loop of b                            | loop of b over T
    y (B, 5)                               y (B T, 5)

Whether a model gets one is decided by the size of what it does, and measured for the report.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from timeit import Timer
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from stepwell_export.chunk.analysis import Loop, NoChunkError, StepGraphAnalysis
from stepwell_export.chunk.loops import (
    LENGTHS,
    PREFIX,
    ChunkBuilder,
    Window,
    emit_loop,
    is_of_operators,
    pick,
    tensors,
)
from stepwell_export.graph.builder import element_type
from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.graph.nodes import needed_nodes, renamed, uses, without_copies
from stepwell_export.graph.operators import RNN
from stepwell_export.runtime.errors import InternalError, ModelLoadError
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec, TensorSpec
from stepwell_export.runtime.outside_weights import write_file
from stepwell_export.runtime.step_model import StepModel, random_rows
from stepwell_export.structure.facts import RowFact
from stepwell_export.structure.rows import RowAnalysis, rows_of_step
from stepwell_export.verify.report import ChunkChoice, Timing

if TYPE_CHECKING:
    import onnx

    from stepwell_export.verify.tolerance import Tolerance

# ---------------------------------------------------------------- the branch for many timesteps


@dataclass(slots=True)
class _Unit:
    """What is emitted in one go: a node, or a loop."""

    needs: list[str]
    node: onnx.NodeProto | None = None
    loop: Loop | None = None


class Vectorizer:
    """One way of running a chunk, under construction.

    Attributes:
        reading: The step graph.
        emitter: The branch's nodes.
        facts: What each tensor is in the step graph.
        windows: Tensors that are a loop's past timesteps with the new one, made only where they are wanted whole.
        last: The tensor of each state after the last timestep, by state input.
    """

    def __init__(self, reading: StepGraphAnalysis) -> None:
        self.reading = reading
        self.emitter = ChunkBuilder()
        self.facts = reading.facts
        self.windows: dict[str, Window] = {}
        self.last: dict[str, str] = {}
        self._flat: dict[str, str] = {}

    def build(self) -> tuple[list[str], list[str]]:
        """Emit everything.

        Returns:
            Tensors of the outputs, `(rows, T, *shape)`, and of the states, in the manifest's order.

        Raises:
            NoChunkError: This way does not work for this graph.
        """
        for given in self.reading.manifest.fed:
            self._flat[given.name] = self.emitter.flat(given.name, 0, given.graph_row_shape)
        for unit in self._in_order():
            if unit.loop is not None:
                emit_loop(self, unit.loop)
            elif unit.node is not None and unit.node.output[0] not in self.reading.fixed:
                self.emit(unit.node)
        outputs = []
        for spec in self.reading.manifest.outputs:
            if self.facts.get(spec.name, RowFact()).axis != 0:
                raise NoChunkError(f"output {spec.name!r} has no batch axis in front")
            outputs.append(self.emitter.timed(self.flat(spec.name), 0, spec.row_shape))
        return outputs, [self.last[state.input] for state in self.reading.manifest.states]

    def flat(self, name: str) -> str:
        """Return a tensor of the step graph in its flat form; what is the same in every timestep as it is."""
        if name in self.reading.fixed:
            return name
        if name not in self._flat and name in self.windows:
            self._flat[name] = self.windows[name].whole(self.emitter)
        if name not in self._flat:
            raise NoChunkError(f"tensor {name!r} is known of the last timestep alone")
        return self._flat[name]

    def has_flat(self, name: str) -> bool:
        """Return whether `flat` has a tensor for this one."""
        return name in self.reading.fixed or name in self._flat or name in self.windows

    def set_flat(self, name: str, flat: str) -> None:
        """Set the flat form of a tensor of the step graph."""
        self._flat[name] = flat

    def sequence(self, name: str) -> str:
        """Return a tensor of the step graph with the time axis behind its batch axis.

        Raises:
            NoChunkError: It has no batch axis.
        """
        fact = self.facts[name]
        if fact.axis is None:
            raise NoChunkError(f"tensor {name!r} has no batch axis")
        return self.emitter.sequence(self.flat(name), fact)

    def emit(self, node: onnx.NodeProto) -> None:
        """Emit a node for all timesteps at once."""
        if node.op_type in {"Gather", "Slice"} and node.input[0] in self.windows:
            picked = pick(self, node, self.windows[node.input[0]])
            if picked is not None:
                self._flat[node.output[0]] = picked
                return
        names = {name: self.flat(name) for name in uses(node)}
        for name in node.output:
            if name:
                names[name] = self._flat[name] = f"{PREFIX}{name}"
        self.emitter.nodes.append(renamed(node, names))

    def _in_order(self) -> list[_Unit]:
        """Return nodes and loops so that each comes behind what it needs."""
        units: list[_Unit] = []
        owner: dict[str, int] = {}
        in_loops = {id(node) for loop in self.reading.loops for node in loop.nodes}
        for loop in self.reading.loops:
            made = {*loop.made, *loop.states}
            needs = [name for node in loop.nodes for name in uses(node) if name not in made]
            needs += [self.reading.after[state] for state in loop.states if not loop.nodes]
            owner.update(dict.fromkeys(made, len(units)))
            units.append(_Unit(needs, loop=loop))
        for node in self.reading.nodes:
            if id(node) not in in_loops:
                owner.update(dict.fromkeys(node.output, len(units)))
                units.append(_Unit(uses(node), node=node))
        before = {i: {owner[name] for name in unit.needs if name in owner} for i, unit in enumerate(units)}
        return [units[i] for i in TopologicalSorter(before).static_order()]


# ---------------------------------------------------------------- the graphs

TIME, BATCH = "time", "batch"
AT_ONCE, INSIDE = "all timesteps at once", "timestep by timestep inside one run"
"""How a chunk is run."""

_STEP = "step/"
_CONDITION = ("time/first_row", "time/steps", "time/one", "time/is_step", "time/zero")


def dynamic_graph(
    proto: onnx.ModelProto, manifest: Manifest, rows: RowAnalysis | None = None
) -> tuple[str, onnx.ModelProto, int]:
    """Return a graph that gives the same as the step graph, with a time axis of any length.

    Args:
        proto: The step graph.
        manifest: What it takes, carries and gives.
        rows: What it shows of its rows, where that is known.

    Returns:
        How chunks are run, the graph, which is not proven, and how many products of weights its loops have in each
        timestep.

    Raises:
        NoChunkError: The step graph is not one that chunks are made of.
    """
    reading = StepGraphAnalysis(proto, manifest, rows)
    at_once = {name for loop in reading.loops if is_of_operators(reading, loop) for name in loop.made}
    if (written_out := decompose_rnn(reading.model, at_once)) is not reading.model:
        reading = StepGraphAnalysis(written_out, manifest)
    try:
        builder = Vectorizer(reading)
        branch = _chunk_branch(builder)
    except NoChunkError:  # such as rows that are folded with features behind a state: all of it is one loop
        if reading.may_give_nan:  # of which onnxruntime's operators make numbers
            reading = StepGraphAnalysis(decompose_rnn(reading.model), manifest)
        reading.loops = [Loop(list(reading.after), reading.moving)]
        builder = Vectorizer(reading)
        branch = _chunk_branch(builder)
    how = INSIDE if any(node.op_type == "Scan" for node in branch.node) else AT_ONCE
    return how, _graph(builder, branch), _products(reading)


def dynamic_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest of such a graph: a time axis behind the batch axis, then the row as it is on the wire."""
    inputs, outputs = (
        [spec.model_copy(update={"graph_shape": None}) for spec in specs]
        for specs in (manifest.inputs, manifest.outputs)
    )
    time = manifest.time.model_copy(update={"chunk": "dynamic"})
    return manifest.model_copy(update={"time": time, "inputs": inputs, "outputs": outputs})


def operator_products(proto: onnx.ModelProto) -> int:
    """Return how many numbers of weights the recurrent operators of a step graph use in each timestep of a chunk.

    What its loops use is at least that, and is known only once the graph has been run.
    """
    sizes = {init.name: math.prod(init.dims) for init in proto.graph.initializer}
    return sum(sizes.get(name, 0) for node in proto.graph.node if node.op_type in RNN for name in _looped(node))


def _looped(node: onnx.NodeProto) -> list[str]:
    """Return what a node uses in each timestep; W, an operator's second input, is used for all of them at once."""
    return [name for name in uses(node) if node.op_type not in RNN or name != node.input[1]]


def _products(reading: StepGraphAnalysis) -> int:
    """Return how many numbers of weights the loops use in each timestep."""
    sizes = {init.name: math.prod(init.dims) for init in reading.model.graph.initializer}
    for node in reading.nodes:  # weights that are expanded, cut or without an axis before they are used
        if reading.fixed.issuperset(filter(None, node.output)):
            size = max((sizes.get(name, 0) for name in node.input), default=0) // len(node.output)
            sizes |= dict.fromkeys(node.output, size)
    used = {id(node): node for loop in reading.loops for node in loop.nodes}
    return sum(sizes.get(name, 0) for node in used.values() for name in _looped(node))


def _graph(builder: Vectorizer, branch: onnx.GraphProto) -> onnx.ModelProto:
    reading = builder.reading
    manifest, graph = reading.manifest, reading.model.graph
    names = [spec.name for spec in manifest.outputs] + [state.output for state in manifest.states]
    first_row, steps, unit, is_step, zero = _CONDITION
    step = StepGraphAnalysis(decompose_rnn(reading.model, flat=False), manifest)
    front = {
        node.output[0]: node
        for read in (reading, step) for node in read.nodes if node.output[0] in read.fixed
    }  # fmt: skip
    condition = [  # of one row's shape, all of which is known where the number of timesteps is
        helper.make_node("Gather", [reading.inputs[0], zero], [first_row], axis=0),
        helper.make_node("Shape", [first_row], [steps], start=0, end=1),
        helper.make_node("Equal", [steps, unit], [is_step]),
        helper.make_node("If", [is_step], names, then_branch=_step_branch(step), else_branch=branch),
    ]
    weights = {tensor.name: tensor for tensor in (*graph.initializer, *step.model.graph.initializer)}
    constants = [
        *weights.values(), *builder.emitter.constants,
        onnx.numpy_helper.from_array(np.array([1], np.int64), unit),
        onnx.numpy_helper.from_array(np.array(0, np.int64), zero),
    ]  # fmt: skip
    nodes = needed_nodes([*front.values(), *condition], names)
    needed = {name for node in nodes for name in uses(node)}
    states = {state.input for state in manifest.states} | {state.output for state in manifest.states}
    takes = [_timed(spec) for spec in manifest.fed]
    takes += [value for value in graph.input if value.name in states | set(manifest.constants)]
    kept = {value.name: value for value in graph.output}
    gives = [_timed(spec) for spec in manifest.outputs]
    gives += [kept[state.output] for state in manifest.states if state.output not in {o.name for o in manifest.outputs}]
    model = onnx.ModelProto()
    model.CopyFrom(reading.model)
    model.graph.CopyFrom(helper.make_graph(nodes, graph.name, takes, gives, [c for c in constants if c.name in needed]))
    return model


def _step_branch(reading: StepGraphAnalysis) -> onnx.GraphProto:
    manifest = reading.manifest
    moving = reading.moving
    names = {name: f"{_STEP}{name}" for node in moving for name in node.output if name}
    before, behind, gives = [], [], []
    for given in manifest.fed:
        names[given.name] = f"{_STEP}{given.name}"
        before += _reshape(given.name, names[given.name], given.graph_row_shape, (1, *given.row_shape))
    for spec in manifest.outputs:
        gives.append(f"{_STEP}give/{spec.name}")
        behind += _reshape(names[spec.name], gives[-1], (1, *spec.row_shape), spec.graph_row_shape)
    for state in manifest.states:
        gives.append(f"{_STEP}give_state/{state.output}")
        behind.append(helper.make_node("Identity", [names.get(state.output, state.output)], [gives[-1]]))
    kinds = _kinds(manifest)
    nodes = [*before, *(renamed(node, names) for node in moving), *behind]
    return helper.make_graph(without_copies(nodes, gives), "step", [], tensors(gives, kinds))


def _chunk_branch(builder: Vectorizer) -> onnx.GraphProto:
    """Return the branch.

    Raises:
        NoChunkError: The loops cannot be run that way.
    """
    manifest = builder.reading.manifest
    outputs, states = builder.build()
    emitter = builder.emitter
    gives = [emitter.op("Identity", name) for name in (*outputs, *states)]
    lengths = helper.make_node("Shape", [manifest.inputs[0].name], [LENGTHS], start=0, end=2)
    kinds = _kinds(manifest)
    nodes = without_copies(needed_nodes([lengths, *emitter.nodes], gives), gives)
    return helper.make_graph(nodes, "chunk", [], tensors(gives, kinds))


def _reshape(given: str, made: str, to: tuple[int, ...], of: tuple[int, ...]) -> list[onnx.NodeProto]:
    """Give each row another shape, and a tensor another name."""
    if to == of:
        return [helper.make_node("Identity", [given], [made])]
    shape = helper.make_node("Constant", [], [f"{made}/shape"], value_ints=[-1, *to])
    return [shape, helper.make_node("Reshape", [given, f"{made}/shape"], [made])]


def _kinds(manifest: Manifest) -> list[int]:
    dtypes = [spec.dtype for spec in manifest.outputs] + [state.dtype for state in manifest.states]
    return [element_type(dtype) for dtype in dtypes]


def _timed(spec: TensorSpec | OutputSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, element_type(spec.dtype), [BATCH, TIME, *spec.shape])


STEPS = 100
"""Timesteps of the chunk that is measured; fewer where a model is slow."""

ROWS = (1, 32)

AT_ONCE_MOST = 500_000
"""Numbers that a model's loops may multiply in each timestep where they run as fused operators; above that the time
goes into products of matrices, which come one after another in any case. Source: docs/adr/0032."""

INSIDE_MOST = 150_000
"""The same where the loops run timestep by timestep inside one run, which gains less."""

_BUDGET_S = 0.02


def choose_chunk(
    proto: onnx.ModelProto,
    manifest: Manifest,
    samples: Sequence[Mapping[str, Array]],
    tolerance: Tolerance,
    *,
    folder: Path,
    rows: RowAnalysis | None = None,
) -> tuple[Path, StepModel, ChunkChoice]:
    """Write the step graph, or a graph with a time axis that equals it and is worth having: its file and its model.

    In neither are there recurrent operators over a single timestep: see `stepwell_export.graph.decompose_rnn`.

    Args:
        proto: The step graph.
        manifest: What it takes, carries and gives.
        samples: Sequences `{input: (rows, T, *shape)}` on which a chunk has to equal its steps.
        tolerance: How far it may be from them.
        folder: Where both are written.
        rows: What the step graph shows of its rows, where that is known.
    """
    file, timed = folder / "step.onnx", folder / "timed.onnx"
    write_file(decompose_rnn(proto), file)
    step = StepModel(file, manifest)
    if (why := too_heavy(AT_ONCE, operator_products(proto))) is not None:
        return file, step, ChunkChoice("step", f"{AT_ONCE}: {why}")  # without graphs that take seconds to make
    try:
        how, graph, products = dynamic_graph(proto, manifest, rows)
        described = dynamic_manifest(manifest)
        if why := too_heavy(how, products) or rows_of_step(graph, described).verdict.why:
            return file, step, ChunkChoice("step", f"{how}: {why}")
        write_file(graph, timed)
        model = StepModel(timed, described)
        if all(_equal(step, model, sample, tolerance) for sample in samples):
            return timed, model, ChunkChoice("dynamic", how, _measure(step, model))
        why = f"{how}: does not equal the single steps"
    except ModelLoadError:
        why = f"{how}: onnxruntime does not run it"
    except NoChunkError as exc:
        why = str(exc)
    except Exception as exc:  # noqa: BLE001  # the step graph is right without; the report has the fault
        why = str(InternalError("making a graph with a time axis", exc))
    return file, step, ChunkChoice("step", why)


def _equal(step: StepModel, model: StepModel, sample: Mapping[str, Array], tolerance: Tolerance) -> bool:
    rows = len(next(iter(sample.values())))
    want = step.chunk(sample, step.initial_states(rows))
    got = model.chunk(sample, model.initial_states(rows))
    judged = {spec.name for spec in step.manifest.answered if spec.kind == "value"} | {f.name for f in step.fields}
    return all(
        tolerance.holds(got_values[name], expected[name])
        for got_values, expected in zip(got, want, strict=True)
        for name in expected.keys() & judged
    )


def too_heavy(how: str, products: int) -> str | None:
    """Return why a graph with a time axis is not worth having, by what its loops multiply in each timestep.

    By size and not by the clock: a model exported twice is one file, whatever else the machine does.
    """
    most = AT_ONCE_MOST if how == AT_ONCE else INSIDE_MOST
    if products <= most:
        return None
    return f"each timestep multiplies {products:,} numbers in the loops, and above {most:,} little is gained"


def _measure(step: StepModel, model: StepModel) -> list[Timing]:
    """Measure both, for the report alone: the shortest processor time of a call, in microseconds."""
    timings = []
    rng = np.random.default_rng(0)
    for rows in ROWS if step.batched else ROWS[:1]:
        states = step.initial_states(rows)
        timestep = {spec.name: random_rows(rng, spec, (rows,)) for spec in step.manifest.inputs}
        single = [_shortest(partial(one.step, timestep, states)) for one in (step, model)]
        steps = int(np.clip(_BUDGET_S * 1e6 / single[0], 8, STEPS))
        chunk = {spec.name: random_rows(rng, spec, (rows, steps)) for spec in step.manifest.inputs}
        both = [_shortest(partial(one.chunk, chunk, states)) for one in (step, model)]
        timings += [Timing(rows, 1, *single), Timing(rows, steps, *both)]
    return timings


def _shortest(call: Callable[[], object]) -> float:
    timer = Timer(call, timer=time.thread_time)
    loops = max(1, int(_BUDGET_S / 20 / timer.timeit(1)))
    return min(timer.repeat(10, loops)) / loops * 1e6

"""Which outputs of a sequence graph a step answers, and where they have their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.errors import RefusedModelError
from model_export.graph.builder import NodeBuilder
from model_export.graph.dataflow import Flow, laid_out_from, read_flow
from model_export.graph.described import described
from model_export.graph.nodes import uses
from model_export.graph.unit_axes import OLDEST_OPSET
from model_export.manifest import OutputSpec
from model_export.streaming.axes.inputs import SequenceInput, SequenceInputs
from model_export.streaming.axes.measured_shapes import Dim
from model_export.streaming.walk import StreamingWalk


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Where an output of the sequence graph has its axes.

    Attributes:
        time: Axis of the timesteps; None: one answer for the whole sequence.
        batch: Axis of the rows; None: it has none.
        extra: How many timesteps longer than the sequence it is.
        order: How a folded axis holds both: `BT` or `TB`; empty: they have an axis each.
        resized: What messages call the last node before it that gives more or fewer timesteps than it takes.
    """

    time: int | None
    batch: int | None
    extra: int = 0
    order: str = ""
    resized: str = ""


def declare_outputs(walk: StreamingWalk, inputs: SequenceInputs) -> tuple[list[OutputSpec], dict[str, OutputLayout]]:
    """Declare the answers; leave out what a recurrence carries where its initial value was an input too."""
    walk.need(*(value.name for value in walk.model.graph.output))
    answers, outputs = [], {}
    dropped: list[str] = []
    bound = [one for one in inputs.inputs if one.role == "state"]
    flow = read_flow(walk.model.graph)
    for value in walk.model.graph.output:
        tensor = walk.tensors[value.name]
        if tensor.kind not in {"per_step", "final", "static"} or not walk.facts.value(value.name).size:
            continue
        if tensor.kind == "final" and any(_carries_on(walk, flow, value.name, one) for one in bound):
            dropped.append(value.name)
            continue
        spec, facts = _answer(walk, value.name, inputs)
        answers.append(spec)
        outputs[value.name] = facts
    for name in dropped if not answers else []:
        spec, facts = _answer(walk, name, inputs)
        answers.append(spec)
        outputs[name] = facts
    if not answers:
        raise RefusedModelError(
            f"No output of the graph depends on the timesteps; its outputs are "
            f"{[value.name for value in walk.model.graph.output]}.",
            fix="Export the part of the model that answers the sequence.",
        )
    return answers, outputs


def _carries_on(walk: StreamingWalk, flow: Flow, name: str, one: SequenceInput) -> bool:
    """Whether an output is, but for its layout, the next value of what an input starts from.

    It is what a recurrence carries, or the end of a sequence that the input was joined to. The shape alone is no proof:
    an answer may have the same.
    """
    dims = walk.facts.dims(name)
    shape = [3 if dim.has_batch else int(dim.fixed) for dim in dims]
    if shape != list(one.shape(3, 1)) or walk.dtype(name) != one.dtype:
        return False
    return name in flow.carried.get(one.name, ()) or one.name in laid_out_from(walk.model.graph, name)


def _answer(walk: StreamingWalk, name: str, inputs: SequenceInputs) -> tuple[OutputSpec, OutputLayout]:
    tensor, dims = walk.tensors[name], walk.facts.dims(name)
    time, batch = walk.facts.time_axis(name), walk.facts.batch_axis(name)
    if any(dim.has_batch for axis, dim in enumerate(dims) if axis != batch):
        raise RefusedModelError(f"Output {name!r} has the rows of the batch on two axes.", fix="Give one row a stream.")
    if batch is None and inputs.only_rows == 1:
        batch = _axis_of_one(dims, inputs)
    if walk.resampled is not None and time is not None and time != batch and walk.facts.samples(name) > 1:
        raise walk.resampled
    step = walk.aligned(name)[0] if tensor.kind == "per_step" else tensor.step
    folded = time is not None and batch == time
    sizes = [dim.at_one_step()[0] for dim in dims]
    if batch is not None and dims[batch].at_one_step()[1] > 1:
        step = walk.graph.op("Reshape", step, walk.graph.ints([-1, *_unfolded(dims, batch, time)]))
        row = _unfolded(dims, batch, time)
        spec = OutputSpec(name=name, dtype=walk.dtype(name), shape=row)
    elif batch is not None and not folded and walk.opset >= OLDEST_OPSET:
        row = [size for axis, size in enumerate(sizes) if axis not in {time, batch}]
        spec = row_spec(OutputSpec, name, walk.dtype(name), row, batch=0, time=None)
        step = out_of_layout(walk.graph, step, rank=len(sizes), batch=batch, time=time)
    else:
        row = [size for axis, size in enumerate(sizes) if axis not in {time, batch}]
        spec = row_spec(OutputSpec, name, walk.dtype(name), row, batch=batch, time=None if folded else time)
        spec, perm = rows_in_front(spec)
        step = walk.graph.op("Transpose", step, perm=perm) if perm else step
    walk.graph.add_output(spec, step)
    extra = walk.facts.length_delta(name) if time is not None else 0
    resized = _resized(walk, name) if extra else ""
    return spec, OutputLayout(time, batch, extra, walk.facts.order(name) if folded else "", resized)


def _resized(walk: StreamingWalk, name: str) -> str:
    """Return what messages call the last node before a tensor that gives more or fewer timesteps than it takes."""
    makers = {made: node for node in walk.model.graph.node for made in node.output}
    extra = walk.facts.length_delta(name)
    while (node := makers.get(name)) is not None:
        timed = [one for one in uses(node) if walk.facts.dims(one) and walk.facts.time_axis(one) is not None]
        same = next((one for one in timed if walk.facts.length_delta(one) == extra), None)
        if same is None:
            return described(node)
        name = same
    return ""


def _axis_of_one(dims: Sequence[Dim], inputs: SequenceInputs) -> int | None:
    """Return the batch axis of an answer for one row: where the inputs have it, or the first of length 1."""
    ones = [axis for axis, dim in enumerate(dims) if not dim.has_time and dim.fixed == 1]
    usual = next((one.batch for one in inputs.external if one.time is not None), None)
    return usual if usual in ones else next(iter(ones), None)


def _unfolded(dims: Sequence[Dim], batch: int, time: int | None) -> list[int]:
    if batch:
        raise RefusedModelError("An output holds several values per row folded into an axis that is not its first.")
    rest = [dim.at_one_step()[0] for axis, dim in enumerate(dims) if axis not in {batch, time}]
    return [dims[batch].at_one_step()[1], *rest]


def in_layout(graph: NodeBuilder, tensor: str, *, rank: int, batch: int, time: int | None) -> str:
    """Return a tensor `(batch, *row)` in the layout of the sequence graph, with a time axis of length 1."""
    if time is not None:
        tensor = graph.op("Unsqueeze", tensor, graph.ints([1]))
    order = _order(rank, batch, time)
    return tensor if order == sorted(order) else graph.op("Transpose", tensor, perm=list(np.argsort(order)))


def out_of_layout(graph: NodeBuilder, tensor: str, *, rank: int, batch: int, time: int | None) -> str:
    """Return a tensor in the layout of the sequence graph as `(batch, *row)`."""
    order = _order(rank, batch, time)
    if order != sorted(order):
        tensor = graph.op("Transpose", tensor, perm=order)
    return tensor if time is None else graph.op("Squeeze", tensor, graph.ints([1]))


def _order(rank: int, batch: int, time: int | None) -> list[int]:
    """Return the axes of the sequence graph's layout as batch, time, and the others."""
    front = [batch] if time is None else [batch, time]
    return [*front, *(axis for axis in range(rank) if axis not in front)]


def rows_in_front(spec: Any) -> tuple[Any, list[int]]:
    """Return a spec with its batch axis in front, as chunks need it, and the order that brings a tensor there.

    The order is empty where nothing moves.
    """
    if not spec.batch_axis:
        return spec, []
    rank = len(spec.graph_row_shape) + 1
    others = [axis for axis in range(rank) if axis != spec.batch_axis]
    return spec.model_copy(update={"batch_axis": 0}), [spec.batch_axis, *others]


def row_spec(kind: Any, name: str, dtype: str, row: list[int], *, batch: int | None, time: int | None) -> Any:
    """Return the spec of a tensor that has a time axis of length 1 in the graph."""
    graph_row = list(row)
    if time is not None:
        graph_row.insert(time - (batch is not None and batch < time), 1)
    return kind(
        name=name, dtype=dtype, shape=row, batch_axis=batch, graph_shape=graph_row if graph_row != row else None
    )

"""Which outputs of a sequence graph a step answers, and where they have their axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from stepwell_export.graph.described import described
from stepwell_export.graph.nodes import Flow, laid_out_from, read_flow, uses
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import OutputSpec, TensorSpec
from stepwell_export.streaming.axes.inputs import SequenceInputs
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.walk import StreamingWalk
from stepwell_export.verify.onnx_original import InputLayout, OutputLayout

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
    flow = read_flow(walk.model.graph)
    given, carried, of_sizes = list[str](), list[str](), list[str]()
    for name in names:
        kind = walk.tensors[name].kind
        if not walk.facts.value(name).size and walk.facts.depends(name).has_even_sizes:
            continue  # there is nothing in it
        if kind not in {"per_step", "at_end", "static"}:
            of_sizes.append(name)
            continue
        is_carried = kind == "at_end" and any(_carries_on(walk, flow, name, state_layout) for state_layout in bound)
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
    step = walk.aligned(name)[0] if tensor.kind == "per_step" else tensor.step
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
        tensor = _at_axis_1(walk, "Unsqueeze", tensor)
    order = _order(rank, batch, time)
    return tensor if order == sorted(order) else walk.graph.op("Transpose", tensor, perm=list(np.argsort(order)))


def out_of_layout(walk: StreamingWalk, tensor: str, *, rank: int, batch: int | None, time: int | None) -> str:
    """Undo `in_layout`."""
    if batch is None:
        return tensor
    order = _order(rank, batch, time)
    if order != sorted(order):
        tensor = walk.graph.op("Transpose", tensor, perm=order)
    return tensor if time is None else _at_axis_1(walk, "Squeeze", tensor)


def _at_axis_1(walk: StreamingWalk, kind: str, tensor: str) -> str:
    """Emit a Squeeze or Unsqueeze of the axis of time behind the rows, in the form of the graph's opset."""
    if walk.opset < 13:
        return walk.graph.op(kind, tensor, axes=[1])
    return walk.graph.op(kind, tensor, walk.graph.ints([1]))


def _order(rank: int, batch: int, time: int | None) -> list[int]:
    """Return the axes of the sequence graph's layout as batch, time, and the others."""
    front = [batch] if time is None else [batch, time]
    return [*front, *(axis for axis in range(rank) if axis not in front)]

"""`SequenceInputs`: what a sequence graph takes, where its inputs have their axes, and the sizes it is run with.

The axes of time and batch are those that the caller gives, else those with such names in the file; else the batch is
first, and time is behind it. An input may be what a recurrence starts from, how long its sequences are, or ids of a
vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, captures, constants, subgraphs
from stepwell_export.graph.onnx_file import Declared
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import DTYPES, Array
from stepwell_export.runtime.outside_weights import to_array
from stepwell_export.verify.onnx_original import InputLayout, Role

ROWS = (3, 5)
"""Numbers of rows that a graph is run with: how sizes change shows what axes carry."""

LENGTHS = (47, 53)
"""Numbers of timesteps, in the same way."""

FEW = (11, 13)
"""Numbers of timesteps that show a large graph without windows as well."""

PERTURBED_STEP = 19
"""The timestep that the second run with the same sizes changes, if the sequences are that long."""

SHORTEST_DECLARED = 2
"""The smallest declared length: fewer timesteps do not show what depends on which."""

_TIME = re.compile(r"time|seq|len|step|frame|^[tTlLsS]$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^[bBnN]$|^bs$", re.IGNORECASE)

Sizes = Sequence[int | str | None]
"""The declared size of every axis: a number, a name or nothing."""

Axes = Mapping[str, int | None]
"""An axis by input, as the caller gives it; None: the input has none."""


def draw_input(layout: InputLayout, rows: int, steps: int, seed: int, changed: int) -> Array:
    """Return data for `stepwell_export.streaming.axes.measured_shapes.measure_shapes`."""
    fixed = layout.fixed(rows, steps)
    if fixed is not None:
        return fixed
    value = _draw(np.random.default_rng(seed // 10), layout.dtype, layout.shape(rows, steps))
    if seed % 10 and layout.time is not None:
        at = [slice(None)] * value.ndim
        at[layout.time] = slice(changed, changed + 1)
        other = _draw(np.random.default_rng(seed), layout.dtype, value[tuple(at)].shape)
        value[tuple(at)] = other + 2 if value.dtype.kind == "f" else 1 - value[tuple(at)]
    return value


@dataclass(frozen=True, slots=True)
class SequenceInputs:
    """Every input of a sequence graph.

    Attributes:
        inputs: In graph order.
        only_rows: The one number of rows that the graph takes; None: any.
        length: The declared number of timesteps, after which attention and positions end; None: there is none.
        tried: Two numbers of timesteps that it is run with, if it was not declared for fewer.
        starts_are_sent: Whether the caller sends what a recurrence starts from; else it is a state.
    """

    inputs: tuple[InputLayout, ...]
    only_rows: int | None = None
    length: int | None = None
    tried: tuple[int, int] = LENGTHS
    starts_are_sent: bool = False

    @property
    def lengths(self) -> tuple[int, int]:
        """The two numbers of timesteps that the graph is run with: those tried, or its declared length and fewer."""
        if self.length is None or self.length >= self.tried[1]:
            return self.tried
        return max(self.length - 3, (self.length + 1) // 2), self.length

    def feeds(self, rows: int, steps: int, seed: int) -> dict[str, Array]:
        """Return drawn data for every input; seeds that differ by one differ at one timestep alone."""
        changed = perturbed_step(self.lengths)
        return {layout.name: draw_input(layout, rows, steps, seed, changed) for layout in self.inputs}

    @property
    def external(self) -> list[InputLayout]:
        """The inputs that a caller sends."""
        return [layout for layout in self.inputs if layout.role == "external"]

    @property
    def timed(self) -> list[InputLayout]:
        """Those with a time axis."""
        return [layout for layout in self.external if layout.time is not None]


def _draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def perturbed_step(lengths: tuple[int, int]) -> int:
    """Return the timestep that the run with one change has it at."""
    return min(PERTURBED_STEP, lengths[0] // 2)


# ---------------------------------------------------------------- where inputs have time and batch


def read_inputs(
    graph: onnx.GraphProto,
    declared: Declared,
    *,
    time_axes: Axes,
    batch_axes: Axes | None = None,
    length: int | None = None,
    starts_are_sent: bool = False,
) -> SequenceInputs:
    """Read the time and batch axis of every input from what is given and declared.

    Args:
        graph: The graph, in its plain form.
        declared: The declared size of every axis of every input: a number, a name or nothing.
        time_axes: The time axes that the caller gave.
        batch_axes: The batch axes that the caller gave.
        length: The declared number of timesteps, after which attention and positions end; None: there is none.
        starts_are_sent: Whether the caller sends what a recurrence starts from; else it is a state.

    Raises:
        UnclearModelError: No input has a time axis, an axis was given that is not there, or inputs declare different
            numbers of timesteps.
        RefusedModelError: An input is no tensor that can be sent.
    """
    batch_axes = batch_axes or {}
    if unknown := (time_axes.keys() | batch_axes.keys()) - declared.keys():
        raise UnclearModelError(
            f"The graph has no input {sorted(unknown)}; its inputs are {sorted(declared)}.", fix="Check the name."
        )
    slots = {name: "" if starts_are_sent else find_slot(graph, name) for name in declared}
    sent = {name: dims for name, dims in declared.items() if not slots[name]}
    times = _times(sent, time_axes)
    batches = {name: _batch_of(dims, times[name]) for name, dims in sent.items() if times[name] is not None}
    rows = {declared[name][axis] for name, axis in batches.items() if axis is not None}
    batches |= {name: _rows_axis(dims, rows) for name, dims in sent.items() if times[name] is None}
    batches |= {name: _state_axis(declared[name], rows, slot) for name, slot in slots.items() if slot}
    batches |= {name: _checked("--batch-axis", name, axis, declared[name]) for name, axis in batch_axes.items()}
    layouts = []
    for value in graph.input:
        role: Role = "length" if slots[value.name] == "length" else "state" if slots[value.name] else "external"
        layout = layout_of(value, declared[value.name], batches[value.name], times.get(value.name))
        layouts.append(replace(layout, role=role))
    inputs = SequenceInputs(tuple(layouts), length=length, starts_are_sent=starts_are_sent)
    if not inputs.timed:
        raise UnclearModelError(
            f"No axis of {sorted(declared)} can be read as time: declared are {declared}.",
            fix="Say where time is: `--time-axis INPUT=AXIS`.",
        )
    _check_rates(inputs, declared, time_axes)
    return inputs


def _times(sent: Mapping[str, Sizes], given: Axes) -> dict[str, int | None]:
    """Return the time axis of each input: the given, the named, or the first open one behind another.

    Where all sizes are written, it is the second of those with most axes.
    """
    times = {
        name: _checked("--time-axis", name, given[name], dims) if name in given else _open_time(dims)
        for name, dims in sent.items()
    }
    if any(axis is not None and not isinstance(sent[name][axis], int) for name, axis in times.items()):
        return times
    most = max(map(len, sent.values()), default=0)
    behind = {name: min(1, most - 1) for name, dims in sent.items() if len(dims) == most > 0 and name not in given}
    return times | behind


def _open_time(dims: Sizes) -> int | None:
    if (named := _named(dims, _TIME)) is not None:
        return named
    batch = _named(dims, _BATCH) or 0
    return next((axis for axis, dim in enumerate(dims) if axis != batch and not isinstance(dim, int)), None)


def _batch_of(dims: Sizes, time: int | None) -> int | None:
    """Return the batch axis of a sequence: the named one, else the first, or the second if the first is time."""
    named = _named(dims, _BATCH)
    if named is not None and named != time:
        return named
    if time != 0:
        return 0
    return 1 if len(dims) > 2 or not all(isinstance(dim, int) for dim in dims[1:]) else None


def _rows_axis(dims: Sizes, rows: Collection[int | str | None]) -> int | None:
    """Return the batch axis of an input without time: the first axis, if it is open or as long as that of sequences."""
    return 0 if dims and (not isinstance(dims[0], int) or dims[0] in rows) else None


def _state_axis(dims: Sizes, rows: Collection[int | str | None], slot: str) -> int | None:
    """Return the batch axis of what a recurrence starts from: an open one, else where the operator has it."""
    free = next((axis for axis, dim in enumerate(dims) if not isinstance(dim, int)), None)
    usual = {"gated": 1, "first": 0, "length": 0}.get(slot)
    if free is not None or usual is not None:
        return usual if free is None else free
    return next((axis for axis, dim in enumerate(dims) if dim in rows), None)


def _named(dims: Sizes, names: re.Pattern[str]) -> int | None:
    return next((axis for axis, dim in enumerate(dims) if isinstance(dim, str) and names.search(dim)), None)


def _checked(flag: str, name: str, axis: int | None, dims: Sizes) -> int | None:
    """Return an axis that the caller gave, counted from 0.

    Raises:
        UnclearModelError: The input has no such axis.
    """
    if axis is not None and not -len(dims) <= axis < len(dims):
        raise UnclearModelError(
            f"`{flag} {name}={axis}`: the input has {len(dims)} axes.", fix="Axes are counted from 0."
        )
    return None if axis is None else axis % len(dims)


def _check_rates(inputs: SequenceInputs, declared: Declared, given: Axes) -> None:
    """Refuse inputs that declare different numbers of timesteps, unless the caller gave their time axes.

    Raises:
        UnclearModelError: It has the inputs, their axes and their numbers.
    """
    timed = inputs.timed
    sizes = [(layout, size) for layout in timed if isinstance(size := declared[layout.name][layout.time or 0], int)]
    longest = max((size for _, size in sizes), default=0)
    short = [layout for layout, size in sizes if size < longest]
    if short and any(layout.name not in given for layout in timed):
        lengths = ", ".join(f"{size} on axis {layout.time} of {layout.name!r}" for layout, size in sizes)
        raise UnclearModelError(
            f"The inputs declare different numbers of timesteps: {lengths}. A step takes one timestep of each.",
            fix=f"Where {' and '.join(repr(layout.name) for layout in short)} is no sequence: "
            f"`{' '.join(f'--time-axis {layout.name}=none' for layout in short)}`. Where all are: "
            f"`{' '.join(f'--time-axis {layout.name}={layout.time}' for layout in timed)}`. For sequences of "
            "different rates, export a model for each.",
        )


def layout_of(value: Any, declared: Sizes, batch: int | None, time: int | None) -> InputLayout:
    """Return the layout of an input that the caller sends.

    Raises:
        RefusedModelError: It is no tensor that can be sent.
    """
    kind = value.type.tensor_type.elem_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name if kind else value.type.WhichOneof("value")
    if dtype not in DTYPES:
        raise RefusedModelError(
            f"Input {value.name!r} is {dtype}; expected a tensor of {', '.join(DTYPES)}.",
            fix="Move what needs it out of the graph.",
        )
    sizes = tuple(dim if isinstance(dim, int) else 2 for dim in declared)
    return InputLayout(value.name, str(dtype), sizes, batch, time)


# ---------------------------------------------------------------- what goes nowhere but into recurrences

_ROUTES = RESHAPING | PICKING | {"Cast"}


def find_slot(graph: Any, name: str) -> str:
    """Return what an input is that goes nowhere but into recurrences: a `length`, or a state by where its batch is."""
    slots = _slots_of(graph, name, depth=0)
    if not slots or None in slots:
        return ""
    if slots == {"length"}:
        return "length"
    return slots.pop() or "" if len(slots) == 1 and "length" not in slots else "" if "length" in slots else "routed"


def _slots_of(graph: Any, name: str, depth: int) -> set[str | None]:
    """Return the slots that a tensor reaches; None among them where it is used in any other way."""
    slots: set[str | None] = {None} if any(output.name == name for output in graph.output) else set()
    for node in graph.node:
        if name in captures(node):
            slots.add(None)
        for place in (i for i, given in enumerate(node.input) if given == name):
            slots |= _slot_at(graph, node, place, depth)
    return slots


def _slot_at(graph: Any, node: Any, place: int, depth: int) -> set[str | None]:
    operator = STATEFUL.get(node.op_type)
    if operator is not None and operator.time_axis is not None:
        if place == operator.lengths:
            return {"length"}
        if place in operator.states:
            return {"first" if node.op_type not in RNN else "gated"} if not depth else {"routed"}
    if node.op_type == "Scan":
        states = len(node.input) - int(attributes(node)["num_scan_inputs"])
        return {"state"} if place < states else {None}
    if node.op_type == "Loop" and place >= 2:
        body = next(subgraphs(node))
        return {"state"} if _is_float(body.input[place]) else {None}
    if node.op_type in _ROUTES and place == 0:
        reached: set[str | None] = set()
        for output in node.output:
            reached |= _slots_of(graph, output, depth + 1)
        if reached == {"length"} and node.op_type in {"Cast", "Identity"}:
            return reached
        return {"routed" if slot not in {None, "length"} else None for slot in reached}
    return {None}


def _is_float(value: Any) -> bool:
    kind = value.type.tensor_type.elem_type
    return bool(kind) and np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).kind == "f"


# ---------------------------------------------------------------- how many ids an input has

_SAME_NUMBERS = RESHAPING | {"Cast", "Clip"}
_LOOKUPS = {"Gather": (1, 0), "OneHot": (0, 1)}
"""By operator: the places of the ids and of their number."""


def vocabularies(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of ids by input, for those inputs that are looked up in a table as they are.

    An input that is looked up in several tables has the ids of the smallest.
    """
    weights = {name: to_array(tensor) for name, tensor in constants(graph).items()}
    origin = {value.name: value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _SAME_NUMBERS and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type in _LOOKUPS and (size := _size_of_table(node, origin, weights)):
            name = origin[node.input[_LOOKUPS[node.op_type][0]]]
            sizes[name] = min(size, sizes.get(name, size))
    return sizes


def _size_of_table(node: onnx.NodeProto, origin: Mapping[str, str], weights: Mapping[str, Array]) -> int:
    """Return how many ids a node looks up among; 0 where it looks up nothing that an input gives."""
    ids, table = _LOOKUPS[node.op_type]
    table_weights = weights.get(node.input[table])
    if node.input[ids] not in origin or table_weights is None:
        return 0
    if node.op_type == "OneHot":
        return int(np.reshape(table_weights, -1)[0]) if table_weights.size == 1 else 0
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return int(table_weights.shape[axis]) if -table_weights.ndim <= axis < table_weights.ndim else 0

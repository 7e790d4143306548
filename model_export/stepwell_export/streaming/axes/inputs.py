"""`SequenceInputs`: what a sequence graph takes, where its inputs have their axes, and the sizes it is run with.

An input may be what a recurrence starts from, how long its sequences are, or ids of a vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.graph.nodes import attributes, captures, constants, subgraphs
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.normal_form.plain_form import Declared
from stepwell_export.verify.onnx_original import InputLayout

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

_LONGEST_SHAPE = 8
"""Numbers in the longest tensor that is taken for a shape."""


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
        only_steps: The one number of timesteps that the graph takes; None: any.
        is_certain: Whether an operator runs over what was read as time.
        length: The declared number of timesteps, after which attention and positions end; None: there is none.
        tried: Two numbers of timesteps that it is run with, if it was not declared for fewer.
    """

    inputs: tuple[InputLayout, ...]
    only_rows: int | None = None
    only_steps: int | None = None
    is_certain: bool = False
    length: int | None = None
    tried: tuple[int, int] = LENGTHS

    @property
    def lengths(self) -> tuple[int, int]:
        """The two numbers of timesteps that the graph is run with."""
        return self.tried if self.only_steps is not None else trial_lengths(self.length, self.tried)

    def matches_declared(self, declared: Declared) -> bool:
        """Whether the number of rows, where it is fixed in this reading, was declared with a number."""
        declared_rows = [declared[layout.name][layout.batch] for layout in self.external if layout.batch is not None]
        return self.only_rows is None or all(isinstance(rows, int) for rows in declared_rows)

    def with_length(self, proto: Any, steps: int) -> Any:
        """Return the graph for a number of timesteps: itself, or one with that length in its shapes."""
        if self.only_steps is None:
            return proto
        return with_length(proto, old=self.only_steps, new=steps, rows=self.only_rows or 1)

    def feeds(self, rows: int, steps: int, seed: int) -> dict[str, Array]:
        """Return drawn data for every input; seeds that differ by one differ at one timestep alone."""
        changed = perturbed_step(self.lengths)
        return {layout.name: draw_input(layout, rows, steps, seed, changed) for layout in self.inputs}

    @property
    def external(self) -> list[InputLayout]:
        """The inputs that a caller sends."""
        return [layout for layout in self.inputs if layout.role == "external"]


def _draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def trial_lengths(declared: int | None, tried: tuple[int, int] = LENGTHS) -> tuple[int, int]:
    """Return the two numbers of timesteps that a graph is run with: those given, or its declared length and fewer.

    Raises:
        RefusedModelError: The declared length is too small.
    """
    if declared is None or declared >= tried[1]:
        return tried
    if declared < SHORTEST_DECLARED:
        raise RefusedModelError(
            f"The declared length is {declared} timesteps; expected at least {SHORTEST_DECLARED}.",
            fix="Use the number of timesteps that the model was trained with.",
        )
    return max(declared - 3, (declared + 1) // 2), declared


def perturbed_step(lengths: tuple[int, int]) -> int:
    """Return the timestep that the run with one change has it at."""
    return min(PERTURBED_STEP, lengths[0] // 2)


def with_length(model: onnx.ModelProto, *, old: int, new: int, rows: int) -> onnx.ModelProto:
    """Return the model with `new` timesteps in its shapes, wherever there were `old`."""
    made = copy.deepcopy(model)
    _change(made.graph, {old: new, **({old * rows: new * rows} if rows > 1 else {})}, {old - 1: new - 1})
    return made


def _change(graph: Any, sizes: dict[int, int], places: dict[int, int]) -> None:
    """Change shapes by `sizes` and places to gather from by `places`; changed weights become Constant nodes."""
    gathered = {node.input[1] for node in graph.node if node.op_type == "Gather"}
    changed = {}
    for tensor in list(graph.initializer):
        value = _changed(tensor, places if tensor.name in gathered else sizes)
        if value is not None:
            changed[tensor.name] = value
            graph.initializer.remove(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    value = _changed(attribute.t, places if node.output[0] in gathered else sizes)
                    if value is not None:
                        attribute.t.CopyFrom(numpy_helper.from_array(value))
        for body in subgraphs(node):
            _change(body, sizes, places)
    for name, value in changed.items():
        tensor = numpy_helper.from_array(value)
        graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=tensor, name=f"{name}/length"))


def _changed(tensor: onnx.TensorProto, changes: dict[int, int]) -> Array | None:
    if (
        tensor.data_type not in {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
        or np.prod(tensor.dims) > _LONGEST_SHAPE
    ):
        return None
    value = numpy_helper.to_array(tensor)
    if not np.isin(value, list(changes)).any():
        return None
    changed: Array = np.vectorize(lambda size: changes.get(int(size), int(size)), otypes=[value.dtype])(value)
    return changed


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
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in constants(graph).items()}
    origin = {value.name: value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _SAME_NUMBERS and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        size = _size_of_table(node, origin, weights)
        if size:
            name = origin[node.input[_LOOKUPS[node.op_type][0]]]
            sizes[name] = min(size, sizes.get(name, size))
    return sizes


def _size_of_table(node: onnx.NodeProto, origin: Mapping[str, str], weights: Mapping[str, Array]) -> int:
    """Return how many ids a node looks up among; 0 where it looks up nothing that an input gives."""
    ids, table = _LOOKUPS.get(node.op_type, (0, 0))
    if ids == table or len(node.input) <= max(ids, table):
        return 0
    table_weights = weights.get(node.input[table])
    if node.input[ids] not in origin or table_weights is None:
        return 0
    if node.op_type == "OneHot":
        return int(np.reshape(table_weights, -1)[0]) if table_weights.size == 1 else 0
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return int(table_weights.shape[axis]) if -table_weights.ndim <= axis < table_weights.ndim else 0

"""`SequenceInputs`: what a sequence graph takes, where its inputs have their axes, and the sizes it is run with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.graph.nodes import subgraphs
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

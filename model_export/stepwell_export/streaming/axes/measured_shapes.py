"""What running a sequence graph shows: which axes carry time and batch, which values never change, who looks ahead.

The graph runs with every intermediate as an output, for two numbers of rows and two of timesteps. How a size
changes shows what an axis carries: no table of operators does, and a clash of sizes cannot mislead.
`TensorRuns` has the runs; large tensors lie on disk meanwhile.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import constants, only_needed
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.dependence import BATCH, DATA, SIZES, TIME, Dependence, dependences
from stepwell_export.streaming.axes.inputs import LENGTHS, ROWS, SequenceInputs, perturbed_step

# ---------------------------------------------------------------- runs

Values = Mapping[str, Any]
"""Every tensor's value by name: an array, or a list of arrays."""

_LARGE_RUN = 2**24
"""Bytes of a run from which on its large tensors are written to disk; below, time is worth more than memory."""

_LARGE = 2**14
"""Bytes of a large tensor."""


class TensorRuns:
    """A sequence graph in onnxruntime with every tensor as an output; each of its runs is made once.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph
        self._made: dict[tuple[Any, ...], Values] = {}

    @cached_property
    def loaded(self) -> GraphSession:
        """The graph in onnxruntime.

        Raises:
            ModelLoadError: onnxruntime refuses it.
        """
        own = (value.name for value in self.graph.graph.output)
        made = (name for node in self.graph.graph.node for name in node.output if name)
        return GraphSession(self.graph, dict.fromkeys((*own, *made)), as_written=True)

    def at(self, inputs: SequenceInputs, rows: int = 0, length: int = 0, *, is_changed: bool = False) -> Values:
        """Return every tensor of a run; the data differ from run to run.

        Args:
            inputs: Where the inputs have their axes.
            rows: Which number of `ROWS`, 0 or 1, where the graph takes several.
            length: Which number of `inputs.lengths`, 0 or 1.
            is_changed: Whether the inputs have other values at one timestep, `perturbed_step`.

        Raises:
            ModelLoadError: onnxruntime fails on these sizes.
        """
        key = inputs, rows, length, is_changed
        if key not in self._made:
            count = inputs.only_rows or ROWS[rows]
            feeds = inputs.feeds(count, inputs.lengths[length], 10 * (rows + length) + is_changed)
            self._made[key] = spooled(self.loaded.run(feeds))
        return self._made[key]

    def forget(self) -> None:
        """Drop the runs: who needs them has them."""
        self._made.clear()


def with_squeeze_axes(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with axes for each Squeeze without: it would drop the batch of one row, or one timestep.

        Squeeze (z)   ->   Squeeze (z, axes of length 1 that are no rows and no timesteps)

    onnxruntime takes an empty list of axes for none.
    """
    model = runs.graph
    empty = {name for name, tensor in constants(model.graph).items() if list(tensor.dims) == [0]}
    bare = [node for node in model.graph.node if node.op_type == "Squeeze" and not _has_axes(node, empty)]
    if not bare:
        return runs
    made, values = copy.deepcopy(model), runs.at(inputs)
    for node in made.graph.node:
        if node.op_type != "Squeeze" or _has_axes(node, empty):
            continue
        axes = [axis for axis, size in enumerate(np.shape(values[node.input[0]])) if size == 1]
        del node.input[1:]
        node.input.append(f"{node.name}/axes")
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))
    return TensorRuns(made)


def _has_axes(node: onnx.NodeProto, empty: Collection[str]) -> bool:
    return any(node.input[1:2]) and node.input[1] not in empty


def spooled(values: Values) -> Values:
    """Return the same values: of a large run, the large ones lie in a file without a name, which ends with them."""
    large = {
        name: value
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.nbytes >= _LARGE and value.dtype.kind in "fiub"
    }
    if sum(value.nbytes for value in large.values()) < _LARGE_RUN:
        return values
    mapped = {}
    with tempfile.TemporaryFile(prefix="stepwell-") as file:
        for name, value in large.items():
            start = file.tell()
            np.ascontiguousarray(value).tofile(file)
            file.flush()
            mapped[name] = np.memmap(file, value.dtype, "r", start, value.shape)
    return {**values, **mapped}


_UNKNOWN = Dependence(SIZES | {DATA}, SIZES | {DATA}, SIZES)


@dataclass(frozen=True, slots=True)
class Dim:
    """An axis' size as `fixed + rows * B + steps * T + both * B * T`."""

    fixed: Fraction
    rows: Fraction = Fraction(0)
    steps: Fraction = Fraction(0)
    both: Fraction = Fraction(0)

    @property
    def has_time(self) -> bool:
        """Whether the size depends on the number of timesteps."""
        return bool(self.steps or self.both)

    @property
    def has_batch(self) -> bool:
        """Whether the size depends on the number of rows."""
        return bool(self.rows or self.both)

    @property
    def elements_per_step(self) -> Fraction:
        """Elements per timestep (and row), where the axis carries time; else elements per row."""
        return (self.both or self.steps) if self.has_time else self.rows

    @property
    def extra(self) -> Fraction:
        """How many timesteps longer than the sequence the axis is."""
        return self.rows / self.both if self.both else self.fixed / self.steps

    @property
    def is_whole(self) -> bool:
        """Whether the size is a whole number for all numbers of rows and timesteps."""
        return all(part.denominator == 1 for part in (self.fixed, self.rows, self.steps, self.both))

    def divided(self, by: int) -> Dim:
        """Return the size divided by a number."""
        return Dim(self.fixed / by, self.rows / by, self.steps / by, self.both / by)

    def at_one_step(self) -> tuple[int, int]:
        """Return the size in the step graph as `(fixed, per row)`; one of them is 0."""
        if self.has_time:
            return (0, int(self.both)) if self.both else (int(self.steps), 0)
        return int(self.fixed), int(self.rows)


class MeasuredShapes:
    """What four runs, and a fifth with one timestep changed, show of every tensor."""

    def __init__(
        self,
        runs: Mapping[tuple[int, int], Values],
        touched: Values,
        weights: Values,
        lengths: tuple[int, int] = LENGTHS,
        at_length: Callable[[str], Array] | None = None,
    ) -> None:
        """Keep the runs.

        Args:
            runs: Every tensor's value by `(rows, timesteps)` index, each 0 or 1; one index of rows where
                the graph takes one number of rows only.
            touched: As the first run, with another value at one timestep, `perturbed`.
            weights: The graph's initializers.
            lengths: Timesteps of the runs.
            at_length: Computes a tensor for a sequence of the declared length; None: no length is declared.
        """
        self._runs = runs
        self._lengths = lengths
        self.perturbed = perturbed_step(lengths)
        self.at_length = at_length
        self._touched = touched
        self._weights = weights
        self._dims: dict[str, tuple[Dim, ...]] = {}
        self._rows_vary = (1, 0) in runs
        self._depends: dict[str, Dependence] = {}
        self._settled: dict[str, Dependence] = {}
        self._followed: tuple[onnx.ModelProto, SequenceInputs] | None = None

    def follow(self, model: onnx.ModelProto, inputs: SequenceInputs) -> None:
        """Find what follows from the operators of the graph that was run."""
        self._followed = model, inputs
        self._depends = dependences(model.graph, inputs, self.dims, self.value, self._settled)

    def settle(self, name: str) -> None:
        """Take a tensor for the same for all inputs and lengths: it stands in front of the sequence."""
        self._settled[name] = Dependence(shape=self.depends(name).shape & {BATCH})
        if self._followed is not None:
            self.follow(*self._followed)

    def depends(self, name: str) -> Dependence:
        """Return what a tensor depends on, by its operators."""
        return self._depends.get(name, _UNKNOWN)

    @cached_property
    def first(self) -> Values:
        """The first run."""
        return self._runs[0, 0]

    def value(self, name: str) -> Any:
        """Return a tensor's value in the first run."""
        return self._weights[name] if name in self._weights else self.first[name]

    def values(self, name: str) -> list[Any]:
        """Return a tensor's value in every run."""
        if name in self._weights:
            return [self._weights[name]] * len(self._runs)
        return [values[name] for values in self._runs.values()]

    def dims(self, name: str) -> tuple[Dim, ...]:
        """Return what the axes of a tensor carry; none for a sequence of tensors."""
        if name not in self._dims:
            self._dims[name] = self._measured(self.values(name))
        return self._dims[name]

    def time_axis(self, name: str) -> int | None:
        """Return the axis that carries time; the first where several do."""
        return next((axis for axis, dim in enumerate(self.dims(name)) if dim.has_time), None)

    def batch_axis(self, name: str) -> int | None:
        """Return the axis that carries the rows, also where it carries time too."""
        return next((axis for axis, dim in enumerate(self.dims(name)) if dim.has_batch), None)

    def samples(self, name: str) -> int:
        """Return how many elements of its time axis a tensor has for each timestep; more than 1: its samples.

        Raises:
            RefusedModelError: It has no whole number of them.
        """
        axis = self.time_axis(name)
        dim = None if axis is None else self.dims(name)[axis]
        if dim is None or dim.both:
            return 1
        if dim.elements_per_step.denominator > 1:
            raise RefusedModelError(f"Tensor {name!r} has {dim.elements_per_step} elements for each timestep.")
        return int(dim.elements_per_step)

    def length_delta(self, name: str) -> int:
        """Return how many timesteps longer than the sequence a tensor with a time axis is."""
        axis = self.time_axis(name)
        assert axis is not None
        return int(self.dims(name)[axis].extra)

    def same_over_time(self, name: str) -> bool:
        """Whether a tensor has equal values at every timestep, by its operators; the runs are a second check."""
        varies = self.depends(name).varies
        timed = [(axis, dim) for axis, dim in enumerate(self.dims(name)) if dim.has_time]
        if timed and (TIME in varies or (BATCH in varies and any(dim.both for _, dim in timed))):
            return False
        return all(
            np.array_equal(value, _first_of(value, axis), equal_nan=value.dtype.kind == "f")
            for axis, dim in timed
            if dim.elements_per_step == 1
            for value in self.values(name)
        )

    def affine(self, parts: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Return what integers that were measured in the runs are at one timestep and how they grow.

        Args:
            parts: One array per run, of one shape.

        Returns:
            Arrays of the value for T = 1 without its part per row, of that part per row, and whether it
            depends on the number of timesteps.
        """
        integers = [np.asarray(part, np.int64) for part in parts]
        dims = [self._solve(values) for values in zip(*(part.flat for part in integers), strict=True)]
        fixed = np.array([int(dim.fixed + dim.steps) for dim in dims], np.int64)
        rows = np.array([int(dim.rows + dim.both) for dim in dims], np.int64)
        grows = np.array([dim.has_time for dim in dims], bool)
        shape = integers[0].shape
        return fixed.reshape(shape), rows.reshape(shape), grows.reshape(shape)

    def number(self, name: str) -> Dim:
        """Return how a single integer depends on the numbers of rows and timesteps, if it grows with them evenly."""
        return self._solve([int(value.reshape(())) for value in self.values(name)])

    def earliest_change(self, name: str) -> int | None:
        """Return where, on its time axis, a tensor first changes when timestep `perturbed` of the inputs does.

        None: it never does, or its time axis holds the rows too, in an order that cannot be measured.
        """
        before, after = self.value(name), self._touched.get(name)
        if after is None or not isinstance(before, np.ndarray) or before.dtype.kind not in "fiub":
            return None
        changed = _differs(before, after)
        axis = self.time_axis(name)
        if axis is None or not changed.any():
            return None
        dim = self.dims(name)[axis]
        if dim.both:
            return max(_first_changes(changed, axis).values()) // int(dim.both)
        return int(np.argmax(_along(changed, axis))) // int(dim.steps)

    def order(self, name: str) -> str:
        """Return how a folded axis holds rows and timesteps: `BT` row by row, `TB` timestep by timestep."""
        axis = self.time_axis(name)
        assert axis is not None
        starts = _first_changes(_differs(self.value(name), self._touched[name]), axis)
        return max(starts, key=starts.__getitem__)

    def before_start(self, name: str, first: int, count: int) -> Array | None:
        """Return a tensor's elements `first` to `first + count` on its time axis; those below 0 are zeros.

        Returns:
            With the batch axis, if any, reduced to one row; None where they differ from run to run.

        Raises:
            RefusedModelError: They are more than the runs have.
        """
        axis = self.time_axis(name)
        assert axis is not None
        shortest = min(np.shape(value)[axis] for value in self.values(name))
        if first + count > shortest:
            raise RefusedModelError(
                f"Tensor {name!r} goes back {count} timesteps, and the graph was run over {shortest}: what stands "
                "before its first timestep cannot be read from it.",
                fix="Declare the number of timesteps that the model was made for, `--length N`, or shorten the lag.",
            )
        there = range(max(first, 0), first + count)
        taken = [self.one_row(np.take(value, there, axis=axis), name) for value in self.values(name)]
        taken += [self.one_row(np.take(self._touched[name], there, axis=axis), name)] if name in self._touched else []
        if any(part is None for part in taken):
            return None
        start = taken[0]
        assert start is not None
        if any(part is not None and _differs(start, part).any() for part in taken[1:]):
            return None
        missing = [(0, 0)] * start.ndim
        missing[axis] = (count - len(there), 0)
        padded: Array = np.pad(start, missing)
        return padded

    def one_row(self, value: Array, name: str) -> Array | None:
        """Return a value reduced to one row of its batch axis; None where the rows differ."""
        axis = self.batch_axis(name)
        if axis is None:
            return value
        multiple = int(self.dims(name)[axis].elements_per_step)
        row = np.take(value, range(multiple), axis=axis)
        repeats = [1] * value.ndim
        repeats[axis] = value.shape[axis] // max(multiple, 1)
        return None if _differs(np.tile(row, repeats), value).any() else row

    def _measured(self, values: Sequence[Any]) -> tuple[Dim, ...]:
        if any(isinstance(value, list) or value is None for value in values):
            return ()
        shapes = [np.shape(value) for value in values]
        if len({len(shape) for shape in shapes}) > 1:
            raise RefusedModelError(f"A tensor's number of axes depends on the size of the input: {shapes}.")
        return tuple(self._solve(sizes) for sizes in zip(*shapes, strict=True))

    def _solve(self, sizes: Sequence[int]) -> Dim:
        """Solve a size for its dependence on rows and timesteps, from its value in every run."""
        first, second = self._lengths
        more = second - first
        if not self._rows_vary:
            steps = Fraction(int(sizes[1]) - int(sizes[0]), more)
            return Dim(int(sizes[0]) - steps * first, steps=steps)
        a, b, c, d = (int(size) for size in sizes)
        rows = ROWS[1] - ROWS[0]
        both = Fraction(d - c - b + a, more * rows)
        steps = Fraction(b - a, more) - both * ROWS[0]
        per_row = Fraction(c - a, rows) - both * first
        fixed = a - per_row * ROWS[0] - steps * first - both * ROWS[0] * first
        return Dim(fixed, per_row, steps, both)


def measure_shapes(runs: TensorRuns, inputs: SequenceInputs) -> MeasuredShapes:
    """Run a graph for two numbers of rows and two of timesteps, and once more with one timestep changed."""

    def at_length(tensor: str) -> Array:
        assert inputs.length is not None
        feeds = inputs.feeds(inputs.only_rows or ROWS[0], inputs.length, 0)
        return np.asarray(GraphSession(only_needed(runs.graph, tensor)).run(feeds)[tensor])

    counts = range(1 if inputs.only_rows else 2)
    values = {(rows, length): runs.at(inputs, rows, length) for rows in counts for length in range(2)}
    touched = runs.at(inputs, is_changed=True)
    weights = runs.loaded.weights
    facts = MeasuredShapes(values, touched, weights, inputs.lengths, at_length if inputs.length else None)
    runs.forget()
    facts.follow(runs.graph, inputs)
    return facts


def _along(changed: Array, axis: int) -> Array:
    return np.asarray(changed.any(axis=tuple(other for other in range(changed.ndim) if other != axis)))


def _first_changes(changed: Array, axis: int) -> dict[str, int]:
    """Return the first timestep with a change, by the order in which an axis may hold rows and timesteps."""
    along = _along(changed, axis)
    folds = {"BT": along.reshape(ROWS[0], -1), "TB": along.reshape(-1, ROWS[0]).T}
    return {order: int(np.argmax(fold.any(axis=0))) for order, fold in folds.items()}


def _first_of(value: Array, axis: int) -> Array:
    first: Array = np.broadcast_to(np.take(value, [0], axis=axis), value.shape) if value.shape[axis] else value
    return first


def _differs(left: Array, right: Array) -> Array:
    if left.dtype.kind != "f":
        return np.asarray(left != right)
    with np.errstate(invalid="ignore"):
        return ~np.isclose(left, right, rtol=1e-5, atol=1e-6, equal_nan=True)

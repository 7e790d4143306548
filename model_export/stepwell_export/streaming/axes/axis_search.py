"""Finds the time and batch axis of every input of a sequence graph by running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import RUNNING, STATEFUL
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import DTYPES
from stepwell_export.streaming.axes.inputs import LENGTHS, ROWS, SequenceInputs, find_slot, trial_lengths
from stepwell_export.streaming.axes.measured_shapes import TensorRuns, Values
from stepwell_export.streaming.normal_form.plain_form import Declared
from stepwell_export.verify.onnx_original import InputLayout

_TIME = re.compile(r"time|seq|len|step|frame|^[tTlLsS]$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^[bBnN]$|^bs$", re.IGNORECASE)
_TRIES = 48
"""Readings of one kind that are tried."""
_KEPT = 512
"""Readings of the first inputs that are kept when another is added: all of three inputs."""


def find_inputs(
    runs: TensorRuns,
    declared: Declared,
    *,
    time_axes: Mapping[str, int | None],
    batch_axes: Mapping[str, int | None] | None = None,
    length: int | None = None,
    tried: tuple[int, int] = LENGTHS,
) -> SequenceInputs:
    """Find the time and batch axis of every input by running the graph.

    Every likely reading is tried. The best is the one in which the graph's recurrences and convolutions run over
    what is read as time, and none over what is read as the batch; then what the declared names suggest.

    Args:
        runs: The graph, as `load_graph` returns it.
        declared: The declared size of every axis of every input: a number, a name or nothing.
        time_axes: The time axis that the user gave, by input; None: it has none.
        batch_axes: The batch axis that the user gave, in the same way.
        length: The declared number of timesteps, after which attention and positions end; None: there is none.
        tried: Two numbers of timesteps to run it with, if it was not declared for fewer.

    Raises:
        UnclearModelError: No reading runs.
        ModelLoadError: onnxruntime refuses the graph.
    """
    batch_axes = batch_axes or {}
    runs.load()  # before its nodes are read: onnxruntime refuses what is none
    graph = runs.graph.graph
    inputs = {value.name: value for value in graph.input}
    if unknown := (time_axes.keys() | batch_axes.keys()) - inputs.keys():
        raise UnclearModelError(
            f"The graph has no input {sorted(unknown)}; its inputs are {sorted(inputs)}.", fix="Check the name."
        )
    choices = []
    for name, value in inputs.items():
        dims, dtype = list(declared[name]), _dtype(value)
        if slot := find_slot(graph, name):
            choices.append(_bound(name, dtype, dims, slot))
        else:
            choices.append(_readings(name, dtype, dims, time_axes))
        if name in batch_axes:
            batch = _checked("--batch-axis", name, batch_axes[name], len(dims))
            choices[-1] = (
                [replace(layout, batch=batch) for layout in choices[-1][:1]]
                if slot
                else [layout for layout in choices[-1] if layout.batch == batch]
            )
    search = _Search(runs, declared, choices, has_given_axes=bool(time_axes), length=length, tried=tried)
    for any_steps, any_rows in ((True, True), (True, False), (False, True), (False, False)):
        search.try_all(any_rows=any_rows, any_steps=any_steps)
        if search.votes > 0:
            break
    if search.best is not None:
        _check_rates(search.best, declared, time_axes)
        return replace(search.best, is_certain=search.votes > 0 or bool(time_axes))
    way_out = (
        "declare that: `--length N`"
        if length is None
        else f"as one that flattens them, let it take the last {length} of any number: x[:, -{length}:]"
    )
    raise UnclearModelError(
        f"No axis of {sorted(inputs)} can be read as time: declared are "
        f"{ {name: list(dims) for name, dims in declared.items()} }, and the graph runs with no other number of "
        f"timesteps. {search.problem}".strip(),
        fix="Export it with a dynamic time axis, or name it: `--time-axis INPUT=AXIS`. If it was made for one number "
        f"of timesteps alone, {way_out}.",
    )


def _check_rates(inputs: SequenceInputs, declared: Declared, given: Mapping[str, int | None]) -> None:
    """Refuse inputs that declare different numbers of timesteps, unless the user gave their time axes.

    Raises:
        UnclearModelError: It has the inputs, their axes and their numbers.
    """
    timed = [layout for layout in inputs.external if layout.time is not None]
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


def _is_single(inputs: SequenceInputs, declared: Declared) -> bool:
    """Whether what is read as time was declared with one timestep, or without a batch beside more axes."""
    timed = [layout for layout in inputs.external if layout.time is not None]
    return any(
        declared[layout.name][layout.time or 0] == 1 or (layout.batch is None and len(layout.sizes) > 2)
        for layout in timed
    )


class _Search:
    """The search for the best reading.

    Attributes:
        best: The best so far.
        votes: Its votes.
        problem: What went wrong at first.
    """

    def __init__(
        self,
        runs: TensorRuns,
        declared: Declared,
        choices: list[list[InputLayout]],
        *,
        has_given_axes: bool,
        length: int | None,
        tried: tuple[int, int],
    ) -> None:
        self._runs = runs
        self._declared = declared
        self._readings = _together(choices, declared)
        self._has_given_axes = has_given_axes
        self._length, self._tried = length, tried
        self._lengths = trial_lengths(length, tried)
        self._score = -np.inf
        self.best: SequenceInputs | None = None
        self.votes = 0.0
        self.problem = ""

    def try_all(self, *, any_rows: bool, any_steps: bool) -> None:
        """Try the likeliest readings of one kind: free or fixed in rows and timesteps."""
        readings = _combined(self._readings, self._declared, any_rows=any_rows, any_steps=any_steps)
        for reading in islice(readings, _TRIES):
            inputs = replace(reading, length=self._length, tried=self._tried)
            if self.best is not None and not inputs.matches_declared(self._declared):
                continue  # it was declared free, and it is
            try:
                values = self._runs.at(inputs), self._runs.at(inputs, rows=int(inputs.only_rows is None), length=1)
            except ModelLoadError as exc:
                self.problem = self.problem or exc.problem[:200]
                continue
            rows = ROWS if inputs.only_rows is None else (inputs.only_rows, inputs.only_rows)
            votes = _votes(self._runs, values, rows, self._lengths)
            if votes <= 0 and not self._has_given_axes and _is_single(inputs, self._declared):
                continue
            score = 10 * votes + _prior(inputs, self._declared) - 4 * (not any_rows) - 4 * (not any_steps)
            if score > self._score:
                self.best, self.votes, self._score = inputs, votes, score


def _checked(flag: str, name: str, axis: int | None, rank: int) -> int | None:
    """Return an axis that the user gave, counted from 0.

    Raises:
        UnclearModelError: The input has no such axis.
    """
    if axis is not None and not -rank <= axis < rank:
        raise UnclearModelError(f"`{flag} {name}={axis}`: the input has {rank} axes.", fix="Axes are counted from 0.")
    return None if axis is None else axis % rank


def _readings(
    name: str, dtype: str, dims: list[int | str | None], time_axes: Mapping[str, int | None]
) -> list[InputLayout]:
    """Return what an input may be, the likeliest first."""
    sizes = tuple(dim if isinstance(dim, int) and dim > 0 else 2 for dim in dims)
    axes = range(len(dims))
    free = [axis for axis in axes if not isinstance(dims[axis], int)]
    if name in time_axes:
        times: list[int | None] = [_checked("--time-axis", name, time_axes[name], len(dims))]
    else:
        times = [*axes, None]
    readings = []
    for t in times:
        for b in (*(axis for axis in axes if axis != t), None):
            if b is None and (len(free) > 1 or (len(dims) > 2 and dims[0] == 1 and t != 0)):
                continue
            readings.append(InputLayout(name, dtype, sizes, b, t))
    return readings


def _bound(name: str, dtype: str, dims: list[int | str | None], slot: str) -> list[InputLayout]:
    """Return what an input that only is an initial state, or the lengths, may be."""
    sizes = tuple(dim if isinstance(dim, int) and dim > 0 else 2 for dim in dims)
    free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if slot == "length":
        return [InputLayout(name, dtype, sizes, 0, None, "length")]
    likely = free or {"gated": [1], "first": [0]}.get(slot, []) or [*range(len(dims))]
    rest = [axis for axis in range(len(dims)) if axis not in likely]
    return [InputLayout(name, dtype, sizes, batch, None, "state") for batch in (*likely, None, *rest)]


def _combined(
    readings: list[tuple[InputLayout, ...]], declared: Declared, *, any_rows: bool, any_steps: bool
) -> Iterator[SequenceInputs]:
    """Yield readings of one kind, in order."""
    for inputs in readings:
        if not any(layout.time is not None for layout in inputs):
            continue
        rows = steps = None
        if not any_steps:
            lengths = {declared[layout.name][layout.time] for layout in inputs if layout.time is not None}
            length = lengths.pop()
            if lengths or not isinstance(length, int):
                continue
            steps = length
        if not any_rows:
            sizes = {layout.sizes[layout.batch] for layout in inputs if layout.batch is not None}
            sizes -= {2} if len(sizes) > 1 else set()
            rows = min(sizes, default=1)
        yield SequenceInputs(inputs, rows, steps)


def _together(choices: list[list[InputLayout]], declared: Declared) -> list[tuple[InputLayout, ...]]:
    """Return the likeliest readings of all inputs together: axes that agree, names that agree.

    One input is added after another, and the best so far are kept: all of them are too many to be looked at.
    """

    def likely(inputs: tuple[InputLayout, ...]) -> float:
        return -_prior(SequenceInputs(inputs), declared)

    combined: list[tuple[InputLayout, ...]] = [()]
    for options in choices:
        best = sorted(options, key=lambda layout: likely((layout,)))[:8]
        combined = sorted(((*inputs, layout) for inputs in combined for layout in best), key=likely)[:_KEPT]
    return combined


def _prior(inputs: SequenceInputs, declared: Declared) -> float:
    """Return how likely a reading is by what is declared."""
    score = 0.0
    roles: dict[str, set[str]] = {}
    for layout in inputs.inputs:
        dims = declared[layout.name]
        for axis, dim in enumerate(dims):
            role = "time" if axis == layout.time else "batch" if axis == layout.batch else ""
            if isinstance(dim, str):
                roles.setdefault(dim, set()).add(role)
                score += 6 * ((role == "time") - (role == "batch")) * bool(_TIME.search(dim))
                score += 6 * ((role == "batch") - (role == "time")) * bool(_BATCH.search(dim))
            if not isinstance(dim, int):
                score += 4 if role else -4
        if layout.role != "external":
            continue
        floats = layout.dtype.startswith("float")
        score += _place_prior(layout, len(dims), floats=floats)
    score -= 8 * sum(len(places) > 1 for places in roles.values())
    asked = inputs.external
    score -= 2 * len({(layout.batch, layout.time) for layout in asked if layout.time is not None})
    lengths = [declared[layout.name][layout.time] for layout in asked if layout.time is not None]
    numbers = {length for length in lengths if isinstance(length, int)}
    mixed = len(numbers) > 0 and any(not isinstance(length, int) for length in lengths)
    return score - 2 * len(numbers) - 6 * mixed


def _place_prior(layout: InputLayout, rank: int, *, floats: bool) -> float:
    """Return how usual the places of batch and time are: batch first, time second, features last."""
    if layout.time is None:
        return 0.5 if rank <= 2 else -1.0
    usual = {(0, 1): 3.0, (0, 2): 2.0, (1, 0): 1.5, (0, 3): 1.0, (None, 0): 1.0}.get((layout.batch, layout.time), 0.0)
    if rank == 2 and layout.batch is not None and (floats or layout.batch):
        usual -= 2.2
    last = rank > 2 and layout.time == rank - 1
    return usual - (0.5 if last else 0.0)


def _votes(runs: TensorRuns, values: tuple[Values, Values], rows: tuple[int, int], steps: tuple[int, int]) -> float:
    """Count the operators that run over time in this reading, less those that run over the batch.

    Args:
        runs: The graph's runs.
        values: Every tensor of two runs. An axis of the same size in both, as a window's, is neither.
        rows: The number of rows in each.
        steps: The number of timesteps in each.
    """
    known, votes = {**runs.load().weights, **values[0]}, 0.0
    for node in runs.graph.graph.node:
        if not len(node.input) or _ran(node) not in values[0]:
            continue
        for axis, weight in _run_over(node, known):
            sizes = tuple(np.shape(run[_ran(node)])[axis] for run in values)
            votes += weight * (sizes == steps) - 2 * weight * (sizes == rows and rows[0] != 1)
    return votes


def _ran(node: Any) -> str:
    return str(node.input[-1] if node.op_type == "Scan" else node.input[0])


def _run_over(node: Any, values: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield the axes of its first input that a node runs over, and how strong that evidence is."""
    rank = np.ndim(values[_ran(node)])
    attrs = attributes(node)
    operator = STATEFUL.get(node.op_type)
    if operator is not None and operator.time_axis is not None:
        yield operator.time_axis, 2
    elif node.op_type == "Scan":
        axes = attrs.get("scan_input_axes") or [0] * int(attrs["num_scan_inputs"])
        yield (1 if not node.input[0] else axes[-1]), 2
    elif node.op_type in RUNNING and node.input[1] in values:
        yield int(np.reshape(values[node.input[1]], -1)[0]), 1
    elif node.op_type in {"Conv", "MaxPool", "AveragePool"}:
        yield from ((axis, 1 / (rank - 2)) for axis in range(2, rank))


def _dtype(value: Any) -> str:
    kind = value.type.tensor_type.elem_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name if kind else value.type.WhichOneof("value")
    if dtype not in DTYPES:
        raise RefusedModelError(
            f"Input {value.name!r} is {dtype}; expected a tensor of {', '.join(DTYPES)}.",
            fix="Move what needs it out of the graph.",
        )
    return str(dtype)

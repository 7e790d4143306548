"""What a sequence graph takes: which inputs are whole sequences, where their time and batch axes are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, Literal

import numpy as np
import onnx

from model_export.errors import ModelLoadError, RefusedModelError, UnclearModelError
from model_export.manifest import DTYPES, Array
from model_export.sequence.facts import LENGTHS, ROWS, TOUCHED, run, session
from model_export.sequence.lengths import with_length
from model_export.sequence.load import GATED, attributes, captures, subgraphs

_TIME = re.compile(r"time|seq|len|step|frame|^[tTlLsS]$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^[bBnN]$|^bs$", re.IGNORECASE)
_STATE_SLOTS = {
    "LSTM": (5, 6), "GRU": (5,), "RNN": (5,), "CausalConvWithState": (3,), "LinearAttention": (3,),
}  # fmt: skip
_ROUTES = {"Identity", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Cast", "Flatten"}
_TRIES = 48

Declared = Mapping[str, Sequence[int | str | None]]
"""The declared size of every axis of every input: a number, a name or nothing."""

Role = Literal["asked", "state", "length"]


@dataclass(frozen=True, slots=True)
class Door:
    """One input of a sequence graph.

    Attributes:
        name: The input.
        dtype: NumPy name.
        sizes: Of every axis; those of batch and time are an example.
        batch: Axis of the rows; None: it has none.
        time: Axis of the timesteps; None: one value for the whole sequence.
        role: `asked` of the caller; the initial `state` of a recurrence, which becomes a state of the step graph;
            or the `length` of the sequences.
    """

    name: str
    dtype: str
    sizes: tuple[int, ...]
    batch: int | None = None
    time: int | None = None
    role: Role = "asked"

    def shape(self, rows: int, steps: int) -> tuple[int, ...]:
        """Return the shape for so many rows and timesteps."""
        shape = list(self.sizes)
        for axis, size in ((self.batch, rows), (self.time, steps)):
            if axis is not None:
                shape[axis] = size
        return tuple(shape)

    def fixed(self, rows: int, steps: int) -> Array | None:
        """Return what an input that is not asked for is fed with; None: it is asked for."""
        if self.role == "asked":
            return None
        return np.full(self.shape(rows, steps), steps if self.role == "length" else 0, self.dtype)

    def drawn(self, rows: int, steps: int, seed: int) -> Array:
        """Return data for `model_export.sequence.facts.gather_facts`."""
        fixed = self.fixed(rows, steps)
        if fixed is not None:
            return fixed
        value = _draw(np.random.default_rng(seed // 10), self.dtype, self.shape(rows, steps))
        if seed % 10 and self.time is not None:
            at = [slice(None)] * value.ndim
            at[self.time] = slice(TOUCHED, TOUCHED + 1)
            other = _draw(np.random.default_rng(seed), self.dtype, value[tuple(at)].shape)
            value[tuple(at)] = other + 2 if value.dtype.kind == "f" else 1 - value[tuple(at)]
        return value


@dataclass(frozen=True, slots=True)
class Doors:
    """Every input of a sequence graph.

    Attributes:
        doors: In graph order.
        only_rows: The one number of rows that the graph takes; None: any.
        only_steps: The one number of timesteps that the graph takes; None: any.
        sure: Whether an operator runs over what was read as time.
    """

    doors: tuple[Door, ...]
    only_rows: int | None = None
    only_steps: int | None = None
    sure: bool = False

    def honest(self, declared: Declared) -> bool:
        """Whether the number of rows, where it is fixed in this reading, was declared with a number."""
        declared_rows = [declared[door.name][door.batch] for door in self.asked if door.batch is not None]
        return self.only_rows is None or all(isinstance(rows, int) for rows in declared_rows)

    def fitted(self, proto: Any, steps: int) -> Any:
        """Return the graph for a number of timesteps: itself, or one with that length in its shapes."""
        if self.only_steps is None:
            return proto
        return with_length(proto, old=self.only_steps, new=steps, rows=self.only_rows or 1)

    def feeds(self, rows: int, steps: int, seed: int) -> dict[str, Array]:
        """Return drawn data for every input; seeds that differ by one differ at one timestep alone."""
        return {door.name: door.drawn(rows, steps, seed) for door in self.doors}

    @property
    def asked(self) -> list[Door]:
        """The inputs that a caller sends."""
        return [door for door in self.doors if door.role == "asked"]


def find_doors(
    proto: Any,
    declared: Declared,
    *,
    time_axes: Mapping[str, int],
) -> Doors:
    """Find the time and batch axis of every input by running the graph.

    Every likely reading is tried. The best is the one in which the graph's recurrences and convolutions run over
    what is read as time, and none over what is read as the batch; then what the declared names suggest.

    Args:
        proto: As `load_graph` returns it.
        declared: The declared size of every axis of every input: a number, a name or nothing.
        time_axes: What the user said, by input.

    Raises:
        UnclearModelError: No reading runs.
    """
    inputs = {value.name: value for value in proto.graph.input}
    if unknown := time_axes.keys() - inputs.keys():
        raise UnclearModelError(
            f"The graph has no input {sorted(unknown)}; its inputs are {sorted(inputs)}.", fix="Check the name."
        )
    choices = []
    for name, value in inputs.items():
        dims, dtype = list(declared[name]), _dtype(value)
        if slot := _slot(proto.graph, name):
            choices.append(_bound(name, dtype, dims, slot))
        else:
            choices.append(_readings(name, dtype, dims, time_axes))
    search = _Search(proto, declared, choices, told=bool(time_axes))
    for any_steps, any_rows in ((True, True), (True, False), (False, True), (False, False)):
        search.try_all(any_rows=any_rows, any_steps=any_steps)
        if search.votes > 0:
            break
    if search.best is not None:
        return replace(search.best, sure=search.votes > 0 or bool(time_axes))
    raise UnclearModelError(
        f"No axis of {sorted(inputs)} can be read as time: declared are "
        f"{ {name: list(dims) for name, dims in declared.items()} }, and the graph runs with no other number of "
        f"timesteps. {search.problem}".strip(),
        fix="Export it with a dynamic time axis, or say where it is: `--time-axis INPUT=AXIS`. A graph that takes one "
        "timestep and its state already is stepwise: `stepwell adopt` describes it.",
    )


def _is_single(doors: Doors, declared: Declared) -> bool:
    """Whether what is read as time was declared with one timestep, or without a batch beside more axes."""
    timed = [door for door in doors.asked if door.time is not None]
    return any(
        declared[door.name][door.time or 0] == 1 or (door.batch is None and len(door.sizes) > 2) for door in timed
    )


class _Search:
    """The search for the best reading.

    Attributes:
        best: The best so far.
        votes: Its votes.
        problem: What went wrong at first.
    """

    def __init__(self, proto: Any, declared: Declared, choices: list[list[Door]], *, told: bool) -> None:
        self._proto = proto
        self._declared = declared
        self._choices = choices
        self._told = told
        self._score = -np.inf
        self._loaded = session(proto, every_tensor=True)
        self.best: Doors | None = None
        self.votes = 0.0
        self.problem = ""

    def try_all(self, *, any_rows: bool, any_steps: bool) -> None:
        """Try the likeliest readings of one kind: free or fixed in rows and timesteps."""
        readings = _combined(self._choices, self._declared, any_rows=any_rows, any_steps=any_steps)
        for doors in islice(readings, _TRIES):
            if self.best is not None and not doors.honest(self._declared):
                continue  # it was declared free, and it is
            try:
                values = self._values(doors)
            except ModelLoadError as exc:
                self.problem = self.problem or exc.problem[:200]
                continue
            votes = _votes(self._proto, values, doors.only_rows or ROWS[0])
            if votes <= 0 and not self._told and _is_single(doors, self._declared):
                continue
            score = 10 * votes + _prior(doors, self._declared) - 4 * (not any_rows) - 4 * (not any_steps)
            if score > self._score:
                self.best, self.votes, self._score = doors, votes, score

    def _values(self, doors: Doors) -> dict[str, Any]:
        """Run a reading with two sizes and return every tensor of the first.

        Raises:
            ModelLoadError: It does not run.
        """
        runs = []
        for rows, steps in zip(ROWS, LENGTHS, strict=True):
            fitted = doors.fitted(self._proto, steps)
            loaded = self._loaded if fitted is self._proto else session(fitted, every_tensor=True)
            runs.append(run(loaded, doors.feeds(doors.only_rows or rows, steps, 0)))
        return runs[0]


def _readings(name: str, dtype: str, dims: list[int | str | None], time_axes: Mapping[str, int]) -> list[Door]:
    """Return what an input may be, the likeliest first."""
    sizes = tuple(dim if isinstance(dim, int) and dim > 0 else 2 for dim in dims)
    axes = range(len(dims))
    free = [axis for axis in axes if not isinstance(dims[axis], int)]
    if name in time_axes:
        time = time_axes[name]
        if not -len(dims) <= time < len(dims):
            raise UnclearModelError(
                f"`--time-axis {name}={time}`: the input has {len(dims)} axes.", fix="Axes are counted from 0."
            )
        times: list[int | None] = [time % len(dims)]
    elif time_axes:
        times = [None, *axes]
    else:
        times = [*axes, None]
    found = []
    for t in times:
        for b in (*(axis for axis in axes if axis != t), None):
            if b is None and (len(free) > 1 or (len(dims) > 2 and dims[0] == 1 and t != 0)):
                continue
            found.append(Door(name, dtype, sizes, b, t))
    return found


def _bound(name: str, dtype: str, dims: list[int | str | None], slot: str) -> list[Door]:
    """Return what an input that only is an initial state, or the lengths, may be."""
    sizes = tuple(dim if isinstance(dim, int) and dim > 0 else 2 for dim in dims)
    free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if slot == "length":
        return [Door(name, dtype, sizes, 0, None, "length")]
    likely = free or {"gated": [1], "first": [0]}.get(slot, []) or [*range(len(dims))]
    rest = [axis for axis in range(len(dims)) if axis not in likely]
    return [Door(name, dtype, sizes, batch, None, "state") for batch in (*likely, None, *rest)]


def _combined(choices: list[list[Door]], declared: Declared, *, any_rows: bool, any_steps: bool) -> Iterator[Doors]:
    """Yield readings of all inputs together, the likeliest first: axes that agree, names that agree."""
    ranked = [sorted(options, key=lambda door: -_prior(Doors((door,)), declared))[:8] for options in choices]
    seen: list[tuple[float, Doors]] = []
    for doors in product(*ranked):
        if not any(door.time is not None for door in doors):
            continue
        rows = steps = None
        if not any_steps:
            lengths = {declared[door.name][door.time] for door in doors if door.time is not None}
            length = lengths.pop()
            if lengths or not isinstance(length, int):
                continue
            steps = length
        if not any_rows:
            sizes = {door.sizes[door.batch] for door in doors if door.batch is not None}
            sizes -= {2} if len(sizes) > 1 else set()
            rows = min(sizes, default=1)
        seen.append((_prior(Doors(doors), declared), Doors(doors, rows, steps)))
    seen.sort(key=lambda pair: -pair[0])
    yield from (doors for _, doors in seen)


def _prior(doors: Doors, declared: Declared) -> float:
    """Say how likely a reading is by what is declared."""
    score = 0.0
    roles: dict[str, set[str]] = {}
    for door in doors.doors:
        dims = declared[door.name]
        for axis, dim in enumerate(dims):
            role = "time" if axis == door.time else "batch" if axis == door.batch else ""
            if isinstance(dim, str):
                roles.setdefault(dim, set()).add(role)
                score += 6 * ((role == "time") - (role == "batch")) * bool(_TIME.search(dim))
                score += 6 * ((role == "batch") - (role == "time")) * bool(_BATCH.search(dim))
            if not isinstance(dim, int):
                score += 4 if role else -4
        if door.role != "asked":
            continue
        floats = door.dtype.startswith("float")
        score += _place_prior(door, len(dims), floats=floats)
    score -= 8 * sum(len(found) > 1 for found in roles.values())
    asked = doors.asked
    score -= 2 * len({(door.batch, door.time) for door in asked if door.time is not None})
    lengths = [declared[door.name][door.time] for door in asked if door.time is not None]
    numbers = {length for length in lengths if isinstance(length, int)}
    mixed = 0 < len(numbers) and any(not isinstance(length, int) for length in lengths)
    return score - 2 * len(numbers) - 6 * mixed


def _place_prior(door: Door, rank: int, *, floats: bool) -> float:
    """Say how usual the places of batch and time are: batch first, time second, features last."""
    if door.time is None:
        return 0.5 if rank <= 2 else -1.0
    usual = {(0, 1): 3.0, (0, 2): 2.0, (1, 0): 1.5, (0, 3): 1.0, (None, 0): 1.0}.get((door.batch, door.time), 0.0)
    if rank == 2 and door.batch is not None and (floats or door.batch):
        usual -= 2.2
    last = rank > 2 and door.time == rank - 1
    return usual - (0.5 if last else 0.0)


def _votes(proto: Any, values: Mapping[str, Any], rows: int) -> float:
    """Count the operators that run over time in this reading, less those that run over the batch."""
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    votes = 0.0
    for node in proto.graph.node:
        if not len(node.input) or _ran(node) not in values:
            continue
        for axis, weight in _run_over(node, {**weights, **values}):
            size = np.shape(values[_ran(node)])[axis]
            votes += weight * (size == LENGTHS[0]) - 2 * weight * (size == rows and rows != 1)
    return votes


def _ran(node: Any) -> str:
    return str(node.input[-1] if node.op_type == "Scan" else node.input[0])


def _run_over(node: Any, values: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield the axes of its first input that a node runs over, and how much that says."""
    rank = np.ndim(values[_ran(node)])
    attrs = attributes(node)
    if node.op_type in GATED:
        yield 0, 2
    elif node.op_type == "Scan":
        axes = attrs.get("scan_input_axes") or [0] * int(attrs["num_scan_inputs"])
        yield (1 if not node.input[0] else axes[-1]), 2
    elif node.op_type == "LinearAttention":
        yield 1, 2
    elif node.op_type == "CausalConvWithState":
        yield 2, 2
    elif node.op_type == "CumSum" and node.input[1] in values:
        yield int(values[node.input[1]]), 1
    elif node.op_type in {"Conv", "MaxPool", "AveragePool"}:
        yield from ((axis, 1 / (rank - 2)) for axis in range(2, rank))


def _slot(graph: Any, name: str) -> str:
    """Say what an input is that goes nowhere but into recurrences: a `length`, or a state by where its batch is."""
    slots = _slots_of(graph, name, depth=0)
    if not slots or None in slots:
        return ""
    if slots == {"length"}:
        return "length"
    return slots.pop() or "" if len(slots) == 1 and "length" not in slots else "" if "length" in slots else "routed"


def _slots_of(graph: Any, name: str, depth: int) -> set[str | None]:
    """Return the slots that a tensor reaches; None among them where it is used in any other way."""
    found: set[str | None] = {None} if any(output.name == name for output in graph.output) else set()
    for node in graph.node:
        if name in captures(node):
            found.add(None)
        for place in (i for i, given in enumerate(node.input) if given == name):
            found |= _slot_at(graph, node, place, depth)
    return found


def _slot_at(graph: Any, node: Any, place: int, depth: int) -> set[str | None]:
    if node.op_type in GATED and place == 4:
        return {"length"}
    if place in _STATE_SLOTS.get(node.op_type, ()):
        return {"first" if node.op_type not in GATED else "gated"} if not depth else {"routed"}
    if node.op_type == "Scan":
        old = "" in node.input[:1]
        states = len(node.input) - int(attributes(node)["num_scan_inputs"])
        return {"length"} if old and not place else {"state"} if place < states else {None}
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


def _dtype(value: Any) -> str:
    kind = value.type.tensor_type.elem_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name if kind else value.type.WhichOneof("value")
    if dtype not in DTYPES:
        raise RefusedModelError(
            f"Input {value.name!r} is {dtype}; expected a tensor of {', '.join(DTYPES)}.",
            fix="Move what needs it out of the graph.",
        )
    return str(dtype)


def _draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)

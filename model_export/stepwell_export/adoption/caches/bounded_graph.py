"""Gives a graph whose caches grow with every timestep caches of a declared number of timesteps.

Such graphs have the keys and values of all timesteps so far as inputs, and return them one timestep longer:
`past_key_values.0.key` and `present.0.key` in decoders of Hugging Face. The mask over them and the position of the
timestep are computed from a count that is one more state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell_export.adoption.axes import Declared, ShapedTensor, find_batch_axes, open_axes, shown
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.adoption.pairing import related, split_words
from stepwell_export.graph.builder import NodeBuilder, declared, element_type
from stepwell_export.graph.nodes import read_opset, renamed, replace_items, tensor_names
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError

if TYPE_CHECKING:
    import onnx

COUNT = "caches.timesteps"
"""The state that counts timesteps; `timesteps` alone is an input of Decision Transformers."""

_OPSET = 13
_HOW = "Declare how many timesteps they hold: `--length N -o NEW.onnx`, the number that the model was trained with."


@dataclass(frozen=True, slots=True)
class Cache:
    """An input that holds something of all timesteps so far.

    Attributes:
        past: The input.
        present: The output that is one timestep longer.
        dtype: NumPy name.
        dims: The input's declared axes.
        batch: Its batch axis.
        axis: The axis that grows.
    """

    past: str
    present: str
    dtype: str
    dims: tuple[int | str | None, ...]
    batch: int
    axis: int

    @property
    def state(self) -> str:
        """The name of the state that holds the last timesteps."""
        return f"{self.past}.window"

    def shape(self, rows: int, steps: int) -> tuple[int, ...]:
        """Return the shape for so many rows and timesteps."""
        sizes = {self.batch: rows, self.axis: steps}
        return tuple(sizes.get(axis, d if isinstance(d, int) else 1) for axis, d in enumerate(self.dims))


@dataclass(frozen=True, slots=True)
class GrowingGraph:
    """What a graph with growing caches takes.

    Attributes:
        caches: In the order of the inputs.
        states: Output by input of the states that have one size.
        batches: The batch axis by input; None: it has none.
        mask: The input that shows which timesteps of the caches count, with the new one; None: there is none.
        position: The input that has the position of the timestep; None: there is none.
        positions: How many positions the graph has; None: as many as there are timesteps.
    """

    caches: Sequence[Cache]
    states: Mapping[str, str]
    batches: Mapping[str, int | None]
    mask: Declared | None
    position: Declared | None
    positions: int | None = None


def read_caches(graph: OrtGraph, hints: Overrides) -> GrowingGraph:
    """Find the caches of a graph by their names and declared axes.

    Raises:
        RefusedModelError: It has none, or its mask has an unusual form.
        UnclearModelError: More than one axis of a cache may be the one that grows, or an initial value was given.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    batches = find_batch_axes(changing, hints.batch_axes)
    caches: list[Cache] = []
    states: dict[str, str] = {}
    for before in changing:
        after = next((o for o in graph.outputs if _follows(before, o, hints)), None)
        if after is None:
            continue
        batch, time = batches[before.name], hints.time_axes.get(before.name)
        axes = [time] if time is not None else open_axes(before, batch)
        if not axes:
            states[before.name] = after.name
            continue
        if len(axes) > 1 or batch is None:
            raise UnclearModelError(
                f"Cache {before.name!r} is declared {shown(before.dims)}; one axis is the batch, and one grows.",
                fix=f"Set both: `--batch-axis {before.name}=0 --time-axis {before.name}=AXIS`, for each cache.",
            )
        if before.name in hints.initial:
            raise UnclearModelError(
                f"Cache {before.name!r} has an initial value; expected none: a stream begins with empty caches.",
                fix=f"Leave out the initial value of {before.name!r}.",
            )
        caches.append(Cache(before.name, after.name, before.dtype, before.dims, batch, axes[0]))
    if not caches:
        raise RefusedModelError(
            f"No cache was found in {graph.path}: expected an input with an axis of an open length, and an output of "
            "the same type that is one timestep longer.",
            fix="Name them with `--state IN=OUT`, or leave out `--length`.",
        )
    held = {cache.past for cache in caches} | states.keys()
    others = [tensor for tensor in changing if tensor.name not in held]
    mask = next((tensor for tensor in others if "mask" in split_words(tensor.name)), None)
    if mask is not None and len(mask.dims) != 2:
        raise RefusedModelError(
            f"Input {mask.name!r} is declared {shown(mask.dims)}; expected a mask (batch, timesteps).",
            fix="Export the model with such a mask, as Hugging Face's exporter does.",
        )
    position = next((t for t in others if "position" in split_words(t.name.replace("positions", "position"))), None)
    return GrowingGraph(caches, states, batches, mask, position)


def _follows(before: Declared, after: Declared, hints: Overrides) -> bool:
    if hints.states:
        return hints.states.get(before.name) == after.name
    return before.dtype == after.dtype and len(before.dims) == len(after.dims) and related(before.name, after.name)


def check_growing(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> None:
    """Refuse a graph with growing caches for which no length was declared.

    Args:
        inputs: What may be a state, for one timestep.
        outputs: What may be a next state.

    Raises:
        UnclearModelError: It has one; the message has the flag that declares the length.
    """
    for before in inputs:
        for after in outputs:
            if before.dtype != after.dtype or len(before.shape) != len(after.shape) or len(before.shape) < 3:
                continue
            more = [b - a for a, b in zip(before.shape, after.shape, strict=True) if a != b]
            if more == [1] and related(before.name, after.name):
                raise UnclearModelError(
                    f"{before.name!r} is a cache that grows: {after.name!r} is one timestep longer. A state has a "
                    "fixed size.",
                    fix=_HOW,
                )


def with_bounded_caches(
    model: onnx.ModelProto, growing: GrowingGraph, length: int, *, by_row: bool
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a graph whose states are the last `length - 1` timesteps of each cache, and a count.

    Args:
        model: The graph.
        growing: What it takes.
        length: Timesteps that attention covers, the new one included.
        by_row: Give the graph only those timesteps that there are, which needs one row at a time. Else the caches have
            zeros in front, which the mask leaves out.

    Returns:
        The graph, and the output by input of every state.

    Raises:
        RefusedModelError: The graph's operators are too old, or no output could show that its positions have ended.
    """
    if (opset := read_opset(model)) < _OPSET:
        raise RefusedModelError(
            f"The graph uses opset {opset}; expected {_OPSET} or later.",
            fix="Convert it with onnx.version_converter, or export it again.",
        )
    made = copy.deepcopy(model)
    graph, past, taken = made.graph, length - 1, tensor_names(model.graph)
    front, behind = NodeBuilder("bounded", taken), NodeBuilder("bounded/next", taken)
    count = front.op("Min", front.op("Reshape", COUNT, front.ints([1])), front.ints([past])) if by_row else ""
    held = {cache.past: cache for cache in growing.caches}
    given = [growing.mask, growing.position]
    computed = {tensor.name for tensor in given if tensor is not None}
    for cache in growing.caches:
        if by_row:
            start = front.op("Sub", front.ints([past]), count)
            front.add("Slice", [cache.state, start, front.ints([past]), front.ints([cache.axis])], [cache.past])
        else:
            front.add("Identity", [cache.state], [cache.past])
        ends = [behind.ints(values) for values in ([-1], [np.iinfo(np.int64).max], [cache.axis])]
        new = behind.op("Slice", cache.present, *ends)
        joined = behind.op("Concat", cache.state, new, axis=cache.axis)
        behind.add("Slice", [joined, behind.ints([1]), *ends[1:]], [f"{cache.state}_next"])
    if growing.mask is not None:
        front.add("Identity", [_mask(front, growing.mask, past, count)], [growing.mask.name])
    if growing.position is not None:
        front.add("Identity", [_position(front, growing.position, growing.positions)], [growing.position.name])
    behind.add("Add", [COUNT, behind.ints(1)], [f"{COUNT}_next"])

    presents = {cache.present for cache in growing.caches}
    outputs = [value for value in graph.output if value.name not in presents]
    last = growing.positions if growing.position is not None else length
    late = {} if last is None else _without_late(behind, outputs, growing, last)
    nodes = [renamed(node, late, name=node.name) for node in graph.node]
    replace_items(graph.node, [*front.nodes, *nodes, *behind.nodes])
    graph.initializer.extend([*front.constants, *behind.constants])
    del graph.value_info[:]
    states = [
        declared(name, cache.dtype, _row(cache, past), cache.batch)
        for cache in growing.caches
        for name in (cache.state, f"{cache.state}_next")
    ]
    counts = [declared(name, "int64", [1], 0) for name in (COUNT, f"{COUNT}_next")]
    kept = [value for value in graph.input if value.name not in held.keys() | computed]
    replace_items(graph.input, [*kept, *states[::2], counts[0]])
    replace_items(graph.output, [*outputs, *states[1::2], counts[1]])
    pairs = {cache.state: f"{cache.state}_next" for cache in growing.caches}
    return made, {**growing.states, **pairs, COUNT: f"{COUNT}_next"}


def _row(cache: Cache, past: int) -> list[int]:
    return [size for axis, size in enumerate(cache.shape(1, past)) if axis != cache.batch]


def _mask(front: NodeBuilder, mask: Declared, past: int, count: str) -> str:
    """Emit the mask, `(batch, timesteps)`: ones for what there is."""
    if count:
        shape = front.op("Concat", front.ints([1]), front.op("Add", count, front.ints([1])), axis=0)
        return front.op("Expand", front.constant(np.ones((1, 1), mask.dtype)), shape)
    ages = front.constant(np.arange(past, -1, -1, dtype=np.int64)[None])
    return front.cast(front.op("Not", front.op("Less", COUNT, ages)), mask.dtype)


def _position(front: NodeBuilder, position: Declared, positions: int | None) -> str:
    """Emit the position, `(batch, 1)` or `(1,)`; after the last one, the last one."""
    place = COUNT
    if positions is not None:
        place = front.op("Min", place, front.constant(np.array([[positions - 1]], np.int64)))
    if len(position.dims) == 1:
        place = front.op("Reshape", place, front.ints([1]))
    return place if position.dtype == "int64" else front.cast(place, position.dtype)


def _without_late(behind: NodeBuilder, outputs: Sequence[Any], growing: GrowingGraph, last: int) -> dict[str, str]:
    """Emit NaN for outputs after the last timestep that the graph is defined for; return their names before that."""
    late = behind.op("Not", behind.op("Less", COUNT, behind.constant(np.array([[last]], np.int64))))
    names: dict[str, str] = {}
    for value in outputs:
        tensor = value.type.tensor_type
        kind = next((d for d in ("float32", "float16", "float64") if element_type(d) == tensor.elem_type), None)
        if kind is None or value.name in growing.states.values():
            continue
        names[value.name] = f"{value.name}.whole"
        rank = max(len(tensor.shape.dim), 1)
        rows = behind.op("Reshape", late, behind.ints([-1, *[1] * (rank - 1)]))
        behind.add("Where", [rows, behind.constant(np.array(np.nan, kind)), names[value.name]], [value.name])
    if not names:
        raise RefusedModelError(
            f"The graph is defined for {last} timesteps, and no output is of floating-point numbers; expected one that "
            "can be NaN after them.",
            fix="Export the model with its logits as an output.",
        )
    return names

"""A graph that runs for its declared number of timesteps alone, for fewer too, by each likely reading of its axes.

Before and after:

    x (B, 20, 4)                           x (B, T, 4) -> T
       | Reshape to (-1, 20, 2, 2)    ->      | Reshape to (-1, 20 + (T - 20), 2, 2)
       | Add positions (20, 4)                | Add positions[:T]
       | Gather at 19                         | Gather at -1
    y (B, 4)                               y (B, 4)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import accumulate, islice, pairwise, product
from operator import mul
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import attributes, replace_items, tensor_names, uses
from stepwell_export.graph.operators import BROADCASTING
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.inputs import ROWS, draw_input, trial_lengths
from stepwell_export.streaming.normal_form.plain_form import Declared
from stepwell_export.verify.onnx_original import InputLayout

_MOST_READINGS = 6

Feeds = Mapping[str, Array]


def opened_graphs(
    model: onnx.ModelProto, declared: Declared, time_axes: Mapping[str, int | None], length: int
) -> Iterator[tuple[onnx.ModelProto, Declared]]:
    """Yield the graph for `length` timesteps and fewer, with what its inputs then declare.

    Args:
        model: The graph, which takes `length` timesteps and no other number.
        declared: The declared size of every axis of every input.
        time_axes: The time axis that the user gave, by input; None: it has none.
        length: The declared number of timesteps.
    """
    options = [_axes(name, dims, time_axes, length) for name, dims in declared.items()]
    for chosen in islice(product(*options), _MOST_READINGS):
        axes = {name: axis for name, axis in zip(declared, chosen, strict=True) if axis is not None}
        if not axes:
            continue
        shorter = min(trial_lengths(length)[0], length - 1)
        full, short = (_drawn(model, declared, axes, steps) for steps in (length, shorter))
        opened = with_open_length(model, axes, length, full, short)
        if opened is not None:
            yield (
                opened,
                {
                    name: ["time" if axes.get(name) == axis else dim for axis, dim in enumerate(dims)]
                    for name, dims in declared.items()
                },
            )


def is_written(declared: Declared, time_axes: Mapping[str, int | None], length: int) -> bool:
    """Whether an input declares an axis that may be the time axis with that very length."""
    options = ((dims, _axes(name, dims, time_axes, length)[0]) for name, dims in declared.items())
    return any(axis is not None and dims[axis] == length for dims, axis in options)


def _axes(name: str, dims: list[Any], given: Mapping[str, int | None], length: int) -> list[int | None]:
    """Return what the time axis of an input may be: what is given, else an axis of that length, an open one, none."""
    if name in given:
        axis = given[name]
        return [None if axis is None or not dims else axis % len(dims)]
    free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    written = [axis for axis, dim in enumerate(dims) if dim == length] if len(free) < 2 else []  # else a feature's size
    return [*(written or free[::-1]), None]


def _drawn(model: onnx.ModelProto, declared: Declared, axes: Mapping[str, int], steps: int) -> dict[str, Any]:
    """Return data for so many timesteps; axes that are open otherwise have several rows."""
    drawn = {}
    for value in model.graph.input:
        dims, axis = declared[value.name], axes.get(value.name)
        sizes = tuple(dim if isinstance(dim, int) else ROWS[0] for dim in dims)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        drawn[value.name] = draw_input(InputLayout(value.name, dtype, sizes, None, axis), ROWS[0], steps, 0, 0)
    return drawn


class _ClosedError(Exception):
    """The graph runs for its own number of timesteps alone."""


def with_open_length(
    model: onnx.ModelProto, axes: Mapping[str, int], length: int, full: Feeds, short: Feeds
) -> onnx.ModelProto | None:
    """Return the graph for `length` timesteps and fewer; None where that is not found.

    Args:
        model: The graph, which takes `length` timesteps and no other number.
        axes: The time axis of every input that has one.
        length: How many timesteps it was made for.
        full: Data of so many timesteps by input.
        short: Data of fewer timesteps.
    """
    try:
        opened = _Opening(model, axes, length, full, short).run()
        want, got = (_run(proto, full, [value.name for value in model.graph.output]) for proto in (model, opened))
    except Exception:  # noqa: BLE001  # whatever onnxruntime and NumPy raise: the graph is left as it was
        return None
    same = all(
        np.array_equal(wanted, other, equal_nan=wanted.dtype.kind == "f")
        for wanted, other in zip(want, got, strict=True)
    )
    return opened if same else None


class _Opening:
    """The graph while its nodes are changed, with every tensor for both numbers of timesteps."""

    def __init__(self, model: onnx.ModelProto, axes: Mapping[str, int], length: int, full: Feeds, short: Feeds) -> None:
        self._model = model
        self._length = length
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        every = list(dict.fromkeys(name for node in model.graph.node for name in node.output if name))
        self._full: dict[str, Array] = {**weights, **full, **dict(zip(every, _run(model, full, every), strict=True))}
        self._short: dict[str, Array] = {**weights, **short}
        self._builder = NodeBuilder("length", sorted(tensor_names(model.graph)))
        name, axis = next(iter(axes.items()))
        self._steps = short[name].shape[axis]
        self._now = self._op("Gather", self._op("Shape", name), self._ints([axis]), axis=0)
        self._missing = self._op("Sub", self._now, self._ints([length]))

    def run(self) -> onnx.ModelProto:
        """Change the graph node by node.

        Raises:
            _ClosedError: A node does not run for fewer timesteps.
        """
        for original in self._model.graph.node:
            node = copy.deepcopy(original)
            self._follow(node)
            self._builder.nodes.append(node)
            self._evaluate(node)
        made = copy.deepcopy(self._model)
        replace_items(made.graph.node, self._builder.nodes)
        made.graph.initializer.extend(self._builder.constants)
        return made

    def _follow(self, node: onnx.NodeProto) -> None:
        """Let a node take what follows the number of timesteps."""
        if node.op_type == "Reshape":
            self._shift(node, 1, self._reshaped(node))
        elif node.op_type == "Expand":
            self._shift(node, 1, self._expanded(node))
        elif node.op_type == "Slice" and len(node.input) > 2:
            for place in (1, 2):
                self._count_from_the_end(node, place)
        elif node.op_type == "Gather":
            self._gathered(node)
        for group in _together(node, {name: value.ndim for name, value in self._full.items()}):
            self._fit(node, group)

    # ---------------------------------------------------------------- tensors beside timesteps

    def _fit(self, node: onnx.NodeProto, group: list[tuple[int, int]]) -> None:
        """Cut inputs where others along the same axis have fewer timesteps."""
        sizes = [self._sizes(node.input[place], axis) for place, axis in group]
        short = {now for whole, now in sizes if now < whole}
        for (place, axis), (whole, now) in zip(group, sizes, strict=True):
            times = whole // self._length
            if whole == now and whole % self._length == 0 and times * self._steps in short:
                node.input[place] = self._cut(node.input[place], axis, times)

    def _cut(self, name: str, axis: int, times: int) -> str:
        end = self._now if times == 1 else self._op("Mul", self._now, self._ints([times]))
        return self._op("Slice", name, self._ints([0]), end, self._ints([axis]), like=name)

    def _sizes(self, name: str, axis: int) -> tuple[int, int]:
        return self._full[name].shape[axis], self._short[name].shape[axis]

    # ---------------------------------------------------------------- written numbers

    def _reshaped(self, node: onnx.NodeProto) -> list[int]:
        """Return how many times the number of timesteps is in each written size of a Reshape."""
        data, target = node.input[:2]
        before, after = self._full[data].shape, self._full[node.output[0]].shape
        written = [int(size) for size in self._short[target]]
        counts = [0] * len(written)
        for ours, theirs in _blocks(before, after):
            timed = [axis for axis in ours if len(set(self._sizes(data, axis))) > 1]
            free = [axis for axis in theirs if written[axis] > 0 and written[axis] % self._length == 0]
            free.sort(key=lambda axis: written[axis] != self._length)
            for axis in free[: len(timed)]:
                counts[axis] = written[axis] // self._length
        return counts

    def _expanded(self, node: onnx.NodeProto) -> list[int]:
        data, target = node.input[:2]
        written = [int(size) for size in self._short[target]]
        counts = [0] * len(written)
        lead = len(written) - self._full[data].ndim
        for axis in range(self._full[data].ndim):
            whole, now = self._sizes(data, axis)
            if now < whole == written[lead + axis] and whole % self._length == 0:
                counts[lead + axis] = whole // self._length
        return counts

    def _shift(self, node: onnx.NodeProto, place: int, times: list[int]) -> None:
        """Subtract the missing timesteps from a written shape."""
        if any(times):
            less = self._op("Mul", self._missing, self._ints(times))
            node.input[place] = self._op("Add", node.input[place], less, like=node.input[place])

    def _count_from_the_end(self, node: onnx.NodeProto, place: int) -> None:
        """Count places of a Slice in the second half of the timesteps from the end."""
        written = self._short[node.input[place]]
        rank = self._full[node.input[0]].ndim
        axes = self._short[node.input[3]] if len(node.input) > 3 and node.input[3] else np.arange(len(written))
        less = [0] * len(written)
        for at, axis in enumerate(axes):
            whole, now = self._sizes(node.input[0], int(axis) % rank)
            if now < whole and whole // 2 <= written[at] < whole:
                less[at] = -whole
        if any(less):
            node.input[place] = self._op("Add", node.input[place], self._ints(less, written.dtype))

    def _gathered(self, node: onnx.NodeProto) -> None:
        """Count the place of the last timestep from the end; cut the places of all timesteps."""
        axis = int(attributes(node).get("axis", 0)) % self._full[node.input[0]].ndim
        whole, now = self._sizes(node.input[0], axis)
        places = self._short[node.input[1]]
        if now == whole or not np.array_equal(places, self._full[node.input[1]]):
            return
        if places.size == 1 and int(places.reshape(())) >= whole // 2:
            node.input[1] = self._op("Add", node.input[1], self._ints([-whole] * places.ndim or -whole, places.dtype))
        elif np.array_equal(places, np.arange(self._length)):
            node.input[1] = self._cut(node.input[1], 0, 1)

    # ---------------------------------------------------------------- running

    def _op(self, kind: str, *inputs: str, like: str = "", **given: Any) -> str:
        """Add a node; for all timesteps it gives what `like` is, or the same as for fewer."""
        made = self._builder.op(kind, *inputs, **given)
        self._evaluate(self._builder.nodes[-1])
        self._full[made] = self._full[like] if like else self._short[made]
        return made

    def _ints(self, values: Any, dtype: Any = np.int64) -> str:
        name = self._builder.constant(np.asarray(values, dtype))
        self._full[name] = self._short[name] = np.asarray(values, dtype)
        return name

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """Run a node for fewer timesteps."""
        given = {name: self._short[name] for name in uses(node)}
        names = [name for name in node.output if name]
        inputs = [_typed(name, value) for name, value in given.items()]
        graph = helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=name) for name in names])
        proto = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        self._short.update(zip(names, _run(proto, given, names), strict=True))


def _typed(name: str, value: Array) -> onnx.ValueInfoProto:
    if not isinstance(value, np.ndarray):
        raise _ClosedError
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)


def _run(proto: onnx.ModelProto, feeds: Feeds, names: list[str]) -> list[Array]:
    values = GraphSession(proto, names, as_written=True).run(feeds)
    return [values[name] for name in names]


def _together(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[list[tuple[int, int]]]:
    """Yield the axes of a node's inputs, as (input, axis), that have to have one size or 1."""
    given = [(place, ranks[name]) for place, name in enumerate(node.input) if name]
    attrs = attributes(node)
    if node.op_type in BROADCASTING:
        for back in range(1, max(rank for _, rank in given) + 1):
            yield [(place, rank - back) for place, rank in given if rank >= back]
    elif node.op_type == "MatMul" and min(rank for _, rank in given) > 1:
        (_, left), (_, right) = given
        yield [(0, left - 1), (1, right - 2)]
        for back in range(3, max(left, right) + 1):
            yield [(place, rank - back) for place, rank in given if rank >= back]
    elif node.op_type == "Concat":
        rank = given[0][1]
        for axis in set(range(rank)) - {int(attrs["axis"]) % rank}:
            yield [(place, axis) for place, _ in given]
    elif node.op_type == "Einsum":
        terms = attrs["equation"].replace(" ", "").split("->")[0].split(",")
        for letter in sorted(set("".join(terms)) - set(".")):
            yield [(place, term.index(letter)) for place, term in enumerate(terms) if letter in term]


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the axes of a Reshape's input and output that hold the same numbers, the smallest such groups."""
    ends = [list(accumulate(shape, mul)) for shape in (before, after)]
    common = sorted(set(ends[0]).intersection(ends[1]))
    for begin, end in pairwise([0, *common]):
        ours, theirs = ([axis for axis, at in enumerate(products) if begin < at <= end] for products in ends)
        yield ours, theirs

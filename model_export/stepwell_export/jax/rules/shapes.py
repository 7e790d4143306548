"""Primitives that give elements another place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from stepwell_export.jax.graph import JaxGraph, rule
from stepwell_export.jax.values import Dim, JaxValue, from_end, is_negative, is_one, same

LAST: Final = int(np.iinfo(np.int64).max)
"""The end of an axis, for a Slice."""

_BEFORE_FIRST: Final = int(np.iinfo(np.int64).min) + 1


@rule("broadcast_in_dim")
def _broadcast(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Add axes of length 1: what uses the value broadcasts it, or expands it."""
    [x], aval = inputs, equation.outvars[0].aval
    targets = [int(axis) for axis in equation.params["broadcast_dimensions"]]
    added = [axis for axis in range(len(aval.shape)) if axis not in targets]
    tensor = graph.small(x)
    small = {target for source, target in enumerate(targets) if source in x.ones_of(len(x.shape))} | set(added)
    ones = frozenset(axis for axis in small if not is_one(aval.shape[axis]))
    made = graph.op("Unsqueeze", tensor, graph.ints(added)) if added else tensor
    return JaxValue(tuple(aval.shape), x.dtype, made, ones=ones)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    """Emit a Reshape, but for axes of length 1 that come and go."""
    tensor, before, after = graph.whole(inputs[0]), inputs[0].shape, equation.outvars[0].aval.shape
    longer = [[n for n in shape if not is_one(n)] for shape in (before, after)]
    if len(longer[0]) != len(longer[1]) or not all(map(same, *longer)):
        return graph.op("Reshape", tensor, graph.sizes(after))
    gone, added = ([axis for axis, n in enumerate(shape) if is_one(n)] for shape in (before, after))
    if gone == added and len(before) == len(after):
        return tensor
    tensor = graph.op("Squeeze", tensor, graph.ints(gone)) if gone else tensor
    return graph.op("Unsqueeze", tensor, graph.ints(added)) if added else tensor


@rule("transpose")
def _transpose(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    [x], perm = inputs, [int(axis) for axis in equation.params["permutation"]]
    tensor = graph.small(x)
    if perm != sorted(perm):
        tensor = graph.op("Transpose", tensor, perm=perm)
    shape = tuple(x.shape[axis] for axis in perm)
    return JaxValue(shape, x.dtype, tensor, ones=frozenset(perm.index(axis) for axis in x.ones))


@rule("concatenate")
def _concatenate(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    return graph.op("Concat", *map(graph.whole, inputs), axis=int(equation.params["dimension"]))


@rule("stack")
def _stack(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    axis = int(equation.params["axis"])
    parts = [graph.op("Unsqueeze", graph.whole(value), graph.ints([axis])) for value in inputs]
    return graph.op("Concat", *parts, axis=axis)


@rule("tile")
def _tile(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    return graph.op("Tile", graph.whole(inputs[0]), graph.sizes(equation.params["reps"]))


@rule("split")
def _split(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> list[str]:
    sizes, axis = equation.params["sizes"], int(equation.params["axis"])
    return graph.split_op("Split", graph.whole(inputs[0]), graph.sizes(sizes), outputs=len(sizes), axis=axis)


@rule("slice")
def _slice(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue | str:
    params, shape = equation.params, inputs[0].shape
    strides = params["strides"] or [1] * len(shape)
    starts, limits = params["start_indices"], params["limit_indices"]
    return cut(graph, inputs[0], list(starts), list(limits), [int(n) for n in strides])


def cut(
    graph: JaxGraph, x: JaxValue, starts: Sequence[Dim], ends: Sequence[Dim], strides: Sequence[int] | None = None
) -> JaxValue | str:
    """Return the part of a value between places of each axis."""
    strides = strides or [1] * len(x.shape)
    axes = [
        axis
        for axis, n in enumerate(x.shape)
        if not (same(starts[axis], 0) and same(ends[axis], n) and strides[axis] == 1)
    ]
    if not axes:
        return x
    first = [from_end(starts[axis], x.shape[axis]) for axis in axes]
    last = [LAST if same(ends[axis], x.shape[axis]) else from_end(ends[axis], x.shape[axis]) for axis in axes]
    tensors = (graph.sizes(first), graph.sizes(last), graph.ints(axes), graph.ints([strides[axis] for axis in axes]))
    return graph.op("Slice", graph.whole(x), *tensors)


@rule("rev")
def _reverse(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    back, front = graph.ints([-1] * len(axes)), graph.ints([_BEFORE_FIRST] * len(axes))
    return graph.op("Slice", graph.whole(inputs[0]), back, front, graph.ints(axes), back)


@rule("pad")
def _pad(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue | str:
    x, value = inputs
    config = equation.params["padding_config"]
    if not all(same(between, 0) for _, _, between in config):
        raise graph.refuse(equation, "pads between the elements")
    made: JaxValue | str = x
    if any(is_negative(n) for low, high, _ in config for n in (low, high)):
        starts = [-low if is_negative(low) else 0 for low, _, _ in config]
        ends = [n + high if is_negative(high) else n for n, (_, high, _) in zip(x.shape, config, strict=True)]
        made = cut(graph, x, starts, ends)
    sides = [0 if is_negative(n) else n for side in (0, 1) for n in (each[side] for each in config)]
    if all(same(n, 0) for n in sides):
        return made
    tensor = made if isinstance(made, str) else graph.whole(made)
    return graph.op("Pad", tensor, graph.sizes(sides), graph.whole(value))


@rule("iota")
def _iota(graph: JaxGraph, equation: Any, _inputs: list[JaxValue]) -> JaxValue:
    aval, axis = equation.outvars[0].aval, int(equation.params["dimension"])
    zero, one = (graph.constant(n, "int64") for n in (0, 1))
    line = graph.op("Range", zero, graph.size(aval.shape[axis]), one)
    line = line if str(aval.dtype) == "int64" else graph.cast(line, str(aval.dtype))
    others = [n for n in range(len(aval.shape)) if n != axis]
    made = graph.op("Unsqueeze", line, graph.ints(others)) if others else line
    ones = frozenset(n for n in others if not is_one(aval.shape[n]))
    return JaxValue(tuple(aval.shape), str(aval.dtype), made, ones=ones)

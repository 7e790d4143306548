"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepwell_export.jax.graph import JaxGraph, rule
from stepwell_export.jax.rules.shapes import LAST
from stepwell_export.jax.values import Dim, JaxValue, product
from stepwell_export.runtime.outside_weights import to_array


@rule("dot_general")
def _dot_general(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    """Emit a MatMul of (batch, free, summed) and (batch, summed, free)."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = inputs
    if "int" in left.dtype:
        raise graph.refuse(
            equation, "multiplies matrices of whole numbers", "Cast them to float32 first: sums overflow."
        )
    shape = list(equation.outvars[0].aval.shape)
    batch = [left.shape[axis] for axis in left_batch]
    x, left_free = _arranged(graph, left, left_batch, left_sum, is_left=True)
    y, right_free = _arranged(graph, right, right_batch, right_sum, is_left=False)
    summed = product([left.shape[axis] for axis in left_sum])
    # without batch axes, MatMul takes any number of free axes on the left
    rows: list[Dim] = [product(left_free)] if (batch and len(left_free) != 1) or not left_free else left_free
    if rows != left_free or len(left_sum) != 1:
        x = graph.op("Reshape", x, graph.sizes([*batch, *rows, summed]))
    if len(right_free) != 1 or len(right_sum) != 1:
        y = _in_shape(graph, right, y, [*batch, summed, product(right_free)])
    made = graph.op("MatMul", x, y)
    if rows != left_free or len(right_free) != 1:
        made = graph.op("Reshape", made, graph.sizes(shape))
    dtype = str(equation.outvars[0].aval.dtype)
    return made if graph.dtype(left.dtype) == graph.dtype(dtype) else graph.cast(made, dtype)


def _arranged(
    graph: JaxGraph, value: JaxValue, batch: Sequence[int], summed: Sequence[int], *, is_left: bool
) -> tuple[str, list[Dim]]:
    """Return an operand with its axes in the order of a product, and the sizes of its free axes."""
    free = [axis for axis in range(len(value.shape)) if axis not in batch and axis not in summed]
    perm = [int(axis) for axis in ((*batch, *free, *summed) if is_left else (*batch, *summed, *free))]
    return transposed(graph, value, perm), [value.shape[axis] for axis in free]


def _in_shape(graph: JaxGraph, value: JaxValue, tensor: str, shape: list[Dim]) -> str:
    """Return a tensor in another shape; that of a constant is stored so."""
    if value.known is None or value.is_sizes or value.ones:
        return graph.op("Reshape", tensor, graph.sizes(shape))
    stored = next(one for one in graph.constants if one.name == tensor)
    return graph.constant(to_array(stored).reshape([int(n) for n in shape]))


def transposed(graph: JaxGraph, value: JaxValue, perm: list[int]) -> str:
    """Return a value with its axes in another order; a constant is stored so."""
    if value.known is not None and not value.is_sizes and not value.ones:
        return graph.constant(np.transpose(value.known, perm), value.dtype)
    tensor = graph.whole(value)
    return tensor if perm == sorted(perm) else graph.op("Transpose", tensor, perm=perm)


@rule("conv_general_dilated")
def _convolution(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    params, (x, kernel) = equation.params, inputs
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or not all(isinstance(n, int) for pair in params["padding"] for n in pair):
        raise graph.refuse(equation, "has groups of rows, or is padded by sizes")
    tensor = transposed(graph, x, [int(axis) for axis in numbers.lhs_spec])
    emit = _plain if all(n == 1 for n in params["lhs_dilation"]) else _of_dilated_inputs
    made = emit(graph, equation, tensor, kernel)
    back = [int(axis) for axis in np.argsort(numbers.out_spec)]
    return made if back == sorted(back) else graph.op("Transpose", made, perm=back)


def _plain(graph: JaxGraph, equation: Any, x: str, kernel: JaxValue) -> str:
    params = equation.params
    padding = [(int(low), int(high)) for low, high in params["padding"]]
    axes = [axis for axis, pair in enumerate(padding) if min(pair) < 0]
    if axes:
        starts = [max(0, -padding[axis][0]) for axis in axes]
        ends = [min(0, padding[axis][1]) or LAST for axis in axes]
        x = graph.op("Slice", x, graph.ints(starts), graph.ints(ends), graph.ints([2 + axis for axis in axes]))
    perm = [int(axis) for axis in params["dimension_numbers"].rhs_spec]
    return graph.op(
        "Conv",
        x,
        transposed(graph, kernel, perm),
        pads=[max(0, n) for side in zip(*padding, strict=True) for n in side],
        strides=[int(n) for n in params["window_strides"]],
        dilations=[int(n) for n in params["rhs_dilation"]],
        group=int(params["feature_group_count"]),
        kernel_shape=[int(kernel.shape[axis]) for axis in perm[2:]],
    )


def _of_dilated_inputs(graph: JaxGraph, equation: Any, x: str, kernel: JaxValue) -> str:
    """Emit a transposed convolution: its stride is the dilation of the input, its kernel is turned round."""
    params = equation.params
    if params["feature_group_count"] != 1 or any(n != 1 for n in params["window_strides"]) or kernel.known is None:
        raise graph.refuse(equation, "has dilated inputs, and groups, strides or a computed kernel")
    weights = np.transpose(kernel.known, params["dimension_numbers"].rhs_spec)
    weights = np.flip(weights, tuple(range(2, weights.ndim))).swapaxes(0, 1)
    spans = [(n - 1) * d for n, d in zip(weights.shape[2:], params["rhs_dilation"], strict=True)]
    starts = [span - int(low) for span, (low, _) in zip(spans, params["padding"], strict=True)]
    ends = [span - int(high) for span, (_, high) in zip(spans, params["padding"], strict=True)]
    if min(starts) < 0:
        raise graph.refuse(equation, "has dilated inputs, and is padded by more than its kernel")
    return graph.op(
        "ConvTranspose",
        x,
        graph.constant(weights, kernel.dtype),
        pads=[*starts, *(max(0, n) for n in ends)],
        output_padding=[max(0, -n) for n in ends],
        strides=[int(n) for n in params["lhs_dilation"]],
        dilations=[int(n) for n in params["rhs_dilation"]],
        kernel_shape=list(weights.shape[2:]),
    )

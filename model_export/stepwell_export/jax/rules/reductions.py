"""Primitives along axes: reductions, running sums, sorting, windows of pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stepwell_export.jax.graph import JaxGraph, Rule, function_rule, rule
from stepwell_export.jax.values import JaxValue, product

_REDUCTIONS = {
    "reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd",
    "reduce_and": "ReduceMin", "reduce_or": "ReduceMax",
}  # fmt: skip


def _reduction(kind: str) -> Rule:
    def emit(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue | str:
        axes = [int(axis) for axis in equation.params["axes"]]
        if not axes:
            return inputs[0]
        x, dtype = graph.whole(inputs[0]), inputs[0].dtype
        if "int" in dtype and kind == "ReduceProd" and x not in graph.truths:
            raise graph.refuse(equation, "multiplies whole numbers", "Cast them to float32 first: it may overflow.")
        if "int" in dtype and kind == "ReduceSum":  # onnxruntime's sum saturates, and JAX's wraps around
            wide = x if dtype == "int64" else graph.cast(x, "int64")
            made = graph.op(kind, wide, graph.ints(axes), keepdims=0)
            return made if dtype == "int64" else graph.cast(made, dtype)
        if dtype != "bool":
            return graph.op(kind, x, graph.ints(axes), keepdims=0)
        return graph.cast(graph.op(kind, graph.cast(x, "int32"), graph.ints(axes), keepdims=0), "bool")

    return emit


for _name, _kind in _REDUCTIONS.items():
    rule(_name)(_reduction(_kind))


def _number(graph: JaxGraph, value: JaxValue) -> str:
    """Return a tensor of numbers, in which truths are 0 and 1."""
    tensor = graph.whole(value)
    return graph.cast(tensor, "int32") if value.dtype == "bool" else tensor


@rule("argmax", "argmin")
def _arg(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    [axis] = equation.params["axes"]
    kind = "ArgMax" if equation.primitive.name == "argmax" else "ArgMin"
    made = graph.op(kind, _number(graph, inputs[0]), axis=int(axis), keepdims=0)
    dtype = str(np.dtype(equation.params["index_dtype"]))
    return made if dtype == "int64" else graph.cast(made, dtype)


@rule("cumsum")
def _cumsum(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    axis = graph.constant(int(equation.params["axis"]), "int64")
    return graph.op("CumSum", graph.whole(inputs[0]), axis, reverse=int(equation.params["reverse"]))


@rule("sort")
def _sort(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> list[str]:
    if len(inputs) != 1:
        raise graph.refuse(equation, "sorts several arrays by the first", "Sort one array, or use jax.lax.top_k.")
    axis = int(equation.params["dimension"])
    count = graph.sizes([inputs[0].shape[axis]])
    made = graph.split_op("TopK", _number(graph, inputs[0]), count, outputs=2, axis=axis, largest=0)[:1]
    return made if inputs[0].dtype != "bool" else [graph.cast(made[0], "bool")]


@rule("top_k")
def _top_k(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> list[str]:
    axis = int(equation.params.get("axis", -1)) % len(inputs[0].shape)
    count = graph.sizes([equation.params["k"]])
    values, places = graph.split_op("TopK", graph.whole(inputs[0]), count, outputs=2, axis=axis)
    return [values, graph.cast(places, str(equation.outvars[1].aval.dtype))]


@rule("reduce_window_max")
def _largest_of_windows(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    return _pooled(graph, equation, inputs[0], "MaxPool")


@rule("reduce_window_sum")
def _sums_of_windows(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> str:
    mean = _pooled(graph, equation, inputs[0], "AveragePool", count_include_pad=1)
    return graph.op("Mul", mean, graph.constant(math.prod(equation.params["window_dimensions"]), inputs[0].dtype))


def _pooled(graph: JaxGraph, equation: Any, x: JaxValue, kind: str, **attributes: Any) -> str:
    """Emit a pooling operator, which has the rows and one more axis in front of the pooled ones."""
    params = equation.params
    window = params["window_dimensions"]
    if any(n != 1 for n in params["base_dilation"]) or window[0] != 1 or len(window) < 3:
        raise graph.refuse(equation, f"has windows {list(window)} over rows, or dilated inputs")
    front = next((axis for axis in range(len(window) - 1, 0, -1) if window[axis] == 1), None)
    if front is None:
        raise graph.refuse(equation, f"has windows {list(window)} over all axes but the rows")
    pooled = [axis for axis in range(1, len(window)) if axis != front]
    perm = [0, front, *pooled]
    tensor = graph.whole(x)
    made = graph.op(
        kind,
        tensor if perm == sorted(perm) else graph.op("Transpose", tensor, perm=perm),
        kernel_shape=[int(window[axis]) for axis in pooled],
        strides=[int(params["window_strides"][axis]) for axis in pooled],
        pads=[int(params["padding"][axis][side]) for side in (0, 1) for axis in pooled],
        dilations=[int(params["window_dilation"][axis]) for axis in pooled],
        **attributes,
    )
    back = [int(axis) for axis in np.argsort(perm)]
    return made if back == sorted(back) else graph.op("Transpose", made, perm=back)


@function_rule("_softmax")
def _softmax(graph: JaxGraph, jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    found = [equation.params["axes"] for equation in jaxpr.eqns if equation.primitive.name == "reduce_max"]
    [x, *others] = inputs  # before JAX 0.12 the initial maximum, too; a mask comes before it
    if len(found) != 1 or len(others) > 1 or any(one.dtype == "bool" or not one.is_known for one in others):
        return None
    axes = sorted(int(axis) for axis in found[0])
    shape, moved = tuple(jaxpr.outvars[0].aval.shape), _permutation(jaxpr)
    if len(axes) == 1 and (moved is not None or shape == x.shape):
        made = graph.op("Softmax", graph.whole(x), axis=axes[0])
        return JaxValue(shape, x.dtype, made if moved is None else graph.op("Transpose", made, perm=moved))
    if shape != x.shape:
        return None
    if axes != list(range(len(x.shape) - len(axes), len(x.shape))):
        return None
    flat = graph.op("Reshape", graph.whole(x), graph.sizes([*x.shape[: axes[0]], product(x.shape[axes[0] :])]))
    return JaxValue(x.shape, x.dtype, graph.op("Reshape", graph.op("Softmax", flat, axis=-1), graph.sizes(x.shape)))


def _permutation(jaxpr: Any) -> list[int] | None:
    """Return how vmap moves the axes of what a function takes; None: it leaves them."""
    moved = [e for e in jaxpr.eqns if e.primitive.name == "transpose" and e.invars[0] is jaxpr.invars[0]]
    return [int(axis) for axis in moved[0].params["permutation"]] if len(moved) == 1 else None


@function_rule("log_softmax")
def _log_softmax(graph: JaxGraph, jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    axes = [equation.params["axes"] for equation in jaxpr.eqns if equation.primitive.name == "reduce_max"]
    if len(inputs) != 1 or len(axes) != 1 or len(axes[0]) != 1 or tuple(jaxpr.outvars[0].aval.shape) != inputs[0].shape:
        return None
    [x] = inputs
    return JaxValue(x.shape, x.dtype, graph.op("LogSoftmax", graph.whole(x), axis=int(axes[0][0])))


@function_rule("_var")
def _variance(graph: JaxGraph, jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    """Emit the mean square of what differs from the mean, which can be followed over time."""
    [x, correction, *more] = inputs
    axes = next((one.params["axes"] for one in jaxpr.eqns if one.primitive.name == "reduce_sum"), ())
    if more or correction.known is None or correction.known.any() or "float" not in x.dtype or not axes:
        return None
    shape = tuple(jaxpr.outvars[0].aval.shape)
    over, whole = graph.ints([int(axis) for axis in axes]), graph.whole(x)
    apart = graph.op("Sub", whole, graph.op("ReduceMean", whole, over, keepdims=1))
    keepdims = int(len(shape) == len(x.shape))
    return JaxValue(shape, x.dtype, graph.op("ReduceMean", graph.op("Mul", apart, apart), over, keepdims=keepdims))

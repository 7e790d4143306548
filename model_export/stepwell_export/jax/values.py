"""`JaxValue`: what a variable of a jaxpr is in the graph under construction.

What follows from constants and sizes alone is computed while the graph is built.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax._src import core

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.runtime.manifest import Array

Dim = Any
"""A size: a number, or an expression of `b` and `t`, the numbers of rows and timesteps."""


@dataclass(frozen=True, slots=True)
class JaxValue:
    """A value.

    Attributes:
        shape: Its sizes, as the jaxpr has them.
        dtype: NumPy name.
        tensor: The tensor in the graph; empty for a known value, which is emitted when it is used.
        known: Its elements where they follow from constants and sizes alone: numbers, or expressions of sizes.
        ones: Axes along which all elements are equal and of which the tensor, or what is known, has one: operators of
            ONNX broadcast.
    """

    shape: tuple[Dim, ...]
    dtype: str
    tensor: str = ""
    known: Array | None = None
    ones: frozenset[int] = frozenset()

    @property
    def is_known(self) -> bool:
        """Whether it follows from constants and sizes alone."""
        return self.known is not None

    @property
    def is_sizes(self) -> bool:
        """Whether it has expressions of sizes."""
        return self.known is not None and self.known.dtype == object

    def ones_of(self, ndim: int) -> frozenset[int]:
        """Return the axes of length 1 beside values of so many axes: a scalar has nothing else."""
        given = {axis for axis, n in enumerate(self.shape) if is_one(n)} | self.ones
        return frozenset(range(ndim)) if not self.shape else frozenset(given)


def constant(value: Any, dtype: Any = None) -> JaxValue:
    """Return a value that is known."""
    array = np.asarray(value, dtype)
    return JaxValue(array.shape, str(array.dtype), known=array)


def filled(value: float, like: JaxValue) -> JaxValue:
    """Return a value of one number, in the shape and dtype of another."""
    shape = (1,) * len(like.shape)
    ones = frozenset(axis for axis, n in enumerate(like.shape) if not is_one(n))
    return JaxValue(like.shape, like.dtype, known=np.full(shape, value, like.dtype), ones=ones)


def is_one(n: Dim) -> bool:
    """Whether a size is 1."""
    return isinstance(n, int) and n == 1


def is_negative(n: Dim) -> bool:
    """Whether a place is counted from the end."""
    return isinstance(n, int) and n < 0


def same(n: Dim, m: Dim) -> bool:
    """Whether two sizes are equal for all numbers of rows and timesteps."""
    return n is m or bool(n == m)


def from_end(place: Dim, size: Dim) -> Dim:
    """Return a place of an axis of open size as one before its end, if it is that for every size."""
    if isinstance(place, int):
        return place
    difference = place - size
    return difference if is_negative(difference) else place


def product(sizes: Sequence[Dim]) -> Dim:
    """Return how many elements there are."""
    found: Dim = 1
    for n in sizes:
        found = found * n
    return found


# ---------------------------------------------------------------- what follows from constants and sizes alone

_MOST = 1 << 22
"""Numbers of a result that is still computed: larger tables are left to the graph."""

_NEVER = {"scan", "while", "cond", "random_bits", "random_wrap", "random_unwrap", "random_seed"}

_OF_AXES = {"axes", "axis", "dimension", "dimensions", "permutation", "dimension_numbers"}
"""Parameters of primitives that are none of elements."""

_ON_SIZES: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg,
    "max": core.max_dim, "min": core.min_dim,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip
"""What is computed on expressions of sizes, element by element."""

_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}


def folded(equation: Any, inputs: list[JaxValue]) -> list[JaxValue] | None:
    """Return the values of an equation's outputs; None: they follow from what the caller sends, or are too large."""
    name = equation.primitive.name
    if name == "dim_as_value":
        return [JaxValue((), str(equation.outvars[0].aval.dtype), known=np.array(equation.params["dim"], object))]
    if name in _NEVER or not all(value.is_known for value in inputs) or (not inputs and name != "iota"):
        return None
    if name == "broadcast_in_dim":
        return [_broadcast(equation, inputs[0])]
    if any(value.is_sizes for value in inputs):
        return _of_sizes(equation, inputs)
    if any(value.ones for value in inputs):
        return _of_equal_elements(equation, inputs)
    avals = [var.aval for var in equation.outvars]
    if not all(isinstance(n, int) for aval in avals for n in aval.shape):
        return None
    if sum(int(np.prod(aval.shape)) for aval in avals) > _MOST:
        return None
    found = equation.primitive.bind(*[value.known for value in inputs], **equation.params)
    return [constant(np.asarray(one)) for one in (found if equation.primitive.multiple_results else [found])]


def _broadcast(equation: Any, value: JaxValue) -> JaxValue:
    assert value.known is not None
    shape = equation.outvars[0].aval.shape
    small = [1] * len(shape)
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        small[target] = value.known.shape[axis]
    ones = frozenset(axis for axis, n in enumerate(shape) if small[axis] == 1 and not is_one(n))
    return JaxValue(tuple(shape), value.dtype, known=value.known.reshape(small), ones=ones)


def _of_equal_elements(equation: Any, inputs: list[JaxValue]) -> list[JaxValue] | None:
    """Compute on constants that are equal along axes; None if it is no operation of elements."""
    aval = equation.outvars[0].aval
    shapes = {value.shape for value in inputs if value.shape}
    if len(equation.outvars) > 1 or shapes != {tuple(aval.shape)} or equation.params.keys() & _OF_AXES:
        return None
    arrays = [np.asarray(value.known) for value in inputs]
    small = np.broadcast_shapes(*(array.shape for array in arrays))
    try:
        found = np.asarray(equation.primitive.bind(*(np.broadcast_to(a, small) for a in arrays), **equation.params))
    except Exception:  # noqa: BLE001  # whatever a primitive raises that is none of elements: the graph computes it
        return None
    if found.shape != small:
        return None
    ones = frozenset(axis for axis, n in enumerate(aval.shape) if small[axis] == 1 and not is_one(n))
    return [JaxValue(tuple(aval.shape), str(aval.dtype), known=found, ones=ones)]


def _of_sizes(equation: Any, inputs: list[JaxValue]) -> list[JaxValue] | None:
    """Compute on expressions of sizes; None where a comparison depends on how large they are."""
    name, aval = equation.primitive.name, equation.outvars[0].aval
    arrays = [np.asarray(value.known, object if value.is_sizes else None) for value in inputs]
    found: Array
    if name in _ON_SIZES:
        try:
            found = np.asarray(np.vectorize(_ON_SIZES[name], otypes=[object])(*arrays), object)
            found = found.astype(bool) if name in _COMPARISONS else found
        except core.InconclusiveDimensionOperation:
            return None
    elif name in {"convert_element_type", "copy", "stop_gradient"} and np.dtype(aval.dtype).kind in "iu":
        found = arrays[0]
    elif name in {"reshape", "squeeze", "expand_dims"} and all(isinstance(n, int) for n in aval.shape):
        found = arrays[0].reshape(aval.shape)
    elif name == "concatenate":
        found = np.concatenate([np.asarray(one, object) for one in arrays], equation.params["dimension"])
    elif name == "select_n" and not inputs[0].is_sizes and arrays[0].size == 1:
        found = arrays[1 + int(arrays[0].reshape(()))]
    else:
        return None
    if found.dtype == object and all(isinstance(n, int | np.integer) for n in found.reshape(-1).tolist()):
        found = found.astype(aval.dtype)
    ones = frozenset(axis for axis, n in enumerate(aval.shape) if found.shape[axis] == 1 and not is_one(n))
    return [JaxValue(tuple(aval.shape), str(aval.dtype), known=found, ones=ones)]


# ---------------------------------------------------------------- expressions of sizes, as tensors

_KINDS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}  # sizes are never negative


def emit_size(graph: NodeBuilder, n: Any, size: Callable[[str], str]) -> str:
    """Emit an expression.

    Args:
        graph: The graph.
        n: An expression of JAX's symbolic dimensions.
        size: Returns the tensor of a variable.

    Returns:
        A tensor `(1,)` int64.
    """
    if not hasattr(n, "_sorted_terms"):
        return graph.ints([int(n)])
    total = ""
    for term, factor in n._sorted_terms:
        value = ""
        for part, power in term._factors:
            if part.var is not None:
                one = size(part.var)
            else:
                one = graph.op(_KINDS[part.operation], *(emit_size(graph, each, size) for each in part.operands))
            for _ in range(power):
                value = graph.op("Mul", value, one) if value else one
        number = graph.ints([int(factor)])
        value = (value if factor == 1 else graph.op("Mul", value, number)) if value else number
        total = graph.op("Add", total, value) if total else value
    return total

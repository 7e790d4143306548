"""`JaxValue`: what a variable of a jaxpr is in the graph under construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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

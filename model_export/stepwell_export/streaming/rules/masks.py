"""Which timesteps an attention never looks at, read from its mask: where the scores are minus infinity, or minus a lot.

The zeros of a softmax show nothing: of scores that decay by 4 with each timestep all are zero beyond 27 timesteps on
ordinary data, and none is where the data are larger. So the scores are followed back to the mask that is added to them
or chosen instead of them, and only what follows from sizes and weights alone hides a timestep.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell_export.graph.nodes import uses
from stepwell_export.graph.operators import RESHAPING
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.walk import StreamingWalk
from stepwell_export.structure.facts import run_node

_A_LOT = -1e4
"""The largest number that hides a timestep: masks have -1e9, the lowest number of their type, or -3e4 in float16."""

_MODERATE = 1e3
"""The largest factor by which scores stay far above what hides a timestep."""

_MOST_INTEGER = 2**62
"""The largest number that a tensor of integers is taken to have."""

_BETWEEN_ENDS = RESHAPING | {
    "Add", "And", "Cast", "CastLike", "Div", "Expand", "Max", "Min", "Mul", "Neg", "Not", "Or", "Sub", "Where",
}  # fmt: skip
"""Operators whose numbers lie between those that they make of the ends; what others give is as the data have it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the numbers of a tensor are between, of its shape or one that broadcasts to it.

    Attributes:
        low: The lower bound.
        high: The upper bound.
        scored: Whether something is added that is computed from data, as scores are: moderate beside what hides.
    """

    low: Array
    high: Array
    scored: bool = False


@dataclass(frozen=True, slots=True)
class Hidden:
    """Of scores in one run, by element: which never count, and which may not, as other inputs have it."""

    always: Array
    sometimes: Array


def hidden(walk: StreamingWalk, scores: str, run: int) -> Hidden:
    """Return which of the scores that a softmax takes never count.

    Args:
        walk: The walk.
        scores: The tensor that the softmax takes.
        run: Which of the measured runs.
    """
    shape = np.shape(walk.facts.values(scores)[run])
    bounds = _Reader(walk, run).bounds(scores)
    low, high = (np.broadcast_to(bound, shape) for bound in (bounds.low, bounds.high))
    limit = _limit(low)
    return Hidden(high <= limit, low <= limit)


def _limit(low: Array) -> float:
    """Return the number up to which scores are hidden: minus infinity, or half of what a mask has for the hidden ones.

    A bias that falls with the distance has all numbers down to its lowest; a mask has a gap.
    """
    finite = low[np.isfinite(low)]
    lowest = float(finite.min()) if finite.size else 0.0
    is_mask = lowest <= _A_LOT and not ((finite > lowest / 2) & (finite <= lowest / 8)).any()
    return lowest / 2 if is_mask else -np.inf


class _Reader:
    """Reads the bounds of tensors of one run."""

    def __init__(self, walk: StreamingWalk, run: int) -> None:
        self._walk = walk
        self._run = run
        self._found: dict[str, Bounds] = {}
        self._sized: dict[str, bool] = {}

    def bounds(self, name: str) -> Bounds:
        """Return what a tensor's numbers are between."""
        if name not in self._found:
            self._found[name] = self._read(name)
        return self._found[name]

    def value(self, name: str) -> Array:
        """Return a tensor's value in the run."""
        return np.asarray(self._walk.facts.values(name)[self._run])

    def _read(self, name: str) -> Bounds:
        value = self.value(name)
        if self._is_sized(name):
            known = value.astype(np.float64)
            return Bounds(known, known)
        node = self._walk.makers.get(name)
        if node is None or node.op_type not in _BETWEEN_ENDS:
            return _unknown(value)
        bounds = self._of_node(node, value)
        return _unknown(value) if value.dtype == np.bool_ and bounds.scored else bounds

    def _is_sized(self, name: str) -> bool:
        """Whether a tensor follows from weights and sizes alone; the walk may not have come to it yet."""
        if name not in self._sized:
            node = self._walk.makers.get(name)
            self._sized[name] = name in self._walk.from_sizes or (
                node is not None and (node.op_type in {"Shape", "Size"} or all(map(self._is_sized, uses(node))))
            )
        return self._sized[name]

    def _of_node(self, node: onnx.NodeProto, value: Array) -> Bounds:
        """Return the bounds of what a node gives, by those of what it takes."""
        given = [self.bounds(name) for name in node.input]
        if node.op_type in {"Cast", "CastLike"}:
            return _truth(given[0]) if value.dtype == np.bool_ else given[0]
        if node.op_type in {"Mul", "Div"} and _is_far(node, *given):
            return Bounds(np.zeros(()), np.full((), np.finfo(np.float64).max), scored=True)  # it hides nothing
        ends = itertools.product(*map(self._ends, node.input))
        made = [np.asarray(run_node(node, self._walk.opset, each)[0], np.float64) for each in ends]
        low, high = np.minimum.reduce(made), np.maximum.reduce(made)
        # of infinities, a difference or a product leaves the number open
        low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        return Bounds(low, high, any(bounds.scored for bounds in given))

    def _ends(self, name: str) -> list[Array]:
        """Return the least and the largest numbers of a tensor, in its shape: one where they are the same."""
        value, bounds = self.value(name), self.bounds(name)
        kind = {"b": np.bool_, "f": np.float64}.get(value.dtype.kind, np.int64)
        if self._is_sized(name):
            return [value.astype(kind)]
        limit = _MOST_INTEGER if kind is np.int64 else np.inf
        ends = [np.broadcast_to(end, value.shape) for end in (bounds.low, bounds.high)]
        return [end.clip(-limit, limit).astype(kind) for end in ends[bounds.low is bounds.high :]]


def _unknown(value: Array) -> Bounds:
    zero = np.zeros(())
    return Bounds(zero, np.ones(())) if value.dtype == np.bool_ else Bounds(zero, zero, scored=True)


def _truth(given: Bounds) -> Bounds:
    """Return the bounds of whether a number is not zero."""
    is_one, is_zero = (given.low > 0) | (given.high < 0), (given.low == 0) & (given.high == 0)
    return Bounds(np.where(is_one, 1.0, 0.0), np.where(is_zero, 0.0, 1.0), given.scored)


def _is_far(node: onnx.NodeProto, left: Bounds, other: Bounds) -> bool:
    """Whether a product or quotient may be as far from zero as what hides, of scores that are not."""
    if node.op_type == "Div":
        if other.scored or not ((other.low > 0) | (other.high < 0)).all():
            return True
        other = Bounds(1 / other.high, 1 / other.low)
    return any(
        scores.scored and not ((factor.low >= -_MODERATE).all() and (factor.high <= _MODERATE).all())
        for scores, factor in ((left, other), (other, left))
    )

"""Which timesteps an attention never looks at, read from its mask: where the scores are minus infinity, or minus a lot.

The zeros of a softmax show nothing: of scores that decay by 4 with each timestep all are zero beyond 27 timesteps on
ordinary data, and none is where the data are larger. So the scores are followed back to the mask that is added to them
or chosen instead of them, and only what follows from sizes and weights alone hides a timestep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, uses
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.walk import StreamingWalk

_A_LOT = -1e4
"""The largest number that hides a timestep: masks have -1e9, the lowest number of their type, or -3e4 in float16."""

_MODERATE = 1e3
"""The largest factor by which scores stay far above what hides a timestep."""

_IN_ORDER = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


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
        rule = None if node is None else _RULES.get(node.op_type)
        with np.errstate(all="ignore"):
            bounds = None if rule is None or node is None else rule(self, node)
        if bounds is None or (value.dtype == np.bool_ and bounds.scored):
            return _unknown(value)
        return _without_nan(bounds)

    def _is_sized(self, name: str) -> bool:
        """Whether a tensor follows from weights and sizes alone; the walk may not have come to it yet."""
        if name not in self._sized:
            node = self._walk.makers.get(name)
            self._sized[name] = name in self._walk.from_sizes or (
                node is not None and (node.op_type in {"Shape", "Size"} or all(map(self._is_sized, uses(node))))
            )
        return self._sized[name]

    def moved(self, node: onnx.NodeProto) -> Bounds | None:
        """Return the bounds of a tensor in another shape."""
        given = self.bounds(node.input[0])
        before, after = (self.value(name).shape for name in (node.input[0], node.output[0]))
        if node.op_type in _IN_ORDER:
            parts = [np.broadcast_to(bound, before).reshape(after) for bound in (given.low, given.high)]
        elif node.op_type == "Expand":
            parts = [np.broadcast_to(bound, after) for bound in (given.low, given.high)]
        else:
            perm = attributes(node).get("perm")
            parts = [np.transpose(np.broadcast_to(bound, before), perm) for bound in (given.low, given.high)]
        return Bounds(parts[0], parts[1], given.scored)

    def pair(self, node: onnx.NodeProto) -> tuple[Bounds, Bounds]:
        """Return the bounds of a node's two inputs."""
        first, second = (self.bounds(name) for name in node.input)
        return first, second


def _unknown(value: Array) -> Bounds:
    if value.dtype == np.bool_:
        return Bounds(np.zeros(()), np.ones(()))
    return Bounds(np.zeros(()), np.zeros(()), scored=True)


def _without_nan(bounds: Bounds) -> Bounds:
    """Return bounds where a difference or a product of infinities leaves the number open."""
    low = np.where(np.isnan(bounds.low), -np.inf, bounds.low)
    return Bounds(low, np.where(np.isnan(bounds.high), np.inf, bounds.high), bounds.scored)


def _cast(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    given = reader.bounds(node.input[0])
    if reader.value(node.output[0]).dtype == np.bool_:  # of a number: whether it is not zero
        is_one, is_zero = (given.low > 0) | (given.high < 0), (given.low == 0) & (given.high == 0)
        return Bounds(np.where(is_one, 1.0, 0.0), np.where(is_zero, 0.0, 1.0), given.scored)
    return given


def _added(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    return _sum(*reader.pair(node))


def _subtracted(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    left, other = reader.pair(node)
    return _sum(left, Bounds(-other.high, -other.low, other.scored))


def _sum(left: Bounds, other: Bounds) -> Bounds:
    """Return the bounds of a sum; minus infinity stays that, whatever number is added to it."""
    is_least = (left.high == -np.inf) | (other.high == -np.inf)
    high = np.where(is_least, -np.inf, left.high + other.high)
    return Bounds(np.where(is_least, -np.inf, left.low + other.low), high, left.scored or other.scored)


def _negated(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    bounds = reader.bounds(node.input[0])
    return Bounds(-bounds.high, -bounds.low, bounds.scored)


def _multiplied(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    return _product(*reader.pair(node))


def _divided(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    left, other = reader.pair(node)
    if other.scored or not ((other.low > 0) | (other.high < 0)).all():
        return _open()
    return _product(left, Bounds(1 / other.high, 1 / other.low))


def _product(left: Bounds, other: Bounds) -> Bounds:
    for scored, factor in ((left, other), (other, left)):
        if scored.scored and not ((factor.low >= -_MODERATE).all() and (factor.high <= _MODERATE).all()):
            return _open()
    ends = [a * b for a in (left.low, left.high) for b in (other.low, other.high)]
    return Bounds(np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends)),
                  left.scored or other.scored)  # fmt: skip


def _open() -> Bounds:
    """Return the bounds of what may be anything: it hides nothing."""
    return Bounds(np.zeros(()), np.full((), np.inf), scored=True)


def _chosen(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    condition, left, other = (reader.bounds(name) for name in node.input)
    never, always = condition.high == 0, condition.low == 1
    low = np.where(always, left.low, np.where(never, other.low, np.minimum(left.low, other.low)))
    high = np.where(always, left.high, np.where(never, other.high, np.maximum(left.high, other.high)))
    return Bounds(low, high, left.scored or other.scored)


def _least(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    return _combined(reader, node, np.minimum)


def _most(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    return _combined(reader, node, np.maximum)


def _combined(reader: _Reader, node: onnx.NodeProto, choose: Callable[..., Array]) -> Bounds:
    given = [reader.bounds(name) for name in node.input]
    low, high = given[0].low, given[0].high
    for other in given[1:]:
        low, high = choose(low, other.low), choose(high, other.high)
    return Bounds(low, high, any(bounds.scored for bounds in given))


def _inverted(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    bounds = reader.bounds(node.input[0])
    return Bounds(1 - bounds.high, 1 - bounds.low)


def _moved(reader: _Reader, node: onnx.NodeProto) -> Bounds | None:
    return reader.moved(node)


_RULES: dict[str, Callable[[_Reader, onnx.NodeProto], Bounds | None]] = {
    **dict.fromkeys((*_IN_ORDER, "Expand", "Transpose"), _moved),
    "Cast": _cast, "CastLike": _cast, "Add": _added, "Sub": _subtracted, "Neg": _negated, "Mul": _multiplied,
    "Div": _divided, "Where": _chosen, "And": _least, "Min": _least, "Or": _most, "Max": _most, "Not": _inverted,
}  # fmt: skip
"""By operator; what others give is as the data have it."""

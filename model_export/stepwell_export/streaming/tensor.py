"""`StepTensor`: a tensor of the sequence graph and its place in the step graph; `TimeWeights`: what time changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from typing import Literal

from stepwell_export.runtime.errors import RefusedModelError, StepwellError
from stepwell_export.streaming.axes.measured_shapes import Dim

Kind = Literal["constant", "static", "per_step", "by_position", "at_end", "pairwise", "refused"]

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
ONE = Dim(Fraction(1))


@dataclass(frozen=True, slots=True)
class StepTensor:
    """What is known of a tensor of the sequence graph.

    Attributes:
        kind: `constant`: from the weights and the sizes alone; `static`: from inputs without time axis;
            `by_position`: one value for each timestep of the declared length, from the sizes alone; `per_step`: one
            value per timestep; `at_end`: one value, known after the last timestep; `pairwise`: a number for every
            timestep against every other, of which a step has its window; `refused`: a step cannot have it, which
            matters only if something needs it.
        step: The tensor in the step graph; empty for a known one, which is emitted when it is used.
        offset: At step t the step graph holds element t + offset; None: all elements are equal.
        position: Whether it counts the timesteps, so that it grows without end.
        looks_ahead_by: The node that made it look ahead, and how, for messages.
        repeats_first: Whether its elements before the first timestep equal that of the first timestep.
        window: How many timesteps, the present one included, scores are kept for, or the end of a sequence has; at the
            beginning of a stream some of them are before its first timestep.
        keys: The axis of these timesteps.
        padded_samples: What it pads with zeros in front, and by how many samples, where that is no whole number of
            timesteps; a convolution can have it.
        first: Whether it is the first timestep of a sequence.
        weights: What a sum over time can be made of, where it changes with every later timestep, as a softmax over time
            does; it is refused for all other uses.
        refused_as_answer: Why it is refused if it becomes an answer: some timesteps depend on later ones, unless they
            are masked on the way.
        error: Why it is refused.
    """

    kind: Kind
    step: str = ""
    offset: int | None = None
    position: bool = False
    looks_ahead_by: str = ""
    repeats_first: bool = False
    window: int = 0
    keys: int | None = None
    padded_samples: tuple[str, int] | None = None
    first: bool = False
    weights: TimeWeights | None = None
    refused_as_answer: RefusedModelError | None = None
    error: StepwellError | None = None


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """A factor of such a value, as it is at this timestep.

    Attributes:
        step: The tensor of the step graph.
        dims: Its axes, as many as the value has; of length 1 where it is the same for all elements of an axis.
    """

    step: str
    dims: tuple[Dim, ...]

    def varies(self, axis: int) -> bool:
        """Whether it may differ along an axis."""
        return self.dims[axis].at_one_step() != (1, 0)


@dataclass(frozen=True, slots=True)
class TimeWeights:
    """What a value of each timestep is made of: `values` times the softmax over time of `scores`.

    Attributes:
        scores: What the exponential is taken of.
        values: What the weights are multiplied with; None: ones.
        bounds: Between which numbers the scores lie, by the operators that make them.
    """

    scores: WeightedPart
    values: WeightedPart | None = None
    bounds: Range = ANY

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The axes of the product."""
        return joint_dims(self.scores.dims, *([] if self.values is None else [self.values.dims]))

    def mapped(self, change: Callable[[WeightedPart], WeightedPart]) -> TimeWeights:
        """Return the same of changed parts."""
        values = None if self.values is None else change(self.values)
        return replace(self, scores=change(self.scores), values=values)


@dataclass(frozen=True, slots=True)
class Total:
    """The sum over time of weights, as tensors of the step graph.

    Attributes:
        total: The sum so far, relative to the largest score if there is one.
        share: This timestep's part of the sum.
        largest: The largest score so far; empty: scores are small.
    """

    total: WeightedPart
    share: str
    largest: str = ""


def joint_dims(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the axes of a product of tensors, which broadcast."""
    turned = zip_longest(*(shape[::-1] for shape in shapes), fillvalue=ONE)
    return tuple(next((dim for dim in dims if dim.at_one_step() != (1, 0)), dims[0]) for dims in turned)[::-1]

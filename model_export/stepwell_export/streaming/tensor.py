"""`StepTensor`: a tensor of the sequence graph, with its axes and its place in the step graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stepwell_export.runtime.errors import RefusedModelError, StepwellError
from stepwell_export.streaming.time_weights import TimeWeights

Kind = Literal["constant", "static", "per_step", "by_position", "final", "scores", "unsupported"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """The difference between a tensor and its mean over time, which changes with every later timestep.

    Attributes:
        tensor: The tensor of the sequence graph.
        mean: Its mean.
        axes: The axes that the mean is taken over, time among them.
        is_squared: Whether it is the square of the difference.
    """

    tensor: str
    mean: str
    axes: tuple[int, ...]
    is_squared: bool = False


@dataclass(frozen=True, slots=True)
class StepTensor:
    """What is known of a tensor of the sequence graph.

    Attributes:
        kind: `constant`: from the weights and the sizes alone; `static`: from inputs without time axis;
            `by_position`: one value for each timestep of the declared length, from the sizes alone; `per_step`: one
            value per timestep; `final`: one value, known after the last timestep; `scores`: a number for every timestep
            against every other, of which a step has its window; `unsupported`: a step cannot have it, which
            matters only if something needs it.
        step: The tensor in the step graph; empty for a known one, which is emitted when it is used.
        offset: At step t the step graph holds element t + offset; None: all elements are equal.
        position: Whether it counts the timesteps, so that it grows without end.
        blame: The node that made it look ahead, and how, for messages.
        edge: Whether its elements before the first timestep equal that of the first timestep.
        window: How many timesteps, the present one included, scores are kept for, or the end of a sequence has; at the
            beginning of a stream some of them are before its first timestep.
        keys: The axis of these timesteps.
        padded: What it pads with zeros in front, and by how many samples, where that is no whole number of timesteps; a
            convolution can have it.
        first: Whether it is the first timestep of a sequence.
        weights: What a sum over time can be made of, where it changes with every later timestep, as a softmax over time
            does; it is refused for all other uses.
        deviation: What a variance over time can be made of, in the same way.
        suspect: Why it is refused if it becomes an answer: some timesteps depend on later ones, unless they are masked
            on the way.
        error: Why it is refused.
    """

    kind: Kind
    step: str = ""
    offset: int | None = None
    position: bool = False
    blame: str = ""
    edge: bool = False
    window: int = 0
    keys: int | None = None
    padded: tuple[str, int] | None = None
    first: bool = False
    weights: TimeWeights | None = None
    deviation: Deviation | None = None
    suspect: RefusedModelError | None = None
    error: StepwellError | None = None

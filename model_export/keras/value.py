"""`Value`: a tensor of the step graph, and what the Keras model has in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from model_export.manifest import Array


@dataclass(frozen=True, slots=True, eq=False)
class TimePadding:
    """Timesteps that the original has beside those of the stream, of padding over time.

    Attributes:
        front: How many come before the first timestep of the stream; negative: it has no place for so many of the
            stream's first, and what the step graph gives there is used by nobody.
        back: How many come after the newest one; nobody may look at them.
        pad_value: What each of those in front is, one row.
        refusal: The error to raise where something needs the timesteps that are cut off in front.
    """

    front: int
    back: int
    pad_value: Array
    refusal: Exception | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DeferredSum:
    """What the original's tensor has besides what is in the step graph.

    Attributes:
        refusal: The error to raise where something needs the tensor as it will be.
        weight: What each timestep is weighed by, as a value of each timestep: scores of a softmax over time, or an
            answer for the timesteps so far; None: nothing.
        kind: `softmax`, or `Mul` or `Div` of an answer.
        order: For each axis of the original which one of `(batch, time, *row)` it is; empty: these, as they stand.
    """

    refusal: Exception
    weight: Value | None = None
    kind: str = ""
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the step graph, and what the original has in its place.

    Attributes:
        name: The tensor's name in the graph; its shape there is `(batch, *row)`.
        row: One row, without batch axis and without time axis.
        dtype: NumPy name.
        time: Whether the original carries a time axis (axis 1) here.
        mask: Tensor of shape `(batch,)` bool: False where this timestep is masked; None: never masked.
        padding: Timesteps that the original has in front and behind; None: exactly those of the stream.
        deferred: What a sum over time, or another order of axes, has to settle first; None: nothing.
        constant_over_time: The row's first axis has the same in all its places; beside a sequence it can stand for
            every timestep.
    """

    name: str
    row: tuple[int, ...]
    dtype: str = "float32"
    time: bool = False
    mask: str | None = None
    padding: TimePadding | None = None
    deferred: DeferredSum | None = None
    constant_over_time: bool = False

    @property
    def rank(self) -> int:
        """Axes of the original tensor: batch, time if it carries it, and the row."""
        return 1 + self.time + len(self.row)

    def like(self, name: str, **changes: Any) -> Value:
        """Return another tensor with the same row, dtype and time axis, and nothing else of this one."""
        return replace(
            self, name=name, **{"mask": None, "padding": None, "deferred": None, "constant_over_time": False, **changes}
        )

"""`Value`: a tensor of the sequence graph, in the place of a tensor of the Keras model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the sequence graph; in a step rule, of one timestep of it.

    Attributes:
        name: The tensor's name in the graph; its shape there is `(batch, *row)`.
        row: Its shape without batch axis; None: as many as there are timesteps.
        dtype: NumPy name.
        time: In a step rule: whether the original has a time axis in front of the row.
        mask: Tensor of shape `(batch, timesteps)` bool, in a step rule `(batch,)`: False where a timestep is masked;
            None: never masked.
    """

    name: str
    row: tuple[int | None, ...]
    dtype: str = "float32"
    time: bool = False
    mask: str | None = None

    @property
    def rank(self) -> int:
        """Axes of the tensor, batch included."""
        return 1 + len(self.row)

    @property
    def is_sequence(self) -> bool:
        """Whether it has a row for each timestep, behind the batch axis."""
        return self.row[:1] == (None,)

    def like(self, name: str, **changes: Any) -> Value:
        """Return another tensor with the same row, dtype and time axis, and no mask."""
        return replace(self, name=name, **{"mask": None, **changes})

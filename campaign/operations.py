"""`Operation`: an acknowledged step or chunk of a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Operation:
    """An acknowledged step or chunk.

    Attributes:
        xs: Its inputs.
        step: Position of its last timestep.
        ys: Its predictions.
        sent: When the client first sent it, seconds.
        answered: When its first answer arrived, seconds.
        version: The version that its answer names; None: none.
    """

    xs: tuple[int, ...]
    step: int
    ys: tuple[int, ...]
    sent: float
    answered: float
    version: int | None = None

    @property
    def first(self) -> int:
        """Position of its first timestep."""
        return self.step - len(self.xs) + 1

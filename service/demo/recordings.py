"""The held-out recordings, and what the original model predicts for each of them as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
MODELS = FOLDER / "models"
"""The model folder to serve in the demo."""

MODEL = "activity"


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings of several channels, all equally long.

    Attributes:
        x: Inputs, (recording, timestep, channel) float32.
        labels: Index of the right class of each recording, (recording,) int64.
        expected: Probabilities after each timestep, by the original model over the whole recording at once,
            (recording, timestep, class) float32.
        classes: Names of the classes.
        rate_hz: Timesteps a second as they were recorded.
    """

    x: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    rate_hz: float

    @classmethod
    def load(cls, file: Path = FOLDER / "recordings.npz") -> Self:
        """Read the recordings; see SOURCE.md for where they come from."""
        with np.load(file) as data:
            return cls(
                x=data["x"],
                labels=data["labels"],
                expected=data["expected"],
                classes=tuple(data["classes"].tolist()),
                rate_hz=float(data["rate_hz"]),
            )

    def __len__(self) -> int:
        """How many recordings there are."""
        return len(self.x)

"""The held-out recordings, with the original model's predictions for each whole recording."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
MODELS = FOLDER / "models"
"""The demo's model folder."""

MODEL = "activity"


@dataclass(frozen=True, slots=True)
class Recordings:
    """Multichannel recordings of equal length.

    Attributes:
        x: Inputs, (recording, timestep, channel) float32.
        labels: Index of the true class of each recording, (recording,) int64.
        expected: Class probabilities after each timestep, computed by the original model over the whole recording at
            once, (recording, timestep, class) float32.
        classes: Names of the classes.
        rate_hz: Sampling rate of the recordings in timesteps per second.
    """

    x: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    rate_hz: float

    @classmethod
    def load(cls, file: Path = FOLDER / "recordings.npz") -> Self:
        """Load the recordings; SOURCE.md describes their origin."""
        with np.load(file) as data:
            return cls(
                x=data["x"],
                labels=data["labels"],
                expected=data["expected"],
                classes=tuple(data["classes"].tolist()),
                rate_hz=float(data["rate_hz"]),
            )

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.x)

"""Published step models with reference predictions of their authors on recorded speech, if they are available."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from stepwell_export.adoption.overrides import Overrides
from stepwell_export.runtime.manifest import Array

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "models"
NAMES = ("dtln/model_1", "dtln/model_2", "silero-vad/silero_vad")

_HINTS = {
    "silero-vad/silero_vad": Overrides(constants={"sr": 16000}, windows={"input": 64}, shapes={"input": [512]}),
}


class Published(NamedTuple):
    """A model and the reference predictions of its authors.

    Attributes:
        file: The ONNX file.
        hints: What the file does not declare.
        given: Name of the input.
        xs: One recording without the context that Stepwell keeps, `(T, size)`.
        answered: Name of the output.
        ys: The reference predictions, `(T, size)`.
    """

    file: Path
    hints: Overrides
    given: str
    xs: Array
    answered: str
    ys: Array


def published(name: str) -> Published:
    """Return one of `NAMES`; skips the test if the models are not available."""
    if not FOLDER.is_dir():
        pytest.skip("the published models are not available in ../shared/models")
    file, hints = (FOLDER / name).with_suffix(".onnx"), _HINTS.get(name, Overrides())
    arrays = dict(np.load(file.with_suffix(".reference.npz")))
    [given], [answered] = ([key for key in arrays if key.startswith(kind)] for kind in ("x:", "y:"))
    steps, context = len(arrays[given]), sum(hints.windows.values())
    xs = np.ascontiguousarray(arrays[given].reshape(steps, -1)[:, context:])
    return Published(file, hints, given[2:], xs, answered[2:], arrays[answered].reshape(steps, -1))

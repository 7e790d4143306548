"""`Built`: a generated model, ready to be exported and to be run as its original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import WeakProofError

VOCABULARY = 50
"""Ids that a model with an embedding takes."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Built:
    """A generated model.

    Attributes:
        run: The original: from rows `(rows, T, *shape)` to its output, `(rows, T, ..)`, or `(rows, ..)` of a head.
        export: Writes the step graph to a file in the way of the documentation; returns whether it is called weak.
    """

    run: Callable[[Array], Array]
    export: Callable[[Path], bool]


def weight(rng: np.random.Generator, *shape: int) -> Array:
    """Draw a weight, float32, of a size with which layers neither vanish nor explode."""
    drawn: Array = rng.standard_normal(shape) / np.sqrt(max(shape[-1], 1))
    return drawn.astype(np.float32)


def exported(source: Any, path: Path) -> bool:
    """Export in the way of the documentation; return whether it is called weak, in which case nothing is written."""
    try:
        export_source(source, path)
    except WeakProofError:
        return True
    return False

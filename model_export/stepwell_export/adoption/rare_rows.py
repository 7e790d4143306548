"""`rare_rows`: inputs in which something rare occurs, to run a graph on that has no original.

Rows of one ordinary distribution do not show a gain by the largest value, a threshold that is seldom exceeded, or a
scale that is taken from the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

import numpy as np

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array, Manifest

RARE: Final = 12
"""Rows that `rare_rows` gives: four scales, an offset, ties, and spikes up and down at three timesteps."""

SCALES: Final = (1e-6, 1e-3, 1e3, 1e6)
_SPIKE: Final = 1e4

_WIDEST: Final = (2**31 - 1, 10_000, 1000, 100, 10)
_SIZES: Final = frozenset({"ConstantOfShape", "Expand", "Loop", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"})
"""Operators that need as much memory or time as an integer is large."""


def rare_rows(rng: np.random.Generator, manifest: Manifest, steps: int, *, most: int) -> dict[str, Array]:
    """Draw sequences, `(RARE, steps, *shape)` for each input; what is rare differs from row to row.

    Args:
        rng: The source of the numbers.
        manifest: What the graph takes.
        steps: Timesteps.
        most: The largest integer that is drawn.
    """
    drawn = {}
    for spec in manifest.inputs:
        shape, dtype = (RARE, steps, *spec.row_shape), np.dtype(spec.dtype)
        if dtype.kind != "f":
            limit = 1 if dtype.kind == "b" else min(most, int(np.iinfo(dtype).max))
            drawn[spec.name] = rng.integers(0, limit, shape, endpoint=True).astype(dtype)
            continue
        values = rng.standard_normal(shape)
        for row, scale in enumerate(SCALES):
            values[row] *= scale
        values[4] += 100.0
        values[5] = np.round(values[5])
        for row, at in enumerate((0, steps // 2, steps - 1), start=6):
            values[row, at] = np.abs(values[row, at]) * _SPIKE
            values[row + 3, at] = -np.abs(values[row + 3, at]) * _SPIKE
        drawn[spec.name] = np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    return drawn


def runnable_rare_rows(
    manifest: Manifest, steps: int, operators: Collection[str], run: Callable[[dict[str, Array]], object]
) -> tuple[dict[str, Array] | None, int]:
    """Return rare rows on which a graph runs, with integers as wide as it takes, and the largest integer.

    Args:
        manifest: What the graph takes.
        steps: Timesteps.
        operators: The graph's operators.
        run: Runs the graph; raises `ModelLoadError` where it fails, as on ids that an embedding does not have.

    Returns:
        The rows, or None where it runs on none; and the largest integer that may be in them.
    """
    has_integers = any(np.dtype(spec.dtype).kind in "iu" for spec in manifest.inputs)
    widest = [most for most in _WIDEST if most <= 100 or not _SIZES.intersection(operators)]
    for most in [*widest, 1] if has_integers else [1]:
        rows = rare_rows(np.random.default_rng(4), manifest, steps, most=most)
        with suppress(ModelLoadError):
            run(rows)
            return rows, most
    return None, 1

"""What a window shows of each feature: counts, range, quantiles, and the PSI against the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from stepwell.addons.drift.responses import FeatureDrift
from stepwell_export.runtime.psi import BINS, FLOOR, MIN_VALUES, psi, quantile_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepwell.addons.drift.features import ModelFeatures
    from stepwell.addons.drift.sketch import FeatureSketch
    from stepwell_export.runtime.manifest import Array

_MIN_OF_TENTH: Final = 30
_SIGNIFICANT: Final = 35.0  # chi-squared with 9 degrees of freedom exceeds it once in 17,000 times


class FeatureReport(FeatureDrift, kw_only=True):
    """A feature in a window.

    Attributes:
        tensor: The input or output.
        name: The feature, such as `x[0]`.
        is_output: Whether it is of an output.
    """

    tensor: str
    name: str
    is_output: bool


def feature_reports(features: ModelFeatures, sketch: FeatureSketch) -> list[FeatureReport]:
    """Return what a sketch shows of each feature, those of inputs first."""
    reports = []
    for is_output, tensors in ((False, features.inputs), (True, features.outputs)):
        for tensor in tensors:
            for i, name in enumerate(tensor.names, tensor.start):
                reports.append(_report(features, sketch, i, tensor.name, name, is_output=is_output))
    return reports


def _report(
    features: ModelFeatures, sketch: FeatureSketch, i: int, tensor: str, name: str, *, is_output: bool
) -> FeatureReport:
    count, missing = int(sketch.count[i]), int(sketch.missing[i])
    reference, origin = features.references[i], float(features.origins[i])
    shares = quantile_keys()
    psi_all = psi_tenth = None
    if reference is not None and reference.count >= MIN_VALUES:
        psi_all = _psi(_padded(reference.shares), sketch.bins[i])
        psi_tenth = _psi_of_tenth(_padded(reference.tenth or reference.shares), sketch.tenth[i])
    known = [each for each in (psi_all, psi_tenth) if each is not None]
    return FeatureReport(
        tensor=tensor,
        name=name,
        is_output=is_output,
        count=count,
        missing=missing / (count + missing) if count + missing else 0.0,
        min=float(sketch.low[i]) if count else None,
        max=float(sketch.high[i]) if count else None,
        quantiles=dict(zip(shares, sketch.quantiles(i, [*shares.values()], origin), strict=True)) if count else {},
        outside=int(sketch.outside[i]) / count if count and reference is not None else None,
        psi=max(known, default=None),
        psi_all=psi_all,
        psi_tenth=psi_tenth,
    )


def _psi(shares: Array, counts: Array) -> float | None:
    """Return the PSI of counts against a reference; None: they are too few."""
    return psi(shares, counts) if counts.sum() >= MIN_VALUES else None


def _psi_of_tenth(shares: Array, counts: Array) -> float | None:
    """Return the same; of fewer values also if they cannot be the reference's, by a chi-squared test."""
    n = int(counts.sum())
    if _MIN_OF_TENTH <= n < MIN_VALUES:
        expected = n * np.maximum(shares, FLOOR)
        if np.sum((counts - expected) ** 2 / expected) > _SIGNIFICANT:
            return psi(shares, counts)
    return _psi(shares, counts)


def _padded(shares: Sequence[float]) -> Array:
    return np.array([*shares, *[0.0] * (BINS - len(shares))])

"""`DriftMetrics`: the metrics of drift and data quality, of the last hour over all replicas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge

if TYPE_CHECKING:
    from stepwell.addons.drift.report import FeatureReport

_LABELS: Final = ("model", "version", "tensor", "feature")
_TEXTS: Final = {
    "psi": "Population stability index of the last hour against the reference; of all streams, or of the tenth that "
    "deviates most, whichever is greater.",
    "outside": "Share of the values of the last hour outside the reference's range.",
    "missing": "Share of the values of the last hour that are missing.",
}
_NAMES: Final = {"psi": "psi", "outside": "outside_ratio", "missing": "missing_ratio"}


class DriftMetrics:
    """Gauges by model, version, tensor and feature, for models with a reference."""

    def __init__(self, registry: CollectorRegistry, *, is_shared: bool) -> None:
        """Create the metrics, without values.

        Args:
            registry: The registry of the service's metrics.
            is_shared: Whether several workers share files, from which series cannot be removed; they become NaN.
        """
        self._gauges = {
            field: Gauge(f"stepwell_{name}", _TEXTS[field], _LABELS, registry=registry, multiprocess_mode="livemax")
            for field, name in _NAMES.items()
        }
        self._is_shared = is_shared
        self._set: set[tuple[str, ...]] = set()  # field and labels
        self._reports: object = None

    def refresh(self, reports: Mapping[tuple[str, int], Sequence[FeatureReport]]) -> None:
        """Set the gauges to newly read reports; those of features that have no value any more are removed."""
        if reports is self._reports:
            return
        self._reports = reports
        found: dict[tuple[str, ...], float] = {}
        for (model, version), features in reports.items():
            for feature in features:
                for field in _NAMES:
                    value = getattr(feature, field)
                    if value is not None and (feature.count or feature.missing):
                        found[field, model, str(version), feature.tensor, feature.name] = value
        for (field, *labels), value in found.items():
            self._gauges[field].labels(*labels).set(value)
        for field, *labels in self._set - set(found):
            if self._is_shared:
                self._gauges[field].labels(*labels).set(math.nan)
            else:
                self._gauges[field].remove(*labels)
        self._set = set(found) | (self._set if self._is_shared else set())

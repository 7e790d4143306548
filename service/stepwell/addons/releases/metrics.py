"""`ReleaseMetrics`: the metrics of releases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram

if TYPE_CHECKING:
    from stepwell.metrics import Metrics

_BOUNDS: Final = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e6)


class ReleaseMetrics:
    """What trials show: which version responded, and how far the candidate differs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create the metrics, all at zero."""
        labels = ["model", "version", "role"]
        steps = Counter(
            "stepwell_release_steps_total", "Timesteps of trials, by what a version did.", labels, registry=registry
        )
        difference = _CountedHistogram(
            "stepwell_release_difference",
            "Absolute differences between the predictions of two versions.",
            ["model", "output"],
            buckets=_BOUNDS,
            registry=registry,
        )
        lost = Counter(
            "stepwell_release_lost_total",
            "Streams that left a trial in shadow, because the candidate failed.",
            ["model"],
            registry=registry,
        )
        fell_back = Counter(
            "stepwell_release_fell_back_total",
            "Streams that fell back to the old version, because the candidate failed.",
            ["model"],
            registry=registry,
        )
        self._by_name: dict[str, Counter | Histogram] = {
            "steps": steps,
            "difference": difference,
            "lost": lost,
            "fell_back": fell_back,
        }
        self._used: set[tuple[str, ...]] = set()  # name and labels; the model is the first label of each

    @staticmethod
    def add_gauges(metrics: Metrics) -> None:
        """Add the gauges to the service's metrics; `metrics.read_gauges` sets what returns their values."""
        of_streams = "Streams by the version that responds, of all replicas."
        metrics.add_gauge("streams", of_streams, ("model", "version"))
        of_ended = "When a release last ended in this way."
        metrics.add_gauge("release_ended_timestamp_seconds", of_ended, ("model", "how"))
        of_gates = "1 while the gate of a release is not judged yet."
        metrics.add_gauge("release_gate_waits", of_gates, ("model",))

    def keep_models(self, served: Collection[str]) -> None:
        """Remove the series of all other models."""
        for labels in [labels for labels in self._used if labels[1] not in served]:
            self._used.remove(labels)
            self._by_name[labels[0]].remove(*labels[1:])

    def _child(self, metric: str, *labels: str) -> Any:
        self._used.add((metric, *labels))
        return self._by_name[metric].labels(*labels)

    def paired_steps(self, model: str, responding: int, other: int, timesteps: int) -> None:
        """Count timesteps of pairs: one version responded, the other ran beside it."""
        self._child("steps", model, str(responding), "answers").inc(timesteps)
        self._child("steps", model, str(other), "shadow").inc(timesteps)

    def candidate_failed(self, model: str, n: int, *, responds: bool) -> None:
        """Count streams that left a trial; `responds`: the candidate was to respond."""
        self._child("fell_back" if responds else "lost", model).inc(n)

    def compared(self, model: str, output: str, numbers: Mapping[float, int]) -> None:
        """Count numbers by their absolute difference."""
        self._child("difference", model, output).count(numbers)


class _CountedHistogram(Histogram):
    """A histogram that counts equal values together."""

    def count(self, numbers: Mapping[float, int]) -> None:
        """Count values, each so many times."""
        for value, n in numbers.items():
            self._sum.inc(value * n)
            for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
                if value <= bound:
                    bucket.inc(n)
                    break

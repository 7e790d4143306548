"""`TracedMetrics`: the service's metrics, which also pass the times of batches to the tracer."""

from __future__ import annotations

from stepwell.addons.tracing.tracer import Tracer
from stepwell.metrics import Metrics


class TracedMetrics(Metrics):
    """Counts as `Metrics`, and notes when batches, loads, runs and commits started and ended."""

    def __init__(self, version: str, tracer: Tracer) -> None:
        """Create the metrics.

        Args:
            version: As for `Metrics`.
            tracer: Makes spans of the times.
        """
        super().__init__(version)
        self._tracer = tracer
        tracer.on_request = self.exemplars.add

    def batch_started(self, model: str, rows: int) -> None:
        """Note that the current task runs a batch."""
        self._tracer.batch_started(model, rows)

    def batch_ended(self) -> None:
        """Note that the batch of the current task has ended."""
        self._tracer.batch_ended()

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        """Count a model run, and note its time."""
        super().batch_run(model, rows, seconds)
        self._tracer.phase_ended("run", seconds)

    def store_latency(self, op: str, seconds: float) -> None:
        """Count a round trip to the store, and note its time."""
        super().store_latency(op, seconds)
        self._tracer.phase_ended(op, seconds)

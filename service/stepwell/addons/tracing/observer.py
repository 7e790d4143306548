"""`BatchTimes`: passes the times of batches, loads, runs and commits to the tracer."""

from __future__ import annotations

from stepwell.addons.tracing.tracer import Tracer
from stepwell.engine.observer import EngineObserver


class BatchTimes(EngineObserver):
    """Notes when batches, loads, runs and commits started and ended.

    Args:
        tracer: Makes spans of the times.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def batch_started(self, model: str, rows: int) -> None:
        """Note that the current task runs a batch."""
        self._tracer.batch_started(model, rows)

    def batch_ended(self) -> None:
        """Note that the batch of the current task has ended."""
        self._tracer.batch_ended()

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        """Note a model run."""
        self._tracer.phase_ended("run", seconds)

    def store_latency(self, op: str, seconds: float) -> None:
        """Note a round trip to the store."""
        self._tracer.phase_ended(op, seconds)

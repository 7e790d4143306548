"""`LatencyRecorder`: counts and latencies of a load."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

_QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


@dataclass(slots=True)
class LatencyRecorder:
    """Timesteps, latencies and errors of a load, between `start` and `stop`.

    Attributes:
        steps: Timesteps that were applied.
        errors: Number of errors by code.
    """

    steps: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _times: array[float] = field(default_factory=lambda: array("d"))
    _started: float = 0.0
    _stopped: float = 0.0

    def start(self) -> None:
        """Discard the counts of the warm-up and start the measurement."""
        self.steps, self.errors, self._times = 0, Counter(), array("d")
        self._started = perf_counter()

    def stop(self) -> None:
        """End the measurement; later counts are ignored."""
        self._stopped = self._stopped or perf_counter()

    def replied(self, seconds: float, *, steps: int = 1) -> None:
        """Count a successful request of `seconds` with `steps` predictions."""
        if not self._stopped:
            self.steps += steps
            self._times.append(seconds)

    def failed(self, code: str, *, times: int = 1) -> None:
        """Count errors."""
        if not self._stopped:
            self.errors[code] += times

    @property
    def seconds(self) -> float:
        """Duration of the measurement so far, in seconds."""
        return (self._stopped or perf_counter()) - self._started

    def result(self) -> dict[str, Any]:
        """Return the counts, rates per second, and latency quantiles in milliseconds."""
        times = np.frombuffer(self._times) if self._times else np.full(1, np.nan)
        milliseconds = {f"{name}_ms": float(np.percentile(times, q) * 1e3) for name, q in _QUANTILES.items()}
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_s": self.steps / max(self.seconds, 1e-9),
            "requests": len(self._times),
            **{name: None if np.isnan(value) else value for name, value in milliseconds.items()},
            "errors": dict(self.errors),
        }

"""Counting what came of a load."""

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
    """Timesteps, times and errors of a load; what comes before `start` is not counted.

    Attributes:
        steps: Timesteps that were applied.
        errors: How often each code came instead of a prediction.
    """

    steps: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _times: array[float] = field(default_factory=lambda: array("d"))
    _began: float = 0.0
    _ended: float = 0.0

    def start(self) -> None:
        """Forget the warm-up, and count from now on."""
        self.steps, self.errors, self._times = 0, Counter(), array("d")
        self._began = perf_counter()

    def stop(self) -> None:
        """Count no longer."""
        self._ended = self._ended or perf_counter()

    def replied(self, seconds: float, *, steps: int = 1) -> None:
        """Count an answer that took `seconds` and brought so many predictions."""
        if not self._ended:
            self.steps += steps
            self._times.append(seconds)

    def failed(self, code: str, *, times: int = 1) -> None:
        """Count errors."""
        if not self._ended:
            self.errors[code] += times

    @property
    def seconds(self) -> float:
        """How long it has been counted."""
        return (self._ended or perf_counter()) - self._began

    def result(self) -> dict[str, Any]:
        """Return what is printed: rates per second, times in milliseconds."""
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

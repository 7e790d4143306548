"""`Report`: the measurements of a replay, and its table."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

KEPT_LATENCIES = 100_000
"""Number of latencies that a report keeps, the most recent ones."""


@dataclass(slots=True)
class Report:
    """Counts and differences of a replay, updated while it runs.

    Attributes:
        streams: Number of streams.
        atol: The model's stated absolute tolerance.
        rtol: The model's stated relative tolerance.
        seconds: Duration of the replay so far.
        steps: Predictions received.
        finished: Recordings replayed to their end.
        right: Finished recordings whose last prediction was the true class.
        max_difference: Largest absolute difference from the whole-sequence prediction; NaN if a prediction was NaN.
        beyond: Predictions that differ by more than the tolerance.
        latencies: Seconds from sending a timestep to its reply, the most recent `KEPT_LATENCIES`.
    """

    streams: int
    atol: float
    rtol: float
    seconds: float = 0.0
    steps: int = 0
    finished: int = 0
    right: int = 0
    max_difference: float = 0.0
    beyond: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_LATENCIES))

    @property
    def ok(self) -> bool:
        """Whether there were predictions and all were within the tolerance."""
        return self.steps > 0 and self.beyond == 0

    @property
    def steps_per_s(self) -> float:
        """Predictions per second."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self, share: float) -> float:
        """Return the quantile of the latencies at `share` (0 to 1), in milliseconds."""
        return float(np.quantile(self.latencies, share)) * 1000 if self.latencies else math.nan

    def compare(
        self, prediction: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], *, latency: float
    ) -> None:
        """Count one prediction.

        Args:
            prediction: The live prediction, (class,) float32.
            expected: The whole-sequence prediction at the same timestep, (class,) float32.
            latency: Seconds from sending the timestep to its reply.
        """
        self.steps += 1
        self.latencies.append(latency)
        difference = float(np.abs(prediction - expected).max())
        self.max_difference = float(np.maximum(self.max_difference, difference))  # keeps a NaN
        self.beyond += not np.allclose(prediction, expected, atol=self.atol, rtol=self.rtol)

    def finish(self, *, right: bool) -> None:
        """Count a finished recording, and whether its last prediction was the true class."""
        self.finished += 1
        self.right += right


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Print the table of a replay; without predictions there is nothing to compare."""
    if not report.steps:
        (console or Console()).print("Stopped before the first prediction: nothing was compared.")
        return
    table = Table(title="Live predictions against the original model's whole-sequence predictions", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in (
        ("streams", f"{report.streams:,}"),
        ("steps", f"{report.steps:,}"),
        ("steps/s", f"{report.steps_per_s:,.0f}"),
        ("p50", f"{report.latency_ms(0.5):.2f} ms"),
        ("p99", f"{report.latency_ms(0.99):.2f} ms"),
        ("recordings finished", f"{report.finished:,}"),
        ("final class correct", f"{report.right:,}"),
        ("max difference", f"{report.max_difference:.2g}"),
        ("tolerance", f"{report.atol:g} + {report.rtol:g} relative"),
        ("beyond tolerance", f"[red]{report.beyond:,}[/]" if report.beyond else "0"),
    ):
        table.add_row(name, value)
    (console or Console()).print(table)

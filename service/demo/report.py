"""`Report`: what a replay has measured, and its table."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

KEPT_LATENCIES = 100_000


@dataclass(slots=True)
class Report:
    """Counts and differences of a replay, growing while it runs.

    Attributes:
        streams: Streams that are replayed.
        atol: Absolute tolerance that the model states.
        rtol: Relative tolerance that the model states.
        seconds: How long the replay has run.
        steps: Timesteps answered.
        finished: Recordings replayed to their end.
        right: Those of them whose last prediction was the right class.
        max_difference: Largest absolute difference from the whole-sequence prediction; NaN when one was not a number.
        beyond: Predictions that differ by more than the tolerance.
        latencies: Seconds from sending a timestep to its answer, the latest ones.
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
        """Whether something was answered, and all of it within the tolerance."""
        return self.steps > 0 and self.beyond == 0

    @property
    def steps_per_s(self) -> float:
        """Timesteps answered a second."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self, share: float) -> float:
        """Return the latency that a share (0 to 1) of the answers did not exceed, in milliseconds."""
        return float(np.quantile(self.latencies, share)) * 1000 if self.latencies else math.nan

    def compare(self, got: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], *, latency: float) -> None:
        """Count one answer.

        Args:
            got: The live prediction, (class,).
            expected: The whole-sequence prediction at the same timestep, (class,).
            latency: Seconds that the answer took.
        """
        self.steps += 1
        self.latencies.append(latency)
        difference = float(np.abs(got - expected).max())
        self.max_difference = float(np.maximum(self.max_difference, difference))  # a NaN stays
        self.beyond += not np.allclose(got, expected, atol=self.atol, rtol=self.rtol)

    def finish(self, *, right: bool) -> None:
        """Count a recording that has come to its end, and whether its last prediction was the right class."""
        self.finished += 1
        self.right += right


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Print the table of a replay."""
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
        ("right at their end", f"{report.right:,}"),
        ("max difference", f"{report.max_difference:.2g}"),
        ("tolerance", f"{report.atol:g} + {report.rtol:g} relative"),
        ("beyond tolerance", f"[red]{report.beyond:,}[/]" if report.beyond else "0"),
    ):
        table.add_row(name, value)
    (console or Console()).print(table)

"""How a model runs several timesteps of a stream, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Timing:
    """Processor time of a call, in microseconds, without and with a time axis in the graph.

    Attributes:
        rows: Streams run together.
        steps: Timesteps of each; 1 is a single step.
        stepwise: By the step graph, one run for each timestep.
        dynamic: By the graph with a time axis, one run.
    """

    rows: int
    steps: int
    stepwise: float
    dynamic: float


@dataclass(frozen=True, slots=True)
class ChunkChoice:
    """How a model runs several timesteps of a stream.

    Attributes:
        chunk: `dynamic`: in one run. `step`: one run for each timestep.
        why: How they are run, or why one run for each is better.
        timings: What was measured; nothing where there was no graph to measure.
    """

    chunk: str
    why: str
    timings: list[Timing] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How many times quicker a chunk of one stream is in one run; 1 where it is not run so."""
        chunks = [t.stepwise / t.dynamic for t in self.timings if t.steps > 1 and t.rows == 1]
        return chunks[0] if chunks and self.chunk == "dynamic" else 1.0

"""`ParityReport`: what a verification compared and found, and how chunks are run; for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwell_export.runtime.manifest import DataReference, Parity
from stepwell_export.verify.error_growth import ErrorGrowth
from stepwell_export.verify.tolerance import OutputParity


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not compared.

    Attributes:
        what: What it would have been.
        why: The reason.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Covered:
    """What of the original's behaviour was compared.

    Attributes:
        decisions: How many decisions of the original, such as comparisons, were recorded.
        one_sided: Those that went one way only, in words: what the original does otherwise was not compared.
        steps: The longest sequence that was compared; a stream may be longer.
        ranges: By input, the smallest and the largest value of usual data, drawn at random or the user's own.
        driven: The same of all that was compared: few sequences have values outside of `ranges`.
    """

    decisions: int = 0
    one_sided: list[str] = field(default_factory=list)
    steps: int = 0
    ranges: dict[str, list[float]] = field(default_factory=dict)
    driven: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The result of a verification that passed.

    Attributes:
        parity: What goes into the manifest.
        outputs: One line per output, in graph order.
        max_abs_alone: Largest difference of a row run alone from the same row in a batch; 0: bit for bit equal.
        max_abs_chunk: Largest difference of a chunk from its single steps.
        chunk_lengths: Lengths of the chunks that were compared, each list over and over; none where a chunk is run as
            single steps.
        max_abs_saved: Largest difference that it makes to save and restore the states after every timestep;
            0: bit for bit the same.
        drift: The long run; None: there was none.
        skipped: What was not compared, and why.
        reference: The distributions of own data; None: none was given.
        chunk: How the model runs several timesteps of a stream; None: as it came.
        covered: What of the original's behaviour was compared.
        lowered: What was stored in fewer bits, in words; empty: nothing. Random data does not show what that does to
            the values of a real stream.
        kept: What was left as it is nevertheless, in words; empty: nothing.
        front: The report on the graph in front of what learns, which gives the values that it learns from.
    """

    parity: Parity
    outputs: list[OutputParity]
    max_abs_alone: float
    max_abs_chunk: float = 0.0
    chunk_lengths: list[list[int]] = field(default_factory=list)
    max_abs_saved: float = 0.0
    drift: ErrorGrowth | None = None
    skipped: list[Skipped] = field(default_factory=list)
    reference: DataReference | None = None
    chunk: ChunkChoice | None = None
    covered: Covered = field(default_factory=Covered)
    lowered: str = ""
    kept: str = ""
    front: ParityReport | None = None

    @property
    def weak(self) -> bool:
        """Whether a wrong graph might have passed."""
        return bool(self.reasons)

    @property
    def reasons(self) -> list[str]:
        """What makes the verification weak, in words; none: a wrong graph would hardly have passed."""
        reasons = [f"output {line.name}: {line.why}" for line in self.outputs if line.weak]
        if not self.outputs:
            reasons.append("no output could be compared")
        reasons += self.covered.one_sided
        if self.lowered and not self.is_settled:
            reasons.append(f"{self.lowered}, and random data does not show what that does to your own values")
        if self.front is not None:
            reasons += [reason for reason in self.front.reasons if reason not in reasons]
        return reasons

    def with_front(self, front: ParityReport) -> ParityReport:
        """Return the report with that on the graph in front of what learns."""
        parity = self.parity.model_copy(update={"max_abs": max(self.parity.max_abs, front.parity.max_abs)})
        return dataclasses.replace(self, parity=parity, front=front)

    @property
    def is_settled(self) -> bool:
        """Whether sequences of the user's own were compared, so that a person has chosen what the proof is worth."""
        return "user" in self.parity.sequences

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        fields = dataclasses.asdict(dataclasses.replace(self, reference=None, front=None))
        fields["front"] = None if self.front is None else self.front.as_json()
        kept = None if self.reference is None else self.reference.model_dump(include={"sequences", "timesteps"})
        return {**fields, "parity": self.parity.model_dump(mode="json"), "weak": self.weak, "reference": kept}


def is_weak(outputs: Sequence[OutputParity]) -> bool:
    """Whether any output's proof is weak, or none was compared."""
    return not outputs or any(line.weak for line in outputs)


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

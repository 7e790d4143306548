"""`StreamRun`: what a client has received of a stream since its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from campaign.client import TimedAnswer
from campaign.operations import Operation
from campaign.releases.folds import Folds


@dataclass
class StreamRun:
    """A stream since its start, or since a reset or fork.

    Attributes:
        name: The stream's name.
        operations: Acknowledged operations.
        step: Expected step.
        state_id: Newest state id.
        start: Step at the start.
        states: The states that it may have at the start; None: it is a new stream.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)
    step: int = 0
    state_id: str | None = None
    start: int = 0
    states: frozenset[Folds] | None = None

    def record(self, xs: Sequence[int], answer: TimedAnswer) -> None:
        """Record an acknowledged step or chunk."""
        document = answer.document
        ys = [y for row in document["outputs"]["y"] for y in (row if isinstance(row, list) else [row])]
        version = document.get("version")
        self.operations.append(Operation(tuple(xs), document["step"], tuple(ys), answer.sent, answer.answered, version))
        if document["step"] >= self.step:
            self.step, self.state_id = document["step"], document["state_id"]

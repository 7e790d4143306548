"""Compares the answers to one stream with the fold of its inputs. Pure.

A stream is a deterministic fold and each answer has its position, so checking is linear: each position occurs once,
none is missing, each value follows from all before it, and steps sent after an answer come after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.graphs import fold_reference

Kind = Literal["lost", "doubled", "wrong", "out of order", "refused", "unresolved", "error"]
KINDS: tuple[Kind, ...] = ("lost", "doubled", "wrong", "out of order", "refused", "unresolved", "error")


class Violation(NamedTuple):
    """A broken promise.

    Attributes:
        kind: `lost`: an acknowledged step is not in the stream. `doubled`: the stream has a step that was never
            acknowledged. `wrong`: a wrong value, position or rejection. `out of order`: a step sent after another was
            answered comes before it. `refused`: a valid step was rejected. `unresolved`: the outcome of a request
            stayed unknown. `error`: an answer that no client should ever get.
        detail: What was found and what was expected.
    """

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An acknowledged step or chunk.

    Attributes:
        xs: Its inputs.
        step: Position of its last timestep.
        ys: Its predictions.
        sent: When the client first sent it, seconds.
        answered: When its first answer arrived, seconds.
    """

    xs: tuple[int, ...]
    step: int
    ys: tuple[int, ...]
    sent: float
    answered: float

    @property
    def first(self) -> int:
        """Position of its first timestep."""
        return self.step - len(self.xs) + 1


def check(
    stream: str, operations: Sequence[Operation], final: int, *, value: int = 0, start: int = 0
) -> list[Violation]:
    """Return every violation in one stream, from its start, or a reset or fork, to its end.

    Args:
        stream: The stream's name, for messages.
        operations: All acknowledged operations, in any order.
        final: Step of the stream after all of them.
        value: Value of the fold at the start.
        start: Step of the stream at the start.
    """
    violations: list[Violation] = []
    position = start
    ordered = sorted(operations, key=lambda operation: operation.step)
    for operation in ordered:
        if operation.first <= position:
            violations.append(
                Violation("lost", f"{stream}: position {operation.first} was acknowledged twice; one step is lost")
            )
        elif operation.first > position + 1:
            violations.append(
                Violation(
                    "doubled", f"{stream}: positions {position + 1} to {operation.first - 1} were never acknowledged"
                )
            )
        elif operation.ys != (ys := tuple(fold_reference(operation.xs, start=value))):
            violations.append(Violation("wrong", f"{stream}: step {operation.step} is {operation.ys}; expected {ys}"))
        position, value = max(position, operation.step), operation.ys[-1]
    if final != position:
        what: Kind = "lost" if final < position else "doubled"
        violations.append(Violation(what, f"{stream}: it is at step {final}; its answers end at {position}"))
    return violations + _out_of_order(stream, ordered)


def _out_of_order(stream: str, ordered: Sequence[Operation]) -> list[Violation]:
    violations = []
    earliest = float("inf")  # answer to any later position
    for operation in reversed(ordered):
        if operation.sent > earliest:
            violations.append(
                Violation("out of order", f"{stream}: step {operation.step} was sent after the answer to a later one")
            )
        earliest = min(earliest, operation.answered)
    return violations

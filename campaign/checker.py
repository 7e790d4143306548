"""Holds what clients were told of one life of a stream against the fold of their inputs. Pure.

A stream is a deterministic fold and each answer says its position, so checking is linear: positions are taken once,
none is left out, each value follows from all before it, and what was answered first stands first.
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
        kind: `lost`: an acknowledged step is not in the stream. `doubled`: the stream took a step that nobody was
            told of. `wrong`: a value, a position or a refusal that does not follow. `out of order`: a step that was
            sent after another was answered stands before it. `refused`: a step that had to be taken. `unresolved`:
            nobody said in time what became of a request. `error`: an answer that no client should ever see.
        detail: What was found, and what was expected.
    """

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A step or chunk that was acknowledged.

    Attributes:
        xs: Its inputs.
        step: The position of the last of them.
        ys: Its predictions.
        sent: When the client first sent it, seconds.
        answered: When its first answer came, seconds.
    """

    xs: tuple[int, ...]
    step: int
    ys: tuple[int, ...]
    sent: float
    answered: float

    @property
    def first(self) -> int:
        """The position of its first timestep."""
        return self.step - len(self.xs) + 1


def check(
    stream: str, operations: Sequence[Operation], final: int, *, value: int = 0, start: int = 0
) -> list[Violation]:
    """Return every broken promise in one life of a stream.

    Args:
        stream: Its name, for the words.
        operations: All that was acknowledged, in any order.
        final: The step at which the stream was seen at last, after all of it.
        value: The fold's value at the beginning.
        start: The step at the beginning.
    """
    found: list[Violation] = []
    taken = start
    ordered = sorted(operations, key=lambda one: one.step)
    for one in ordered:
        if one.first <= taken:
            found.append(Violation("lost", f"{stream}: position {one.first} was acknowledged twice; one is gone"))
        elif one.first > taken + 1:
            found.append(Violation("doubled", f"{stream}: positions {taken + 1} to {one.first - 1} are nobody's"))
        elif one.ys != (ys := tuple(fold_reference(one.xs, start=value))):
            found.append(Violation("wrong", f"{stream}: step {one.step} is {one.ys}; expected {ys}"))
        taken, value = max(taken, one.step), one.ys[-1]
    if final != taken:
        what: Kind = "lost" if final < taken else "doubled"
        found.append(Violation(what, f"{stream}: it stands at step {final}; its answers say {taken}"))
    return found + _out_of_order(stream, ordered)


def _out_of_order(stream: str, ordered: Sequence[Operation]) -> list[Violation]:
    found = []
    earliest = float("inf")  # answer of all that stand behind
    for one in reversed(ordered):
        if one.sent > earliest:
            found.append(Violation("out of order", f"{stream}: step {one.step} was sent after a later one's answer"))
        earliest = min(earliest, one.answered)
    return found

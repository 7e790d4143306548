"""Compares the answers to one stream with the folds of its inputs by the versions of the model. Pure.

A stream is a deterministic fold and each answer has its position, so checking is linear: each position occurs once,
none is missing, each value follows from all before it, and steps sent after an answer come after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from campaign.operations import Operation
from campaign.releases.folds import Folds, after, at_start
from campaign.releases.log import FACTORS, STALE_S, ReleaseLog
from stepwell.store.keys import record_key
from tests.graphs import fold_reference

MODEL, TENANT = "fold", "default"

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


class Checked(NamedTuple):
    """What is left of a stream after its answers were checked.

    Attributes:
        violations: Every broken promise.
        states: The states that the stream may have; empty after a violation.
    """

    violations: list[Violation]
    states: frozenset[Folds]


def check(
    stream: str,
    operations: Sequence[Operation],
    final: int,
    *,
    states: Iterable[Folds] | None = None,
    start: int = 0,
    log: ReleaseLog | None = None,
) -> Checked:
    """Check one stream, from its start, or a reset or fork, to its end.

    Args:
        stream: The stream's name.
        operations: All acknowledged operations, in any order.
        final: Step of the stream after all of them.
        states: The states that the stream may have at the start; None: it is a new stream.
        start: Step of the stream at the start.
        log: The releases; None: there was none.
    """
    violations: list[Violation] = []
    log, position, record = log or ReleaseLog(), start, record_key(TENANT, MODEL, stream)
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
        else:
            before = set(at_start(operation, log) if states is None else states)
            states = after(before, operation, log, record)
            if not states:
                violations.append(_wrong(stream, operation, before, log))
        if violations:
            states = ()  # what follows from a wrong answer is not known
            break
        position = operation.step
    else:
        if final != position:
            what: Kind = "lost" if final < position else "doubled"
            violations.append(Violation(what, f"{stream}: it is at step {final}; its answers end at {position}"))
    return Checked(violations + _out_of_order(stream, ordered), frozenset(states or ()))


def _wrong(stream: str, operation: Operation, before: Iterable[Folds], log: ReleaseLog) -> Violation:
    """Return the violation of an answer that follows from none of a stream's states."""
    expected = {
        f"version {version}: {fold_reference(operation.xs, start=value, factor=FACTORS[version])}"
        for folds in before
        for version, value in enumerate(folds.values, 1)
        if value is not None
    }
    detail = f"{stream}: step {operation.step} is {list(operation.ys)}; expected {sorted(expected)[:4]}"
    if log.trials:
        trials = [
            f"{n}: {trial}"
            for n, trial in enumerate(log.trials)
            if trial.ended >= operation.sent - STALE_S and trial.began <= operation.answered
        ]
        detail += f"; {operation}, states {sorted(map(repr, before))[:4]}, trials {trials}"
    return Violation("wrong", detail)


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

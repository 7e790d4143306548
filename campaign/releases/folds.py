"""`Folds`: what the states of a stream may be while releases move it, by its answers and the log of the releases. Pure.

A checker does not see when a candidate joined a stream in `shadow`. So it follows every state that the stream may have,
and each answer leaves those from which a version computes exactly that value. None left: no version that the releases
allow has consumed exactly the timesteps before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from campaign.operations import Operation
from campaign.releases.log import FACTORS, LoggedTrial, ReleaseLog
from stepwell.addons.releases.document import MAX_EARLIER
from tests.graphs import fold_reference

NEW_STREAM, UNKNOWN = 0, -1
"""`Folds.last` of a stream that has no answer yet, and of one whose last version is not known."""

_Values = tuple[int | None, int | None]


class Folds(NamedTuple):
    """States that a stream may have.

    Attributes:
        values: The value of version 1 and of version 2; None: the stream has no state of that version.
        trial: Of a pair, the index of its trial; of one version, that of the first trial that may move the stream.
        last: The version that answered last, or `NEW_STREAM` or `UNKNOWN`.
    """

    values: _Values
    trial: int = 0
    last: int = NEW_STREAM

    @classmethod
    def of(cls, version: int, value: int = 0, *, trial: int = 0, last: int = NEW_STREAM) -> Folds:
        """Return those of a stream with one version."""
        return cls(_single(version, value), trial, last)

    @property
    def is_pair(self) -> bool:
        """Whether both versions step the stream."""
        return None not in self.values

    @property
    def version(self) -> int:
        """The version of a stream that has one."""
        return 1 if self.values[1] is None else 2

    def value(self, version: int) -> int:
        """Return the value of a version that it has."""
        value = self.values[version - 1]
        assert value is not None
        return value

    def moved_to(self, version: int, trial: int) -> Folds:
        """Return those of a stream that goes on with one version: its half of a pair, or the state as it is."""
        value = self.value(version if self.is_pair else self.version)
        return Folds(_single(version, value), trial, self.last)


def at_start(operation: Operation, log: ReleaseLog) -> set[Folds]:
    """Return the states of a stream before the operation that creates it."""
    first = log.first_trial(operation.sent)
    return {Folds.of(version, trial=first) for version in log.currents(operation.sent, operation.answered)}


def after_reset(sent: float, log: ReleaseLog) -> set[Folds]:
    """Return the states of a stream after a reset to the initial state, which ends a trial for the stream."""
    first = log.first_trial(sent)
    return {Folds.of(version, trial=first, last=UNKNOWN) for version in (FACTORS if log.trials else [1])}


def after_move(states: Iterable[Folds], version: int, move: Operation, log: ReleaseLog, record: str) -> set[Folds]:
    """Return the states of a stream after it was moved to a version by hand; `move` has no inputs."""
    return {
        folds.moved_to(version, _trial_after_move(folds, move, log))._replace(last=version)
        for before in states
        for folds in _swept(before, move, log, record)
    }


def after(
    states: Iterable[Folds], operation: Operation, log: ReleaseLog, record: str, *, is_settled: bool = False
) -> set[Folds]:
    """Return the states that a stream may have after an operation; empty: its answer follows from none of them.

    Args:
        states: Those before it.
        operation: The operation.
        log: The releases.
        record: Key of the stream's record.
        is_settled: Whether every worker follows the end of the last trial, so that no pair is left as one.
    """
    computed: dict[tuple[int, int], tuple[int, ...]] = {}

    def compute(version: int, value: int) -> tuple[int, ...]:
        ys = computed.get((version, value))
        if ys is None:
            ys = tuple(fold_reference(operation.xs, start=value, factor=FACTORS[version]))
            computed[version, value] = ys
        return ys

    found: dict[tuple[object, ...], Folds] = {}
    swept: dict[tuple[object, ...], Folds] = {}
    for folds in states:
        for one in _swept(folds, operation, log, record):
            _keep(swept, one)
    for before in swept.values():
        for folds in _reachable(before, operation, log, record):
            if is_settled and folds.is_pair:
                continue
            for version in _may_answer(folds, operation, log):
                if compute(version, folds.value(version)) != operation.ys:
                    continue
                if not _is_announced(before.last, version, operation.version):
                    continue
                values = tuple(v if v is None else compute(i, v)[-1] for i, v in enumerate(folds.values, 1))
                _keep(found, Folds(values, folds.trial, version))  # type: ignore[arg-type]
    return set(found.values())


def _trial_after_move(folds: Folds, move: Operation, log: ReleaseLog) -> int:
    """Return the first trial that may move a stream after it was moved by hand.

    That is the one before, too, if its candidate may have taken the stream over by a `switch` before the promotion: a
    stream that is then moved back to the old version follows the promotion.
    """
    before = folds.trial - 1
    if folds.is_pair or before < log.first_trial(move.sent) or not log.trials[before].has_mode("switch", move.answered):
        return folds.trial
    return before


def _single(version: int, value: int) -> _Values:
    return (value, None) if version == 1 else (None, value)


def _keep(found: dict[tuple[object, ...], Folds], folds: Folds) -> bool:
    """Keep states, unless states are there that allow the same and more; return whether they were kept."""
    name = (folds.values, folds.last, folds.trial if folds.is_pair else None)
    before = found.get(name)
    if before is not None and before.trial <= folds.trial:
        return False
    found[name] = folds
    return True


def _reachable(
    start: Folds, operation: Operation, log: ReleaseLog, record: str, *, is_swept: bool = False
) -> list[Folds]:
    """Return where a stream may be placed when a worker steps it: where it is, or after one or more moves.

    Args:
        start: Where it is.
        operation: The operation for which a worker steps it.
        log: The releases.
        record: Key of the stream's record.
        is_swept: Whether sweeps may have moved it while it slept.
    """
    switched_from = log.first_trial(log.sweeps[0]) if is_swept else len(log.trials)
    found: dict[tuple[object, ...], Folds] = {}
    _keep(found, start)
    waiting = [start]
    while waiting:
        waiting += [
            folds for folds in _moves(waiting.pop(), operation, log, record, switched_from) if _keep(found, folds)
        ]
    return list(found.values())


def _moves(folds: Folds, operation: Operation, log: ReleaseLog, record: str, switched_from: int) -> Iterator[Folds]:
    if folds.is_pair:
        trial, then = log.trials[folds.trial], folds.trial + 1
        if trial.ended <= operation.answered:
            yield folds.moved_to(trial.old if trial.how == "abort" else trial.new, then)
        if trial.has_mode("switch", operation.answered):
            yield folds.moved_to(trial.new, then)
        if len(log.trials) - folds.trial > MAX_EARLIER:  # the document does not keep it: the half that is current
            yield folds.moved_to(trial.old, then)
            yield folds.moved_to(trial.new, then)
        return
    for index in range(folds.trial, len(log.trials)):
        trial = log.trials[index]
        if trial.began > operation.answered:
            break
        if trial.old != folds.version:
            continue
        if trial.how == "promote" and trial.ended <= operation.answered:
            yield folds.moved_to(trial.new, index + 1)
        is_asked = trial.existing or folds.last == NEW_STREAM
        if not is_asked or not trial.takes_part(record):
            continue
        if index >= log.first_trial(operation.sent):
            yield from _joined(folds, index, trial, operation)
        elif index >= switched_from and trial.has_mode("switch", operation.answered):
            yield folds.moved_to(trial.new, index + 1)  # for good; from a pair, the trial's end has moved it since


def _joined(folds: Folds, index: int, trial: LoggedTrial, operation: Operation) -> Iterator[Folds]:
    if trial.has_mode("shadow", operation.answered) or trial.has_mode("ramp", operation.answered):
        value = folds.value(trial.old)
        yield Folds((value, value), index, folds.last)
    if trial.has_mode("switch", operation.answered):
        yield folds.moved_to(trial.new, index + 1)


def _may_answer(folds: Folds, operation: Operation, log: ReleaseLog) -> Iterator[int]:
    if not folds.is_pair:
        yield folds.version
        return
    trial = log.trials[folds.trial]
    if trial.has_mode("shadow", operation.answered):
        yield trial.old
    if trial.has_mode("ramp", operation.answered):
        yield trial.new


def _is_announced(before: int, version: int, announced: int | None) -> bool:
    """Whether an answer names its version if, and only if, another version answered before."""
    if before == UNKNOWN:
        return announced in (None, version)
    return announced == (version if before not in (NEW_STREAM, version) else None)


def _swept(start: Folds, operation: Operation, log: ReleaseLog, record: str) -> Iterator[Folds]:
    """Yield where a stream may be before an operation: where it was, or where a sweep has moved it meanwhile.

    The sweep may have done so at any time since the first one was requested. So a stream that sleeps may have switched
    to the candidate of a trial that ended long before the operation.
    """
    yield start
    if start.last == NEW_STREAM or not log.may_sweep(operation.answered):
        return
    for folds in _reachable(start, operation, log, record, is_swept=True):
        if not folds.is_pair:
            yield folds._replace(last=folds.version)
        elif not start.is_pair or folds.trial != start.trial:
            yield folds._replace(last=log.trials[folds.trial].old)

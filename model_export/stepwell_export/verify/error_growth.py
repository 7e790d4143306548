"""The long run: whether the step graph walks away from the original over many timesteps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.evidence import Evidence
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel, run_reference
from stepwell_export.verify.runners import Run, Sequences
from stepwell_export.verify.tolerance import OutputParity, Tolerance, difference, largest

STEPS = 2000
"""Timesteps of the long run."""

COMPARED_AT_ENDS = 64
"""Timesteps at its beginning and at its end whose differences are compared."""

FEWEST = 4 * COMPARED_AT_ENDS
"""Timesteps of the long run of the largest model."""

_MOST_NUMBERS = 2_000_000_000  # products of a whole run: a second or two, for the original and for the step graph
_NUDGE = 2**-22  # relative; two units in the last place of float32


@dataclass(frozen=True, slots=True)
class ErrorGrowth:
    """What a long run showed.

    Attributes:
        steps: Timesteps that were run; `compared` of them were compared.
        compared: Timesteps until the original's answers stop being finite; all, where they do not.
        max_abs: Largest difference from the original.
        at_step: Where, from 1.
        first: Largest difference in the first timesteps.
        last: Largest difference in the last timesteps.
        ends: Timesteps that `first` and `last` are of.
        note: What people should know besides; empty: nothing.
    """

    steps: int
    compared: int
    max_abs: float
    at_step: int
    first: float
    last: float
    ends: int
    note: str = ""


def steps_for(numbers: int) -> int:
    """Return how many timesteps the long run of a model has, by its size alone: the same on every machine.

    Args:
        numbers: Weights and numbers in the states; one timestep uses each about once.
    """
    return int(np.clip(_MOST_NUMBERS // max(numbers, 1), FEWEST, STEPS))


def most_steps(numbers: int) -> int:
    """Return the most timesteps of a run at a length that the original may depend on, in the same way."""
    return int(np.clip(_MOST_NUMBERS // max(numbers, 1), FEWEST, 4 * STEPS))


def long_run(  # noqa: PLR0917  # what it is compared with, and what notes the result
    original: ReferenceModel,
    model: StepModel,
    data: Sequences,
    running: Callable[[], Run],
    lines: Mapping[str, OutputParity],
    worth: Mapping[str, Evidence],
    tolerance: Tolerance,
) -> ErrorGrowth:
    """Compare one long sequence with the original; `running` gives what the step graph answers to it."""
    length = next(iter(data.values())).shape[1]
    want = run_reference(original, data, list(lines))
    got, _ = running()
    compared = min(_finite_steps(answers, length) for answers in want.values()) if want else length
    note = "" if compared == length else f"from timestep {compared + 1} on the original's answers are not finite"
    offs = {name: _cut(answers, got[name], compared) for name, answers in want.items()}
    failed = {}
    for name, (steps, off, values) in offs.items():
        bad = _beyond(off, values, tolerance).any(axis=tuple(i for i in range(off.ndim) if i != 1))
        if bad.any():
            failed[name] = int(steps[int(np.argmax(bad))])
    if failed:
        name = min(failed, key=lambda output: failed[output])
        _check_sensitivity(model, data, got[name], name, failed[name], offs[name])
        note = (
            f"from timestep {failed[name]} on the difference is beyond the tolerance, and so is what a change of the "
            "state in its last digits makes: this model makes much of any rounding"
        )
        offs = {name: _before(part, failed[name]) for name, part in offs.items()}
    for name, (steps, off, values) in offs.items():
        lines[name].note("long", steps, off, values)
        if name not in failed:
            worth[name].note(off, values)
    return _summary(offs, length, compared, note)


_Off = tuple[Array, Array, Array]
"""Timesteps; differences and the original's values, `(1, timesteps, *shape)`."""


def _finite_steps(answers: PrefixAnswers, length: int) -> int:
    """Return how many timesteps go before the first answer that is not finite."""
    values = answers.values
    if values.dtype.kind != "f":
        return length
    finite = np.isfinite(values).all(axis=tuple(i for i in range(values.ndim) if i != 1))
    return length if finite.all() else answers.steps[int(np.argmin(finite))] - 1


def _cut(answers: PrefixAnswers, got: Array, compared: int) -> _Off:
    steps = np.array([step for step in answers.steps if step <= compared], np.int64)
    values = answers.values[:, : len(steps)]
    got = got[:, steps - 1]
    return steps, difference(got, values), values.reshape(got.shape)


def _before(part: _Off, step: int) -> _Off:
    steps, off, values = part
    count = int((steps < step).sum())
    return steps[:count], off[:, :count], values[:, :count]


def _beyond(off: Array, values: Array, tolerance: Tolerance) -> Array:
    """Return where differences are too large for the values so far: those of a run that grows are small at first."""
    if not tolerance.scaled or not off.size or values.dtype.kind != "f":
        return tolerance.on(values).beyond(off, values)
    sizes = np.abs(values.astype(np.float64)).max(axis=tuple(i for i in range(values.ndim) if i != 1))
    so_far = np.maximum.accumulate(sizes)
    early = so_far[min(COMPARED_AT_ENDS, len(so_far)) - 1]  # what comes first may be next to nothing
    allowed = tolerance.atol * np.maximum(so_far, early).reshape(1, -1, *[1] * (values.ndim - 2))
    return np.asarray(~((off <= allowed + tolerance.rtol * np.abs(values)) | (off == 0)))


def _check_sensitivity(  # noqa: PLR0917  # one failure, in its parts
    model: StepModel, data: Sequences, got: Array, name: str, step: int, part: _Off
) -> None:
    """Pass where the model's own answers differ as much after a change of the states in their last digits.

    Raises:
        ParityError: They do not, so that the difference is no matter of rounding.
    """
    steps, off, _ = part
    length = got.shape[1]
    until = min(length, step + COMPARED_AT_ENDS)
    head = {key: array[:, :1] for key, array in data.items()}
    _, states = model.chunk(head, model.initial_states(1))
    rng, outputs = np.random.default_rng(0), []
    for t in range(1, until):
        factor = 1 + _NUDGE * rng.choice([-1, 1])
        states = {k: (v * factor).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in states.items()}
        out, states = model.step({key: array[:, t] for key, array in data.items()}, states)
        states = model.unpack(model.pack(states, rows=1))  # as `got` had it: a narrower store is no sensitivity
        outputs.append(out[name])
    nudged = difference(np.stack(outputs, axis=1), got[:, 1:until])
    mine = largest(nudged[np.isfinite(nudged)])
    theirs = largest(off[:, : int((steps <= until).sum())])
    if not mine >= theirs / 10:
        moved = off[:, int((steps < step).sum())]
        raise ParityError(
            f"Output {name!r} drifts away from the original: over {length} timesteps the first difference beyond "
            f"the tolerance is at timestep {step} ({largest(moved):.3g}), after "
            f"{largest(off[:, :COMPARED_AT_ENDS]):.3g} at most in the first {COMPARED_AT_ENDS}. Changing the states in "
            f"their last digits makes {mine:.3g}, so it is not rounding.",
            fix="Nothing was written. Something is lost or added in every timestep; look at what the model counts or "
            "sums up, and at states that are stored in fewer bits.",
        )


def _summary(offs: Mapping[str, _Off], length: int, compared: int, note: str) -> ErrorGrowth:
    ends = min(COMPARED_AT_ENDS, max(1, length // 4))
    first = last = worst = 0.0
    at = 1
    for steps, off, _ in offs.values():
        first = max(first, largest(off[:, steps <= ends]))
        last = max(last, largest(off[:, steps > compared - ends]))
        if largest(off) > worst:
            worst, at = largest(off), int(steps[int(np.unravel_index(np.argmax(off), off.shape)[1])])
    return ErrorGrowth(length, compared, worst, at, first, last, ends, note)

"""Judges a written step graph by its original, over long sequences with values in which the rare condition occurs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from campaign.exporter.built import Array, Built
from campaign.exporter.cases import BY_PLACE, RECENT, Case
from campaign.exporter.rare import CELLS, OTHER_ROWS
from stepwell_export.runtime.step_model import StepModel

LONGEST = 8000
"""Timesteps of the longest sequence that is judged."""

_RELATIVE = 2e-3  # of the value at that timestep: what a right graph may be off
_NOISE = 20.0  # in units of what a change of the inputs in their last bits makes of the original
_FLOOR = 1e-6  # of the largest value so far
_ORDINARY = 1e-5  # of the largest value of an ordinary row: kernels round activations near zero to 3e-8, which adds up

_TIMED = frozenset({RECENT, "long lag", "counter", "mode after a while", "mode by length", BY_PLACE}) | {
    name for name in CELLS if name.endswith(("counter", "remainder", "age"))
}
"""Conditions that occur after the period of the setting."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a step graph differs from the original.

    Attributes:
        what: Which of the comparisons.
        row: The row.
        timestep: The first timestep, counted from 0.
        off: The largest difference, as part of the largest value.
    """

    what: str
    row: int
    timestep: int
    off: float

    def __str__(self) -> str:
        return f"{self.what}: row {self.row}, timestep {self.timestep}, off by {self.off:.2g} of the largest value"


def find_fault(case: Case, built: Built, path: Path) -> Fault | None:
    """Return the first difference of a step graph from the original; None: there is none.

    Args:
        case: The model.
        built: The original.
        path: The step graph.
    """
    model = StepModel(path)
    [answer] = [spec.name for spec in model.manifest.answered]
    given, *more = model.manifest.inputs
    if more:
        return Fault(f"the inputs {[spec.name for spec in more]} are states", 0, 0, 1.0)
    rng = np.random.default_rng([case.seed, case.index, 1])
    x = sequences(case, rng)
    rows = len(x)
    states = model.initial_states(rows)
    stepped, _ = model.chunk({given.name: x.reshape(rows, x.shape[1], *given.row_shape)}, states)
    got = stepped[answer].reshape(rows, x.shape[1], -1)
    for length in [x.shape[1]] if case.head == "each" else _prefixes(x.shape[1]):
        fault = _compare(case, built.run, x[:, :length], got[:, :length], rng, alone=length == x.shape[1])
        if fault is not None:
            return fault
    return _steps_fault(model, x[:, :50], got[:, :50])


def sequences(case: Case, rng: np.random.Generator) -> Array:
    """Draw rows in which the rare condition occurs at some time, `(rows, T, features)`, or ids `(rows, T)`.

    The rows: ordinary; about the limit; a spike at the first, a middle and the last timestep; far above; tiny; ties.
    """
    length = min(LONGEST, 2 * case.setting.period + 50) if case.rare in _TIMED else 600
    if case.rare == "decaying attention":
        length = 120
    if case.takes_ids:
        widest = 2**30 if case.rare else 50
        return rng.integers(0, widest, (6, length)).astype(np.int64 if case.front_end != "keras" else np.int32)
    x = rng.standard_normal((8, length, case.features))
    if not case.rare:
        return x[:4].astype(np.float32)
    limit = case.setting.limit
    x[1] *= limit
    for row, at in ((2, 0), (3, length // 2), (4, length - 1)):
        x[row, at] = np.abs(x[row, at]) * limit * 4
    x[5] *= limit * 50
    x[6] *= 1e-5
    x[7] = np.round(x[7] * 2) / 2
    return x.astype(np.float32)


def _prefixes(length: int) -> list[int]:
    return sorted({n for n in (1, 7, 33, length // 2, length) if 0 < n <= length})


def _compare(
    case: Case, run: Callable[[Array], Array], x: Array, got: Array, rng: np.random.Generator, *, alone: bool
) -> Fault | None:
    """Compare with the original, of all rows together and of some alone; `got` is `(rows, T, numbers)`."""
    length = x.shape[1]
    moved = [x] if case.takes_ids else [x, _moved(x, rng), _moved(x, rng)]
    parts = (
        [run(part) for part in moved] if case.rare in OTHER_ROWS else np.split(run(np.concatenate(moved)), len(moved))
    )
    want, *others = (_timed(case, part) for part in parts)
    noise = np.max([np.zeros_like(want), *(_difference(other, want) for other in others)], axis=0)
    mine = got[:, -1:] if want.shape[1] == 1 else got
    noise += _ORDINARY / _NOISE * _largest(want[0])
    made_up = _made_of_nan(case, x)[:, -want.shape[1] :]
    mine, want = (np.where(made_up, 0.0, values) for values in (mine, want))
    fault = _first_fault("together", mine, want, noise, length)
    if fault is not None:
        return fault
    for row in (0, 3) if alone else ():
        one = np.where(made_up[row : row + 1], 0.0, _timed(case, run(x[row : row + 1])))
        fault = _first_fault("alone", mine[row : row + 1], one, noise[row : row + 1], length)
        if fault is not None:
            return Fault(fault.what, row, fault.timestep, fault.off)
    return None


def _made_of_nan(case: Case, x: Array) -> Array:
    """Return from where on the original's answers are numbers that onnxruntime makes of NaN, `(rows, T, 1)`.

    Its LSTM, GRU and RNN take a NaN that a model computes in front of them for a limit of their activations. A step
    graph gives NaN there, which the service refuses: so it is no wrong answer.
    """
    if case.front_end != "onnx" or case.rare != "not a number" or case.place != "before":
        return np.zeros((*x.shape[:2], 1), bool)
    return np.asarray(np.maximum.accumulate(x.max(axis=2, keepdims=True) > case.setting.limit, axis=1))


def _timed(case: Case, values: Array) -> Array:
    """Return an output as `(rows, T, numbers)`, T = 1 for that of a whole sequence."""
    return values.reshape(len(values), values.shape[1] if case.head == "each" else 1, -1).astype(np.float64)


def _moved(x: Array, rng: np.random.Generator) -> Array:
    """Return inputs that differ in their last bits: what they change in the original is rounding."""
    return (x * (1 + 1e-6 * rng.choice([-1, 1], x.shape))).astype(np.float32)


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))


def _difference(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), 0.0)


def _first_fault(what: str, got: Array, want: Array, noise: Array, length: int) -> Fault | None:
    sizes = np.where(np.isfinite(want), np.abs(want), 0.0).max(axis=2, keepdims=True)
    so_far = np.maximum.accumulate(sizes, axis=1)
    noisy = np.maximum.accumulate(noise.max(axis=2, keepdims=True), axis=1)
    off = _difference(got.astype(np.float64), want)
    is_wrong = off > _RELATIVE * sizes + _FLOOR * so_far + _NOISE * noisy + 1e-30
    is_wrong |= np.isnan(got) != np.isnan(want)
    is_wrong |= np.isfinite(want) & ~np.isfinite(got)
    if not is_wrong.any():
        return None
    row, timestep, _ = (int(place[0]) for place in np.nonzero(is_wrong))
    largest = float(so_far[row].max()) or 1.0
    share = float(np.where(is_wrong, off, 0.0).max()) / largest
    return Fault(what, row, timestep if want.shape[1] > 1 else length - 1, share)


def _steps_fault(model: StepModel, x: Array, want: Array) -> Fault | None:
    """Compare single steps with what a chunk of the same model gave."""
    [answer], [given] = [spec.name for spec in model.manifest.answered], model.manifest.inputs
    rows = len(x)
    states, answers = model.initial_states(rows), []
    for t in range(x.shape[1]):
        out, states = model.step({given.name: x[:, t].reshape(rows, *given.row_shape)}, states)
        answers.append(out[answer].reshape(rows, -1))
    got = np.stack(answers, 1).astype(np.float64)
    noise = np.full_like(got, _ORDINARY / _NOISE * _largest(want[0]))
    return _first_fault("chunk against steps", got, want.astype(np.float64), noise, x.shape[1])

"""Verification: the original on whole sequences against the step graph, step by step. Knows no framework.

What is compared, for each kind of sequence (drawn at random, with masked timesteps, the user's own):

* three rows together, every answer of every timestep, against the original;
* the same rows alone, so that a row never depends on its neighbours in a batch;
* in the middle every state goes through the packed form that the store keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_export.errors import ParityError, TensorError
from model_export.manifest import Array, Manifest, Parity
from model_export.step_model import StepModel

ROWS = 3
STEPS = 64
SEEDS = (0, 1, 2)
ATOL = 1e-5
RTOL = 1e-4


@dataclass(frozen=True, slots=True)
class PrefixAnswers:
    """An original's answers for some beginnings of the sequences.

    Attributes:
        steps: Timesteps that each beginning has, from 1, ascending.
        values: Shape `(batch, len(steps), *shape)`: the answers after so many timesteps.
    """

    steps: Sequence[int]
    values: Array


Original = Callable[[Mapping[str, Array]], Mapping[str, Array | PrefixAnswers]]
"""Whole sequences `{input: (batch, T, *shape)}` to the answer for every prefix `{output: (batch, T, *shape)}`,
or to the answers for some prefixes."""

Sampler = Callable[[np.random.Generator, int, int], dict[str, Array]]
"""`(rng, rows, steps)` to `{input: (rows, steps, *shape)}`."""

Progress = Callable[[str, int, int], None]
"""What is being done, and how many of how many parts are done."""


@dataclass(slots=True)
class OutputParity:
    """How far one output was off.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference.
        at_step: Timestep of that difference, from 1.
        sequence: Kind of sequence of that difference.
        compared: Numbers compared.
    """

    name: str
    max_abs: float = 0.0
    at_step: int = 1
    sequence: str = ""
    compared: int = 0


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The result of a verification that passed.

    Attributes:
        parity: What goes into the manifest.
        outputs: One line per output, in graph order.
        max_abs_alone: Largest difference between a row run alone and the same row in a batch; 0: bit for bit equal.
    """

    parity: Parity
    outputs: list[OutputParity]
    max_abs_alone: float


class _Tolerance(NamedTuple):
    atol: float
    rtol: float

    def allowed(self, want: Any) -> Any:
        """Largest difference that is allowed from this value or these values, in float64."""
        return self.atol + self.rtol * np.abs(np.asarray(want, np.float64))


@dataclass(slots=True)
class _Comparison:
    """Collects the differences of one verification."""

    outputs: dict[str, OutputParity]
    tolerance: _Tolerance
    max_abs_alone: float = 0.0
    sequences: list[str] = field(default_factory=list)

    def against_original(self, kind: str, want: Mapping[str, PrefixAnswers], got: Mapping[str, Array]) -> None:
        """Hold all sequences of a kind against the original's answers.

        Raises:
            ParityError: They differ; says the first timestep and output at which they do.
        """
        failures = []
        for name, answers in want.items():
            found = got[name][:, [step - 1 for step in answers.steps]]
            off = _difference(found, answers.values)
            line = self.outputs[name]
            line.compared += off.size
            if off.size and not off.max() <= line.max_abs:
                line.max_abs, line.sequence = float(off.max()), kind
                line.at_step = answers.steps[int(np.unravel_index(off.argmax(), off.shape)[1])]
            bad = ~(off <= self.tolerance.allowed(answers.values))
            if bad.any():
                column = int(bad.any(axis=tuple(i for i in range(bad.ndim) if i != 1)).argmax())
                failures.append((answers.steps[column], column, name, bad, found, answers.values))
        if failures:
            step, column, name, bad, found, values = min(failures, key=lambda failure: failure[0])
            row, *place = (int(i) for i in np.argwhere(bad[:, column])[0])
            where = f", element {place}" if place else ""
            want_there, got_there = (float(array[(row, column, *place)]) for array in (values, found))
            raise ParityError(
                f"Output {name!r} first differs at timestep {step} ({kind} data, sequence {row + 1}{where}): "
                f"the original says {want_there:.9g}, the step graph {got_there:.9g}; they differ by "
                f"{abs(got_there - want_there):.3g}, and {self.tolerance.allowed(want_there):.3g} is allowed.",
                fix="Nothing was written. A difference far above the tolerance means that the model does something "
                "over time that a step cannot do; one just above it is rounding, and `--tolerance` may be raised.",
            )

    def alone(self, kind: str, together: Mapping[str, Array], alone: Mapping[str, Array]) -> None:
        """Hold rows run alone against the same rows run together."""
        for name, values in together.items():
            off = _difference(alone[name], values)
            self.max_abs_alone = max(self.max_abs_alone, float(off.max(initial=0.0)))
            bad = ~(off <= self.tolerance.allowed(values))
            if bad.any():
                row, step, *place = (int(i) for i in np.argwhere(bad)[0])
                raise ParityError(
                    f"Output {name!r}{place or ''} at timestep {step + 1} ({kind} data) depends on the other rows of "
                    f"the batch: {values[(row, step, *place)]:.9g} in a batch of {len(values)}, "
                    f"{alone[name][(row, step, *place)]:.9g} alone.",
                    fix="Export without batch-dependent operations, or set `batch.mode` to `single` in the manifest.",
                )


def verify_parity(
    original: Original,
    model: StepModel,
    *,
    against: str,
    samplers: Mapping[str, Sampler] | None = None,
    user_data: Mapping[str, Array] | None = None,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    atol: float = ATOL,
    rtol: float = RTOL,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare the original with the step graph.

    Args:
        original: The model as it was trained.
        model: The step graph, in the class that will serve it.
        against: The original and its version, say `keras 3.15.1`.
        samplers: What to draw, by the name of its kind; one without structure by default.
        user_data: One array per input, shape `(N, T, *shape)`; see `read_user_data`.
        seeds: One batch of three rows is drawn for each.
        steps: Timesteps of each drawn sequence.
        atol: Absolute tolerance.
        rtol: Tolerance relative to the original's value.
        progress: Called as parts are done.

    Raises:
        ParityError: The first timestep and output that differ, with both values.
    """
    samplers = samplers or {"random": plain_sampler(model.manifest)}
    judged = [output.name for output in model.manifest.answered if output.kind == "value"]
    comparison = _Comparison({name: OutputParity(name) for name in judged}, _Tolerance(atol, rtol))
    kinds = [(kind, _drawn(sampler, seeds, steps)) for kind, sampler in samplers.items()]
    if user_data is not None:
        kinds.append(("user", dict(user_data)))
    longest = 0
    for kind, data in kinds:
        rows, length = next(iter(data.values())).shape[:2]
        longest = max(longest, length)
        if progress:
            progress(f"{kind}: the original", 0, rows)
        want = _answers(original({name: array.copy() for name, array in data.items()}), judged, rows, length)
        parts = []
        for start in range(0, rows, ROWS):
            batch = {name: array[start : start + ROWS] for name, array in data.items()}
            parts.append(_stepped(model, batch))
            if start == 0:
                comparison.alone(kind, _only(parts[0], judged), _rows_alone(model, batch))
            if progress:
                progress(f"{kind}: step by step", min(start + ROWS, rows), rows)
        comparison.against_original(kind, want, _joined(parts))
    lines = list(comparison.outputs.values())
    parity = Parity(
        against=against,
        steps=longest,
        max_abs=max((line.max_abs for line in lines), default=0.0),
        atol=atol,
        rtol=rtol,
        sequences=[kind for kind, _ in kinds],
    )
    return ParityReport(parity, lines, comparison.max_abs_alone)


def read_user_data(path: Path, manifest: Manifest) -> dict[str, Array]:
    """Read sequences from an `.npz` file.

    Args:
        path: One array per input, named as the input, shape `(T, *shape)` or `(N, T, *shape)`.
        manifest: What the model takes.

    Returns:
        One array per input, shape `(N, T, *shape)`, in the input's dtype.

    Raises:
        TensorError: The file cannot be read, or an array is missing or does not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as exc:
        raise TensorError(f"{path} cannot be read as .npz: {exc}.", fix="Write it with numpy.savez.") from exc
    names = [spec.name for spec in manifest.inputs]
    if len(names) == 1 and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        raise TensorError(
            f"{path} has arrays {sorted(arrays)}; expected {sorted(names)}.", fix="Name one array after each input."
        )
    data = {spec.name: _sequence(arrays[spec.name], spec.name, spec.row_shape, spec.dtype) for spec in manifest.inputs}
    lengths = {name: array.shape[:2] for name, array in data.items()}
    if len(set(lengths.values())) != 1 or 0 in next(iter(lengths.values())):
        raise TensorError(
            f"The arrays of {path} have these numbers of sequences and timesteps: {lengths}.",
            fix="Give every input the same number of both, at least 1.",
        )
    return data


def plain_sampler(manifest: Manifest) -> Sampler:
    """Return a sampler of normal floats; integers are 0 or 1, which are valid in every vocabulary and flag."""

    def draw(rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        drawn = {}
        for spec in manifest.inputs:
            shape = (rows, steps, *spec.shape)
            is_float = np.dtype(spec.dtype).kind == "f"
            values = rng.standard_normal(shape) if is_float else rng.integers(0, 2, shape)
            drawn[spec.name] = values.astype(spec.dtype)
        return drawn

    return draw


def _drawn(sampler: Sampler, seeds: Sequence[int], steps: int) -> dict[str, Array]:
    return _joined([sampler(np.random.default_rng(seed), ROWS, steps) for seed in seeds])


def _answers(
    given: Mapping[str, Array | PrefixAnswers], judged: Sequence[str], rows: int, length: int
) -> dict[str, PrefixAnswers]:
    answers = {}
    for name in judged:
        if name not in given:
            raise ParityError(f"The original has no output {name!r}; it gives {sorted(given)}.")
        found = given[name]
        answer = found if isinstance(found, PrefixAnswers) else PrefixAnswers(range(1, length + 1), found)
        if answer.values.shape[:2] != (rows, len(answer.steps)):
            raise ParityError(
                f"The original gives output {name!r} for {list(answer.values.shape[:2])} sequences and timesteps; "
                f"expected {[rows, len(answer.steps)]}.",
                fix="The original must give one answer for every timestep of every sequence.",
            )
        answers[name] = answer
    return answers


def _stepped(model: StepModel, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Run sequences step by step; in the middle the states go through their packed form, as through the store."""
    rows, length = next(iter(batch.values())).shape[:2]
    states = model.initial_states(rows)
    outputs = []
    for t in range(length):
        if t == length // 2 and model.fields:
            states = model.unpack(model.pack(states, rows=rows))
        out, states = model.step({name: array[:, t] for name, array in batch.items()}, states)
        outputs.append(out)
    return {name: np.stack([out[name] for out in outputs], axis=1) for name in outputs[0]}


def _rows_alone(model: StepModel, batch: Mapping[str, Array]) -> dict[str, Array]:
    rows = len(next(iter(batch.values())))
    parts = [_stepped(model, {name: array[r : r + 1] for name, array in batch.items()}) for r in range(rows)]
    return _joined(parts)


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _only(outputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: outputs[name] for name in names}


def _difference(found: Array, want: Array) -> Array:
    """Absolute difference in float64; equal infinities differ by 0, a NaN by NaN, unequal integers by 1 at least."""
    want = want.reshape(found.shape)
    left, right = found.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(left - right)
    if found.dtype.kind in "iu":
        off = np.maximum(off, 1.0)  # large ones may be one number as floats
    return np.where(found == want, 0.0, off)


def _sequence(array: Array, name: str, row: tuple[int, ...], dtype: str) -> Array:
    if array.ndim == len(row) + 1:
        array = array[None]
    if array.ndim != len(row) + 2 or array.shape[2:] != row or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TensorError(
            f"Array {name!r} has shape {list(array.shape)} and dtype {array.dtype}; expected (T, ..) or (N, T, ..) "
            f"with rows {list(row)} of {dtype}.",
            fix="Give one row per timestep as the model declares it.",
        )
    return array.astype(dtype)

"""Verification: the original on whole sequences against the step graph, step by step, whatever the framework.

What is compared, for each kind of sequence (drawn at random, with masked timesteps, the user's own):

* nine rows together, then more, every answer of every timestep, against the original; after every timestep each
  state is saved and restored in the packed form that the store keeps;
* the first of these rows, the last and one between them alone, so that a row never depends on others of a batch;
* the first nine rows in chunks of several lengths, so that a chunk is the same as its steps, unless it is run as these;

and

* sequences that drive the original to what is rare (`driven`), until each of its decisions went both ways, as far as
  that can be had; see `stepwell_export.verify.decisions`;
* lengths around each constant that a number of timesteps may meet, with the original at exactly so many timesteps;
* one long run, for differences that grow.

What could not be compared, and decisions that went one way only, stand in the report. A step graph that is wrong only
on the other side of such a decision would pass, so they make the proof weak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stepwell_export.runtime.errors import ModelLoadError, ParityError
from stepwell_export.runtime.labels import labels_of
from stepwell_export.runtime.manifest import Array, DataReference, Manifest, Parity
from stepwell_export.runtime.psi import data_reference
from stepwell_export.runtime.step_model import StepModel, magnitude, stacked
from stepwell_export.verify import error_growth
from stepwell_export.verify.decisions.record import Observer
from stepwell_export.verify.driven import (
    ALWAYS,
    TIERS,
    Driven,
    answered,
    beyond_rounding,
    driven_batches,
    integer_batches,
)
from stepwell_export.verify.error_growth import long_run
from stepwell_export.verify.evidence import Coverage, Evidence
from stepwell_export.verify.reference import PrefixAnswers, Progress, ReferenceModel, run_reference
from stepwell_export.verify.report import Covered, ParityReport, Skipped, is_weak
from stepwell_export.verify.runners import TOGETHER, Beside, KindRuns, Run, Sequences, chunked, stepped
from stepwell_export.verify.samplers import Sampler, random_sampler
from stepwell_export.verify.tolerance import DEFAULT, OutputParity, Tolerance, difference, largest, numbers

MOST_LABELS = 100
"""Numbers with labels, of one output, that are each held to their own size; the first ones."""

__all__ = [
    "STEPS",
    "DifferentAnswerError",
    "ParityReport",
    "PrefixAnswers",
    "Progress",
    "ReferenceModel",
    "Sampler",
    "verify_parity",
]  # fmt: skip

ROWS = 3
"""Rows that are drawn for each seed."""
STEPS = 64
SEEDS = (0, 1, 2)

USER = "user"
DRIVEN = "driven"
LENGTHS = "lengths"
ODD_LENGTHS = (1, 7, 2, 13)
LONG_CHUNK = 512
"""Timesteps of the chunks of the long run."""

MOST_LENGTHS = 24
"""Constants around which lengths are compared; each takes three runs of the original."""

FEW_LENGTHS = 3
"""As many, where each of the runs takes a compilation."""
_NO_MORE = "the original was not run over more"
_NOT_FINITE = (
    "Nothing was written. A stream cannot be served values that are not finite. Check the weights of the original, and "
    "the range of its inputs."
)
_DIFFERENT = (
    "Nothing was written. The difference is far above the tolerance: the step graph computes something else than the "
    "model, for these values or at this timestep."
)
_JUST_ABOVE = (
    "Nothing was written. The difference is just above the tolerance, as by rounding. If it does not matter for what "
    "the answers are used for, raise `--tolerance`."
)
_NEAR = 10
"""A difference of at most so many times the tolerance may be rounding."""


class DifferentAnswerError(ParityError):
    """The original's answer and the step graph's differ.

    Attributes:
        sequence: The sequence, shape `(1, T, *shape)` by input.
        step: The timestep, from 1.
        want: The original's value.
        got: The step graph's value.
    """

    def __init__(self, problem: str, *, fix: str, sequence: Sequences, step: int, want: float, got: float) -> None:
        super().__init__(problem, fix=fix)
        self.sequence = sequence
        self.step = step
        self.want = want
        self.got = got


def verify_parity(
    original: ReferenceModel,
    model: StepModel | Callable[[], StepModel],
    manifest: Manifest | None = None,
    *,
    against: str,
    tolerance: Tolerance = DEFAULT,
    samplers: Mapping[str, Sampler] | None = None,
    user_data: Mapping[str, Array] | None = None,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    size: int = 0,
    long_steps: int = error_growth.STEPS,
    shortened: str = "",
    observer: Observer | None = None,
    vocabularies: Mapping[str, int] | None = None,
    longest: int | None = None,
    most_lengths: int = MOST_LENGTHS,
    learns: bool = False,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare the original with the step graph.

    Args:
        original: The model as it was trained.
        model: The step graph, in the class that will serve it; or what loads it, while the original of a large model
            runs.
        manifest: What the step graph takes and gives, where it is yet to be loaded.
        against: The original and its version, for example `keras 3.15.1`.
        tolerance: What is allowed of every output.
        samplers: What to draw, by the name of its kind; one without structure by default.
        user_data: One array per input, shape `(N, T, *shape)`; see `read_user_data`.
        seeds: One batch of three rows is drawn for each.
        steps: Timesteps of each drawn sequence.
        size: Weights and numbers in the states; a row of a large model runs fewer timesteps alone.
        long_steps: Timesteps of the long run; none where it is not above `steps`.
        shortened: Why the long run has fewer timesteps than usual.
        observer: Records the decisions of the original; None: it cannot be looked into.
        vocabularies: By input, how many ids it may have; such an input is not driven.
        longest: The most timesteps that the original is run over; None: as many as its size allows.
        most_lengths: Constants around which lengths are compared, at most.
        learns: Whether the original is given values of the step graph, with its states as they are stored.
        progress: Called as parts are done.

    Raises:
        ParityError: The first timestep and output that differ, with both values; a `DifferentAnswerError` where it
            is the original's answer that differs.
    """
    load: Callable[[], StepModel] = (lambda: model) if isinstance(model, StepModel) else model
    manifest = manifest or load().manifest
    samplers = samplers or {"random": random_sampler(manifest)}
    eighth = error_growth.steps_for(size) // 8
    is_large = eighth < STEPS
    alone_steps = eighth if is_large else 4 * STEPS  # of what is drawn for a usual model, that is all
    beside = Beside(load, in_thread=is_large)
    check = _Check(original, beside, manifest, tolerance, Coverage(observer), progress or (lambda *_: None))
    kinds = [
        (kind, stacked([sampler(np.random.default_rng(seed), ROWS, steps) for seed in seeds]))
        for kind, sampler in samplers.items()
    ]
    if user_data is not None:
        kinds.append((USER, dict(user_data)))
    draw = next(iter(samplers.values()))
    long = draw(np.random.default_rng(SEEDS[-1] + 1), 1, long_steps) if long_steps > steps else None
    # all runs of the step graph in a row, so that neither it nor the original waits for the other between them
    started = [KindRuns(beside, data, alone_steps) for _, data in kinds]
    running = None if long is None else beside.start(stepped, long)
    with beside:
        for (kind, data), runs in zip(kinds, started, strict=True):
            check.sequences(kind, data, runs)
        check.skip_what_the_model_lacks()
        whole = max(next(iter(data.values())).shape[1] for _, data in kinds)
        if check.model.batched and alone_steps < whole:
            why = "the model is large" if is_large else "all timesteps were compared together"
            check.skipped.append(Skipped(f"rows alone beyond {alone_steps} timesteps", why))
        if long is None or running is None:
            check.skipped.append(Skipped("long run", f"the original was run over {steps} timesteps at most"))
        else:
            check.long(long, running, shortened)
    if learns and not check.is_stored_whole:
        check.skipped.append(Skipped("driven sequences", "stages learn from what states in fewer bits give"))
        check.usual = dict(check.ranges)
    else:
        check.driven(draw, vocabularies or {}, min(steps, 4 * STEPS))
        most = error_growth.most_steps(size) if longest is None else longest
        if long_steps:
            check.at_lengths(draw, min(steps, 4 * STEPS), most, most_lengths)
    if long is not None and (check.coverage.open or check.coverage.is_of_sizes):
        check.coverage.observe(long)
    check.skip_what_was_not_covered()
    lines = list(check.outputs.values())
    for line in lines:
        check.worth[line.name].judge(line)
    one_sided = [*map(str, check.coverage.open), *check.unreached]
    covered = Covered(
        decisions=len(check.coverage.seen.decisions),
        one_sided=one_sided,
        steps=check.most_steps,
        ranges={name: list(limits) for name, limits in check.usual.items()},
        driven={name: list(limits) for name, limits in check.ranges.items()},
    )
    parity = Parity.model_validate({
        "against": against, "steps": whole, "max_abs": max((line.max_abs for line in lines), default=0.0),
        "atol": max((line.atol for line in lines), default=0.0), "rtol": tolerance.rtol,
        "sequences": [kind for kind, _ in kinds], "long_steps": check.drift.compared if check.drift else 0,
        "weak": is_weak(lines) or bool(one_sided), "covered": dataclasses.asdict(covered),
        "scale": {line.name: _scale(line) for line in lines},
    })  # fmt: skip
    return ParityReport(
        parity, lines, check.alone, check.chunk, check.lengths, check.saved, check.drift, check.skipped,
        reference=check.reference, covered=covered,
    )  # fmt: skip


def _scale(line: OutputParity) -> dict[str, Any]:
    """Return the size of the values of an output for the manifest, and of each number that has a label."""
    labels = {label: _scale(one) for label, one in line.labels.items()}
    return dataclasses.asdict(line.scale) | ({"labels": labels} if labels else {})


class _Failure(NamedTuple):
    """Where an output first differs; `row` counts from 0."""

    step: int
    output: str
    row: int
    place: list[int]
    want: float
    got: float
    allowed: float

    @property
    def fault(self) -> str:
        """What is wrong with the output, as a verb: the original itself may give no number."""
        return "differs" if np.isfinite(self.want) else "is not finite"

    @property
    def limit(self) -> str:
        """How far both are apart, and how far they may be; nothing if there is no such distance."""
        if not np.isfinite(self.want - self.got):
            return ""
        return f"; they differ by {abs(self.got - self.want):.3g}, and {self.allowed:.3g} is allowed"

    @property
    def fix(self) -> str:
        """What to do about it."""
        if not self.limit:
            return _NOT_FINITE
        return _JUST_ABOVE if abs(self.got - self.want) <= _NEAR * self.allowed else _DIFFERENT


def _first(bad: Array) -> tuple[int, int, list[int]]:
    """Return where a number is too far off at the first timestep: row, place among the timesteps, place in the row."""
    column = int(np.argmax(bad.any(axis=tuple(axis for axis in range(bad.ndim) if axis != 1))))
    row, *place = (int(i) for i in np.argwhere(bad[:, column])[0])
    return row, column, place


@dataclass(slots=True)
class _Check:
    """One verification: what it is about, and what it has found so far."""

    original: ReferenceModel
    beside: Beside
    manifest: Manifest
    tolerance: Tolerance
    coverage: Coverage
    progress: Progress
    outputs: dict[str, OutputParity] = field(default_factory=dict)
    worth: dict[str, Evidence] = field(default_factory=dict)
    alone: float = 0.0
    chunk: float = 0.0
    saved: float = 0.0
    lengths: list[list[int]] = field(default_factory=list)
    drift: error_growth.ErrorGrowth | None = None
    skipped: list[Skipped] = field(default_factory=list)
    reference: DataReference | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    most_steps: int = 0
    excused: int = 0
    unreached: list[str] = field(default_factory=list)
    usual: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in self.manifest.answered:
            if spec.kind == "value":
                labels = {label: OutputParity(f"{spec.name}[{label}]") for label in labels_of(spec)[:MOST_LABELS]}
                self.outputs[spec.name] = OutputParity(spec.name, labels=labels)
                self.worth[spec.name] = Evidence(self.tolerance, [Evidence(self.tolerance) for _ in labels])

    @property
    def model(self) -> StepModel:
        """The step graph."""
        return self.beside.model()

    def skip_what_the_model_lacks(self) -> None:
        """Note what cannot be compared, by what the step graph is."""
        random = [output.name for output in self.manifest.answered if output.kind == "random"]
        if random:
            self.skipped.append(Skipped(f"outputs {', '.join(random)}", "they are drawn at random"))
        if not self.model.batched:
            why = self.manifest.batch.why
            self.skipped.append(Skipped("rows together", f"the model runs one row at a time{why and f': {why}'}"))
        if any(f.store_dtype != f.dtype for f in self.model.fields):
            why = "states are stored in fewer bits after each chunk, and after each step, so both differ by that"
            self.skipped.append(Skipped("chunks with stored states", f"{why}; they were compared without storing"))

    def sequences(self, kind: str, data: Sequences, started: KindRuns) -> None:
        """Compare all sequences of a kind."""
        rows = len(next(iter(data.values())))
        judged = list(self.outputs)
        self.progress(f"{kind}: the original", 0, rows)
        want = run_reference(self.original, data, judged)
        parts: list[dict[str, Array]] = []
        for batch, run in zip(started.batches, started.running, strict=True):
            answers = run()
            if not parts:
                few = {name: answers[0][name][started.few] for name in judged}
                self._rows_alone(kind, few, started.alone(), min(rows, TOGETHER))
                self._chunks(kind, batch, answers)
            parts.append(answers[0])
            self.progress(f"{kind}: step by step", min(len(parts) * TOGETHER, rows), rows)
        outputs = stacked(parts)
        self._against_original(kind, data, want, outputs)
        self._compared(data)
        self.coverage.observe(data)
        if kind == USER:
            self.reference = data_reference(self.manifest, data, outputs)

    def long(self, data: Sequences, running: Callable[[], Run], shortened: str) -> None:
        """Compare one long run."""
        length = next(iter(data.values())).shape[1]
        if length < error_growth.STEPS:
            self.skipped.append(Skipped(f"long run beyond {length} timesteps", shortened or _NO_MORE))
        self.progress(f"long run of {length} timesteps", 0, 1)
        got = running()
        self.drift = long_run(self.original, self.model, data, lambda: got, self.outputs, self.worth, self.tolerance)
        self._compared(data)
        self._long_chunks(data, got)
        self.progress(f"long run of {length} timesteps", 1, 1)

    def driven(self, draw: Sampler, vocabularies: Mapping[str, int], steps: int) -> None:
        """Compare sequences that drive the original to what is rare."""
        self.progress("driven: rare values", 0, 1)
        self.usual = dict(self.ranges)
        limits = self.coverage.seen.values
        for number, data in enumerate(driven_batches(draw, self.manifest, vocabularies, steps, lambda: limits)):
            if number >= ALWAYS and not self.coverage.open:
                break
            with suppress(ModelLoadError):  # it is refused at serving, too, and nothing is answered
                self._drive(data)
        for most, data in integer_batches(draw, self.manifest, vocabularies, steps):
            with suppress(ModelLoadError):
                if self._drive(data):
                    if most == TIERS[0][1]:
                        break
                    self.skipped.append(Skipped(f"integers above {most:,}", "the model takes none that are larger"))
                    break
        self.progress("driven: rare values", 1, 1)

    def at_lengths(self, draw: Sampler, steps: int, most: int, count: int) -> None:
        """Compare sequences whose numbers of timesteps are around constants that these may meet."""
        seen = self.coverage.seen
        likely = [*sorted(seen.lengths), *sorted(seen.candidates - seen.lengths.keys(), reverse=True)]
        constants = [constant for constant in likely if 1 < constant < most]
        self.unreached = [f"{where} was never over {c:,} timesteps" for c, where in seen.lengths.items() if c >= most]
        if left := len(constants[count:]):
            self.skipped.append(Skipped(f"lengths around {left} whole numbers in the model", "each takes three runs"))
        lengths = sorted({length for constant in constants[:count] for length in range(constant - 1, constant + 2)})
        if not lengths:
            return
        data = draw(np.random.default_rng(SEEDS[-1] + 2), 1, lengths[-1])
        got = self._run(data)

        def run(part: Sequences) -> Mapping[str, Array]:  # what comes first does not depend on what follows
            length = next(iter(part.values())).shape[1]
            is_same = all(np.array_equal(array, data[name][:, :length]) for name, array in part.items())
            return {name: got[name][:, :length] for name in got} if is_same else self._run(part)

        for at, length in enumerate(lengths):
            self.progress(f"lengths around {len(constants[:count])} constants", at, len(lengths))
            part = {name: array[:, :length] for name, array in data.items()}
            answers = answered(self.original, part, list(self.outputs))
            if answers is not None:  # None: the original takes no sequence of so many
                if self._against_rare(LENGTHS, answers, run) is None:
                    continue
                self._compared(part)
                if length > steps or self.coverage.open:
                    self.coverage.observe(part)

    def skip_what_was_not_covered(self) -> None:
        """Note what was not compared: longer streams, other values, decisions that could not be recorded."""
        if self.excused:
            why = "the step graph has no number there, or the original, at values so large, does something else"
            self.skipped.append(Skipped(f"{self.excused} of the driven sequences", why))
        if self.coverage.failure:
            self.skipped.append(Skipped("decisions of the original", self.coverage.failure))

    def _drive(self, data: Sequences) -> bool:
        """Compare driven sequences, and record what the original decides in them; return whether it takes them."""
        answers = answered(self.original, data, list(self.outputs))
        if answers is None:
            return False
        compared = self._against_rare(DRIVEN, answers, self._run)
        if compared is not None:
            self._compared(compared.data)
            self.coverage.observe(compared.data)
        return True

    def _run(self, data: Sequences) -> Mapping[str, Array]:
        """Run the step graph; states that are stored in fewer bits are not, as what that does is a matter of range."""
        return stepped(self.model, data, stored=self.is_stored_whole)[0]

    @property
    def is_stored_whole(self) -> bool:
        """Whether each state is stored as it is computed."""
        return all(field.store_dtype == field.dtype for field in self.model.fields)

    def _against_rare(self, kind: str, rare: Driven, run: Callable[[Sequences], Mapping[str, Array]]) -> Driven | None:
        """Compare rare sequences with the original's answers, each timestep by its own size.

        Returns:
            Those that were compared; None: none.

        Raises:
            DifferentAnswerError: They differ by more than what rounding makes.
        """
        usual = {name: worth.largest for name, worth in self.worth.items()}
        excused = np.zeros(len(next(iter(rare.data.values()))), bool)
        failures = []
        compared = beyond_rounding(self.original, run, rare, self.tolerance, usual, self._sizes(rare.data))
        for name, one in compared.items():
            excused |= one.excused
            if one.bad.any():
                row, column, place = _first(one.bad)
                want, got = (float(array[(row, column, *place)]) for array in (one.want, one.got))
                size = float(np.abs(one.want[row, column]).max()) if self.tolerance.scaled else 1.0
                allowed = self.tolerance.atol * size + self.tolerance.rtol * abs(want)
                failures.append(_Failure(rare.want[name].steps[column], name, row, place, want, got, allowed))
        if failures:
            raise self._different(min(failures, key=lambda failure: failure.step), kind, rare.data)
        self.excused += int(excused.sum())
        return rare.without(excused)

    def _sizes(self, data: Sequences) -> Array:
        """Return the largest input of each row, in parts of the largest usual one."""
        sizes = np.zeros(len(next(iter(data.values()))))
        for name, array in data.items():
            if array.dtype.kind == "f":
                largest = np.nanmax(np.abs(array.reshape(len(array), -1)), axis=1, initial=0.0)
                low, high = self.usual.get(name, (0.0, 0.0))
                sizes = np.maximum(sizes, largest / (max(-low, high) or 1.0))
        return sizes

    def _compared(self, data: Sequences) -> None:
        """Note the ranges of what was compared."""
        for name, array in data.items():
            self.most_steps = max(self.most_steps, array.shape[1])
            known = array[np.isfinite(array)] if array.dtype.kind == "f" else array
            if known.size:
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(known.min())), max(high, float(known.max()))

    @staticmethod
    def _different(first: _Failure, kind: str, data: Sequences) -> DifferentAnswerError:
        where = f", element {first.place}" if first.place else ""
        return DifferentAnswerError(
            f"Output {first.output!r} first {first.fault} at timestep {first.step} ({kind} data, sequence "
            f"{first.row + 1}{where}): the original gives {first.want:.9g}, the step graph {first.got:.9g}"
            f"{first.limit}.",
            fix=first.fix,
            sequence={key: array[first.row : first.row + 1] for key, array in data.items()},
            step=first.step,
            want=first.want,
            got=first.got,
        )

    def _against_original(
        self, kind: str, data: Sequences, want: Mapping[str, PrefixAnswers], got: Mapping[str, Array]
    ) -> None:
        """Compare all sequences of a kind with the original's answers.

        Raises:
            DifferentAnswerError: They differ; the message has the first timestep and output at which they do.
            ParityError: The original's answers have another shape.
        """
        failures = []
        for name, answers in want.items():
            ours = got[name][:, [step - 1 for step in answers.steps]]
            if answers.values.size != ours.size:
                raise ParityError(
                    f"Output {name!r} of the original has shape {answers.values.shape}; expected {ours.shape}, a row "
                    "for each sequence and timestep, as the step graph gives.",
                    fix="Nothing was written. Let the original return one row for each sequence and timestep.",
                )
            values = answers.values.reshape(ours.shape)
            off = difference(ours, values)
            tolerance = self.tolerance.on(values)
            self.outputs[name].note(kind, answers.steps, off, values)
            bad = tolerance.beyond(off, values)
            limits = []
            if self.outputs[name].labels:
                of_all = magnitude(values)
                count = len(self.outputs[name].labels)
                limits = [
                    self.tolerance.on_number(of, of_all) if i < count else tolerance
                    for i, (of,) in enumerate(numbers(values))
                ]
                beyond = [limit.beyond(*pair) for limit, pair in zip(limits, numbers(off, values), strict=True)]
                bad = np.stack(beyond, axis=-1).reshape(bad.shape)
            if not bad.any():
                self.worth[name].note(off, values)
            else:
                row, column, place = _first(bad)
                want_there, found_there = (float(array[(row, column, *place)]) for array in (values, ours))
                if limits:
                    tolerance = limits[int(np.ravel_multi_index(place, values.shape[2:])) if place else 0]
                allowed = float(tolerance.allowed(want_there))
                failures.append(_Failure(answers.steps[column], name, row, place, want_there, found_there, allowed))
        if failures:
            raise self._different(min(failures, key=lambda failure: failure.step), kind, data)

    def _rows_alone(self, kind: str, together: Mapping[str, Array], alone: Mapping[str, Array], count: int) -> None:
        for name, values in together.items():
            off = difference(alone[name], values, equal_nan=True)
            self.alone = max(self.alone, largest(off))
            bad = self.tolerance.on(values).beyond(off, values)
            if bad.any():
                row, step, *place = (int(i) for i in np.argwhere(bad)[0])
                raise ParityError(
                    f"Output {name!r}{place or ''} at timestep {step + 1} ({kind} data) depends on the other rows of "
                    f"the batch: {values[(row, step, *place)]:.9g} in a batch of {count}, "
                    f"{alone[name][(row, step, *place)]:.9g} alone.",
                    fix="Export without batch-dependent operations, or set `batch.mode` to `single` in the manifest.",
                )

    def _long_chunks(self, data: Sequences, steps: Run) -> None:
        """Compare long chunks with single steps, where a state comes back from the store with the same bits."""
        if self.model.chunked and self.is_stored_whole and self.drift is not None and not self.drift.note:
            self.lengths.append([LONG_CHUNK])
            self._chunk("long", [LONG_CHUNK], chunked(self.model, data, [LONG_CHUNK]), steps)

    def _chunks(self, kind: str, batch: Sequences, saved: Run) -> None:
        """Compare chunks of the whole length, and of odd lengths, with single steps; see what saving states does."""
        plain = saved
        if not self.is_stored_whole:  # others come back with the same bits
            plain = stepped(self.model, batch, stored=False)
            for name in self.outputs:
                self.saved = max(self.saved, largest(difference(saved[0][name], plain[0][name], equal_nan=True)))
        if not self.model.chunked:  # a chunk is these very steps
            return
        total = next(iter(batch.values())).shape[1]
        self.lengths = [[total], list(ODD_LENGTHS)]
        for lengths in self.lengths:
            self._chunk(kind, lengths, chunked(self.model, batch, lengths), plain)

    def _chunk(self, kind: str, lengths: list[int], run: Run, plain: Run) -> None:
        """Compare a run in chunks with one in single steps."""
        outputs, states = run
        pairs = {f"Output {name!r}": (outputs[name], plain[0][name]) for name in self.outputs}
        pairs |= {f"State {name!r}": (states[name][:, None], plain[1][name][:, None]) for name in states}
        for what, (of_chunks, of_steps) in pairs.items():
            off = difference(of_chunks, of_steps, equal_nan=True)
            self.chunk = max(self.chunk, largest(off))
            bad = self.tolerance.on(of_steps).beyond(off, of_steps)
            if bad.any():
                row, step, *place = (int(i) for i in np.argwhere(bad)[0])
                total = next(iter(outputs.values())).shape[1]
                raise ParityError(
                    f"{what} differs between chunks of {lengths} timesteps and single steps ({kind} data, "
                    f"sequence {row + 1}, timestep {step + 1 if what[0] == 'O' else total}): "
                    f"{of_chunks[(row, step, *place)]:.9g} and {of_steps[(row, step, *place)]:.9g}.",
                    fix="Set `time.chunk` to `step` in the manifest; then a chunk is run step by step.",
                )

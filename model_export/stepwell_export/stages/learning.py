"""Stages that learn from a stream: `AdaptiveThreshold`, `Conformal`, `IntervalCoverage` and `Readout`.

What they have learned is a state in float64, with the model's own: a retry, a peek or a rollout learns nothing, a fork
copies it, and a reset to a snapshot takes it back. The input `learn` of the graph says in which timesteps they learn.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array, StateSpec
from stepwell_export.runtime.specs import StageSpec
from stepwell_export.stages.missing_and_lags import valid_window
from stepwell_export.stages.stage import ManyValued, Row, count, numbers

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder

LEARN = "learn"
"""The input that marks the timesteps that are learned from, where no other has this name."""

STEPS = 2000
"""Timesteps over which a pipeline that learns is compared with the twins of its stages."""

MOST_STEPS = 100_000
"""Timesteps of the long run, at most."""

_TRUTH = re.compile(r"(?P<name>.+?)(?:\[(?P<place>\d+)\])?")
_PERTURBED = 1e-3
"""How strongly a feature that stays 0 is regularised, in parts of `ridge`."""


@dataclass(frozen=True, eq=False)
class LearningStage(ManyValued):
    """A stage that learns: it reads one value, and for some a truth, an input as it was sent."""

    reads_truth: ClassVar[bool] = False
    """Whether its last value is the truth, for which NaN means that there is none."""
    takes_missing: ClassVar[bool] = False
    """Whether NaN in its first value is a value that is not there."""
    no_drift: ClassVar[tuple[str, ...]] = ()
    """Those of its values that drift is not computed from."""

    @property
    def long_steps(self) -> int:
        """How many timesteps the long run of the verification has."""
        return STEPS

    @abstractmethod
    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of its values, given those that it reads.

        Raises:
            UnclearModelError: It cannot read such rows.
        """

    @abstractmethod
    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        """Emit one timestep.

        Args:
            graph: Where its nodes and states go.
            xs: What it reads, `(batch, *row)` float64; then whether the timestep is learned from, `(batch,)` bool.
            rows: The shapes of the rows that it reads.

        Returns:
            Its values, `(batch, *row)` float64.
        """

    @abstractmethod
    def follow(self, values: Sequence[Array], learn: Array) -> list[Array]:
        """Return its values for whole sequences, by NumPy.

        Args:
            values: What it reads, `(N, T, *row)`, float64.
            learn: Whether each timestep is learned from, `(N, T)` bool.
        """

    def labels_of(self, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the names of the numbers of its values, given those that it reads."""
        return [list(labels[0]) for _ in self.gives]

    def described(self, of: str) -> list[dict[str, Any]]:
        """Return what the manifest has of the stage at each of its values; `of`: the value that it reads."""
        truth = getattr(self, "truth", None)
        place = None if truth is None else str(truth).removeprefix("inputs.")
        given: dict[str, Any] = {
            "of": of.removeprefix("inputs."),
            "truth": place,
            "horizon": getattr(self, "horizon", 1),
        }
        return [
            {"stage": StageSpec(kind=type(self).__name__, value=value, **given)}
            | ({"drift": False} if value in self.no_drift else {})
            for value in self.gives
        ]

    def references(self, values: Sequence[Array]) -> list[Array]:
        """Return its values where each timestep is learned from."""
        return self.follow(values, np.ones(values[0].shape[:2], bool))

    def truth_row(self, row: Row) -> Row:
        """Return the row of a truth that nothing else reads, given that of its first value."""
        return row

    def draw_truth(self, rng: np.random.Generator, values: Array, size: int) -> Array:
        """Return truths `(N, T, size)` for the verification that fit its first value `(N, T, *row)`, and noise."""
        past = _delayed(values.reshape(*values.shape[:2], -1), getattr(self, "horizon", 1))
        mixed = past @ rng.standard_normal((past.shape[-1], size)) if past.shape[-1] != size else past
        return np.asarray(mixed + 0.3 * (np.std(past) or 1.0) * rng.standard_normal(mixed.shape))

    def reference(self, values: Any, truth: Any = None, learn: Any = None) -> Any:  # type: ignore[override]  # by name
        """Return its values for whole sequences, by NumPy: the definition that the graph is compared with.

        Args:
            values: Its first value, `(N, T, *row)`; or all that it reads, in order in a tuple, or by name.
            truth: The truths, `(N, T, *row)`; NaN where there is none.
            learn: Whether each timestep is learned from, `(N, T)` bool; None: in all.

        Returns:
            Arrays `(N, T, *row)` by documented name, float64; the array itself where there is one.
        """
        if isinstance(values, Mapping):
            values = tuple(values[str(name).removeprefix("inputs.")] for name in self.sources)
        given = [*values] if isinstance(values, tuple) else [values, *([] if truth is None else [truth])]
        arrays = [np.asarray(array, np.float64) for array in given]
        mask = np.ones(arrays[0].shape[:2], bool) if learn is None else np.asarray(learn, bool)
        found = self.follow(arrays, mask)
        return found[0] if len(found) == 1 else dict(zip(self.gives, found, strict=True))


class _Tracking(LearningStage):
    """A stage with an online quantile for each number of a row."""

    rate: float

    def check_parameters(self, name: str, share: float) -> None:
        """Check the share and the rate.

        Raises:
            ManifestError: They are not between 0 and 1.
        """
        for parameter, value in ((name, share), ("rate", self.rate)):
            if np.ndim(value) or not 0 < float(numbers(parameter, value)) < 1:
                raise ManifestError(
                    f"`{parameter}` is {value!r:.60}; expected a number above 0 and below 1.",
                    fix=f"Give `{parameter}={'0.9' if parameter == name else '0.01'}`.",
                )


@dataclass(frozen=True, eq=False)
class AdaptiveThreshold(_Tracking):
    """A threshold that follows a quantile of a value, and whether the value exceeds it.

    Values `threshold` and `exceeds` (0 or 1). For the n-th value x that is there, `threshold` is the quantile `q`
    before it, at first x itself, and `exceeds` is 1 if `x > q` and `n > warm`. For NaN they are `q` and 0.

    Attributes:
        of: The value.
        quantile: The share of values that is at most the threshold.
        rate: How fast old values are forgotten, in parts of 1 for each value.
        warm: In so many values at first, none exceeds.
    """

    of: str | Sequence[str] | None = None
    quantile: float = 0.99
    rate: float = 0.01
    warm: int = 100

    gives: ClassVar[tuple[str, ...]] = ("threshold", "exceeds")
    takes_missing: ClassVar[bool] = True
    no_drift: ClassVar[tuple[str, ...]] = ("exceeds",)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: A share is not between 0 and 1, or `warm` is no whole number.
        """
        self.check_parameters("quantile", self.quantile)
        count("warm", self.warm, 0)

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        return [rows[0], rows[0]]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        *values, learn = xs
        (x,), (row,) = values, rows
        there = graph.op("Not", graph.op("IsNaN", x))
        learned = _emit_learned(graph, x, row, learn)
        quantile = _emit_quantile(graph, self.title, x, learned, row, self.quantile, self.rate)
        warm = graph.op("Greater", quantile.count, graph.constant(self.warm, "float64"))
        exceeds = graph.op("And", graph.op("And", there, warm), graph.op("Greater", x, quantile.before))
        return [graph.op("Where", there, quantile.before, quantile.kept), graph.cast(exceeds, "float64")]

    def follow(self, values: Sequence[Array], learn: Array) -> list[Array]:
        (x,) = values
        threshold, exceeds = np.zeros(x.shape), np.zeros(x.shape)
        quantile = _Quantile(x[:, 0].shape, self.quantile, self.rate)
        for t in range(x.shape[1]):
            there = ~np.isnan(x[:, t])
            kept = quantile.q
            before, number = quantile.learn(x[:, t], there & _wide(learn[:, t], x[:, t]))
            threshold[:, t] = np.where(there, before, kept)
            exceeds[:, t] = there & (x[:, t] > before) & (number > self.warm)
        return [threshold, exceeds]


class JudgedStage(LearningStage):
    """A stage that is judged by a truth, which comes some timesteps later."""

    horizon: int
    truth: str

    reads_truth: ClassVar[bool] = True

    @property
    def names_input(self) -> bool:
        """Whether the truth is declared as an input, by `inputs.` in front of its name."""
        return self.truth.startswith("inputs.")

    @property
    def truth_input(self) -> str:
        """The input that the truth is in."""
        return self._truth()[0]

    def _truth(self) -> tuple[str, int | None]:
        found = _TRUTH.fullmatch(self.truth) if isinstance(self.truth, str) else None
        if found is None:
            raise ManifestError(
                f"`truth` is {self.truth!r:.60}; expected an input, `x`, or one of its numbers, `x[0]`.",
                fix='Give `truth="x[0]"`.',
            )
        name = found["name"].removeprefix("inputs.")
        return name, None if found["place"] is None else int(found["place"])

    def truth_size(self, row: Row) -> int:
        """Return how many truths an input with such a row has.

        Raises:
            UnclearModelError: It has no such number.
        """
        name, place = self._truth()
        size = int(np.prod(row))
        if place is None:
            return size
        if place >= size:
            raise UnclearModelError(
                f"{self.title} has the truth {self.truth!r}; a row of {name!r} has {size} numbers.",
                fix=f"Give a place below {size}.",
            )
        return 1

    def emit_truth(self, graph: GraphBuilder, truth: str, row: Row) -> str:
        """Emit the truths `(batch, size)`."""
        _, place = self._truth()
        flat = graph.reshape(truth, [int(np.prod(row))])
        return flat if place is None else graph.op("Gather", flat, graph.ints([place]), axis=1)

    def truths(self, values: Array) -> Array:
        """Return the truths `(N, T, size)` of an input `(N, T, *row)`."""
        _, place = self._truth()
        flat = values.reshape(*values.shape[:2], -1)
        return flat if place is None else flat[..., [place]]

    def truth_row(self, row: Row) -> Row:
        _, place = self._truth()
        return row if place is None else (place + 1,)


@dataclass(frozen=True, eq=False)
class Conformal(JudgedStage, _Tracking):
    """An interval around a prediction that holds the truth in a share of the timesteps.

    Values `low` and `high`: the prediction less and plus the quantile of absolute residuals, which is learned from the
    truth of this timestep and the prediction of `horizon` timesteps ago, before this timestep is answered.

    Source: Angelopoulos, Candes, Tibshirani: Conformal PID control for time series prediction (2023).

    Attributes:
        prediction: The value that the interval is around.
        truth: The input as it was sent, `x`, or one of its numbers, `x[0]`; NaN: none in this timestep.
        coverage: The share of truths within the interval.
        rate: How fast old residuals are forgotten, in parts of 1 for each truth.
        horizon: After how many timesteps the truth of a prediction comes.
        initial: The radius before the first truth: one number, or one for each of a row; `fit(residuals)` computes it.
    """

    prediction: str | None = None
    truth: str = "x[0]"
    coverage: float = 0.9
    rate: float = 0.02
    horizon: int = 1
    initial: Any = 0.0

    gives: ClassVar[tuple[str, ...]] = ("low", "high")

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: A share is not between 0 and 1, `horizon` is below 1, or `truth` names no input.
        """
        self.check_parameters("coverage", self.coverage)
        count("horizon", self.horizon)
        numbers("initial", self.initial)
        self._truth()

    @property
    def sources(self) -> list[str | None]:
        return [self.prediction if self.prediction is not None else super().sources[0], f"inputs.{self.truth_input}"]

    def fit(self, residuals: Any) -> Self:
        """Return the stage with the radius before the first truth: the quantile of absolute residuals.

        Args:
            residuals: Truths less predictions, `(n,)` or `(n, features)`; NaN is left out.

        Raises:
            ManifestError: It is not numbers, or a column has no finite one.
        """
        sizes = np.abs(np.asarray(residuals, np.float64))
        if not sizes.size or not np.isfinite(sizes).reshape(len(sizes), -1).any(axis=0).all():
            raise ManifestError(
                f"{self.title}.fit got residuals of shape {list(sizes.shape)} without any finite value.",
                fix="Give truths less predictions.",
            )
        return replace(self, initial=np.nanquantile(np.where(np.isfinite(sizes), sizes, np.nan), self.coverage, axis=0))

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        row, truth = rows
        size, truths = int(np.prod(row)), self.truth_size(truth)
        if size != truths:
            raise UnclearModelError(
                f"{self.title} has a prediction with {size} numbers and the truth {self.truth!r} with {truths}.",
                fix="Give a truth with as many numbers, or a prediction with one.",
            )
        if np.ndim(self.initial) and np.size(self.initial) != size:
            raise UnclearModelError(
                f"{self.title} has `initial` of shape {list(np.shape(self.initial))}; a row there has shape "
                f"{list(row)}.",
                fix="Give one number, or one for each element of the row.",
            )
        return [row, row]

    def _initial(self, row: Row) -> Array:
        initial = numbers("initial", self.initial)
        return np.broadcast_to(initial.reshape(row) if initial.ndim else initial, row)

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        *values, learn = xs
        (prediction, truth), (row, truth_row) = values, rows
        truths = graph.reshape(self.emit_truth(graph, truth, truth_row), row)
        past, is_there = _emit_past(graph, self.title, prediction, row, self.horizon)
        residual = graph.op("Abs", graph.op("Sub", truths, past))
        learned = _emit_learned(graph, truths, row, learn, is_there)
        quantile = _emit_quantile(
            graph, self.title, residual, learned, row, self.coverage, self.rate, self._initial(row)
        )
        radius = graph.op("Max", quantile.after, graph.constant(0.0, "float64"))
        return [graph.op("Sub", prediction, radius), graph.op("Add", prediction, radius)]

    def follow(self, values: Sequence[Array], learn: Array) -> list[Array]:
        prediction, truths = values[0], self.truths(values[1]).reshape(values[0].shape)
        quantile = _Quantile(prediction[:, 0].shape, self.coverage, self.rate, self._initial(prediction.shape[2:]))
        low, high = np.zeros(prediction.shape), np.zeros(prediction.shape)
        for t in range(prediction.shape[1]):
            if t >= self.horizon:
                there = ~np.isnan(truths[:, t]) & _wide(learn[:, t], truths[:, t])
                quantile.learn(np.abs(truths[:, t] - prediction[:, t - self.horizon]), there)
            radius = np.maximum(quantile.q, 0)
            low[:, t], high[:, t] = prediction[:, t] - radius, prediction[:, t] + radius
        return [low, high]


@dataclass(frozen=True, eq=False)
class IntervalCoverage(JudgedStage, _Tracking):
    """The share of truths that were within an interval, for an alarm when an interval does not hold.

    Value `coverage`, which begins with `initial`: each truth changes it by `rate` towards 1 if it is within the
    interval of `horizon` timesteps ago, else towards 0.

    Attributes:
        low: The lower end of the interval.
        high: The upper end.
        truth: The input as it was sent, `x`, or one of its numbers, `x[0]`; NaN: none in this timestep.
        rate: How fast old truths are forgotten, in parts of 1 for each truth.
        horizon: After how many timesteps the truth of a prediction comes.
        initial: The share before the first truth.
    """

    low: str = "low"
    high: str = "high"
    truth: str = "x[0]"
    rate: float = 0.01
    horizon: int = 1
    initial: float = 0.9

    gives: ClassVar[tuple[str, ...]] = ("coverage",)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: A share is not between 0 and 1, `horizon` is below 1, or `truth` names no input.
        """
        self.check_parameters("initial", self.initial)
        count("horizon", self.horizon)
        self._truth()

    @property
    def sources(self) -> list[str | None]:
        return [self.low, self.high, f"inputs.{self.truth_input}"]

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        low, high, truth = rows
        sizes = int(np.prod(low)), int(np.prod(high)), self.truth_size(truth)
        if len({*sizes}) != 1:
            raise UnclearModelError(
                f"{self.title} has an interval from {sizes[0]} to {sizes[1]} numbers and the truth {self.truth!r} with "
                f"{sizes[2]}.",
                fix="Give `low`, `high` and a truth with as many numbers.",
            )
        return [low]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        *ends, truth, learn = xs
        row = rows[0]
        truths = graph.reshape(self.emit_truth(graph, truth, rows[-1]), row)
        (low, is_there), (high, _) = (
            _emit_past(graph, f"{self.title}.{name}", graph.reshape(end, row), row, self.horizon)
            for name, end in zip(("low", "high"), ends, strict=True)
        )
        learned = _emit_learned(graph, truths, row, learn, is_there)
        inside = graph.op("And", graph.op("GreaterOrEqual", truths, low), graph.op("LessOrEqual", truths, high))
        share = _learned(graph, f"{self.title}.share", row, np.full(row, self.initial))
        change = graph.op("Sub", graph.cast(inside, "float64"), share.input)
        fresh = graph.op("Add", share.input, graph.op("Mul", graph.constant(self.rate, "float64"), change))
        after = graph.op("Where", learned, fresh, share.input)
        graph.next_state(share, after)
        return [after]

    def follow(self, values: Sequence[Array], learn: Array) -> list[Array]:
        low, high, truths = values[0], values[1].reshape(values[0].shape), self.truths(values[2])
        truths = truths.reshape(low.shape)
        share, found = np.full(low[:, 0].shape, self.initial), np.full(low.shape, self.initial)
        for t in range(self.horizon, low.shape[1]):
            came, before = truths[:, t], t - self.horizon
            there = ~np.isnan(came) & _wide(learn[:, t], came)
            inside = (came >= low[:, before]) & (came <= high[:, before])
            share = np.where(there, share + self.rate * (inside - share), share)
            found[:, t] = share
        return [found]


@dataclass(frozen=True, eq=False)
class Readout(JudgedStage):
    """A linear prediction from features, whose weights are learned by recursive least squares.

    Value `y`, one number for each truth: the weights times the features of this timestep, after they have learned from
    the truth of this timestep and the features of `horizon` timesteps ago. They begin with zeros; there is no constant
    feature. After each truth, one feature in turn is learned with the truth 0 and little weight, so that features that
    stay 0 leave the weights of the others finite.

    Attributes:
        features: The value that has the features, such as a hidden state that a model answers.
        truth: The input as it was sent, `x`, or one of its numbers, `x[0]`; NaN: none in this timestep.
        horizon: After how many timesteps the truth comes: so far ahead the predictions are.
        forgetting: What the weight of earlier timesteps is multiplied by at each truth, above 0 and at most 1.
        ridge: The weight of the zeros that the weights begin with, above 0.
    """

    features: str | None = None
    truth: str = "x[0]"
    horizon: int = 1
    forgetting: float = 0.999
    ridge: float = 1.0
    to: str | Sequence[str] | None = field(default="y", kw_only=True)

    gives: ClassVar[tuple[str, ...]] = ("y",)

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: `forgetting` or `ridge` is out of range, `horizon` is below 1, or `truth` names no input.
        """
        count("horizon", self.horizon)
        for name, most in (("forgetting", 1.0), ("ridge", np.inf)):
            value = getattr(self, name)
            if np.ndim(value) or not 0 < float(numbers(name, value)) <= most:
                raise ManifestError(
                    f"`{name}` is {value!r:.60}; expected a number above 0{' and at most 1' * (most == 1)}.",
                    fix="Give `forgetting=0.999`." if most == 1 else "Give `ridge=1.0`.",
                )
        self._truth()

    @property
    def sources(self) -> list[str | None]:
        return [self.features if self.features is not None else super().sources[0], f"inputs.{self.truth_input}"]

    @property
    def long_steps(self) -> int:
        rest = 1 - self.forgetting
        return MOST_STEPS if rest <= 0 else int(min(MOST_STEPS, np.ceil(round(40 / rest, 6))))

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        return [(self.truth_size(rows[1]),)]

    def truth_row(self, row: Row) -> Row:
        _, place = self._truth()
        return (1,) if place is None else (place + 1,)

    def labels_of(self, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        _, place = self._truth()
        return [list(labels[1]) if place is None else [labels[1][place]] if labels[1] else []]

    def _unit(self, size: int) -> float:
        return float(np.sqrt(_PERTURBED * size * (1 - self.forgetting) * self.ridge))

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        *values, learn = xs
        (features, truth), (row, truth_row) = values, rows
        size, outputs = int(np.prod(row)), self.truth_size(truth_row)
        now = graph.reshape(features, [size])
        past, is_there = _emit_past(graph, self.title, now, (size,), self.horizon)
        truths = self.emit_truth(graph, truth, truth_row)
        weights = _learned(graph, f"{self.title}.w", (outputs, size))
        inverse = _learned(graph, f"{self.title}.P", (outputs, size, size), np.eye(size) / self.ridge)
        number = _learned(graph, f"{self.title}.n", (outputs,))

        g = graph.reshape(past, [1, size, 1])
        w = graph.reshape(weights.input, [outputs, size, 1])
        error = graph.op("Sub", graph.reshape(truths, [outputs, 1, 1]), _emit_dot(graph, w, g))
        v = graph.op("MatMul", inverse.input, g)
        d = graph.op("Add", graph.constant(self.forgetting, "float64"), _emit_dot(graph, g, v))
        w = graph.op("Add", w, graph.op("Mul", graph.op("Div", v, d), error))
        p = graph.op("Sub", inverse.input, graph.op("Div", _emit_outer(graph, v), d))
        p = graph.op("Div", p, graph.constant(self.forgetting, "float64"))
        n = graph.op("Add", number.input, graph.constant(1.0, "float64"))
        if unit := self._unit(size):
            place = graph.op("Mod", graph.cast(n, "int64"), graph.constant(size, "int64"))
            at = graph.op("Equal", graph.reshape(place, [outputs, 1]), graph.ints(list(range(size))))
            u = graph.op("Mul", graph.cast(at, "float64"), graph.constant(unit, "float64"))
            u = graph.reshape(u, [outputs, size, 1])
            v = graph.op("MatMul", p, u)
            d = graph.op("Add", graph.constant(1.0, "float64"), _emit_dot(graph, u, v))
            w = graph.op("Sub", w, graph.op("Mul", graph.op("Div", v, d), _emit_dot(graph, w, u)))
            p = graph.op("Sub", p, graph.op("Div", _emit_outer(graph, v), d))

        learned = _emit_learned(graph, truths, (outputs,), learn, is_there)
        kept = graph.op("Where", graph.reshape(learned, [outputs, 1]), graph.reshape(w, [outputs, size]), weights.input)
        graph.next_state(weights, kept)
        graph.next_state(inverse, graph.op("Where", graph.reshape(learned, [outputs, 1, 1]), p, inverse.input))
        graph.next_state(number, graph.op("Where", learned, n, number.input))
        answer = graph.op("MatMul", kept, graph.reshape(now, [size, 1]))
        return [graph.reshape(answer, [outputs])]

    def follow(self, values: Sequence[Array], learn: Array) -> list[Array]:
        features, truths = values[0].reshape(*values[0].shape[:2], 1, -1), self.truths(values[1])
        rows, steps, _, size = features.shape
        outputs = truths.shape[-1]
        w, n = np.zeros((rows, outputs, size)), np.zeros((rows, outputs), np.int64)
        p = np.broadcast_to(np.eye(size) / self.ridge, (rows, outputs, size, size)).copy()
        found = np.zeros((rows, steps, outputs))
        for t in range(steps):
            there = ~np.isnan(truths[:, t]) & _wide(learn[:, t], truths[:, t])
            if t >= self.horizon and there.any():
                learned = self._learn(w, p, n, features[:, t - self.horizon], truths[:, t])
                w, p, n = (
                    np.where(_wide(there, old), fresh, old) for fresh, old in zip(learned, (w, p, n), strict=True)
                )
            found[:, t] = _dot(w, features[:, t])
        return [found]

    def _learn(self, w: Array, p: Array, n: Array, g: Array, truths: Array) -> tuple[Array, Array, Array]:
        """Return weights `(.., size)`, their inverse correlation, and the number of truths, with one truth more."""
        v = (p @ g[..., None])[..., 0]
        d = self.forgetting + _dot(g, v)
        w = w + v / d[..., None] * (truths - _dot(w, g))[..., None]
        p = (p - _outer(v) / d[..., None, None]) / self.forgetting
        n = n + 1
        size = w.shape[-1]
        if unit := self._unit(size):
            u = unit * (np.arange(size) == n[..., None] % size)
            v = (p @ u[..., None])[..., 0]
            d = 1 + _dot(u, v)
            w = w - v / d[..., None] * _dot(w, u)[..., None]
            p = p - _outer(v) / d[..., None, None]
        return w, p, n


@dataclass(slots=True)
class _Emitted:
    """A quantile in the graph: before the value, as it is kept without it, after it, and the value's number."""

    before: str
    kept: str
    after: str
    count: str


def _emit_quantile(  # noqa: PLR0917  # what is tracked, and how
    graph: GraphBuilder, title: str, x: str, learned: str, row: Row, share: float, rate: float,
    initial: Array | None = None,
) -> _Emitted:  # fmt: skip
    """Emit what `_Quantile` computes; `learned` is bool, of the shape of `x`."""
    q, m, s, n = (
        _learned(graph, f"{title}.{name}", row, init)
        for name, init in (("q", initial), ("m", None), ("s", None), ("n", None))
    )
    one, slow = graph.constant(1.0, "float64"), graph.constant(rate, "float64")
    number = graph.op("Add", n.input, one)
    before = graph.op("Where", graph.op("Equal", n.input, graph.constant(0.0, "float64")), x, q.input)
    gain = graph.op("Max", slow, graph.op("Div", one, number))
    mean = graph.op("Add", m.input, graph.op("Mul", gain, graph.op("Sub", x, m.input)))
    off = graph.op("Abs", graph.op("Sub", x, mean))
    spread = graph.op("Add", s.input, graph.op("Mul", gain, graph.op("Sub", off, s.input)))
    is_below = graph.cast(graph.op("LessOrEqual", x, before), "float64")
    pace = graph.op("Mul", graph.op("Max", slow, graph.op("Div", one, graph.op("Sqrt", number))), spread)
    change = graph.op("Mul", pace, graph.op("Sub", graph.constant(share, "float64"), is_below))
    after = ""
    for state, fresh in ((n, number), (m, mean), (s, spread), (q, graph.op("Add", before, change))):
        after = graph.op("Where", learned, fresh, state.input)
        graph.next_state(state, after)
    return _Emitted(before, q.input, after, number)


class _Quantile:
    """An online quantile of values, one for each number of a row; see `AdaptiveThreshold`."""

    def __init__(self, shape: Row, share: float, rate: float, initial: Array | float = 0.0) -> None:
        self.q = np.broadcast_to(np.asarray(initial, np.float64), shape).copy()
        self._m, self._s, self._n = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._share = share
        self._rate = rate

    def learn(self, x: Array, there: Array) -> tuple[Array, Array]:
        """Learn from values where they are there; return the quantile before them, and their numbers from 1."""
        n = self._n + 1
        before = np.where(self._n == 0, x, self.q)
        gain = np.maximum(self._rate, 1 / n)
        m = self._m + gain * (x - self._m)
        s = self._s + gain * (np.abs(x - m) - self._s)
        q = before + np.maximum(self._rate, 1 / np.sqrt(n)) * s * (self._share - (x <= before))
        self._n, self._m, self._s, self.q = (
            np.where(there, fresh, old) for fresh, old in ((n, self._n), (m, self._m), (s, self._s), (q, self.q))
        )
        return before, n


def _learned(graph: GraphBuilder, name: str, row: Row, init: Array | None = None) -> StateSpec:
    """Declare a state that is learned: float64, and stored as such whatever the others are stored as."""
    state = graph.state(name, row, "float64", init=init)
    graph.states[-1] = kept_whole(state)
    return graph.states[-1]


def kept_whole(state: StateSpec) -> StateSpec:
    """Return a state that is stored as it is, whatever `--store-dtype` says."""
    return state.model_copy(update={"learned": True})


def _emit_learned(graph: GraphBuilder, x: str, row: Row, *marks: str) -> str:
    """Emit where a value `(batch, *row)` is there and each of the marks, one for a row of the batch, is true."""
    learned = graph.op("Not", graph.op("IsNaN", x))
    for mark in marks:
        learned = graph.op("And", learned, graph.reshape(mark, [1] * len(row)))
    return learned


def _emit_past(graph: GraphBuilder, title: str, x: str, row: Row, horizon: int) -> tuple[str, str]:
    """Emit the row of `horizon` timesteps ago, float64, and whether there was one, `(batch, 1, ..)` bool."""
    start = len(graph.states)
    rows, valid = valid_window(graph, title, x, row, horizon)
    graph.states[start:] = [kept_whole(state) for state in graph.states[start:]]
    zero = graph.constant(0, "int64")
    return graph.op("Gather", rows, zero, axis=1), graph.cast(graph.op("Gather", valid, zero, axis=1), "bool")


def _emit_dot(graph: GraphBuilder, left: str, right: str) -> str:
    """Emit the product of columns `(batch, k, size, 1)`, `(batch, k, 1, 1)`."""
    return graph.op("MatMul", graph.op("Transpose", left, perm=[0, 1, 3, 2]), right)


def _emit_outer(graph: GraphBuilder, column: str) -> str:
    """Emit a column `(batch, k, size, 1)` times itself, `(batch, k, size, size)`: symmetric to the last bit."""
    return graph.op("Mul", column, graph.op("Transpose", column, perm=[0, 1, 3, 2]))


def _delayed(values: Array, steps: int) -> Array:
    return np.concatenate([np.repeat(values[:, :1], steps, axis=1), values], axis=1)[:, : values.shape[1]]


def _wide(mask: Array, like: Array) -> Array:
    """Return a mask over the first axes with as many axes as another array."""
    return mask.reshape(*mask.shape, *[1] * (like.ndim - mask.ndim))


def _dot(left: Array, right: Array) -> Array:
    return np.asarray((left * right).sum(axis=-1))


def _outer(v: Array) -> Array:
    return np.asarray(v[..., :, None] * v[..., None, :])

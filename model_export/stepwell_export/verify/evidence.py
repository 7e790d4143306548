"""What a proof is worth: whether a wrong graph could have passed it, and which decisions of the original it took."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import magnitude
from stepwell_export.verify.decisions.record import Decision, Observed, Observer
from stepwell_export.verify.tolerance import OutputParity, Scale, Tolerance, numbers

SHARE = 0.1
"""A tolerance above this part of the median magnitude proves little."""

_KEPT = 65_536
"""Values of one kind of sequence that the median and the share of distinct ones are taken from."""

_MOST_NUMBERS = 4096
"""Numbers of a row that are each compared with their own size; in a larger row all are compared with the row's."""

_NOISE = 2.0
"""In units of the last place of the output's largest value: numbers that never exceed this are rounding alone."""

_ROUNDING = 8.0
"""In units of the last place of a number's own largest value: what rounding makes of one that decays to nothing."""


@dataclass(slots=True)
class Evidence:
    """What was compared of one output.

    Attributes:
        tolerance: What was demanded.
        labels: The same of each number that has a label.
    """

    tolerance: Tolerance
    labels: list[Evidence] = field(default_factory=list)
    _values: list[Array] = field(default_factory=list)
    _loosest: float = 0.0
    _loose: str = ""
    _low: float = np.inf
    _high: float = -np.inf
    _infinite: int = 0

    def note(self, off: Array, want: Array) -> None:
        """Take differences within the tolerance, and the original's values, into account.

        Args:
            off: Shape `(rows, timesteps, *shape)`.
            want: The same.
        """
        finite = want[np.isfinite(want)] if want.dtype.kind == "f" else want.reshape(-1)
        self._infinite += want.size - finite.size
        if not finite.size:
            return
        self._low = min(self._low, float(finite.min()))
        self._high = max(self._high, float(finite.max()))
        self._values.append(finite[:: max(1, finite.size // _KEPT)])
        if want.dtype.kind == "f":
            self._hold_tightly(off, want)
        for evidence, (of, values) in zip(self.labels, numbers(off, want), strict=False):
            evidence.note(of, values)

    @property
    def largest(self) -> float:
        """The largest magnitude of what was compared; 1 where there is none but zero."""
        return max(abs(self._low), abs(self._high)) or 1.0 if self._values else 1.0

    def judge(self, line: OutputParity) -> None:
        """Write down in an output's line what its proof is worth."""
        for evidence, of_label in zip(self.labels, line.labels.values(), strict=True):
            evidence.judge(of_label)
        if self._infinite:
            line.why = (
                f"{self._infinite:,} of its values are infinite, in the original and in the step graph, and infinities "
                "cannot be served: let the original limit them, as by a clip of what it divides by"
            )
        if not self._values:
            return
        values = np.concatenate(self._values)
        sizes = np.abs(values.astype(np.float64))
        median = float(np.median(sizes[sizes > 0])) if sizes.any() else 0.0
        line.scale = Scale(max(abs(self._low), abs(self._high)), median, len(np.unique(values)) / len(values))
        line.atol = self.tolerance.atol if not self.tolerance.scaled else self._loosest
        if not self._infinite:
            line.weak, line.why = self._judgement(median, values)

    def _judgement(self, median: float, values: Array) -> tuple[bool, str]:
        if self._low == self._high:
            return True, f"the original was constant ({self._low:.3g})"
        if values.dtype.kind != "f":
            return False, ""
        if not self.tolerance.scaled:
            is_weak = self.tolerance.atol > SHARE * median
            return (
                is_weak,
                f"{self.tolerance.atol:.2g} is allowed, and half of its values are below {median:.2g}" * is_weak,
            )
        return bool(self._loose), self._loose

    def _hold_tightly(self, off: Array, want: Array) -> None:
        """Compare differences with a tenth of the median magnitude of each number of a row, too.

        What was demanded follows the largest value of the tensor; numbers that are much smaller need less.
        """
        plain = self.tolerance.on(want)
        count = int(np.prod(want.shape[2:]))
        columns = count if 0 < count <= _MOST_NUMBERS else 1
        values, offs = (array.reshape(-1, columns).astype(np.float64) for array in (want, off))
        sizes = np.abs(values)
        sizes[~np.isfinite(sizes)] = 0.0
        eps = float(np.finfo(want.dtype).eps)
        noise = _NOISE * eps * magnitude(want)
        for column, medians in enumerate(_medians(sizes)):
            tight = plain.atol
            if medians and sizes[:, column].max() > noise:
                tight = min(tight, max(SHARE * medians, _ROUNDING * eps * float(sizes[:, column].max())))
            allowed = tight + plain.rtol * sizes[:, column]
            if self.tolerance.scaled and bool((offs[:, column] > allowed).any()):
                place = [int(i) for i in np.unravel_index(column, want.shape[2:])] if columns > 1 else []
                what = f"number {place}" if place else "it"
                self._loose = self._loose or (
                    f"{what} is off by {np.max(offs[:, column]):.2g}, and half of its values are below {medians:.2g}"
                )
                tight = plain.atol
            self._loosest = max(self._loosest, tight)


def _medians(sizes: Array) -> Sequence[float]:
    """Return the median of each column's values that are not zero; 0 where all are."""
    some = np.where(sizes > 0, sizes, np.nan)
    empty = np.isnan(some).all(axis=0)
    some[:, empty] = 0.0
    return [float(value) for value in np.nanmedian(some, axis=0)]


class Coverage:
    """Collects what an original decided in the runs that were compared.

    Attributes:
        seen: It.
        failure: Why decisions cannot be recorded; empty where they can.
    """

    def __init__(self, observer: Observer | None) -> None:
        self.seen = Observed()
        self.failure = "" if observer is not None else "the original cannot be looked into here"
        self._observer = observer

    def observe(self, data: Mapping[str, Array]) -> bool:
        """Run the original on compared sequences; return whether a decision went a way that it had not gone."""
        if self._observer is None or self.failure:
            return False
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            return self.seen.add(self._observer(data))
        except Exception as exc:  # noqa: BLE001  # the observer runs the framework's code in an unusual way
            reason = next(iter(str(exc).strip().splitlines()), "")[:200].rstrip(".")
            self.failure = f"recording them fails: {type(exc).__name__}: {reason}"
            return False
        finally:
            logging.disable(before)

    @property
    def open(self) -> list[Decision]:
        """The decisions that went one way only."""
        return self.seen.one_sided

    @property
    def is_of_sizes(self) -> bool:
        """Whether there are decisions of sizes alone, which are settled only where runs of several lengths agree."""
        return any(decision.sizes for decision in self.seen.decisions.values())

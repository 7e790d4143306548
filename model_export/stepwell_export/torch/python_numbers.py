"""`PythonNumbers`: what a module's own code computes, in Python, of how many timesteps there are and of their places.

A graph holds operations on tensors. `n >> 12`, `math.sqrt(t) > 70` and a counter that is squared are none: a trace
holds what they gave for the sequence that was traced. So the module runs with each operand of an operation on Python
numbers noted. An operand that differs for another number of timesteps may be added, subtracted, multiplied and divided
by what stays the same, and compared; the length at which a comparison turns over is one to try. What else becomes of
it cannot be followed to lengths that were not run.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.capture import Capture
from stepwell_export.torch.checks import in_turn
from stepwell_export.torch.noted_code import IN_AXES, TAKEN, NotedCode, Site, Values

_LINEAR = {"Add", "Sub", "Mult", "Div"}

_COUNTING = {
    enumerate, id, isinstance, iter, len, list, next, print, reversed, set, slice, sum, tuple, type, zip,
}  # fmt: skip
"""Functions that count, or hold a number as it is."""

_ROUNDING = {int, round, math.ceil, math.floor, math.trunc}
"""Functions that give a whole number as it is."""

_SMALL = 8
"""The most that half of a number of timesteps is compared with by a scan."""


class PythonNumbers:
    """What the code of a module does with numbers of timesteps.

    Attributes:
        place: The first line that cannot be followed to other lengths; None: there is none.
        lengths: Numbers of timesteps at which a comparison turns over.
    """

    def __init__(self, whole: Sequences, *, halves: bool = False) -> None:
        """Run a module.

        Args:
            whole: The module.
            halves: Whether numbers may be halved, and what is left compared with small ones, as a scan in log2(T)
                rounds does that has been run on each number of timesteps up to twice as many.
        """
        self._halves = halves
        self.lengths: set[int] = set()
        *_, long = whole.lengths
        noted = NotedCode(whole)
        with in_turn(), noted.now():
            # lengths that the module has not run on, as it may keep what it computes for one; three show a line
            for steps in (long + 1, long + 2, 2 * long + 1, *whole.lengths):
                if len(noted.runs) > 1 and steps <= long:
                    break
                noted.steps = steps
                try:
                    noted.captures = False
                    whole.run(whole.drawn(1, steps))  # what it makes once, and keeps, is no tensor of the next run
                    noted.captures = True
                    Capture().run(whole.module, whole.drawn(1, steps))
                except RefusedModelError:  # it takes no sequence as long
                    continue
                noted.runs.append(steps)
        self._runs = noted.runs
        self._in_a_loop = whole.loops
        unclear = (site.place for site in noted.sites if not self._is_clear(site, noted))
        self.place = noted.unread or next(unclear, None) or whole.read_of_sizes
        self._noted = noted
        self._rounds = self.place is None and any(map(self._is_rounded, noted.sites))
        if self._rounds:
            with in_turn(), noted.now():
                noted.steps = 0  # of other rows: what these change is not the same at all times
                whole.run(whole.drawn(2, long + 1))

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """While the module is traced: what is the same number for all lengths, as `math.ceil(n / 1) - n`, is that one.

        A trace would hold what was rounded as it is in its run.
        """
        with self._noted.now(repeats=True) if self._rounds else contextlib.nullcontext():
            yield

    def _is_rounded(self, site: Site) -> bool:
        return not site.called.isdisjoint(_ROUNDING) and any(map(self._varies, site.operands.values()))

    def check(self) -> None:
        """Check that what the module does for any number of timesteps follows from what it did in the runs.

        Raises:
            RefusedModelError: It does not; the message has the line.
        """
        if self.place is not None:
            raise RefusedModelError(
                "What the module computes in Python of the number of timesteps, or of their place, cannot be followed "
                f"to longer sequences ({self.place}); expected sums, differences, multiples and comparisons.",
                fix="Compute it with operations on tensors; or declare how many timesteps there are at most: "
                "StepSpec(.., length=N).",
            )

    # ---------------------------------------------------------------- what is clear

    def _is_clear(self, site: Site, noted: NotedCode) -> bool:
        """Whether what an operation gives for any number of timesteps follows from the runs."""
        varying = [at for at, values in site.operands.items() if self._varies(values)]
        if site.kind == "Compare":
            return self._is_clear_comparison(site, varying)
        if site.kind == "Subscript":  # a slice ends where what it is of ends
            ends = (values for at, values in site.operands.items() if not isinstance(at, int) or at < IN_AXES)
            self.lengths |= {abs(int(value)) for values in ends for value in self._all(values)}
        if not varying:
            return True
        if self._in_a_loop and (site.makes_data or (site.takes and self._is_short(site, varying))):
            return False
        if site.kind == "BinOp":
            return self._is_linear(site, varying)
        if site.kind == "Subscript":
            return not site.sizes or self._varies(site.sizes)
        if site.kind == "test":
            return all(self._turns(site.operands[at]) for at in varying)
        return site.kind == "Call" and all(self._is_clear_call(site, called, varying, noted) for called in site.called)

    def _is_short(self, site: Site, varying: Sequence[Any]) -> bool:
        """Whether the places of timesteps in a tensor have an end, which no run has come to."""
        counts = any(len(values) > 1 for at in varying for values in site.operands[at].values())
        return counts and not self._varies(site.tables)

    def _is_linear(self, site: Site, varying: Sequence[Any]) -> bool:
        what, (other,) = site.what[0], {0, 1} - {varying[0]} if len(varying) == 1 else (None,)
        if other is not None and other not in site.operands:  # a tensor, or a list: in the graph, or counted
            return what in _LINEAR
        if what in {"Add", "Sub"}:
            return True
        if other is None or (other == 0 and what != "Mult"):
            return False
        if what in {"FloorDiv", "Mod"}:
            by = self._all(site.operands[1])
            return (self._halves and by == {2}) or all(self._is_divided(site.operands[0], one) for one in by)
        return what in {"Mult", "Div"}

    def _is_clear_comparison(self, site: Site, varying: Sequence[Any]) -> bool:
        if not {"In", "NotIn"}.isdisjoint(site.what):
            return not varying or self._varies(site.sizes)  # what is made once for each length
        if any(isinstance(at, tuple) for at in varying):  # parts of tuples that are compared, and no `sizes is None`
            return set(site.what) <= {"Is", "IsNot"}
        for at, values in site.differences.items():
            if not self._varies(values) or self._turns(values):
                continue
            one, other = (site.operands.get(place, {}) for place in (at - 1, at))
            fixed = [self._all(values) for values in (one, other) if not self._varies(values)]
            if self._halves and all(abs(value) <= _SMALL for values in fixed for value in values):
                continue
            rounds = [self._doubles(a) and self._line(b) for a, b in ((one, other), (other, one))]
            if not any(rounds):
                return False
        return True

    def _is_clear_call(self, site: Site, called: Any, varying: Sequence[Any], noted: NotedCode) -> bool:
        if called is next:  # of what is not the module's own code
            return TAKEN not in varying
        if called is zip:  # of a list of a fixed length, which has something for each timestep, only some were seen
            return {at for at in site.operands if isinstance(at, str)} <= set(varying)
        if called is range:  # as many as there are between two numbers, or none
            return all(map(self._turns, site.differences.values() or site.operands.values()))
        if called in _COUNTING or called is float or called is bool or noted.is_followed(called):
            return True
        if called in _ROUNDING:
            return all(map(self._is_whole, (site.operands[at] for at in varying)))
        if called in {min, max}:
            return len(site.operands) == 2 and all(map(self._turns, site.differences.values()))
        if called is abs:
            return all(self._turns(site.operands[at]) for at in varying)
        return called in {math.prod, np.prod} and len(varying) == 1

    # ---------------------------------------------------------------- numbers of all runs

    def _varies(self, values: Values) -> bool:
        runs = [values.get(steps) for steps in self._runs]
        return any(run != runs[0] for run in runs)

    def _all(self, values: Values) -> set[float]:
        return set[float]().union(*values.values())

    def _ends(self, values: Values) -> Iterator[tuple[float, float]]:
        """Yield the slope by timesteps, and the value at none, of the least and the largest number; none if bent."""
        if all(values.get(steps) for steps in self._runs):
            for end in (min, max):
                if (line := _line([(steps, float(end(values[steps]))) for steps in self._runs])) is not None:
                    yield line

    def _turns(self, values: Values) -> bool:
        """Note at which lengths numbers turn over zero; False: that does not follow."""
        ends = list(self._ends(values))
        for slope, start in ends:
            if slope and 1 <= (length := -start / slope) < sys.maxsize:
                self.lengths |= {math.floor(length), math.ceil(length)}
        return len(ends) == 2

    def _line(self, values: Values) -> bool:
        return len(list(self._ends(values))) == 2

    def _is_whole(self, values: Values) -> bool:
        """Whether numbers are whole for any number of timesteps."""
        ends = list(self._ends(values))
        return len(ends) == 2 and all(float(one).is_integer() for one in [*self._all(values), *sum(ends, ())])

    def _is_divided(self, values: Values, by: float) -> bool:
        """Whether numbers are multiples for any number of timesteps."""
        ends = list(self._ends(values))
        return len(ends) == 2 and by != 0 and not any(one % by for one in [*self._all(values), *sum(ends, ())])

    def _doubles(self, values: Values) -> bool:
        """Whether numbers are 1, 2, 4, .., as in a scan that takes log2(T) rounds."""
        return all(
            run == {2**at for at in range(len(run))} for run in (values.get(steps, set()) for steps in self._runs)
        )


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Return the slope of a line through points, and its value at zero; None: they are on none."""
    (first, low), (last, high) = points[0], points[-1]
    slope = (high - low) / (last - first) if last != first else 0.0
    start = low - slope * first
    near = all(math.isclose(slope * at + start, value, rel_tol=1e-9, abs_tol=1e-9) for at, value in points)
    return (slope, start) if near else None

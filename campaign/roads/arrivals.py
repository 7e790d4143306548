"""`Arrivals`: compares what arrives in the outgoing place with the fold, in the order in which it is there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from campaign.roads.road import Prediction

_SHOWN = 20


class Arrivals:
    """What has arrived so far.

    Attributes:
        n_new: Steps that have arrived, each counted once.
        doubles: Predictions that were there before, with equal content.
        problems: What must not be; the first ones.
    """

    def __init__(
        self, names: Sequence[str], expected: npt.NDArray[np.int64], *, may_double: bool, steps_before: int = 0
    ) -> None:
        """Create it; nothing has arrived.

        Args:
            names: The streams' ids.
            expected: Their predictions, `(streams, steps)`.
            may_double: Whether a prediction may be there again, from a poll that was written before a kill.
            steps_before: The step of each stream before the first of these.
        """
        self.n_new = 0
        self.doubles = 0
        self.problems: list[str] = []
        self._codes: Mapping[str, int] = {name: code for code, name in enumerate(names)}
        self._expected = expected
        self._positions = np.full(expected.shape, -1, np.int64)
        self._previous = [0] * len(names)
        self._newest = [0] * len(names)
        self._may_double = may_double
        self._steps_before = steps_before

    @property
    def is_complete(self) -> bool:
        """Whether every step of every stream has arrived."""
        return self.n_new >= self._expected.size

    def add(self, found: Prediction) -> None:
        """Compare one message."""
        code = self._codes.get(found.stream)
        if code is None:
            self._report(f"a prediction of the unknown stream {found.stream!r}")
            return
        step, newest = found.step - self._steps_before, self._newest[code]
        if not 1 <= step <= self._expected.shape[1]:
            self._report(f"{found.stream}: step {step} of {self._expected.shape[1]}")
            return
        if found.y != self._expected[code, step - 1]:
            self._report(f"{found.stream}: step {step} is {found.y}; expected {self._expected[code, step - 1]}")
        if step <= newest:
            self._add_double(found, code, step)
        elif step != newest + 1 or self._previous[code] != newest:
            self._report(f"{found.stream}: step {step} follows {self._previous[code]}; the newest one is {newest}")
        if step > newest:
            self._newest[code] = step
            self._positions[code, step - 1] = found.source.at
            self.n_new += 1
        self._previous[code] = step

    def missing(self) -> list[str]:
        """Return a sentence for each stream that is not complete."""
        n_steps = self._expected.shape[1]
        return [
            f"{name}: steps end at {self._newest[code]} of {n_steps}"
            for name, code in self._codes.items()
            if self._newest[code] != n_steps
        ]

    def _add_double(self, found: Prediction, code: int, step: int) -> None:
        self.doubles += 1
        if not self._may_double:
            self._report(f"{found.stream}: step {found.step} is there twice")
        if found.source.at != self._positions[code, step - 1]:
            before = self._positions[code, step - 1]
            self._report(f"{found.stream}: step {found.step} is from position {found.source.at} and from {before}")

    def _report(self, problem: str) -> None:
        if len(self.problems) < _SHOWN:
            self.problems.append(problem)


def compare_next_step(document: Mapping[str, Any], names: Sequence[str], expected: npt.NDArray[np.int64]) -> list[str]:
    """Return what is wrong in the response to one more step of every stream, in columns."""
    found = [row[0] for row in document["outputs"]["y"]]
    return [
        f"{name}: one more step is {is_now}; expected {should}"
        for name, is_now, should in zip(names, found, expected.tolist(), strict=True)
        if is_now != should
    ]

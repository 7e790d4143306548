"""`ResultGatherer`: collects the results of the timesteps of a bulk request that are stepped one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepwell.errors import ServiceError
from stepwell.types import BulkPrediction, Prediction

StepOutcome = Prediction | ServiceError
BulkOutcomes = BulkPrediction | list[StepOutcome]
"""The results of a bulk request: as columns if all rows were applied in one commit, else one by one."""


class ResultGatherer:
    """Collects the results of timesteps that are stepped one by one, and calls back once when all are there."""

    __slots__ = ("_done", "_n_missing", "_results")

    def __init__(self, rows: Sequence[object], done: Callable[[list[StepOutcome]], None]) -> None:
        """Wait for the timesteps' results; if every request is an error, `done` is called at once.

        Args:
            rows: One item per request, or the error in it.
            done: Called with the results, in the same order.
        """
        self._results: list[StepOutcome] = list(rows)  # type: ignore[arg-type]  # until the results are there
        self._n_missing = sum([not isinstance(row, ServiceError) for row in rows])
        self._done = done
        if not self._n_missing:
            done(self._results)

    def receive_all(self, rows: Sequence[int], results: Sequence[StepOutcome]) -> None:
        """Store the results of some timesteps, at least one."""
        for i, result in zip(rows, results, strict=True):
            self._results[i] = result
        self._n_missing -= len(rows)
        if not self._n_missing:
            self._done(self._results)

    def receive(self, i: int, result: StepOutcome) -> None:
        """Store the result of timestep `i`."""
        self._results[i] = result
        self._n_missing -= 1
        if not self._n_missing:
            self._done(self._results)
